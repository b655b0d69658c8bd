"""Two photographs of one eye are found by their vessels; strangers and dust join nobody."""

from __future__ import annotations

import csv
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from client.ingest import eye_index, eyes, same_eye
from client.ingest.build import IngestReport, ingest
from client.ingest.census import SiteWord
from client.ingest.cohort import Cohort
from client.ingest.eyes import (
    MOST,
    Eyes,
    Switch,
    compare_eyes,
    find_eyes_among,
    may_show_eyes,
)
from client.ingest.persons import ImageRecord
from client.ingest.refresh import Intakes
from client.ingest.same_eye import PERHAPS, SAME_EYE, Match, Search, find_same_eyes
from client.ingest.vessels import map_vessels
from client.ingest.withdrawal import find_in_files, name_ids, resolve, withdraw
from client.state.people import People, PeopleFile
from common.errors import ConfigurationError
from common.study.intake import Intake
from tests import phantoms
from tests.sites import make_hospital

Photograph = NDArray[np.uint8]
SIDE = 128
COLUMNS = "file,patient,label"


def draw_eye(
    seed: int, turn: float = 0, right: float = 0, scale: float = 1, dust: bool = False
) -> Photograph:
    """An invented eye, uint8 [128, 128, 3]: a tree of vessels on a lit disc.

    It may be turned by degrees, moved by pixels and enlarged; dust lies in the camera.
    """
    chance = np.random.default_rng(seed)
    large = 4 * SIDE
    canvas = Image.new("L", (large, large), 150)
    pen = ImageDraw.Draw(canvas)
    stems = [(np.array([0.3, 0.5]) * large, angle, 14.0) for angle in chance.uniform(-3, 3, 6)]
    while stems:
        place, angle, width = stems.pop()
        for _ in range(int(chance.integers(4, 9))):
            angle += chance.normal(0, 0.25)
            end = place + large / 20 * np.array([np.cos(angle), np.sin(angle)])
            pen.line((*place, *end), fill=70, width=round(width))
            place = end
        if width > 5:
            for side in (-1, 1):
                stems.append((place, angle + side * chance.uniform(0.3, 0.8), 0.7 * width))
    middle = large / 2
    cosine = np.cos(np.radians(turn)) / scale
    sine = np.sin(np.radians(turn)) / scale
    across = middle - cosine * (middle + 4 * right) - sine * middle
    down = middle + sine * (middle + 4 * right) - cosine * middle
    matrix = (cosine, sine, across, -sine, cosine, down)
    canvas = canvas.transform(
        canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=150
    )
    green = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float64)
    if dust:
        add_dust(green)
    return as_photograph(green, turn)


def add_dust(green: NDArray[np.float64]) -> None:
    """Darken the places where dust lies in the camera."""
    for row, column in np.random.default_rng(99).integers(25, 100, (40, 2)):
        green[row : row + 3, column : column + 3] -= 50


def as_photograph(green: NDArray[np.float64], light: float = 0) -> Photograph:
    """A lit disc with this green channel, lit from one side."""
    places = np.arange(SIDE) - (SIDE - 1) / 2
    shades = green * (1 + 0.02 * light * places / SIDE)
    pixels = np.stack([1.3 * shades, shades, 0.3 * shades], axis=-1)
    pixels[np.hypot(places, places[:, None]) > 63.5] = 0
    return np.clip(pixels, 0, 255).astype(np.uint8)


def above(search: Search) -> list[tuple[int, int]]:
    return [(match.first, match.second) for match in search.above(SAME_EYE)]


CHANGES = {
    "turned": (9.0, 0.0, 1.0),
    "moved": (0.0, 12.0, 1.0),
    "turned, moved and enlarged": (-7.0, 6.0, 1.05),
}


@pytest.fixture(scope="module")
def strangers() -> list[Photograph]:
    return [draw_eye(seed) for seed in range(7)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_second_photograph_of_an_eye_is_found(change: str, strangers: list[Photograph]) -> None:
    again = draw_eye(3, *CHANGES[change])
    search = find_same_eyes(np.stack([*strangers, again]), range(8))
    assert above(search) == [(3, 7)]
    assert (search.pairs, search.false_above(PERHAPS)) == (28, 0)


def test_mirrored_eyes_strangers_and_one_persons_photographs_are_not(
    strangers: list[Photograph],
) -> None:
    mirrored = strangers[3][:, ::-1]
    search = find_same_eyes(np.stack([*strangers, mirrored]), range(8))
    assert not search.above(PERHAPS)
    # the mirrored search sees what was mirrored
    assert search.false_above(0.9) == 1
    search = find_same_eyes(np.stack([strangers[3], draw_eye(3, 5)]), [4, 4])
    assert (search.straight, search.pairs) == ((), 0)


def test_dust_in_a_camera_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    hazy = [draw_eye(seed, dust=True) for seed in range(8)]
    for place in range(2):
        # haze: nothing shows but the dust, and the noise of the sensor
        green = np.random.default_rng(place).normal(150, 4, (SIDE, SIDE))
        add_dust(green)
        hazy[place] = as_photograph(green)
    photographs = np.stack(hazy)
    search = find_same_eyes(photographs, range(8))
    assert above(search) == [(0, 1)]
    # it is listed, and joins nobody
    records = [[ImageRecord(place, (str(place),), 0, -1, str(place))] for place in range(8)]
    monkeypatch.setattr(eyes, "ENOUGH", 8)
    found = compare_eyes(photographs, records, People(), "join", lambda done, total: None)
    assert (0, 1) in {(match.first, match.second) for match in found.listed}
    assert found.same == ()
    monkeypatch.setattr(same_eye, "ENOUGH", 8)
    assert not above(find_same_eyes(photographs, range(8)))


def test_nothing_is_made_of_an_even_or_a_black_photograph() -> None:
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    even = as_photograph(np.full((SIDE, SIDE), 120.0))
    search = find_same_eyes(np.stack([black, black, even, even, draw_eye(1)]), range(5))
    assert not search.above(PERHAPS)
    assert not map_vessels(black).any()
    assert find_same_eyes(np.empty((0, SIDE, SIDE, 3), np.uint8), []) == Search()


def test_larger_photographs_are_compared_at_128_px() -> None:
    small = draw_eye(5)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    assert np.allclose(map_vessels(large), map_vessels(small))


def hospital(
    tmp_path: Path, rules: Intake, key: bytes, switch: Switch, persons: str = ""
) -> IngestReport:
    """The intake of four photographs: SA and SB are one eye."""
    source = tmp_path / "photographs"
    if not source.exists():
        source.mkdir()
        own = (draw_eye(3), draw_eye(3, 6, 5), draw_eye(1), draw_eye(2))
        for patient, pixels in zip(("SA", "SB", "SC", "SD"), own, strict=True):
            Image.fromarray(pixels).save(source / f"{patient}.png")
    rows = [(f"{patient}.png", patient, "none") for patient in ("SA", "SB", "SC", "SD")]
    labels = phantoms.write_labels(tmp_path / "labels.csv", rows, "file,patient,label")
    decisions = None
    if persons:
        decisions = tmp_path / "persons.csv"
        decisions.write_text(persons)
    people = PeopleFile(tmp_path / f"people-{switch}-{bool(persons)}")
    out = tmp_path / f"cohort-{switch}-{bool(persons)}"
    word = SiteWord(decisions, same_eye=switch)
    return ingest(source, rules, key, out, labels_csv=labels, people=people, word=word)


@pytest.mark.usefixtures("in_process")
def test_one_eye_under_two_ids_is_one_person_as_the_site_says(
    tmp_path: Path, intake: Callable[..., Intake], key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = intake(size_px=SIDE)
    # a few photographs tell nothing of dust: listed, and not joined
    few = hospital(tmp_path, rules, key, "join", "first,second,decision\n")
    assert (few.patients, few.joins) == (4, ())
    assert "fewer than 50" in few.eyes[0]
    monkeypatch.setattr(eyes, "ENOUGH", 4)

    joined = hospital(tmp_path, rules, key, "join")
    assert (joined.patients, joined.merged) == (3, 1)
    assert joined.joins == ("SA = SB: the same eye, photographed twice",)
    assert "1 of 6 pairs" in joined.eyes[0]
    assert "0 of as many mirrored pairs" in joined.eyes[0]

    listed = hospital(tmp_path, rules, key, "list")
    assert (listed.patients, listed.joins) == (4, ())
    folder = tmp_path / "cohort-list-False" / "same_eye"
    assert str(folder / "pairs.csv") in listed.eyes[1]
    rows = list(csv.DictReader((folder / "pairs.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["first"], row["second"], row["decision"]) for row in rows] == [
        ("file:SA.png", "file:SB.png", "")
    ]
    assert float(rows[0]["score"]) >= SAME_EYE
    sheet = folder / "pairs-001.png"
    with Image.open(sheet) as picture:
        assert picture.size == (560, 256)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    off = hospital(tmp_path, rules, key, "off")
    assert (off.patients, off.eyes) == (4, ())


@pytest.mark.usefixtures("in_process")
def test_a_person_undoes_the_join_of_two_eyes(
    tmp_path: Path, intake: Callable[..., Intake], key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eyes, "ENOUGH", 4)
    parted = "first,second,decision\nSA,SB,different\n"
    report = hospital(tmp_path, intake(size_px=SIDE), key, "join", parted)
    assert (report.patients, report.joins) == (4, ())
    assert not (tmp_path / "cohort-join-True" / "same_eye").exists()


def test_only_large_colour_fundus_photographs_are_compared(
    intake: Callable[..., Intake],
) -> None:
    assert may_show_eyes(intake(size_px=128))
    assert not may_show_eyes(intake(size_px=96))
    assert not may_show_eyes(intake(size_px=128, channels=1))
    assert not may_show_eyes(intake(size_px=128, dicom_modalities=("DX",)))


def test_whoever_withdrew_is_joined_and_not_pictured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyes, "ENOUGH", 2)
    records = [ImageRecord(place, (name,), 0, -1, name) for place, name in enumerate("ab")]
    photographs = np.stack([draw_eye(3), draw_eye(3, 6)])
    persons = [[record] for record in records]
    known = People(withdrawn=frozenset({"a"}))
    found = compare_eyes(photographs, persons, known, "join", lambda done, total: None)
    assert (found.same, found.listed) == (((0, 1),), ())


def test_too_many_photographs_are_said_and_not_searched(tmp_path: Path) -> None:
    lines = list(Eyes("join", count=MOST + 1).lines(tmp_path))
    assert len(lines) == 1
    assert "100,001 photographs, at most 100,000" in lines[0]


def test_among_many_the_first_step_leaves_the_eye_in(
    strangers: list[Photograph], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = draw_eye(3, *CHANGES["turned, moved and enlarged"])
    monkeypatch.setattr(eye_index, "LOOSE", 2)
    monkeypatch.setattr(same_eye, "BLOCK", 3)
    search = find_same_eyes(np.stack([*strangers, again]), range(8))
    assert above(search) == [(3, 7)]


@pytest.mark.parametrize(("mirrored", "joined"), [(0, 4), (1, 4), (2, 0)])
def test_where_chance_finds_as_many_nobody_is_joined(
    mirrored: int, joined: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = tuple(Match(place, place + 1, 0.6) for place in range(4))
    search = Search(straight, tuple(Match(0, place, 0.5) for place in range(mirrored)), 6)
    monkeypatch.setattr(eyes, "ENOUGH", 5)
    monkeypatch.setattr(eyes, "find_same_eyes", lambda *_, **__: search)
    records = [[ImageRecord(place, (str(place),), 0, -1, str(place))] for place in range(5)]
    photographs = np.zeros((5, SIDE, SIDE, 3), np.uint8)
    found = compare_eyes(photographs, records, People(), "join", lambda done, total: None)
    assert (len(found.same), len(found.listed)) == (joined, 4)
    assert ("chance alone" in next(found.lines(tmp_path))) == (joined == 0)
    among = find_eyes_among(photographs[2:], photographs[:2], "join")
    assert bool(among) == (joined > 0)


def test_photographs_are_compared_with_those_of_a_cohort(
    strangers: list[Photograph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eyes, "ENOUGH", 8)
    others = np.stack(strangers)
    again = np.stack([draw_eye(9), draw_eye(3, 6), draw_eye(3, -6)])
    assert find_eyes_among(again, others, "join") == [(1, 3), (2, 3)]
    assert not find_eyes_among(again, others, "list")
    assert not find_eyes_among(again[:1], others, "join")
    monkeypatch.setattr(eyes, "ENOUGH", 11)
    assert not find_eyes_among(again, others, "join")


def test_who_withdraws_by_one_id_goes_under_the_other_id_of_the_eye(
    tmp_path: Path, intake: Callable[..., Intake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eyes, "ENOUGH", 4)
    rules = intake(size_px=SIDE)
    site = make_hospital(tmp_path / "site").site()
    source = tmp_path / "photographs"
    source.mkdir()
    own = {"SA": draw_eye(3), "SB": draw_eye(3, 6, 5), "SC": draw_eye(1), "SD": draw_eye(2)}
    for patient, pixels in own.items():
        Image.fromarray(pixels).save(source / f"{patient}.png")
    rows = [(f"{patient}.png", patient, "none") for patient in own]
    labels = phantoms.write_labels(tmp_path / "labels.csv", rows, COLUMNS)
    data = site.config.data.model_copy(update={"folder": str(source), "labels_csv": str(labels)})
    config = site.config.model_copy(update={"data": data})
    intakes = Intakes(site.state, config)
    report = intakes.ensure(rules)
    assert report is not None
    assert (report.patients, report.joins) == (3, ("SA = SB: the same eye, photographed twice",))

    # a photograph that no id names is of the same person, by its vessels
    third = tmp_path / "third.png"
    Image.fromarray(draw_eye(3, -5)).save(third)
    stranger = tmp_path / "stranger.png"
    Image.fromarray(draw_eye(4)).save(stranger)
    (person,) = find_in_files([third], [rules], site.state, config)
    assert len(person) == 2
    with pytest.raises(ConfigurationError, match="Neither header"):
        find_in_files([stranger], [rules], site.state, config)

    # but of nobody whom a person called different
    other = source / "SE.png"
    Image.fromarray(draw_eye(3, -5)).save(other)
    phantoms.write_labels(tmp_path / "labels.csv", [*rows, ("SE.png", "SE", "none")], COLUMNS)
    known = PeopleFile(site.state.people)
    (named,) = name_ids(["SE"], "", site.state.pseudonym_bytes())
    known.decide((), [(name, named.name) for name in person])
    assert find_in_files([other], [rules], site.state, config) == [(named.name,)]
    other.unlink()

    # withdraw by one id: the images of both are out at once
    asked = name_ids(["SA"], "", site.state.pseudonym_bytes())
    persons, unknown = resolve(asked, known.read(), ahead=False)
    assert persons == [person]
    assert withdraw(persons, unknown, site.state).ids == 2
    cohort = Cohort.open(site.state.cohort(rules))
    assert (len(cohort.images), len(cohort.aliases)) == (2, 2)
    assert not set(person) & {name for names in cohort.aliases for name in names}

    # and they stay out of the next cohort, also where the file that showed the eye is gone
    (source / "SA.png").unlink()
    phantoms.write_labels(tmp_path / "labels.csv", rows[1:], COLUMNS)
    changed = intakes.refresh(rules)
    assert changed is not None
    assert (changed.report.patients, changed.withdrawn) == (2, 1)
    assert changed.report.quarantined == {"withdrawn": 1}
    cohort = Cohort.open(site.state.cohort(rules))
    assert not set(person) & {name for names in cohort.aliases for name in names}
