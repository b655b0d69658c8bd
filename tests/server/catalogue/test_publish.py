"""The catalogue over time: published, renewed, withdrawn, killed, and claimed by another."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import ConfigurationError, EnvironmentFault, PolicyError, RefusedError
from common.storage.lock import FolderLock
from kohort.catalogue import CATALOGUE, open_catalogue
from kohort.verification import verify
from server.catalogue import publish as publishing
from server.catalogue import site as sites
from tests.catalogues import DAY, NOW, SENTENCE, WORDS, Operator, operator
from tests.releases import proposal, sign_off


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a site as a web server sees it."""
    names = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def shown(eyes: Operator) -> tuple[int, list[str], list[str]]:
    """The number of the catalogue that is served, what it offers, what it withdrew."""
    text = (eyes.web / "catalogue.json").read_bytes()
    found = open_catalogue(text, (eyes.web / "catalogue.json.sig").read_bytes())
    offered = [f"{one.name} {one.version}" for one in found.releases]
    return found.version, offered, [f"{one.name} {one.version}" for one in found.withdrawn]


def test_what_is_published_is_listed_served_and_verifies(eyes: Operator) -> None:
    told = eyes.publish()
    assert told.added == ("small 1.0.0", "small 1.1.0")
    assert shown(eyes) == (1, ["small 1.1.0", "small 1.0.0"], [])
    for entry in told.signed.catalogue.releases:
        verify(eyes.web / entry.path)
        assert (eyes.web / f"{entry.name}-{entry.version}.html").is_file()
    later, earlier = told.signed.catalogue.releases
    assert (later.superseded_by, earlier.superseded_by) == ("", "1.1.0")


def test_nothing_changes_while_nothing_is_new_and_half_of_the_time_is_left(eyes: Operator) -> None:
    eyes.publish()
    before = contents(eyes.site)
    told = eyes.publish(NOW + 44 * DAY)
    assert not told.changed
    assert contents(eyes.site) == before
    # after half of its time it is signed anew, and says nothing else
    assert eyes.publish(NOW + 46 * DAY).changed
    assert shown(eyes)[0] == 2
    again = eyes.publish(NOW + 47 * DAY, renew=True)
    assert again.signed.catalogue.version == 3
    assert again.signed.catalogue.expires.startswith("2027-04-17")


def test_a_withdrawn_release_stays_listed_and_never_comes_back(eyes: Operator) -> None:
    eyes.publish()
    told = eyes.withdraw("small", "1.1.0", NOW + DAY)
    assert shown(eyes) == (2, ["small 1.0.0"], ["small 1.1.0"])
    assert told.signed.catalogue.withdrawn[0].sentence == SENTENCE
    assert not (eyes.web / "releases/small-1.1.0").exists()
    assert "was withdrawn" in (eyes.web / "small-1.1.0.html").read_text()
    assert (eyes.releases / "small-1.1.0").is_dir()  # the operator's own copy stays
    # the folder still holds it, and the next run leaves it out
    again = eyes.publish(NOW + DAY)
    assert again.held_back == ("small 1.1.0",) and not again.changed
    with pytest.raises(PolicyError, match="withdrawn already"):
        eyes.withdraw("small", "1.1.0")
    with pytest.raises(ConfigurationError, match=r"small 9\.9\.9: not in the catalogue"):
        eyes.withdraw("small", "9.9.9")


def test_everybody_may_read_the_site_and_nobody_the_state(eyes: Operator) -> None:
    (eyes.releases / "small-1.0.0" / "README.md").chmod(0o600)
    before = os.umask(0o077)  # that of the operator's commands
    try:
        eyes.publish()
        eyes.withdraw("small", "1.1.0")
    finally:
        os.umask(before)
    for path in (eyes.site, *eyes.site.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    assert (eyes.root / "state" / "catalogue.json").stat().st_mode & 0o777 == 0o600


def test_words_that_no_reader_would_take_are_refused(eyes: Operator) -> None:
    with pytest.raises(ConfigurationError, match="printable characters"):
        eyes.publish(words=replace(WORDS, title="eyes\u202e"))
    assert not eyes.web.exists()


def test_nothing_is_withdrawn_where_nothing_was_published(eyes: Operator) -> None:
    with pytest.raises(ConfigurationError, match="no catalogue is there"):
        eyes.withdraw("small", "1.0.0")


def test_another_operators_site_or_release_is_refused_and_stays(
    eyes: Operator, tmp_path: Path
) -> None:
    eyes.publish()
    other = operator(tmp_path / "other")
    before = contents(eyes.site)
    with pytest.raises(RefusedError, match="never was this operator's key") as refused:
        other.publish(out=eyes.site)
    assert refused.value.code == "E-CATALOGUE-KEY"
    assert contents(eyes.site) == before
    # a release that somebody else signed
    shutil.copytree(eyes.releases / "small-1.0.0", other.releases / "small-1.0.0")
    with pytest.raises(RefusedError, match="you trust"):
        other.publish()
    assert not other.web.exists()


def test_altered_proposed_and_half_built_releases_stay_out(eyes: Operator, tmp_path: Path) -> None:
    shutil.copytree(eyes.releases / "small-1.0.0", eyes.releases / "proposed" / "small-2.0.0")
    shutil.copytree(eyes.releases / "small-1.0.0", eyes.releases / ".small-3.0.0.part")
    eyes.publish()
    assert shown(eyes)[1] == ["small 1.1.0", "small 1.0.0"]
    # a published version never gets other bytes
    altered = eyes.releases / "small-1.0.0"
    shutil.rmtree(altered)
    shutil.copytree(eyes.releases / "small-1.1.0", altered)
    text = (altered / "manifest.json").read_text().replace('"1.1.0"', '"1.0.0"')
    (altered / "manifest.json").write_text(text)
    with pytest.raises(RefusedError, match="has this version with other bytes"):
        eyes.publish()
    # an altered release that is new
    shutil.rmtree(eyes.site)
    with pytest.raises(RefusedError, match=r"manifest\.json: altered"):
        eyes.publish()
    assert not (eyes.site / "releases" / "small-1.0.0").exists()


def test_a_release_without_its_sign_offs_stays_out_and_later_ones_are_added(
    tmp_path: Path,
) -> None:
    folder, key, keys = proposal(tmp_path / "made", 1, "hospital-a", "hospital-b")
    waiting = operator(tmp_path / "o", key=key)
    published = waiting.releases / folder.name
    shutil.copytree(folder, published)
    with pytest.raises(RefusedError, match="0 of 1 sign-offs"):
        waiting.publish()
    sign_off(published, "hospital-a", keys["hospital-a"])
    waiting.publish()
    served = waiting.web / "releases" / folder.name
    verify(served)
    # a later one that does not hold never enters the site
    later = sign_off(published, "hospital-b", keys["hospital-a"])
    with pytest.raises(RefusedError, match="hospital-b"):
        waiting.publish()
    assert not (served / later.name).exists()
    later = sign_off(published, "hospital-b", keys["hospital-b"])
    waiting.publish()
    verify(served, require=2)


def test_a_second_start_is_refused(eyes: Operator) -> None:
    lock = FolderLock(eyes.root / "state" / publishing.LOCK, "kohort-server publish")
    with lock, pytest.raises(EnvironmentFault) as refused:
        eyes.publish()
    assert refused.value.code == "E-LOCKED"


def test_a_lost_site_goes_on_from_the_state_and_a_lost_state_from_the_site(eyes: Operator) -> None:
    eyes.publish()
    eyes.withdraw("small", "1.0.0")
    shutil.rmtree(eyes.site)
    eyes.publish()
    assert shown(eyes) == (2, ["small 1.1.0"], ["small 1.0.0"])
    (eyes.root / "state" / CATALOGUE).unlink()
    eyes.publish(renew=True)
    assert shown(eyes) == (3, ["small 1.1.0"], ["small 1.0.0"])


def killed(call: Callable[[], object]) -> None:
    """Run a call in a child that ends by SIGKILL inside it."""
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed"


@pytest.mark.parametrize(
    "place",
    ["add_release", "write_pages", "write_published", "write_site", "_remove_old", "symlink"],
)
def test_a_kill_leaves_the_old_catalogue_or_the_new_one_and_the_next_run_goes_on(
    eyes: Operator, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = eyes.root / "aside"
    (eyes.releases / "small-1.1.0").rename(aside)
    eyes.publish()
    old = contents(eyes.web)
    aside.rename(eyes.releases / "small-1.1.0")

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        if place == "symlink":
            patch.setattr(Path, "symlink_to", die)
        else:
            patch.setattr(sites if place == "_remove_old" else publishing, place, die)
        killed(eyes.publish)
    now = contents(eyes.web)
    assert shown(eyes)[0] in (1, 2)
    if shown(eyes)[0] == 1:
        assert now.items() >= {(k, v) for k, v in old.items() if not k.startswith("releases/")}
    eyes.publish()
    assert shown(eyes) == (2, ["small 1.1.0", "small 1.0.0"], [])
    left = [path.name for path in eyes.site.iterdir() if path.name.startswith(".")]
    assert len(left) == 1, left
    assert not list((eyes.site / "releases").glob(".*"))
