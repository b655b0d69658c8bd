"""The values that a release is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.arrays import Images, Labels
from common.arrays import Pairs as PairArray
from common.study.plan import Study
from common.wire.messages import Header, Sealed
from server.evaluate.canary_rehearsal import ModelAudit
from server.evaluate.extractors import Extractor
from server.evaluate.people import PublicPeople
from server.evaluate.rehearsal_report import Rehearsal
from server.operator.config import Citation, ReleaseSigning
from server.public_data.pairs import PublicPairs


@dataclass(frozen=True)
class SiteBatch:
    """What one site sent for the release: its public key line and its sealed parts."""

    site: str
    key: str
    parts: Sequence[Sealed]


@dataclass(frozen=True)
class Account:
    """Epsilon of all that one site sends, by accountant, at the plan's delta.

    `versions` are the accountants' versions; `canaries` is the canary audit of
    each model in a rehearsal; without one it is empty.
    """

    epsilon: Mapping[str, float]
    versions: Mapping[str, str]
    canaries: Mapping[str, ModelAudit] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """What a study without synthesis releases.

    `drawn` is uint8 [N, S, S, 2], image and mask. `statements` holds for each site a
    `kohort.statements.Statement` as JSON, about its last update. `reference` are public real pairs
    to compare with.
    """

    drawn: PairArray
    statements: Mapping[str, bytes]
    reference: PublicPairs | None = None


@dataclass(frozen=True)
class ReleaseInputs:
    """All that a release is made from.

    `weights` are the files of the final models, `reference` public images to compare with.
    `rehearsal` are the public people of this run, or what an earlier rehearsal of this plan found.
    `quarantined` are the sites in quarantine now, with their codes; `revoked` those that were shut
    out for good. `signers` vouch for the release; `proposed` where they have not yet. `author` is
    whom a citation names.
    """

    study: Study
    bundle: Path
    batches: Sequence[SiteBatch]
    account: Account
    weights: Mapping[str, Path] = field(default_factory=dict)
    reference: Images | None = None
    reference_name: str = ""
    pairs: Pairs | None = None
    extractor: Extractor | None = None
    rehearsal: PublicPeople | Rehearsal | None = None
    quarantined: Mapping[str, str] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    signers: ReleaseSigning = field(default_factory=ReleaseSigning)
    proposed: bool = False
    author: Citation = field(default_factory=Citation)


@dataclass(frozen=True)
class Items:
    """The released pictures in their final order: uint8 [N, H, W, C], label index [N], flag [N].

    `privatized` is 1 for a privatized image. `masks` are uint8 [N, H, W] of 0 and 255, for pairs.
    """

    images: Images
    labels: Labels
    privatized: NDArray[np.uint8]
    masks: Images | None = None


@dataclass(frozen=True)
class Evidence:
    """What the sites signed: the newest header of each, and the file that goes to statements/."""

    headers: Mapping[str, Header]
    statements: Mapping[str, bytes]
