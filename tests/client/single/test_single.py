"""`kohort-site privatize`: work on site stays; an export is charged, kept and reviewed once."""

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from typer.testing import CliRunner

from client.cli.main import app
from client.daemon.site import Site
from client.egress.evidence import SINGLE, Evidence
from client.ingest.cohort import Cohort
from client.ingest.decode_child import read_file
from client.ingest.dicom import read_dicom
from client.ingest.identify import hide_spelling
from client.ingest.persons import pseudonym
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Photograph, Settings
from client.ingest.synthetic_dicom import write_synthetic
from client.single import export, inputs
from client.single.flow import Flow
from client.single.request import Outcome, Request
from client.single.single import privatize_images
from common.errors import ConfigurationError, KohortError, PolicyError, RefusedError
from common.models import glow_checkpoint, glow_start
from common.models.basis import fit, save
from common.models.glow import Glow
from common.models.latents import encode_images
from common.study.synthesis import PrivatizePlan
from common.wire import tensors
from tests.phantoms import MARKERS, header, with_pixels
from tests.phantoms import save as save_dicom
from tests.sites import WEIGHTS, Hospital, make_hospital, scripted, spend_once

torch.set_num_threads(1)
SECTION = {"share": 1.0, "mechanism": "gaussian", "epsilon": 2.0, "delta": 1e-6, "egress": "single"}
ALLOWED = {"single_images": "allowed", "review": "not_required", "max_delta": 1e-5}
MARKER = "MARKERNAME"


def flow() -> Glow:
    model = Glow(32, 1, 3, 2, 16)
    glow_start.initialise_from_noise(model, 8)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A site with a chest plan whose flow is real, made once."""
    weights = {"gan": WEIGHTS["gan"], "glow": glow_checkpoint.weights_of(flow())}
    changes = {
        "intake__channels": 1, "intake__dicom_modalities": ["DX"],
        "intake__stratify_laterality": False,
        "synthesis__privatize": SECTION,
    }  # fmt: skip
    return make_hospital(tmp_path_factory.mktemp("site"), weights=weights, **changes)


CHILD = inputs.decode_all


@pytest.fixture
def hospital(made: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """A copy, so that no test sees another's ledger; files are decoded in this process."""
    monkeypatch.setattr(
        inputs, "decode_all", lambda paths, settings, _: [_here(path, settings) for path in paths]
    )
    monkeypatch.setattr("client.state.ledger.spend", spend_once)
    shutil.copytree(made.root, tmp_path / "state")
    return Hospital(tmp_path / "state", made.operator, made.study, made.bundle)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Two DICOM files of two patients, and two pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        dicom(folder / f"{MARKER}-{i}.dcm", xray(i), modality="DX", patient_id=f"{MARKER}{i}")
    for i in (2, 3):
        Image.fromarray(xray(i)).save(folder / f"{MARKER}-{i}.png")
    return folder


def xray(seed: int, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size - 0.5
    lungs = np.exp(-((np.abs(x) - 0.22) ** 2) / 0.02 - y**2 / (0.08 + 0.01 * seed))
    noise = np.random.default_rng(seed).normal(0, 0.05, (size, size))
    return np.asarray(np.clip((0.8 - 0.6 * lungs + noise) * 255, 0, 255), np.uint8)


def _here(path: Path, settings: Settings) -> Photograph | Reason:
    """What the decoding child does with a file."""
    try:
        return read_file(str(path), settings)
    except Unusable as refusal:
        return refusal.reason


def dicom(path: Path, pixels: np.ndarray, modality: str, patient_id: str) -> None:
    save_dicom(with_pixels(header(modality, patient_id), pixels, "MONOCHROME2"), path)


def run(site: Site, hospital: Hospital, source: Path, out: Path, **request: Any) -> Outcome:
    return privatize_images(site, hospital.study, Request(source, out, **request))


def entries(site: Site, kind: str = "reserve") -> int:
    return sum(row.kind == kind for row in site.ledger().rows())


def pictures(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix in (".png", ".dcm")
    }


# --- on site


def test_on_site_it_works_is_uncharged_and_leaves_nothing_to_send(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    site = hospital.site()
    outcome = run(site, hospital, inbox, tmp_path / "out")
    assert outcome.written == 4
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shown = {"ON-SITE-ONLY-sheet.png", "ON-SITE-ONLY-inputs.csv"}
    assert names == {f"{i:05d}.png" for i in range(1, 5)} | shown | {"statement.json"}
    # the images are of one patient each: they and the sheets are for this account alone
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "out").iterdir())
    assert not (site.state.root / "exports").exists()
    assert not (site.state.root / "outbox").exists() or not any(
        (site.state.root / "outbox").rglob("*.sealed")
    )
    assert entries(site) == entries(site, "declare") == 0
    assert "ε=2, δ=1e-06 per image, replace-one, d=256 of 1,024, k=1" in outcome.statement
    assert json.loads((tmp_path / "out" / "statement.json").read_text())["epsilon_per_image"] == 2.0
    listed = list(
        csv.reader((tmp_path / "out" / "ON-SITE-ONLY-inputs.csv").read_text().splitlines())
    )
    assert listed[1] == ["1", f"{MARKER}-0.dcm"]


def test_on_site_output_cannot_be_promoted_an_export_draws_anew_and_pays(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    site = hospital.site(**ALLOWED)
    run(site, hospital, inbox, tmp_path / "out")
    assert entries(site) == 0
    run(site, hospital, inbox, tmp_path / "away", export=True)
    assert entries(site) == 3
    ours, theirs = pictures(tmp_path / "out"), pictures(tmp_path / "away")
    assert not any(ours[name] == theirs[name] for name in theirs)


def test_dicom_out_says_that_it_is_synthetic_and_carries_nothing_of_the_original(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    run(hospital.site(), hospital, inbox, tmp_path / "out", dicom=True)
    for path in sorted((tmp_path / "out").glob("*.dcm")):
        data = dcmread(path)
        assert (data.SyntheticData, data.Modality, str(data.PatientID)) == (
            "YES",
            "DX",
            "SYNTHETIC",
        )
        assert "ε=2" in data.DerivationDescription
        assert not any(word.encode() in path.read_bytes() for word in (MARKER, *MARKERS))
        assert data.pixel_array.shape == (32, 32)
        # and no intake takes it for a patient's
        with path.open("rb") as file, pytest.raises(Unusable) as refusal:
            read_dicom(file, ("DX",), None, 1 << 20)
        assert refusal.value.reason is Reason.SYNTHETIC
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 4


def test_colour_comes_back_from_dicom_as_it_went_in() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    data = dcmread(io.BytesIO(write_synthetic(pixels, "OP", "said")))
    assert np.array_equal(data.pixel_array, pixels)
    assert data.PhotometricInterpretation == "RGB"


def test_privunit_in_the_first_components_of_a_public_basis(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    public = np.random.default_rng(5).integers(0, 256, (40, 32, 32, 1), dtype=np.uint8)
    save(fit(encode_images(public, flow())[:, -256:], 20), tmp_path / "basis.safetensors")
    section = PrivatizePlan(
        mechanism="privunit", share=1.0, epsilon=4.0, egress="single", components=16,
        basis={"file": "basis.safetensors", "sha256": "0" * 64},  # type: ignore[arg-type]
    )  # fmt: skip
    outcome = run(
        hospital.site(),
        hospital,
        inbox,
        tmp_path / "out",
        section=section,
        basis=tmp_path / "basis.safetensors",
    )
    assert outcome.statement.startswith(
        "privunit: ε=4 (pure) per image, replace-one, d=16 of 1,024, k=1"
    )
    assert outcome.written == 4


# --- what leaves


FORBIDDEN = {
    "the policy's default": {},
    "a policy that says never": {"single_images": "never", "review": "not_required"},
    "an epsilon per image above the cap": {"single_images": "allowed", "max_epsilon_image": 1.9},
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_what_policy_forbids_is_refused_before_a_file_is_opened(
    hospital: Hospital, inbox: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "decode_all", lambda *_: pytest.fail("a file was opened"))
    site = hospital.site(**FORBIDDEN[case])
    with pytest.raises(RefusedError) as refused:
        run(site, hospital, inbox, tmp_path / "away", export=True)
    assert refused.value.code == "E-GATE-27"
    assert not (tmp_path / "away").exists()
    assert entries(site) == 0


def test_a_plan_of_averages_lets_no_single_image_leave(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    plan = hospital.study.model_dump(mode="json")
    plan["synthesis"]["privatize"]["egress"] = "averages"
    averages = type(hospital.study).model_validate(plan)
    from common.privacy.boundary import check_single

    with pytest.raises(RefusedError, match="egress of the plan is not single"):
        check_single(averages, True, 2.0, 10.0)
    check_single(hospital.study, True, 2.0, 10.0)


def test_a_single_image_in_a_batch_is_refused_by_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path)
    children = scripted(monkeypatch, hospital.study)
    children.evidence = lambda e: Evidence(e.groups, (0, SINGLE), e.audit)
    with pytest.raises(KohortError) as refused:
        hospital.site(review="not_required").answer(hospital.ask("synthesize"))
    assert refused.value.code == "E-GATE-27"


def test_an_image_asked_for_again_is_the_same_bytes_and_free(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    site = hospital.site(**ALLOWED)
    first = run(site, hospital, inbox, tmp_path / "one", export=True)
    # two ids in one turn, and two pictures of nobody, each of which could be of anybody
    assert (first.charged, first.repeated, entries(site), entries(site, "commit")) == (3, 0, 3, 3)
    again = run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "two", export=True)
    assert (again.charged, again.repeated, entries(site)) == (0, 4, 3)
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    assert set(pictures(tmp_path / "one")) == {f"{i:05d}.png" for i in range(1, 5)}, (
        "no sheet and no list of inputs"
    )
    assert MARKER not in "".join(p.name for p in (tmp_path / "one").iterdir())
    Image.fromarray(xray(9)).save(inbox / "new.png")
    more = run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "three", export=True)
    assert (more.charged, more.repeated, entries(site)) == (1, 4, 4)


def test_the_ledger_is_charged_before_the_draw_and_stays_charged_after_a_crash(
    hospital: Hospital, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital.site(**ALLOWED)
    seen: list[int] = []

    def crash(self: object, images: object, progress: object) -> None:
        seen.append(entries(site))
        raise MemoryError

    monkeypatch.setattr(Flow, "draw", crash)
    with pytest.raises(MemoryError):
        run(site, hospital, inbox, tmp_path / "away", export=True)
    assert seen == [1]
    monkeypatch.undo()
    run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "away", export=True)
    assert entries(site) == 4


def test_the_ledgers_cap_stops_an_export(hospital: Hospital, inbox: Path, tmp_path: Path) -> None:
    site = hospital.site(**ALLOWED, max_epsilon=2.5)
    with pytest.raises(KohortError) as refused:
        run(site, hospital, inbox, tmp_path / "away", export=True)
    assert refused.value.code in ("E-CAP", "E-POLICY-PLAN")
    assert not (tmp_path / "away").exists()


def test_a_person_decides_on_exactly_these_bytes(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    policy = ALLOWED | {"review": "required"}
    with pytest.raises(PolicyError) as waiting:
        run(hospital.site(**policy), hospital, inbox, tmp_path / "away", export=True)
    assert waiting.value.code == "E-REVIEW-WAITING"
    assert not (tmp_path / "away").exists()
    site = hospital.site(**policy)
    (batch,) = site.reviews.batches()
    assert batch.sheet.is_file()
    site.reviews.decide(batch.digest, approve=True, reviewer="Dr. Test")
    outcome = run(site, hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged) == (4, 0)


def test_a_rejected_export_stays(hospital: Hospital, inbox: Path, tmp_path: Path) -> None:
    policy = ALLOWED | {"review": "required"}
    with pytest.raises(PolicyError):
        run(hospital.site(**policy), hospital, inbox, tmp_path / "away", export=True)
    site = hospital.site(**policy)
    site.reviews.decide("", approve=False, reviewer="Dr. Test")
    with pytest.raises(RefusedError) as refused:
        run(site, hospital, inbox, tmp_path / "away", export=True)
    assert refused.value.code == "E-GATE-25"
    assert not (tmp_path / "away").exists()


def test_a_stored_image_of_another_entry_is_refused(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    """Somebody puts an image of their own into exports/."""
    site = hospital.site(**ALLOWED)
    run(site, hospital, inbox, tmp_path / "one", export=True)
    path = next((site.state.root / "exports").glob("*.safetensors"))
    arrays = tensors.read(path, max_bytes=1 << 20)
    tensors.write(path, {**arrays, "reservation": np.array([1], np.int64)})
    with pytest.raises(RefusedError) as refused:
        run(site, hospital, inbox, tmp_path / "two", export=True)
    assert refused.value.code == "E-GATE-21"


def test_an_export_takes_its_numbers_from_the_plan_alone(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    section = PrivatizePlan(mechanism="laplace", share=1.0, radius=0.4, scale=0.25)
    with pytest.raises(ConfigurationError, match="--export takes"):
        run(
            hospital.site(**ALLOWED),
            hospital,
            inbox,
            tmp_path / "away",
            export=True,
            section=section,
        )


# --- one notion of a person


def name_of(site: Site, patient_id: str) -> str:
    return pseudonym(site.state.pseudonym_bytes(), "", patient_id)


def test_a_person_under_two_ids_is_charged_twice_for_two_images(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    """The ids are one person in the site's cohorts; their two images compose."""
    for path in inbox.glob("*.png"):
        path.unlink()
    site = hospital.site(**ALLOWED)
    site.records.people().state([[name_of(site, f"{MARKER}0"), name_of(site, f"{MARKER}1")]], {})
    outcome = run(site, hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged, entries(site)) == (2, 2, 2)


def test_two_strangers_share_an_entry(hospital: Hospital, inbox: Path, tmp_path: Path) -> None:
    for path in inbox.glob("*.png"):
        path.unlink()
    outcome = run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged) == (2, 1)


def test_nearly_the_same_photograph_under_two_ids_is_of_one_person(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    for path in inbox.glob("*.png"):
        path.unlink()
    again = xray(0)
    again[5, 5] ^= 1
    dicom(inbox / f"{MARKER}-1.dcm", again, modality="DX", patient_id=f"{MARKER}1")
    outcome = run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged) == (2, 2)


def test_an_id_with_its_issuer_is_the_person_whom_a_cohort_has_without_one(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    for path in inbox.glob("*.png"):
        path.unlink()
    site = hospital.site(**ALLOWED)
    site.records.people().state([[name_of(site, "777")]], {})
    for number, issuer in enumerate(("", "WEST")):
        data = header("DX", "777")
        data.IssuerOfPatientID = issuer
        save_dicom(with_pixels(data, xray(number), "MONOCHROME2"), inbox / f"{MARKER}-{number}.dcm")
    outcome = run(site, hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged) == (2, 2)


def test_an_id_in_another_spelling_is_the_person_whom_the_site_knows(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    for path in inbox.iterdir():
        path.unlink()
    """The site knows `K-777` and `other` as one person, and `88` as one who withdrew."""
    site = hospital.site(**ALLOWED)
    key = site.state.pseudonym_bytes()
    people = site.records.people()
    known = name_of(site, "K-777")
    people.state([[known, name_of(site, "other")]], {}, {known: hide_spelling(key, "", "K-777")})
    people.withdraw(hide_spelling(key, "", "88").owns)
    for number, patient in enumerate(("k777", "other", "0088")):
        dicom(inbox / f"{number}.dcm", xray(number), modality="DX", patient_id=patient)
    outcome = run(site, hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged) == (2, 2)
    assert outcome.refused == (("2.dcm", Reason.WITHDRAWN),)


def test_a_picture_without_an_id_is_known_by_its_pixels(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    """The two pictures are the cohort's patients 0 and 1: they share an entry."""
    site = hospital.site(**ALLOWED)
    cohort = Cohort.open(site.state.cohort(hospital.study.intake))
    for path in inbox.iterdir():
        path.unlink()
    for row in (0, 1):
        Image.fromarray(cohort.images[row].squeeze(-1)).save(inbox / f"{row}.png")
    outcome = run(site, hospital, inbox, tmp_path / "away", export=True)
    assert (outcome.written, outcome.charged) == (2, 1)


# --- withdrawal


def test_who_withdrew_is_in_no_export_not_even_as_drawn_before(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    site = hospital.site(**ALLOWED)
    first = run(site, hospital, inbox, tmp_path / "one", export=True)
    site.records.people().withdraw([name_of(site, f"{MARKER}0")])
    second = run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "two", export=True)
    assert (first.written, second.written, second.charged) == (4, 3, 0)
    assert [(name, reason.value) for name, reason in second.refused] == [
        (f"{MARKER}-0.dcm", "withdrawn")
    ]
    once = set(pictures(tmp_path / "one").values())
    again = set(pictures(tmp_path / "two").values())
    assert again < once
    assert len(once - again) == 1


def test_who_withdrew_is_in_no_work_on_site_either(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    site = hospital.site()
    site.records.people().withdraw([name_of(site, f"{MARKER}0"), name_of(site, f"{MARKER}1")])
    outcome = run(site, hospital, inbox, tmp_path / "out")
    assert (outcome.written, len(outcome.refused)) == (2, 2)


# --- the order of the files


def test_the_numbers_of_exported_files_do_not_follow_the_order_of_the_inputs(
    hospital: Hospital, tmp_path: Path, inbox: Path
) -> None:
    """Their order is that of the drawn pixels, so the same under any names of the inputs."""
    for path in inbox.iterdir():
        path.unlink()
    for i in range(7):
        dicom(inbox / f"{i}.dcm", xray(i), modality="DX", patient_id=f"{MARKER}{i}")
    run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "one", export=True)
    for i in range(7):
        (inbox / f"{i}.dcm").rename(inbox / f"x{6 - i}.dcm")
    outcome = run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "two", export=True)
    assert outcome.repeated == 7
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    pixels = [
        np.asarray(Image.open(tmp_path / "one" / f"{i:05d}.png"))[..., None] for i in range(1, 8)
    ]
    digests = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
    assert digests == sorted(digests)


# --- bad input


def test_what_cannot_be_used_is_named_with_its_reason(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    dicom(inbox / "wrong.dcm", xray(5), modality="CR", patient_id="X")
    Image.fromarray(np.full((48, 48), 7, np.uint8)).save(inbox / "constant.png")
    Image.fromarray(xray(1, 8)).save(inbox / "tiny.png")
    (inbox / "text.png").write_bytes(b"no picture")
    border = np.zeros((64, 64), np.uint8)
    border[16:48, 16:48] = xray(3, 32)
    Image.fromarray(border).save(inbox / "border.png")
    Image.fromarray(xray(4).astype(np.uint16) * 200).save(inbox / "deep.png")
    outcome = run(hospital.site(), hospital, inbox, tmp_path / "out")
    reasons = {name: reason.value for name, reason in outcome.refused}
    assert reasons == {
        "constant.png": "blank-image", "text.png": "unknown-format",
        "tiny.png": "too-small", "wrong.dcm": "wrong-modality",
    }  # fmt: skip
    assert outcome.written == 6, "black borders and 16 bits are images"


def test_an_image_beyond_the_flow_is_named_and_its_picture_is_of_nobody(
    hospital: Hospital, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.synthesize import privatize as stage

    wild = stage.encode_images
    monkeypatch.setattr(stage, "encode_images", lambda images, model: wild(images, model) * 1e9)
    outcome = run(hospital.site(), hospital, inbox, tmp_path / "out")
    assert len(outcome.unknown) == outcome.written == 4
    assert any("shows nothing of it" in line for line in outcome.lines())


def test_weights_that_are_not_finite_are_refused(
    hospital: Hospital, inbox: Path, tmp_path: Path
) -> None:
    weights = glow_checkpoint.weights_of(flow())
    next(iter(weights.values())).reshape(-1)[0] = np.nan
    tensors.write(tmp_path / "broken.safetensors", weights)
    with pytest.raises(RefusedError, match="finite"):
        run(
            hospital.site(),
            hospital,
            inbox,
            tmp_path / "out",
            weights=tmp_path / "broken.safetensors",
        )


@pytest.mark.parametrize("place", ["state", "full"])
def test_out_is_a_new_folder_outside_the_state(
    hospital: Hospital, inbox: Path, tmp_path: Path, place: str
) -> None:
    out = hospital.root / "outbox" if place == "state" else inbox
    with pytest.raises(ConfigurationError, match="state folder" if place == "state" else "empty"):
        run(hospital.site(), hospital, inbox, out)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "an epsilon of zero": (
        ["--mechanism", "gaussian", "--epsilon", "0", "--delta", "1e-6"],
        "--epsilon: .*greater than 0",
    ),
    "an infinite epsilon": (
        ["--mechanism", "gaussian", "--epsilon", "inf", "--delta", "1e-6"],
        "--epsilon: .*finite",
    ),
    "an epsilon for laplace": (
        ["--mechanism", "laplace", "--epsilon", "8", "--radius", "1", "--scale", "1"],
        "takes none",
    ),
    "an option without a mechanism": (["--scale", "1"], "--scale: needs --mechanism"),
    "privunit of a whole level": (["--mechanism", "privunit", "--epsilon", "8"], "2 to 64"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_wrong_options_say_what_is_wrong(
    hospital: Hospital, inbox: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, message = COMMANDS[case]
    monkeypatch.setattr("client.cli.measure.open_site", lambda state: _given(hospital.site()))
    command = [
        "privatize",
        str(inbox),
        str(tmp_path / "out"),
        "--state",
        str(hospital.root),
        *options,
    ]
    outcome = CliRunner().invoke(app, command)
    assert isinstance(outcome.exception, ConfigurationError)
    with pytest.raises(ConfigurationError, match=message):
        raise outcome.exception


def test_the_command_prints_what_was_done(
    hospital: Hospital, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.cli.measure.open_site", lambda state: _given(hospital.site()))
    command = [
        "privatize",
        str(inbox / f"{MARKER}-2.png"),
        str(tmp_path / "out"),
        "--state",
        str(hospital.root),
    ]
    command += [
        "--mechanism",
        "laplace",
        "--clip",
        "box",
        "--radius",
        "3",
        "--scale",
        "0.5",
        "--levels",
        "all",
        "--dicom",
    ]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    assert "1 images; laplace box: ε=12 per coordinate = ε=12,288 per image" in outcome.output
    assert (tmp_path / "out" / "00001.dcm").is_file()


def _given(site: Site) -> Any:
    from contextlib import nullcontext

    return nullcontext(site)


@pytest.mark.parametrize("other", ["study", "mechanism", "flow", "image"])
def test_a_kept_image_serves_the_same_image_plan_mechanism_and_flow_alone(other: str) -> None:
    def key(changed: str) -> str:
        def said(name: str) -> str:
            return f"{name} {changed == name}"

        flow = SimpleNamespace(
            study=SimpleNamespace(hash=lambda: said("study")),
            mechanism=SimpleNamespace(event=lambda: said("mechanism")),
            digest=said("flow"),
        )
        photograph = SimpleNamespace(digest=said("image").encode())
        return export._key(flow, photograph)  # type: ignore[arg-type]

    assert key("nothing") == key("nothing")
    assert key(other) != key("nothing")
