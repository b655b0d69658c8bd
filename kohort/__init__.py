"""Loads, verifies, pulls and lists releases; it imports nothing else of this repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kohort.release import Item as Item
    from kohort.release import NoticeWarning as NoticeWarning
    from kohort.release import Release as Release
    from kohort.release import UncheckedKeyWarning as UncheckedKeyWarning
    from kohort.release import load as load
else:

    def __getattr__(name: str) -> object:
        # each name comes when it is first used: `import kohort` waits for nothing
        if name not in __all__:
            raise AttributeError(f"module 'kohort' has no attribute {name!r}")
        from kohort import release

        return getattr(release, name)


__all__ = ["Item", "NoticeWarning", "Release", "UncheckedKeyWarning", "load"]
