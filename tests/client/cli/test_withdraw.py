"""`kohort-site withdraw` and `ingest --refresh`, as typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from client.daemon.site import Site
from client.ingest.cohort import Cohort, persons_of
from client.state.config import load_site
from client.state.folder import State
from client.state.membership import read_membership
from common.storage.lock import FolderLock
from common.study.plan import Study
from tests import phantoms
from tests.client.cli.typing_commands import Cli


@pytest.fixture
def approved(joined: tuple[Path, Path], cli: Cli) -> tuple[Path, Study]:
    """A site with an approved plan and no cohort yet: twelve people, P0 to P11."""
    state, bundle = joined
    assert cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")[0] == 0
    place = State(state)
    site = Site(place, load_site(state), read_membership(place.membership))
    (plan_hash,) = site.plans.hashes()
    return state, site.plans.open(plan_hash)


@pytest.fixture
def ingested(approved: tuple[Path, Study], cli: Cli) -> tuple[Path, Study]:
    """The same site with its cohort."""
    state, study = approved
    code, out, err = cli("ingest", "--state", state)
    assert code == 0, err
    assert "12 files of 12 patients" in out
    return state, study


def opened(state: Path, study: Study) -> Cohort:
    return Cohort.open(State(state).cohort(study.intake))


def data(state: Path) -> Path:
    return state.parent / "data"


def add_row(state: Path, row: str) -> None:
    labels = state.parent / "labels.csv"
    labels.write_text(labels.read_text() + row + "\n")


# --- withdraw


def test_by_id_it_is_said_what_changes_and_what_stays(
    ingested: tuple[Path, Study], cli: Cli
) -> None:
    state, study = ingested
    code, out, _ = cli("withdraw", "--state", state, "P3", "P4 ")
    assert code == 0
    assert "withdrawn: 2 persons (2 ids); 0 had before" in out
    assert "what has left stays: 0 training rounds and 0 image batches" in out
    assert "P3" not in out
    assert opened(state, study).patient_count == 10
    code, out, _ = cli("withdraw", "--state", state, "P3")
    assert code == 0
    assert "withdrawn: 1 persons (1 ids); 1 had before" in out
    assert opened(state, study).patient_count == 10


def test_by_file_and_by_list(ingested: tuple[Path, Study], cli: Cli, tmp_path: Path) -> None:
    state, study = ingested
    listed = tmp_path / "out.txt"
    listed.write_bytes("\ufeffP5\r\n\r\n P6\n".encode())
    code, out, err = cli(
        "withdraw", "--state", state, "--list", listed, "--file", data(state) / "7.png"
    )
    assert code == 0, err
    assert "withdrawn: 3 persons" in out
    assert opened(state, study).patient_count == 9
    # a copy elsewhere is recognised by its pixels
    shutil.copy(data(state) / "8.png", tmp_path / "copy.png")
    code, out, err = cli("withdraw", "--state", state, "--file", tmp_path / "copy.png")
    assert code == 0, err
    assert opened(state, study).patient_count == 8


REFUSED = {
    "an unknown id": (["P3", "P99"], "id 2: no image of this site has this id"),
    "an id that names nobody": (["P3", "unknown"], "id 2: empty or a placeholder"),
    "nobody": ([], "nobody is named"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_all_or_nothing_and_no_message_repeats_an_id(
    ingested: tuple[Path, Study], cli: Cli, case: str
) -> None:
    state, study = ingested
    ids, why = REFUSED[case]
    code, out, err = cli("withdraw", "--state", state, *ids)
    assert code == 2
    assert why in err
    assert "hint" in err
    assert "P99" not in out + err
    assert opened(state, study).patient_count == 12


BAD_LISTS = {
    "not text": (b"\xff\xfeP\x003\x00", "not UTF-8"),
    "empty": (b" \n\n", "holds no patient id"),
    "unknown in line 2": (b"P3\nP99\n", "list.txt:2: no image"),
    "too large": (b"P3\n" * (1 << 19), "1048576"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_list_is_read_whole_or_refused(
    ingested: tuple[Path, Study], cli: Cli, tmp_path: Path, case: str
) -> None:
    state, study = ingested
    content, why = BAD_LISTS[case]
    (tmp_path / "list.txt").write_bytes(content)
    code, _, err = cli("withdraw", "--state", state, "--list", tmp_path / "list.txt")
    assert code in (1, 2)
    assert why.replace(",", "") in err.replace(",", ""), err
    assert opened(state, study).patient_count == 12


def test_a_file_of_nobody_is_refused(
    ingested: tuple[Path, Study], cli: Cli, tmp_path: Path
) -> None:
    state, _ = ingested
    Image.fromarray(phantoms.fundus(99, 64)).save(tmp_path / "stranger.png")
    code, _, err = cli("withdraw", "--state", state, "--file", tmp_path / "stranger.png")
    assert code == 2
    assert "does not say whose it is" in err


def test_before_the_first_ingest_an_id_stays_out_from_the_start(
    approved: tuple[Path, Study], cli: Cli
) -> None:
    state, study = approved
    code, out, _ = cli("withdraw", "--state", state, "P3")
    assert code == 0
    assert "1 ids that no image has yet: they will not enter" in out
    code, out, _ = cli("ingest", "--state", state)
    assert code == 0
    assert "11 files of 11 patients" in out
    assert "not used: 1 files, withdrawn" in out
    assert opened(state, study).patient_count == 11


def test_an_id_in_another_spelling_finds_its_person(ingested: tuple[Path, Study], cli: Cli) -> None:
    state, study = ingested
    code, out, _ = cli("withdraw", "--state", state, "p-03")
    assert code == 0
    assert "withdrawn: 1 persons (1 ids)" in out
    assert opened(state, study).patient_count == 11
    code, out, _ = cli("withdraw", "--state", state, "P3")
    assert "1 had before" in out


def test_who_withdraws_ahead_does_not_enter_in_another_spelling(
    ingested: tuple[Path, Study], cli: Cli
) -> None:
    state, _ = ingested
    code, out, _ = cli("withdraw", "--state", state, "--ahead", "Q-077", "88")
    assert code == 0
    assert "2 ids that no image has yet" in out
    for number, name in enumerate(("q77", "0088")):
        Image.fromarray(phantoms.fundus(77 + number)).save(data(state) / f"new{number}.png")
        add_row(state, f"new{number}.png,{name},none,R")
    code, out, _ = cli("ingest", "--state", state, "--refresh")
    assert code == 0
    assert "not used: 2 files, withdrawn" in out


def test_later_somebody_unknown_needs_ahead(ingested: tuple[Path, Study], cli: Cli) -> None:
    state, study = ingested
    assert cli("withdraw", "--state", state, "P12", "--ahead")[0] == 0
    Image.fromarray(phantoms.fundus(40, 64)).save(data(state) / "12.png")
    add_row(state, "12.png,P12,none,R")
    assert cli("ingest", "--state", state, "--refresh")[0] == 0
    assert opened(state, study).patient_count == 12


def test_the_daemon_may_run_beside_it(ingested: tuple[Path, Study], cli: Cli) -> None:
    state, study = ingested
    with FolderLock(state / "lock", "kohort-site run"):
        assert cli("withdraw", "--state", state, "P3")[0] == 0
    assert opened(state, study).patient_count == 11


def test_an_id_under_two_issuers_needs_the_issuer(approved: tuple[Path, Study], cli: Cli) -> None:
    state, study = approved
    for issuer, seed in (("WEST", 50), ("EAST", 51)):
        image = phantoms.fundus(seed)
        dataset = phantoms.header("OP", "777")
        dataset.IssuerOfPatientID = issuer
        dataset.StudyInstanceUID = f"2.25.{seed}"
        dataset.ImageLaterality = "R"
        full = phantoms.with_pixels(dataset, image, "RGB")
        phantoms.save(full, data(state) / f"{issuer}.dcm")
    add_row(state, "EAST.dcm,,none,R")
    add_row(state, "WEST.dcm,,none,R")
    assert cli("ingest", "--state", state)[0] == 0
    before = opened(state, study).patient_count
    code, _, err = cli("withdraw", "--state", state, "777")
    assert code == 2
    assert "2 persons have this id; name the --issuer" in err
    assert cli("withdraw", "--state", state, "777", "--issuer", "EAST")[0] == 0
    assert opened(state, study).patient_count == before - 1


# --- ingest --refresh


def test_ingest_notices_files_that_came_went_or_changed(
    ingested: tuple[Path, Study], cli: Cli
) -> None:
    state, study = ingested
    code, out, _ = cli("ingest", "--state", state)
    assert code == 0
    assert "the cohort is there already\n" in out
    (data(state) / "0.png").unlink()
    Image.fromarray(phantoms.fundus(40, 64)).save(data(state) / "12.png")
    add_row(state, "12.png,P12,none,R")
    Image.fromarray(phantoms.fundus(41, 64)).save(data(state) / "1.png")
    code, out, _ = cli("ingest", "--state", state)
    assert code == 0
    assert "files since then: 1 new, 1 gone, 1 changed" in out
    assert opened(state, study).patient_count == 12
    before = opened(state, study)
    code, out, _ = cli("ingest", "--state", state, "--refresh")
    assert code == 0
    assert "persons: 1 new, 1 gone, 0 withdrawn, 1 with other images, 10 as before" in out
    after = opened(state, study)
    assert len(set(before.pseudonyms) & set(after.pseudonyms)) == 11
    after.verify()
    folders = State(state).cohorts(study.intake)
    assert len(folders) == 1
    code, out, _ = cli("ingest", "--state", state)
    assert "the cohort is there already\n" in out


def test_a_refresh_that_fails_leaves_the_cohort_as_it_was(
    ingested: tuple[Path, Study], cli: Cli
) -> None:
    state, study = ingested
    digest = opened(state, study).digest
    for path in data(state).glob("*.png"):
        path.unlink()
    code, _, err = cli("ingest", "--state", state, "--refresh")
    assert code == 2
    assert "no usable image" in err
    assert opened(state, study).digest == digest


def test_a_refresh_needs_the_daemon_stopped(ingested: tuple[Path, Study], cli: Cli) -> None:
    state, _ = ingested
    with FolderLock(state / "lock", "kohort-site run"):
        code, _, err = cli("ingest", "--state", state, "--refresh")
    assert code == 5
    assert "stop it first" in err


def test_a_person_stays_one_when_the_file_that_linked_two_ids_is_gone(
    approved: tuple[Path, Study], cli: Cli
) -> None:
    state, study = approved
    # one photograph under P0 and under P12, and another of P12 alone
    shutil.copy(data(state) / "0.png", data(state) / "link.png")
    Image.fromarray(phantoms.fundus(40, 64)).save(data(state) / "12.png")
    add_row(state, "link.png,P12,none,R")
    add_row(state, "12.png,P12,none,R")
    assert cli("ingest", "--state", state)[0] == 0
    assert opened(state, study).patient_count == 12
    linked = {names for names in opened(state, study).aliases if len(names) == 2}
    (data(state) / "link.png").unlink()
    code, out, _ = cli("ingest", "--state", state, "--refresh")
    assert code == 0
    assert "persons: 0 new, 0 gone, 0 withdrawn, 0 with other images, 12 as before" in out
    after = opened(state, study)
    assert after.patient_count == 12
    assert {names for names in after.aliases if len(names) == 2} == linked
    # and so the other id goes with the one that withdraws
    assert cli("withdraw", "--state", state, "P12")[0] == 0
    assert not set(*linked) & set(persons_of(State(state).cohort(study.intake)))


def test_a_refresh_removes_the_images_of_who_withdrew(
    ingested: tuple[Path, Study], cli: Cli
) -> None:
    state, study = ingested
    before = Cohort.read_whole(State(state).cohort(study.intake))
    assert cli("withdraw", "--state", state, "P3")[0] == 0
    code, out, _ = cli("ingest", "--state", state, "--refresh")
    assert code == 0
    assert "0 gone, 1 withdrawn" in out
    after = Cohort.read_whole(State(state).cohort(study.intake))
    assert (before.patient_count, after.patient_count) == (12, 11)
    assert len(after.images) == 11
