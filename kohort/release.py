"""A release from Python: `kohort.load(path)`.

In: a release folder, and whom the reader trusts.
Out: a `Release`: images, labels, masks, and what may be said of them.
Guarantees: it is verified before anything is read, unless the reader says `verify=False`; each
picture has the signed SHA-256 when it is read.
Not covered: whether the key deserves trust. Name it: `trust=`.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kohort.errors import ConfigurationError, KohortError
from kohort.extras import extra
from kohort.manifest import Manifest, read_manifest
from kohort.notices import known_notices
from kohort.picture import read_picture
from kohort.table import Row, read_table
from kohort.trust import read_trust
from kohort.verdict import Verdict, judge, unchecked_words
from kohort.verification import verify as verify_folder

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray

    from kohort.sample import Drawn
    from kohort.torch_data import TorchImages

    Pixels = NDArray[np.uint8]

Trust = str | Path | Iterable[str]


class UncheckedKeyWarning(UserWarning):
    """A release is consistent, but signed by a key that nobody has checked."""


class NoticeWarning(UserWarning):
    """A release was withdrawn or superseded, as the catalogues know that this user saw last."""


class Item(NamedTuple):
    """One image uint8 [H, W] or [H, W, 3], its label, and its mask uint8 [H, W] of 0 and 255.

    `mask` is None where the release is not of pairs.
    """

    image: Pixels
    label: str
    mask: Pixels | None


def load(path: str | Path, trust: Trust | None = None, verify: bool = True) -> Release:
    """Return the release in the folder `path`, verified.

    `trust`: the operator's fingerprint `SHA256:...`, its key line, a file of such lines, or several
    of them, from another channel than the release. Without it an `UncheckedKeyWarning` says that
    the release is consistent, and no more. A `NoticeWarning` says that it was withdrawn or
    superseded, where a catalogue that this user saw knows of it. `verify=False` reads it as it is,
    for a folder that was verified already.

    Raises RefusedError where the release does not verify, and ConfigurationError for no folder, or
    for trust without verification (kohort.errors).
    """
    folder = Path(path)
    trusted = _read_trust(trust)
    if not verify and trusted:
        raise ConfigurationError(
            "trust is given, and verify=False checks nobody's signature",
            hint="leave verify=False out",
        )
    verdict = None
    if verify:
        verdict = judge(folder, verify_folder(folder, trust=trusted), trusted)
        if not verdict.trusted:
            message, _ = unchecked_words(str(folder), verdict)
            hint = "take the fingerprint from another channel: kohort.load(path, trust=...)"
            warnings.warn(f"{message}; {hint}", UncheckedKeyWarning, stacklevel=2)
    manifest = verdict.manifest if verdict else read_manifest(folder)
    for line in _notice_lines(folder, manifest):
        warnings.warn(line, NoticeWarning, stacklevel=2)
    return Release(folder, manifest, read_table(folder, manifest.labels), verdict)


@dataclass(frozen=True, repr=False)
class Release:
    """A release on disk, in the order of metadata.csv.

    `verdict` is what was found at loading, and None where nothing was verified.
    """

    path: Path
    manifest: Manifest
    rows: tuple[Row, ...]
    verdict: Verdict | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order of their indices."""
        return self.manifest.labels

    @property
    def trusted(self) -> bool:
        """Whether it was verified against a key that the reader named."""
        return self.verdict is not None and self.verdict.trusted

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        """Return one item; raises RefusedError where its file is not as it was signed."""
        row = self.rows[operator.index(index)]
        mask = None
        if row.mask:
            mask = self._pixels(row.mask, row.mask_digest)
        return Item(self._pixels(row.file, row.digest), row.label, mask)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Release {manifest.name} {manifest.version}: {len(self)} images in {self.path}>"

    def verify(self, trust: Trust | None = None, require: int | None = None) -> Verdict:
        """Return the verdict on the folder as it is now: who signed it, and who is trusted.

        `require`: how many sign-offs; None: as many as the release says. Raises RefusedError where
        it does not verify.
        """
        trusted = _read_trust(trust)
        manifest = verify_folder(self.path, trust=trusted, require=require)
        return judge(self.path, manifest, trusted)

    def to_torch(self, transform: Callable[..., Any] | None = None) -> TorchImages:
        """Return a map-style PyTorch data set of (image, label index), or with the mask third.

        Without `transform` images and masks are float32 [C, H, W] from 0 to 1. `transform` gets the
        PIL image and returns what stands in its place; for pairs it gets image and mask, and
        returns both. For workers that are spawned it must be a function of a module.
        Needs the extra [torch].
        """
        with extra("torch"):
            from kohort.torch_data import TorchImages
        return TorchImages(self.path, self.rows, self.labels, transform)

    def to_hf(self) -> datasets.Dataset:
        """Return a Hugging Face data set with columns image, label, and mask for pairs.

        `image` and `mask` are of the feature Image and are decoded when a row is read, without
        another look at their digest. `label` is a ClassLabel. Nothing is copied or cached. Needs
        the extra [hf].
        """
        with extra("hf"):
            import datasets
        features = {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(self.labels)),
        }
        columns: dict[str, list[str]] = {
            "image": [str(self.path.absolute() / row.file) for row in self.rows],
            "label": [row.label for row in self.rows],
        }
        if any(row.mask for row in self.rows):
            features["mask"] = datasets.Image()
            columns["mask"] = [str(self.path.absolute() / row.mask) for row in self.rows]
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    def sample(
        self, count: int, *, seed: int | None = None, model: str | None = None
    ) -> Iterator[Drawn]:
        """Return an iterator over `count` new pictures from a model of the release.

        As `kohort.sample.draw`: the release is verified again, against the keys that `load` was
        given. The claims on groups of patients do not hold for what is drawn. Needs the extra
        [sample].
        """
        from kohort.sample import draw

        trust = self.verdict.trust if self.verdict else frozenset()
        return draw(self.path, count, seed=seed, model=model, trust=trust)

    def cite(self) -> str:
        """Return the line of `kohort cite`; who signed it stands there only where it was verified.

        Raises RefusedError where its DataCite metadata names no author.
        """
        from kohort import citing

        return citing.cite(self.path, self.manifest, signed=self.verdict is not None)

    def _pixels(self, name: str, digest: str) -> Pixels:
        """A picture's pixels, uint8."""
        with extra("images"):
            import numpy as np
        return np.array(read_picture(self.path, name, digest), np.uint8)


def _notice_lines(folder: Path, manifest: Manifest) -> list[str]:
    """What the catalogues say of the release; a damaged cache is said too, and stops nothing."""
    try:
        return [one.line for one in known_notices(folder, manifest)]
    except KohortError as error:
        return [str(error)]


def _read_trust(trust: Trust | None) -> frozenset[str]:
    """The fingerprints in what a reader gave."""
    if trust is None:
        return frozenset()
    if isinstance(trust, str | Path):
        trust = [str(trust)]
    found = read_trust(trust)
    if not found:
        raise ConfigurationError("trust: names nobody", hint="leave it out, or name a fingerprint")
    return found
