"""Says which sites of the plan are in quarantine, revoked, or sent nothing to a release.

In: the plan, the names behind the release's evidence, the sites in quarantine with their codes, the
revoked sites.
Out: one sentence a site.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common.study.plan import Study

SILENT = "sent nothing to this release. What was accepted from it before stays in the weights."
APART = "is in quarantine ({code}). Nothing that it sent is among the images."
STAYS = "What was accepted from it before stays in the weights."
REVOKED = "is revoked. What was accepted from it before is in this release."
INSIDE = "is in quarantine ({code}). Its updates are in the weights."


def absent_sites(
    study: Study,
    present: Collection[str],
    quarantined: Mapping[str, str],
    revoked: Collection[str] = (),
) -> list[str]:
    """Return a sentence for each site that is in quarantine, revoked or not `present`, by name."""
    sentences = []
    for name in sorted(site.name for site in study.sites):
        code = quarantined.get(name)
        if name in revoked:
            sentences.append(f"{name} {REVOKED}")
            continue
        if code is None and name in present:
            continue
        if code is None:
            sentences.append(f"{name} {SILENT}")
        elif name in present:
            sentences.append(f"{name} {INSIDE.format(code=code)}")
        else:
            sentences.append(f"{name} {APART.format(code=code)} {STAYS}")
    return sentences
