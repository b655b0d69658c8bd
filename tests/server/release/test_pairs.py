"""A study without synthesis: from rounds to a release of image + mask pairs that verifies, and what such a release refuses."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from client.ingest.cohort import Cohort
from common.errors import PolicyError, RefusedError
from common.privacy import boundary
from common.storage.files import file_digest
from common.study.families import WGAN
from common.study.plan import Study
from common.study.shapes import parameter_counts, wire_counts
from common.wire import signing, tensors
from common.wire.messages import Header, seal
from kohort.statements import statement_json
from kohort.verification import verify
from server.app import StudyRun
from server.public_data.pairs import phantom_pairs
from server.release.build import build_release
from server.release.collect import accept_updates
from server.release.items import Pairs, ReleaseInputs
from server.release.pairs import draw_pairs, nifti_bytes
from tests.federation import Federation, ToySite
from tests.releases import ACCOUNT
from tests.studies import vessels_plan


def study_of(**changes: Any) -> Study:
    return Study.model_validate(vessels_plan(**changes))


@dataclasses.dataclass
class Finished:
    """A finished study of pairs and what its release is made from."""

    federation: Federation
    run: StudyRun
    inputs: ReleaseInputs

    @property
    def pairs(self) -> Pairs:
        assert self.inputs.pairs is not None
        return self.inputs.pairs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("pairs")
    federation = Federation.of_pairs(folder)
    run = federation.run()
    file = run.record.final_weights()["wgan"]
    plan = federation.study.models.wgan
    assert plan is not None
    pairs = draw_pairs(
        run.record.root / "pairs", run.record.weights("wgan", 2), file_digest(file), plan, 32
    )
    inputs = ReleaseInputs(
        federation.study,
        folder / "bundle",
        (),
        ACCOUNT,
        {"wgan": file},
        pairs=Pairs(pairs, run.record.evidence("wgan")),
    )
    return Finished(federation, run, inputs)


@pytest.fixture(scope="module")
def release(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(finished.inputs, tmp_path_factory.mktemp("out"), finished.federation.key)


def built(finished: Finished, folder: Path, **changes: Any) -> Path:
    """Build with other pairs or statements."""
    pairs = dataclasses.replace(finished.pairs, **changes)
    return build_release(
        dataclasses.replace(finished.inputs, pairs=pairs), folder, finished.federation.key
    )


# --- the study ----------------------------------------------------------------------------------------------------------


def test_a_study_without_synthesis_ends_and_keeps_the_signed_headers_of_its_last_round(
    finished: Finished,
) -> None:
    record = finished.run.record
    assert record.complete() and record.progress().done == record.progress().total == 2
    assert sorted(record.evidence("wgan")) == ["hospital-a", "hospital-b", "hospital-c"]
    assert not list((record.root / "rounds").glob("*/*.sealed"))
    for site in finished.federation.sites.values():
        assert site.asked[-1].statement == {"done": True}


@dataclasses.dataclass
class TrainingSite(ToySite):
    """A site that really trains, on a cohort of phantoms in memory, with repeatable noise."""

    def update(self, asked: Header, weights: tensors.Arrays) -> tensors.Arrays:
        from client.learn import train_wgan
        from client.state.ledger import PracticeReservation
        from common.privacy.mechanisms import round_event
        from common.privacy.noise import SeededNoiseSource

        reservation = PracticeReservation(round_event(self.study, "wgan", 10**6))
        noise = SeededNoiseSource(self.seed + 100 * asked.round)
        cohort = phantom_cohort(self.seed)
        return dict(
            train_wgan.train(
                cohort, self.study, weights, reservation, noise, lambda done, total: None
            )
        )


def phantom_cohort(seed: int, patients: int = 6) -> Cohort:
    """Four patches of each of a few phantoms."""
    source = phantom_pairs(patients, 4, 32, seed)
    names, zeros = (
        tuple(f"{seed}-{p}" for p in range(patients)),
        np.zeros(len(source.pairs), np.int64),
    )
    return Cohort(
        Path("unused"), source.pairs, source.patient_of, zeros, zeros.astype(np.int8), names,
        tuple((name,) for name in names), ("vessels",), "0" * 64,
    )  # fmt: skip


def test_sites_that_train_on_phantoms_end_in_a_release_that_verifies(tmp_path: Path) -> None:
    federation = Federation.of_pairs(
        tmp_path, models__wgan__critic_steps=1, models__wgan__adaptive=False
    )
    for name, toy in list(federation.sites.items()):
        federation.sites[name] = TrainingSite(
            name, federation.study, toy.operator, toy.seed, key=toy.key
        )
    record = federation.run().record
    start, end = (
        record.root / "bundle" / "checkpoints" / "wgan.safetensors",
        record.weights("wgan", 2),
    )
    for name, before in tensors.read(start, max_bytes=1 << 24).items():
        assert (end[name] != before).any(), name
    plan = federation.study.models.wgan
    assert plan is not None
    file = record.final_weights()["wgan"]
    pairs = Pairs(
        draw_pairs(tmp_path / "drawn", end, file_digest(file), plan, 32), record.evidence("wgan")
    )
    inputs = ReleaseInputs(
        federation.study, tmp_path / "bundle", (), ACCOUNT, {"wgan": file}, pairs=pairs
    )
    assert verify(build_release(inputs, tmp_path / "out", federation.key)).images == 12


def test_every_tensor_of_the_wgan_crosses_the_wire_and_the_average_counts_as_post_processing(
    finished: Finished,
) -> None:
    weights = finished.run.record.weights("wgan", 2)
    assert {name.split(".")[0] for name in weights} == {"generator", "average", "critic"}
    study = finished.federation.study
    counts = parameter_counts(study, finished.inputs.bundle / "checkpoints")
    assert counts == {
        "wgan": sum(a.size for name, a in weights.items() if name.startswith("critic."))
    }
    assert wire_counts(study, finished.inputs.bundle / "checkpoints") == {
        "wgan": sum(a.size for a in weights.values())
    }
    without = study_of(models__wgan__trainable=["critic.layers.6."])
    assert parameter_counts(without, Path("nowhere"))["wgan"] < counts["wgan"]
    for name, trained in (
        ("average.start.weight", True),
        ("critic.layers.0.weight", False),
        ("critic.layers.6.bias", True),
    ):
        assert WGAN.may_change(name, without.models.trained()["wgan"].trainable) is trained


def test_pairs_are_drawn_once_and_differ_from_draw_to_draw(
    finished: Finished, tmp_path: Path
) -> None:
    plan = finished.federation.study.models.wgan
    assert plan is not None
    weights = finished.run.record.weights("wgan", 2)
    again = draw_pairs(
        finished.run.record.root / "pairs",
        weights,
        file_digest(finished.inputs.weights["wgan"]),
        plan,
        32,
    )
    assert np.array_equal(again, finished.pairs.drawn) and again.shape == (12, 32, 32, 2)
    assert not np.array_equal(draw_pairs(tmp_path, weights, "0" * 64, plan, 32), again)
    assert not np.array_equal(
        draw_pairs(tmp_path, weights, "1" * 64, plan, 32),
        draw_pairs(tmp_path, weights, "0" * 64, plan, 32),
    )


# --- the release --------------------------------------------------------------------------------------------------------


def test_the_release_verifies_claims_no_k_and_a_second_build_has_the_same_bytes(
    finished: Finished, release: Path, tmp_path: Path
) -> None:
    manifest = verify(release)
    assert (
        manifest.k is None
        and manifest.images == 12
        and manifest.sites == ("hospital-a", "hospital-b", "hospital-c")
    )
    assert json.loads((release / "manifest.json").read_text())["k"] is None
    again = build_release(finished.inputs, tmp_path, finished.federation.key)
    assert (again / "SHA256SUMS").read_bytes() == (release / "SHA256SUMS").read_bytes()


def test_every_pair_is_image_mask_and_nifti_under_one_number(
    finished: Finished, release: Path
) -> None:
    import nibabel
    from torchvision.datasets import ImageFolder

    assert len(ImageFolder(str(release / "data"))) == 12
    rows = list(csv.DictReader((release / "metadata.csv").read_text().splitlines()))
    assert list(rows[0]) == ["file_name", "mask", "mask_nifti", "label", "mechanism", "synthetic"]
    found = set()
    for row in rows:
        image, mask = (
            np.asarray(Image.open(release / row[name])) for name in ("file_name", "mask")
        )
        nifti: Any = nibabel.load(release / row["mask_nifti"])
        assert image.dtype == mask.dtype == np.uint8 and image.shape == mask.shape == (32, 32)
        assert (
            np.array_equal(np.asarray(nifti.dataobj).T * 255, mask)
            and nifti.get_data_dtype() == np.uint8
        )
        found.add(np.stack([image, mask], axis=-1).tobytes())
    assert found == {pair.tobytes() for pair in finished.pairs.drawn}
    sheet = np.asarray(Image.open(release / "contact_sheet.png"))
    assert sheet.shape[2] == 3 and sheet.shape[1] > 4 * 3 * 128


def test_the_order_of_the_release_is_not_the_order_of_drawing(
    finished: Finished, release: Path
) -> None:
    first = np.asarray(Image.open(release / "data/vessels/00000.png"))
    images = [np.asarray(Image.open(p)) for p in sorted((release / "data/vessels").iterdir())]
    assert any(
        not np.array_equal(a, b) for a, b in zip(images, finished.pairs.drawn[..., 0], strict=True)
    )
    assert any(np.array_equal(first, image) for image in finished.pairs.drawn[..., 0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlcroissant_validates_a_release_of_pairs(release: Path) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(release / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    records = list(dataset.records("items"))
    assert len(records) == 12 and set(records[0]) == {
        f"items/{n}" for n in ("file_name", "mask", "mask_nifti", "label")
    }


def test_the_words_claim_the_updates_epsilon_and_no_k(release: Path) -> None:
    statement = json.loads((release / "privacy_statement.json").read_text())
    assert (
        statement["images"]["k"] is None
        and "k-anonymity is not claimed" in statement["images"]["claim"]
    )
    assert statement["updates"]["consortium"]["patient_of_every_site"]["epsilon"] == 24.0
    assert set(statement["updates"]["evidence"]) == {"hospital-a", "hospital-b", "hospital-c"}
    for name in ("privacy_statement.md", "README.md", "index.html"):
        text = (release / name).read_text()
        assert "k-anonymity is not claimed" in text, name
        for word in ("distinct patients", "k ≥", "Grouping", "averages", "None"):
            assert word not in text, (name, word)
    page = (release / "index.html").read_text()
    assert page.count("data:image/png") == 12 and "<script" not in page
    assert "masks/NNNNN.nii.gz" in (release / "README.md").read_text()


def test_one_altered_byte_in_any_file_of_pairs_is_found(release: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        name, original = path.relative_to(copy).as_posix(), path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(RefusedError) as caught:
            verify(copy)
        assert name in str(caught.value)
        path.write_bytes(original)
    verify(copy)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_below_the_quorum_no_pairs_are_released(finished: Finished, tmp_path: Path) -> None:
    one = dict(list(finished.pairs.statements.items())[:1])
    with pytest.raises(PolicyError, match="1 sites sent updates, the plan's quorum is 2"):
        built(finished, tmp_path / "out", statements=one)
    assert not (tmp_path / "out").exists()


def signed(plan: Study, key: Ed25519PrivateKey, **changes: Any) -> bytes:
    """A statement of hospital-a with other header fields."""
    fields: dict[str, Any] = {
        "kind": "update", "study": plan.hash(), "phase": "train", "model": "wgan", "round": 1, "sender": "hospital-a",
        "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "statement": boundary.public_statement(plan, "update", "wgan") | {"ledger_head": "0" * 64, "ledger_seq": 1},
        **changes,
    }  # fmt: skip
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
        | {"epsilon": 0.1, "ledger_head": "0" * 64, "ledger_seq": 1}
    },
    "with one more number": lambda study: {
        "statement": boundary.public_statement(study, "update", "wgan")
        | {"patients": 41, "ledger_head": "0" * 64, "ledger_seq": 1}
    },
}


@pytest.mark.parametrize("sentence", FORGED)
def test_a_statement_is_refused_that_is(sentence: str, finished: Finished, tmp_path: Path) -> None:
    study, key = finished.federation.study, signing.new_key()
    accept_updates(
        {**finished.pairs.statements, "hospital-a": signed(study, key)}, study
    )  # so built, it would be accepted
    forged = {
        **finished.pairs.statements,
        "hospital-a": signed(study, key, **FORGED[sentence](study)),
    }
    with pytest.raises(RefusedError):
        built(finished, tmp_path / "out", statements=forged)
    assert not (tmp_path / "out").exists()


def test_a_statement_that_its_site_did_not_sign_is_refused(
    finished: Finished, tmp_path: Path
) -> None:
    data = json.loads(finished.pairs.statements["hospital-a"])
    data["key"] = signing.public_text(signing.new_key().public_key())
    statements = {**finished.pairs.statements, "hospital-a": json.dumps(data).encode()}
    with pytest.raises(RefusedError, match="hospital-a"):
        built(finished, tmp_path / "out", statements=statements)


def test_identical_pairs_enter_once_and_too_few_are_not_released(
    finished: Finished, tmp_path: Path
) -> None:
    pairs = finished.pairs.drawn
    twins = np.concatenate([pairs[:5], pairs[:5]])
    assert verify(built(finished, tmp_path / "out", drawn=twins)).images == 5
    with pytest.raises(PolicyError, match="min_images is 4"):
        built(finished, tmp_path / "few", drawn=np.concatenate([pairs[:3]] * 4))


@pytest.mark.parametrize("value", [1, 128])
def test_a_mask_that_is_neither_0_nor_255_is_refused(
    value: int, finished: Finished, tmp_path: Path
) -> None:
    pairs = finished.pairs.drawn.copy()
    pairs[0, 0, 0, 1] = value
    with pytest.raises(RefusedError, match="masks of 0 and 255"):
        built(finished, tmp_path / "out", drawn=pairs)


TABLES: dict[str, tuple[str, str]] = {
    "a k that the release does not claim": ("dp-generator,yes\n", "dp-generator,yes,5\n"),
    "another image's mask": (
        "masks/00000.png,masks/00000.nii.gz",
        "masks/00001.png,masks/00001.nii.gz",
    ),
    "no mask": ("masks/00000.png,masks/00000.nii.gz", ","),
}


@pytest.mark.parametrize("sentence", TABLES)
def test_verify_refuses_a_table_with(
    sentence: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's own build fails on it, because it verifies what it seals."""
    from server.release import pictures as module

    old, new = TABLES[sentence]
    original = module.write_pairs

    def spoiled(part: Path, *arguments: Any) -> None:
        original(part, *arguments)
        text = (part / "metadata.csv").read_text().replace(old, new)
        (part / "metadata.csv").write_text(
            text.replace("synthetic\n", "synthetic,k\n") if ",5" in new else text
        )

    monkeypatch.setattr(module, "write_pairs", spoiled)
    with pytest.raises(RefusedError, match=r"metadata\.csv"):
        built(finished, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


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


# --- files --------------------------------------------------------------------------------------------------------------


def test_a_nifti_mask_has_the_same_bytes_every_time_and_no_clock() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[3, 5:9] = 255
    data = nifti_bytes(mask)
    assert (
        data == nifti_bytes(mask)
        and data[4:8] == b"\0\0\0\0"
        and len(gzip.decompress(data)) == 352 + 32 * 32
    )
