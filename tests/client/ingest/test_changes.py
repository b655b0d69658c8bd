"""What came, went, changed or was repaired since a cohort was built, and how a refresh tells it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from client.cli.check import change_lines
from client.ingest.changes import FileChanges
from client.ingest.cohort import Cohort
from client.ingest.listing import LISTING, Changes, input_ids
from client.ingest.refresh import Intakes, Refreshed
from client.state.config import load_site
from client.state.folder import State
from tests import phantoms
from tests.sites import Hospital, make_hospital

pytestmark = pytest.mark.usefixtures("in_process")
PEOPLE = 4
NOTHING = Changes(0, 0, 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A hospital of four people, and a text that is no image; copied for each test."""
    folder = tmp_path_factory.mktemp("hospital")
    hospital = make_hospital(folder)
    shutil.rmtree(State(hospital.root).cohort(hospital.study.intake))
    rows = ["file,patient,label,laterality"]
    for number in range(PEOPLE):
        photograph(folder / "data" / f"{number}.png", number)
        rows.append(f"{number}.png,P{number},none,R")
    rows.append("later.png,P9,none,R")
    (folder / "data" / "later.png").write_text("no image")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    settings = hospital.root / "site.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("labels_csv: null", f"labels_csv: {folder}/labels.csv"))
    return hospital


def photograph(path: Path, number: int) -> None:
    Image.fromarray(phantoms.fundus(number, 64)).save(path)


class Site:
    """The cohort of one hospital, its data folder and its labels file."""

    def __init__(self, hospital: Hospital, folder: Path) -> None:
        shutil.copytree(hospital.root.parent, folder, dirs_exist_ok=True)
        self.root = folder / hospital.root.name
        settings = self.root / "site.yaml"
        settings.write_text(settings.read_text().replace(str(hospital.root.parent), str(folder)))
        self.data = folder / "data"
        self.labels = folder / "labels.csv"
        self.study = hospital.study
        self.intakes.ensure(self.study.intake)

    @property
    def intakes(self) -> Intakes:
        return Intakes(State(self.root), load_site(self.root))

    def changes(self) -> Changes:
        found = self.intakes.changes(self.study.intake)
        assert found is not None
        return found

    def refresh(self) -> Refreshed:
        found = self.intakes.refresh(self.study.intake)
        assert found is not None
        return found

    def cohort(self) -> Cohort:
        return Cohort.open(State(self.root).cohort(self.study.intake))


@pytest.fixture
def site(built: Hospital, tmp_path: Path) -> Site:
    return Site(built, tmp_path)


def test_where_nothing_changed_nothing_is_said(site: Site) -> None:
    assert site.changes() == NOTHING and not site.changes()
    assert list(change_lines(site.root, site.study)) == []


def test_a_labels_file_with_other_contents_is_noticed_and_taken_in(site: Site) -> None:
    text = site.labels.read_text()
    site.labels.write_text(text.replace("0.png,P0,none", "0.png,P0,severe"))
    assert site.changes() == Changes(0, 0, 0, labels=True)
    first, second = change_lines(site.root, site.study)
    assert first.endswith(
        "files since the last ingest: 0 new, 0 gone, 0 changed; the labels file changed"
    )
    assert "kohort-site ingest --refresh" in second
    found = site.refresh()
    assert (found.changed, found.same) == (1, PEOPLE - 1)
    assert sorted(site.cohort().labels.tolist()) == [0, 0, 0, 2]
    assert not site.changes()
    # it was saved again, with the same rows
    site.labels.write_text(site.labels.read_text())
    os.utime(site.labels, (1, 1))
    assert not site.changes()


def test_other_settings_are_noticed(site: Site) -> None:
    settings = site.root / "site.yaml"
    settings.write_text(settings.read_text().replace("max_file_mib: 256", "max_file_mib: 255"))
    assert site.changes() == Changes(0, 0, 0, settings=True)
    assert site.changes().words().endswith("; settings of site.yaml, or persons.csv, changed")


def test_another_word_on_who_is_one_person_is_noticed(site: Site) -> None:
    decisions = site.labels.with_name("persons.csv")
    settings = site.root / "site.yaml"
    settings.write_text(
        settings.read_text().replace("persons_csv: null", f"persons_csv: {decisions}")
    )
    decisions.write_text("first,second,decision\nP0,P1,different\n")
    assert site.changes() == Changes(0, 0, 0, settings=True)
    site.refresh()
    assert not site.changes()
    decisions.write_text("first,second,decision\nP0,P1,same\n")
    assert site.changes() == Changes(0, 0, 0, settings=True)


def test_a_list_of_an_earlier_version_knows_nothing_of_labels_and_settings(site: Site) -> None:
    path = State(site.root).cohort(site.study.intake) / LISTING
    ids = input_ids(State(site.root).pseudonym_bytes())
    lines = [line for line in path.read_text().splitlines() if not line.startswith(ids)]
    assert len(lines) == 1 + PEOPLE + 1
    path.write_text("\n".join(lines) + "\n")
    assert not site.changes()


def test_a_repaired_file_enters_and_is_counted(site: Site) -> None:
    photograph(site.data / "later.png", 9)
    assert site.changes() == Changes(0, 0, 1)
    found = site.refresh()
    assert found.files == FileChanges(new=0, gone=0, changed=1, repaired=1, refused=0)
    assert (found.new, found.gone, found.same) == (1, 0, PEOPLE)
    assert next(found.lines()) == (
        "files: 0 new, 0 gone, 1 changed; 1 that were refused enter now, 0 that were not are "
        "refused now"
    )


def test_a_repaired_row_of_the_labels_file_repairs_its_file(site: Site) -> None:
    photograph(site.data / "late.png", 9)
    found = site.refresh()
    assert found.files == FileChanges(new=1, gone=0, changed=0, repaired=0, refused=0)
    site.labels.write_text(site.labels.read_text().replace("later.png", "late.png"))
    found = site.refresh()
    assert found.files == FileChanges(new=0, gone=0, changed=0, repaired=1, refused=0)
    assert found.new == 1


def test_a_refresh_of_refused_files_alone_leaves_every_person_as_before(site: Site) -> None:
    before = site.cohort()
    (site.data / "later.png").write_text("no image either")
    (site.data / "notes.txt").write_text("no image")
    found = site.refresh()
    assert found.files == FileChanges(new=1, gone=0, changed=1, repaired=0, refused=0)
    assert (found.new, found.gone, found.changed, found.same) == (0, 0, 0, PEOPLE)
    assert site.cohort().digest == before.digest
    assert site.cohort().pseudonyms == before.pseudonyms


def test_a_file_that_went_and_one_that_broke_are_counted(site: Site) -> None:
    (site.data / "0.png").unlink()
    (site.data / "1.png").write_text("damaged")
    found = site.refresh()
    assert found.files == FileChanges(new=0, gone=1, changed=1, repaired=0, refused=1)
    assert (found.gone, found.same) == (2, PEOPLE - 2)
    assert "a group that lost one of them is never released again" in list(found.lines())


def test_a_refused_file_that_went_is_gone_and_not_repaired(site: Site) -> None:
    (site.data / "later.png").unlink()
    assert site.refresh().files == FileChanges(new=0, gone=1, changed=0, repaired=0, refused=0)
