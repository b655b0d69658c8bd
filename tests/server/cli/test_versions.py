"""`study next` and `sign --next-of`: a hospital joins a study while it is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from common.study.bundle import copy_bundle, open_bundle
from common.study.plan import Study
from common.wire import tensors
from common.wire.messages import digest_of
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.loop import run_study
from server.rounds.record import StudyRecord
from server.rounds.study_run import StudyRun
from tests.federation import Federation, LocalGrid, ToySite
from tests.server.cli.reports import Kohort, fake_report
from tests.versions import Abandoned


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Abandoned]:
    found = Abandoned.create(tmp_path)
    with closing(found.record):
        yield found


def test_the_next_version_runs_to_its_end_with_the_hospital_that_joined(
    world: Abandoned, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.operator.plan.feasibility", fake_report("feasible"))
    federation, state = world.federation, world.federation.state
    # the operator drafts and signs; the sites see the same lines
    draft, bundle = world.folder / "draft", world.folder / "bundle-2"
    code, out, err = kohort(
        "study", "next", "small", "--state", state.root, "--out", draft, "--add-site", "hospital-d"
    )
    assert code == 0, err
    assert "plan small-2, a draft" in out and "hospital-d" in out and "--next-of" in out
    earlier = state.study(federation.study.hash()) / "bundle"
    code, _, err = kohort("sign", draft / "study.yaml", "--state", state.root, "--out", bundle)
    assert code == 3 and "--next-of" in err
    code, out, err = kohort(
        "sign", draft / "study.yaml", "--state", state.root, "--out", bundle, "--next-of", earlier
    )
    assert code == 0, err
    assert "next version of small" in out and "hospital-d" in out
    # four hospitals, one of them new
    study = open_bundle(bundle, federation.key.public_key())
    run, grid, sites = run_of(study, bundle, federation, state)
    with closing(run.record):
        run_study(run, grid)
        assert run.record.complete()
        closed = run.record.closing_entry("train", "gan", 0)
        assert closed is not None and "hospital-d" in closed.data["accepted"]
    first = world.record.weights("gan", 1)
    assert sites["hospital-d"].asked[0].digest == digest(first)


def digest(arrays: tensors.Arrays) -> str:
    return digest_of(tensors.dumps(arrays))


def run_of(
    study: Study, bundle: Path, federation: Federation, state: ServerState
) -> tuple[StudyRun, LocalGrid, dict[str, ToySite]]:
    """The run of a next version over the same registry, with toys for its sites."""
    root = state.study(study.hash())
    copy_bundle(bundle, federation.key.public_key(), root / "bundle")
    registry = Registry(state.sites)
    sites: dict[str, ToySite] = {}
    apps = {}
    for seed, planned in enumerate(study.sites):
        old = federation.sites.get(planned.name)
        site = ToySite(planned.name, study, federation.key.public_key(), seed)
        if old is None:
            registry.enrol(federation.request(planned.name, site))
            registry.note_registered(planned.name, 100 + seed)
        else:
            site = replace(site, key=old.key)
        sites[planned.name] = site
        apps[100 + seed] = site.app()
    run = StudyRun(study, StudyRecord(root, study), registry, federation.key, federation.limits)
    return run, LocalGrid(apps), sites


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("next", "small"), "--out is missing"),
        (("abandon", "small", "--add-site", "hospital-d"), "for `study next` alone"),
        (("next", "small", "--out", "x", "--by", "5"), "for `study extend` alone"),
    ],
    ids=["no-folder", "another-action", "a-time"],
)
def test_an_order_that_makes_no_sense_drafts_nothing(
    world: Abandoned, kohort: Kohort, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = kohort("study", *arguments, "--state", world.federation.state.root)
    assert code == 2 and words in err and "hint:" in err
