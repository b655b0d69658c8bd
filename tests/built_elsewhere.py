"""Builds a release of images and one of pairs in a process whose surroundings differ.

Usage: python -m tests.built_elsewhere WORK SURROUNDINGS.

Every input has a fixed seed, so two such processes build one study. SURROUNDINGS is JSON:
`seconds` by which the clocks are off, `umask`, and `backwards` for the order in which folders are
listed. The rest, such as the time zone, comes by the environment.
"""

from __future__ import annotations

import json
import locale
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("images", "pairs")
SITES = ("hospital-a", "hospital-b")


def move_clocks(seconds: float) -> None:
    """Let the clocks of module time be off by so many seconds.

    datetime is compiled and stays: time zones 26 hours apart give it two dates at any moment.
    """
    now = time.time
    now_ns = time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)
    localtime = time.localtime
    gmtime = time.gmtime
    time.localtime = lambda moment=None: localtime(time.time() if moment is None else moment)
    time.gmtime = lambda moment=None: gmtime(time.time() if moment is None else moment)


def list_backwards() -> None:
    """Let every folder be listed from its last name to its first."""
    scandir = os.scandir
    listdir = os.listdir

    class Backwards:
        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)
            self._left = iter(self._entries)

        def __iter__(self) -> Iterator[Any]:
            return self._left

        def __next__(self) -> Any:
            return next(self._left)

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            self._left = iter(())

    os.scandir = Backwards  # type: ignore[assignment,misc]
    os.listdir = lambda path=".": sorted(listdir(path), reverse=True)  # type: ignore[assignment]


def build(kind: str, work: Path, operator_seed: int) -> Path:
    """Build the release of `kind` below the new folder `work`; return its folder."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from server.operator.config import Citation
    from server.release.build import build_release

    work.mkdir(parents=True)
    operator = Ed25519PrivateKey.from_private_bytes(bytes([operator_seed]) * 32)
    inputs = image_inputs(work, operator) if kind == "images" else pair_inputs(work, operator)
    author = Citation(
        name="Iğdır Göz Birliği",
        website="https://example.org",
        contact="office@example.org",
        ror="https://ror.org/05f0yaq80",
    )
    changed = type(inputs)(**{**vars(inputs), "author": author})
    return build_release(changed, work / "releases", operator)


def image_inputs(work: Path, operator: Any) -> Any:
    """The inputs of a release of images."""
    from server.release.items import ReleaseInputs
    from tests.releases import ACCOUNT, batch
    from tests.studies import small_plan

    study = bundle_of(small_plan(title="Göz çalışması, İstanbul"), work, operator)
    batches = [batch(study, site, seed, key=key_of(seed)) for seed, site in enumerate(SITES, 1)]
    weights = {name: weights_of(study, name, work) for name in ("gan", "glow")}
    reference = pictures(16, (32, 32, 3))
    return ReleaseInputs(
        study, work / "bundle", batches, ACCOUNT, weights, reference, "invented pictures"
    )


def pair_inputs(work: Path, operator: Any) -> Any:
    """The inputs of a release of pairs."""
    import numpy as np

    from server.release.items import Pairs, ReleaseInputs
    from tests.releases import ACCOUNT
    from tests.studies import vessels_plan

    study = bundle_of(vessels_plan(), work, operator)
    drawn = pictures(12, (32, 32, 2))
    drawn[..., 1] = np.where(drawn[..., 1] > 127, 255, 0)
    statements = {site: update_statement(study, site, seed) for seed, site in enumerate(SITES, 1)}
    return ReleaseInputs(
        study, work / "bundle", (), ACCOUNT, {"wgan": weights_of(study, "wgan", work)},
        pairs=Pairs(drawn, statements),
    )  # fmt: skip


def bundle_of(plan: dict[str, Any], work: Path, operator: Any) -> Any:
    """Sign a plan into `work`/bundle and return it."""
    import yaml

    from common.study.bundle import write_bundle

    file = work / "study.yaml"
    file.write_text(yaml.safe_dump(plan, allow_unicode=True), encoding="utf-8")
    return write_bundle(file, operator, work / "bundle")


def update_statement(study: Any, site: str, seed: int) -> bytes:
    """A site's statement about its update of the last round."""
    from common.privacy import boundary
    from common.wire import signing
    from common.wire.messages import Header, digest_of, seal
    from kohort.statements import statement_json

    payload = bytes([seed]) * 8
    constants = boundary.public_statement(study, "update", "wgan")
    statement = {**constants, "weights": "d" * 64, "head_commitment": "0" * 64}
    header = Header(
        kind="update", study=study.hash(), phase="train", model="wgan", sender=site,
        round=study.models.wgan.rounds - 1, digest=digest_of(payload), statement=statement,
    )  # fmt: skip
    sealed = seal(header, payload, key_of(seed))
    key = signing.public_text(key_of(seed).public_key())
    return statement_json(site, key, sealed.header, sealed.signature)


def weights_of(study: Any, model: str, work: Path) -> Path:
    """A file of invented weights that have the shapes of the plan's model."""
    import numpy as np

    from common.study.families import FAMILIES
    from common.study.planned import planned_shapes
    from common.wire import tensors

    rng = np.random.default_rng(5)
    arrays: tensors.Arrays = {}
    for name, shape in sorted(planned_shapes(study, FAMILIES[model]).items()):
        arrays[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    path = work / f"{model}.safetensors"
    tensors.write(path, arrays)
    return path


def pictures(count: int, shape: tuple[int, int, int]) -> Any:
    """Invented pictures uint8 [count, *shape]."""
    import numpy as np

    return np.random.default_rng(7).integers(0, 256, (count, *shape), dtype=np.uint8)


def key_of(seed: int) -> Any:
    """A site's key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes([100 + seed]) * 32)


def main() -> None:
    """Change the surroundings before anything of the product is imported; then build."""
    work, given = sys.argv[1:]
    surroundings = json.loads(given)
    locale.setlocale(locale.LC_ALL, "")
    os.umask(surroundings["umask"])
    move_clocks(surroundings["seconds"])
    if surroundings["backwards"]:
        list_backwards()
    for kind in KINDS:
        build(kind, Path(work) / kind, 1)


if __name__ == "__main__":
    main()
