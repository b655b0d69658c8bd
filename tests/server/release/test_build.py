"""The release builder: layout, loaders, determinism, refusals."""

import dataclasses
import html
import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from common.errors import PolicyError, RefusedError
from common.study.plan import load_study
from common.wire import signing
from common.wire.messages import Sealed
from kohort import layout
from kohort.marks import CHUNKS
from kohort.png import read_chunks
from kohort.verification import verify
from server.release.build import build_release
from server.release.limits import count_sentence
from server.release.statement import AUDIT_LIMITS
from tests.faults.disk import Disk
from tests.releases import batch, release_inputs, small_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("release"))[0]


def test_ssh_keygen_and_sha256sum_alone_verify_a_release(release: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    command = [
        "ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "operator@small",
        "-n", "kohort-release-v1", "-s", "SHA256SUMS.sig",
    ]  # fmt: skip
    with open(release / "SHA256SUMS", "rb") as sums:
        assert (
            subprocess.run(
                command, cwd=release, stdin=sums, check=False, capture_output=True
            ).returncode
            == 0
        )
    done = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=release, check=False)
    assert done.returncode == 0


def test_the_same_inputs_give_the_same_bytes_and_order_says_nothing_about_the_site(
    tmp_path: Path,
) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator)
    one = build_release(inputs, tmp_path / "one", operator)
    swapped = dataclasses.replace(inputs, batches=inputs.batches[::-1])
    other = build_release(swapped, tmp_path / "two", operator)
    assert (one / "SHA256SUMS").read_bytes() == (other / "SHA256SUMS").read_bytes()
    # a second build changes nothing
    assert build_release(inputs, tmp_path / "one", operator) == one


def test_a_published_version_is_never_changed(tmp_path: Path) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator)
    build_release(inputs, tmp_path / "out", operator)
    changed = dataclasses.replace(
        inputs, batches=[batch(inputs.study, "hospital-a", 9), inputs.batches[1]]
    )
    with pytest.raises(RefusedError, match="this version is there with other bytes"):
        build_release(changed, tmp_path / "out", operator)
    verify(tmp_path / "out" / "small-1.0.0")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small-1.0.0"]


def test_below_the_quorum_nothing_is_released(tmp_path: Path) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator)
    with pytest.raises(PolicyError, match="quorum is 2"):
        build_release(
            dataclasses.replace(inputs, batches=inputs.batches[:1]), tmp_path / "out", operator
        )
    assert not (tmp_path / "out").exists()


def test_a_batch_with_changed_pixels_or_another_signer_is_refused(tmp_path: Path) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator)
    good = inputs.batches[0]
    sealed = good.parts[0]
    payload = sealed.payload[:-1] + bytes([sealed.payload[-1] ^ 1])
    changed = dataclasses.replace(good, parts=(Sealed(sealed.header, payload, sealed.signature),))
    foreign = dataclasses.replace(good, key=signing.public_text(signing.new_key().public_key()))
    for bad in (changed, foreign):
        with pytest.raises(RefusedError):
            build_release(
                dataclasses.replace(inputs, batches=[bad, inputs.batches[1]]),
                tmp_path / "out",
                operator,
            )


def test_identical_pictures_enter_once(tmp_path: Path) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator)
    twin = batch(inputs.study, "hospital-b", 1)
    release = build_release(
        dataclasses.replace(inputs, batches=[inputs.batches[0], twin]), tmp_path / "out", operator
    )
    assert verify(release).images == 6


def test_too_few_images_are_not_released(tmp_path: Path) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator, release__min_images=100)
    with pytest.raises(PolicyError, match="min_images is 100"):
        build_release(inputs, tmp_path / "out", operator)


def test_the_page_has_no_script_and_loads_nothing(release: Path) -> None:
    page = (release / "index.html").read_text()
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("data:image/png") == 12


def test_the_statement_keeps_k_and_epsilon_apart(release: Path) -> None:
    statement = json.loads((release / "privacy_statement.json").read_text())
    assert statement["images"]["k"] == 5
    assert statement["updates"]["epsilon_by_accountant"] == {"PLD": 3.2, "RDP": 3.6}
    assert statement["privatized_images"]["epsilon_per_image"] > 0
    text = (release / "privacy_statement.md").read_text() + (release / "README.md").read_text()
    for word in ("anonymous", "HIPAA", "GDPR", "zero risk", "certified"):
        assert word not in text
    assert "no epsilon per patient is claimed for images" in text


def test_page_and_datasheet_say_what_the_counts_tell_and_the_page_that_it_is_of_one_plan(
    release: Path,
) -> None:
    counts = count_sentence(load_study(release / "study.yaml"))
    assert "computed from the sites' patients" in counts
    page = html.unescape((release / "index.html").read_text())
    assert counts in page and counts in (release / "README.md").read_text()
    assert "No number on this page" not in page
    statement = json.loads((release / "privacy_statement.json").read_text())
    metadata = json.loads((release / "croissant.json").read_text())["rai:dataLimitations"]
    text = (release / "privacy_statement.md").read_text()
    for sentence in (statement["scope"], *statement["given"], *statement["limits"]):
        assert sentence in page and sentence in metadata and sentence in text


def test_the_canaries_lower_bound_stands_beside_the_accountants_upper_bound(release: Path) -> None:
    statement = json.loads((release / "privacy_statement.json").read_text())
    found = statement["updates"]["audit"]["models"]["gan"]
    assert (found["lower_bound"], found["upper_bound"], found["confidence"]) == (0.12, 3.1, 0.95)
    line = "gan: 0.12 ≤ ε ≤ 3.1"
    assert (
        line in (release / "privacy_statement.md").read_text()
        and line in (release / "index.html").read_text()
    )
    findings = {
        f["name"]: f for f in json.loads((release / layout.FINDINGS).read_text())["findings"]
    }
    assert findings["canary lower bound, gan"]["value"] == 0.12
    # nothing of a site's audit
    assert set(statement["updates"]["evidence"]["hospital-a"]) == {
        "head_commitment",
    }


def test_the_page_says_beside_the_bounds_what_they_do_not_prove(release: Path) -> None:
    page = html.unescape((release / "index.html").read_text())
    assert AUDIT_LIMITS in page
    assert "prove a fault" not in page and "at the stated confidence" in page


def test_pictures_carry_the_constant_mark_and_no_other_metadata(release: Path) -> None:
    for path in (release / "data").rglob("*.png"):
        chunks = read_chunks(path.read_bytes(), path.name)
        beside = [chunk for chunk in chunks if chunk.kind not in (b"IHDR", b"IDAT", b"IEND")]
        assert beside == list(CHUNKS.values())
    assert np.unique([p.parent.name for p in (release / "data").rglob("*.png")]).size == 3


def test_every_byte_of_a_release_is_on_disk_before_it_is_visible(tmp_path: Path) -> None:
    operator = signing.new_key()
    inputs = release_inputs(tmp_path, operator)
    disk = Disk([tmp_path / "releases"])
    with ExitStack() as stack:
        disk.install(stack)
        build_release(inputs, tmp_path / "releases", operator)
    assert any(event.kind == "rename" for event in disk.events)
    assert disk.unsynced == []
