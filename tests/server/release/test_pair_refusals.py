"""What a release of pairs refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import PolicyError, RefusedError
from common.privacy import boundary
from common.study.plan import Study
from common.wire import signing
from common.wire.messages import Header, seal
from kohort.statements import open_statement, statement_json
from kohort.verification import verify
from server.release.collect import accept_updates
from tests.kohort.test_resealed import reseal
from tests.pair_releases import Finished, build_pairs, finish_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish_study(tmp_path_factory.mktemp("pairs"))


def test_below_the_quorum_no_pairs_are_released(finished: Finished, tmp_path: Path) -> None:
    one = dict(list(finished.pairs.statements.items())[:1])
    with pytest.raises(PolicyError, match="1 sites sent updates, the plan's quorum is 2"):
        build_pairs(finished, tmp_path / "out", statements=one)
    assert not (tmp_path / "out").exists()


def signed(plan: Study, key: Ed25519PrivateKey, weights: str, **changes: Any) -> bytes:
    """A statement of hospital-a with other header fields."""
    fields: dict[str, Any] = {
        "kind": "update",
        "study": plan.hash(),
        "phase": "train",
        "model": "wgan",
        "round": 1,
        "sender": "hospital-a",
        "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "statement": boundary.public_statement(plan, "update", "wgan")
        | {"weights": weights, "head_commitment": "0" * 64},
        **changes,
    }
    sealed = seal(Header.model_validate(fields), b"", key)
    return statement_json(
        "hospital-a", signing.public_text(key.public_key()), sealed.header, sealed.signature
    )


FORGED: dict[str, Callable[[Study], dict[str, Any]]] = {
    "of another site": lambda study: {"sender": "hospital-b"},
    "of an earlier round": lambda study: {"round": 0},
    "of another study": lambda study: {"study": "0" * 64},
    "with another epsilon": lambda study: {
        "statement": boundary.public_statement(study, "update", "wgan")
        | {"epsilon": 0.1, "weights": "d" * 64, "head_commitment": "0" * 64}
    },
    "with one more number": lambda study: {
        "statement": boundary.public_statement(study, "update", "wgan")
        | {"patients": 41, "weights": "d" * 64, "head_commitment": "0" * 64}
    },
}


@pytest.mark.parametrize("sentence", FORGED)
def test_a_statement_is_refused_that_is(sentence: str, finished: Finished, tmp_path: Path) -> None:
    study, key = finished.federation.study, signing.new_key()
    _, other = open_statement(finished.pairs.statements["hospital-b"], "hospital-b")
    weights = str(other.statement["weights"])
    # so built, it would be accepted
    accept_updates({**finished.pairs.statements, "hospital-a": signed(study, key, weights)}, study)
    forged = {
        **finished.pairs.statements,
        "hospital-a": signed(study, key, weights, **FORGED[sentence](study)),
    }
    with pytest.raises(RefusedError):
        build_pairs(finished, tmp_path / "out", statements=forged)
    assert not (tmp_path / "out").exists()


def test_statements_about_other_weights_than_the_other_sites_are_refused(
    finished: Finished, tmp_path: Path
) -> None:
    study, key = finished.federation.study, signing.new_key()
    strange = signed(study, key, "d" * 64)
    with pytest.raises(RefusedError, match="name 2 sets of global weights") as caught:
        accept_updates({**finished.pairs.statements, "hospital-a": strange}, study)
    assert caught.value.code == "E-INTAKE-WEIGHTS"


def test_a_statement_that_its_site_did_not_sign_is_refused(
    finished: Finished, tmp_path: Path
) -> None:
    data = json.loads(finished.pairs.statements["hospital-a"])
    data["key"] = signing.public_text(signing.new_key().public_key())
    statements = {**finished.pairs.statements, "hospital-a": json.dumps(data).encode()}
    with pytest.raises(RefusedError, match="hospital-a"):
        build_pairs(finished, tmp_path / "out", statements=statements)


def test_identical_pairs_enter_once_and_too_few_are_not_released(
    finished: Finished, tmp_path: Path
) -> None:
    pairs = finished.pairs.drawn
    twins = np.concatenate([pairs[:5], pairs[:5]])
    assert verify(build_pairs(finished, tmp_path / "out", drawn=twins)).images == 5
    with pytest.raises(PolicyError, match="min_images is 4"):
        build_pairs(finished, tmp_path / "few", drawn=np.concatenate([pairs[:3]] * 4))


@pytest.mark.parametrize("value", [1, 128])
def test_a_mask_that_is_neither_0_nor_255_is_refused(
    value: int, finished: Finished, tmp_path: Path
) -> None:
    pairs = finished.pairs.drawn.copy()
    pairs[0, 0, 0, 1] = value
    with pytest.raises(RefusedError, match="masks of 0 and 255"):
        build_pairs(finished, tmp_path / "out", drawn=pairs)


TABLES: dict[str, tuple[str, str]] = {
    "a k that the release does not claim": ("dp-generator,yes\n", "dp-generator,yes,5\n"),
    "another image's mask": (
        "masks/00000.png,masks/00000.nii.gz",
        "masks/00001.png,masks/00001.nii.gz",
    ),
    "no mask": ("masks/00000.png,masks/00000.nii.gz", ","),
}


@pytest.fixture(scope="module")
def release(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pairs(finished, tmp_path_factory.mktemp("release"))


@pytest.mark.parametrize("sentence", TABLES)
def test_verify_refuses_a_table_with(
    sentence: str, finished: Finished, release: Path, tmp_path: Path
) -> None:
    old, new = TABLES[sentence]

    def spoil(folder: Path) -> None:
        text = (folder / "metadata.csv").read_text().replace(old, new)
        if ",5" in new:
            text = text.replace("synthetic\n", "synthetic,k\n")
        (folder / "metadata.csv").write_text(text)

    folder = Path(shutil.copytree(release, tmp_path / "copy"))
    reseal(folder, finished.federation.key, spoil)
    with pytest.raises(RefusedError, match=r"^metadata\.csv"):
        verify(folder)


def test_a_release_without_k_cannot_carry_image_statements(tmp_path: Path) -> None:
    """An averages release whose manifest drops its k is refused by its own statements."""
    from kohort.manifest import Manifest
    from kohort.verification import _check_statement
    from tests.releases import small_release

    folder, _ = small_release(tmp_path)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    path = folder / "statements" / "hospital-a.json"
    _check_statement(path, "hospital-a", manifest)
    with pytest.raises(RefusedError, match="not about update"):
        _check_statement(path, "hospital-a", manifest.model_copy(update={"k": None}))
