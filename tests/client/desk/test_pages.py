"""What the desk shows, and what a person decides on it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.egress.review import Reviews
from client.state.folder import State
from common.storage.journal import Journal
from tests.client.desk.conftest import Visitor, visit, wait_for_people
from tests.shown_batches import EACH, PATIENTS, averages, showing_hospital
from tests.sites import Hospital

SCRIPT = "<script>alert(1)</script>"


def picture(visitor: Visitor, digest: str, number: int, side: str) -> np.ndarray:
    """A picture of the desk as pixels."""
    answer = visitor.get(f"/batches/{digest}/pictures/{number}/{side}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_the_list_names_each_batch_with_its_state(visitor: Visitor, digest: str) -> None:
    page = visitor.get("/").text
    for word in (digest[:16], "waits for a person", f"{PATIENTS // EACH} images"):
        assert word in page


def test_the_list_says_what_plans_cost_a_patient(visitor: Visitor) -> None:
    visitor.desk.prices = lambda: [f"epsilon of a patient, plan {SCRIPT}: spent 2.02"]
    page = visitor.get("/").text
    assert "What plans cost a patient" in page and "spent 2.02" in page
    assert "<script" not in page


def test_a_batch_shows_each_average_beside_the_nearest_real_image(
    visitor: Visitor, hospital: Hospital, digest: str
) -> None:
    page = visitor.get(f"/batches/{digest}").text
    for word in (
        "group of 5 persons",
        "real, stays here",
        "No copy found",
        "No epsilon is claimed",
    ):
        assert word in page
    real = np.load(State(hospital.root).cohort(hospital.study.intake) / "images.npy")
    for number in (1, PATIENTS // EACH):
        assert (picture(visitor, digest, number, "average") == averages(real)[number - 1]).all()
        assert (picture(visitor, digest, number, "nearest") == real[(number - 1) * EACH]).all()


@pytest.mark.parametrize(
    "path",
    [
        "pictures/0/average",
        "pictures/9/average",
        "pictures/1/other",
        "pictures/x/average",
        "pictures/999999999999/average",
        "pictures/1/..%2f..%2fkeys",
        "sheets/2",
        "sheets/../../../keys/sign.key",
        "%2e%2e/%2e%2e/keys/sign.key",
    ],
)
def test_no_path_leads_out_of_a_batch(visitor: Visitor, digest: str, path: str) -> None:
    assert visitor.get(f"/batches/{digest}/{path}").status_code == 404


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "decisions.sqlite", "0" * 64, "../keys", "%00", "A" * 64]
)
def test_a_batch_is_named_by_its_whole_digest_alone(visitor: Visitor, name: str) -> None:
    for rest in ("", "/decision", "/pictures/1/average", "/sheets/1"):
        assert visitor.get(f"/batches/{name}{rest}").status_code == 404


def test_a_picture_that_was_exchanged_is_not_shown(visitor: Visitor, digest: str) -> None:
    sheet = visitor.reviews.find(digest).sheet
    with Image.open(sheet) as page:
        page.rotate(180).save(sheet, "PNG")
    assert visitor.get(f"/batches/{digest}/pictures/1/average").status_code == 404
    assert visitor.get(f"/batches/{digest}/sheets/1").status_code == 409
    assert "is not the one that was proposed" in visitor.get(f"/batches/{digest}").text
    answer = visitor.decide(digest, "approve", "Dr. A")
    assert (answer.status_code, "E-REVIEW-PAGES" in answer.text) == (409, True)
    assert visitor.reviews.state(digest) == "waiting"


def test_what_is_noted_of_the_images_cannot_be_exchanged_either(
    visitor: Visitor, digest: str
) -> None:
    path = visitor.reviews.find(digest).folder / "batch.json"
    path.write_bytes(path.read_bytes().replace(b'"persons":5', b'"persons":9'))
    answer = visitor.get(f"/batches/{digest}")
    assert (answer.status_code, "E-REVIEW-PAGES" in answer.text) == (409, True)
    assert visitor.get("/").status_code == 200


def test_a_batch_from_before_images_were_noted_shows_its_sheet(
    visitor: Visitor, digest: str, tmp_path: Path
) -> None:
    """So does an export of single images."""
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(visitor.reviews.find(digest).sheet.read_bytes())
    other = "ab" * 32
    visitor.reviews.propose(other, "f" * 64, sheet)
    page = visitor.get(f"/batches/{other}").text
    assert f"/batches/{other}/sheets/1" in page and "leave this one out" not in page
    assert visitor.get(f"/batches/{other}/sheets/1").content == sheet.read_bytes()
    assert visitor.get(f"/batches/{other}/pictures/1/average").status_code == 404
    assert visitor.decide(other, "approve", "Dr. A").status_code == 303
    assert visitor.reviews.state(other) == "approved"


# --- decisions


def test_a_person_approves(visitor: Visitor, digest: str) -> None:
    assert visitor.decide(digest, "approve", "Dr. A").status_code == 303
    assert visitor.reviews.approvals(digest) == {"dr. a"}
    page = visitor.get(f"/batches/{digest}").text
    assert "approved the batch" in page and "leave this one out" not in page
    assert "nothing to decide" in visitor.get(f"/batches/{digest}/decision").text
    assert visitor.decide(digest, "reject", "Dr. A").status_code == 409


def test_a_person_rejects_with_a_reason(visitor: Visitor, digest: str) -> None:
    visitor.decide(digest, "reject", "Dr. A", reason="text", note="a name in image 3")
    page = visitor.get(f"/batches/{digest}").text
    assert "text or marks of a device" in page and "a name in image 3" in page


@pytest.mark.parametrize("choice", ["", "approved", "leave out"])
def test_no_decision_is_none(visitor: Visitor, digest: str, choice: str) -> None:
    assert visitor.decide(digest, choice, "Dr. A").status_code in (409, 422)
    assert visitor.reviews.state(digest) == "waiting"


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\x00b"], ids=["", "blank", "long", "nul"])
def test_a_decision_needs_a_name(visitor: Visitor, digest: str, name: str) -> None:
    assert visitor.decide(digest, "approve", name).status_code == 422
    assert visitor.reviews.state(digest) == "waiting"


def mark(visitor: Visitor, digest: str, *numbers: int, page: int = 1, go: str = "decision") -> str:
    """Mark images on a page; return where it leads."""
    form = {"page": str(page), "mark": [str(number) for number in numbers], "go": go}
    return str(visitor.post(f"/batches/{digest}/marks", form).headers["location"])


def test_marked_images_stay_and_the_rest_is_another_batch(visitor: Visitor, digest: str) -> None:
    assert mark(visitor, digest, 2, 5).endswith(f"/batches/{digest}/decision")
    assert "Leave out 2 marked: 2, 5." in visitor.get(f"/batches/{digest}/decision").text
    assert visitor.decide(digest, "leave out", "Dr. A", reason="person").status_code == 303
    batch = visitor.reviews.find(digest)
    assert (batch.state, batch.left_out) == ("reduced", (2, 5))
    assert "left images out: 2, 5" in visitor.get(f"/batches/{digest}").text


def test_marks_are_kept_from_page_to_page(
    visitor: Visitor, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.desk.views.PAGE_PICTURES", 3)
    assert mark(visitor, digest, 1, 2, 7, go="2").endswith("?page=2")
    page = visitor.get(f"/batches/{digest}?page=2").text
    assert 'id="image-4"' in page and 'id="image-3"' not in page
    mark(visitor, digest, 4, page=2)
    # a mark of an image on another page is none; one is taken back on its own page
    assert "marked: 1, 2, 4" in visitor.get(f"/batches/{digest}/decision").text
    mark(visitor, digest, 2, page=1)
    assert "marked: 2, 4" in visitor.get(f"/batches/{digest}/decision").text


@pytest.mark.parametrize("page", ["0", "-1", "99", "1e9", "9" * 30], ids=str)
def test_a_page_that_is_not_there_is_the_nearest_one(
    visitor: Visitor, digest: str, page: str
) -> None:
    assert visitor.get(f"/batches/{digest}?page={page}").status_code in (200, 404)


def test_the_desk_says_why_a_batch_leaves_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = showing_hospital(
        tmp_path, monkeypatch, synthesis__grouping="random", synthesis__privatize=None
    )
    wait_for_people(hospital)
    visitor = visit(hospital)
    visitor.enter()
    digest = visitor.reviews.find("").digest
    page = visitor.get(f"/batches/{digest}").text
    assert "Single images cannot be left out: chance draws" in page
    assert "leave this one out" not in page
    mark(visitor, digest, 1)
    answer = visitor.decide(digest, "leave out", "Dr. A")
    assert (answer.status_code, "E-REVIEW-SINGLE" in answer.text) == (409, True)


# --- two persons


def test_two_persons_open_two_links(hospital: Hospital) -> None:
    first = visit(hospital, reviewers=2)
    first.enter()
    digest = first.reviews.find("").digest
    first.decide(digest, "approve", "Dr. A")
    assert "waits for another person: 1 of 2 approved" in first.get("/").text
    # the same person, and the same session under another name
    again = first.decide(digest, "approve", "dr. a")
    assert (again.status_code, "E-REVIEW-SAME" in again.text) == (409, True)
    other = first.decide(digest, "approve", "Dr. B")
    assert (other.status_code, "E-REVIEW-SAME" in other.text) == (409, True)
    assert first.reviews.state(digest) == "waiting"
    first.post("/leave")
    first.enter()
    assert first.decide(digest, "approve", "Dr. B").status_code == 303
    assert first.reviews.state(digest) == "approved"


# --- names with tags


def test_tags_in_names_and_notes_are_words(visitor: Visitor, digest: str) -> None:
    visitor.decide(
        digest, "reject", f"Dr. {SCRIPT}", note=f'"><img src=x onerror=alert(1)>{SCRIPT}'
    )
    for path in ("/", f"/batches/{digest}", f"/batches/{digest}/decision"):
        page = visitor.get(path).text
        assert "<script" not in page and "<img src=x" not in page
        assert "&lt;script&gt;" in page


def test_tags_in_a_label_or_a_plans_name_are_words(
    visitor: Visitor, hospital: Hospital, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan allows no such label; a file that somebody put there might hold one."""
    batch = visitor.reviews.find(digest)
    facts = batch.facts()
    assert facts is not None
    text = facts.to_json().replace(facts.images[0].label.encode(), SCRIPT.encode())
    (batch.folder / "batch.json").write_bytes(text)
    monkeypatch.setattr("client.egress.review.file_digest", lambda _: facts_digest(batch.pages))
    hostile = hospital.study.model_copy(update={"name": SCRIPT})
    visitor.desk.plans = lambda: {batch.study: hostile}
    page = visitor.get(f"/batches/{digest}").text
    assert "<script" not in page and page.count("&lt;script&gt;") > 2


def facts_digest(pages: object) -> str:
    """The digest that the journal has of what is noted."""
    assert isinstance(pages, dict)
    return str(pages["batch.json"])


def test_a_row_that_somebody_wrote_is_words_too(visitor: Visitor, hospital: Hospital) -> None:
    journal = Journal(State(hospital.root).reviews / "decisions.sqlite")
    journal.append("cd" * 32, "waiting", {"study": SCRIPT})
    journal.append("cd" * 32, "rejected", {"reviewer": SCRIPT, "reason": SCRIPT, "at": SCRIPT})
    journal.close()
    for path in ("/", f"/batches/{'cd' * 32}"):
        page = visitor.get(path).text
        assert "<script" not in page and "&lt;script&gt;" in page


def test_the_desk_and_the_command_line_decide_on_the_same_record(
    visitor: Visitor, hospital: Hospital, digest: str
) -> None:
    place = State(hospital.root)
    other = Reviews(place.reviews, place.signing_key)
    other.decide(digest, approve=True, reviewer="Dr. B")
    other.close()
    assert visitor.decide(digest, "reject", "Dr. A").status_code == 409
    assert "approved" in visitor.get("/").text
