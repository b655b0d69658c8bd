"""Several public sources in one training: joined, and balanced over sources and patients."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from common.arrays import Flags, Floats
from common.errors import ConfigurationError
from server.public_data.images import Source


def join_sources(sources: Sequence[Source]) -> Source:
    """Return all photographs as one source, with the `weights` by which each is drawn.

    A source's weight grows with the square root of its patients: a small source counts for more
    than its size and is not repeated until it is learned by heart. The sides are known where every
    source knows them. The digest of several sources is the SHA-256 of theirs. Raises
    ConfigurationError for a source that is given twice and for images of different sizes.
    """
    if len({source.digest for source in sources}) < len(sources):
        raise ConfigurationError("pretrain: a source is given twice", hint="name every source once")
    if len({source.images.shape[1:] for source in sources}) > 1:
        found = [list(source.images.shape[1:]) for source in sources]
        raise ConfigurationError(
            f"pretrain: sources of different sizes: {found}", hint="give all in one size"
        )
    if len(sources) == 1:
        return sources[0]
    names: list[str] = []
    patients: list[str] = []
    weights = []
    for number, source in enumerate(sources):
        # a name or a patient of two sources is not the same one
        names += [f"{number}:{name}" for name in _names(source)]
        patients += [f"{number}:{patient}" for patient in people_of(source)]
        weights.append(len(set(people_of(source))) ** 0.5 * draw_shares(source))
    shares = np.concatenate(weights)
    digests = "\n".join(source.digest for source in sources)
    return Source(
        np.concatenate([source.images for source in sources]),
        tuple(names),
        _join_sides(sources),
        hashlib.sha256(digests.encode()).hexdigest(),
        shares / shares.sum(),
        tuple(patients),
    )


def people_of(source: Source) -> tuple[str, ...]:
    """Return the patient of each photograph; without patients each photograph is its own."""
    return source.patients or _names(source)


def draw_shares(source: Source) -> Floats:
    """Return how often each photograph is drawn, [N], in all 1.

    These are the source's `weights`; without them each patient counts once.
    """
    if source.weights is not None:
        return source.weights
    people = people_of(source)
    photographs = Counter(people)
    shares = np.array([1 / photographs[person] for person in people])
    return np.asarray(shares / shares.sum())


def _names(source: Source) -> tuple[str, ...]:
    """The names of the photographs, or their numbers where there are no names."""
    return source.names or tuple(f"{row:06d}" for row in range(len(source.images)))


def _join_sides(sources: Sequence[Source]) -> Flags | None:
    """True for right; None unless every source knows its sides."""
    sides = []
    for source in sources:
        if source.right is None:
            return None
        sides.append(source.right)
    return np.concatenate(sides)
