"""`utility` and `privatize`: what this hospital computes for itself; nothing is sent."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from client.cli.options import AsJson, StateFolder
from client.cli.state_folder import limit_threads, open_plans, open_site
from client.cli.terminal import progress_bar, write_line
from client.cli.words import describe_options
from client.daemon.site import Site
from client.state.config import load_site
from client.state.folder import State
from common.errors import ConfigurationError
from common.storage.lock import FolderLock
from common.study.plan import Study
from common.study.synthesis import PrivatizePlan

ReleaseFolder = Annotated[Path, typer.Argument(help="the downloaded release folder")]
Full = Annotated[
    bool, typer.Option("--full", help="the published network and grid: hours without a GPU")
]
Source = Annotated[
    Path, typer.Argument(metavar="IN", help="an image, or a folder: DICOM or photographs")
]
Target = Annotated[
    Path, typer.Argument(metavar="OUT", help="a new folder outside the state folder")
]
PlanHash = Annotated[
    str,
    typer.Option(
        "--plan", help="first letters of the plan's hash; empty: the only one with a flow"
    ),
]
Mechanism = Annotated[
    str, typer.Option("--mechanism", help="laplace, gaussian or privunit; empty: the plan's own")
]
Epsilon = Annotated[
    float | None,
    typer.Option("--epsilon", help="per image, never per coordinate (gaussian, privunit)"),
]
Delta = Annotated[float | None, typer.Option("--delta", help="gaussian")]
Clip = Annotated[str | None, typer.Option("--clip", help="laplace: box or l1_ball")]
Radius = Annotated[
    float | None,
    typer.Option("--radius", help="laplace: bound of a coordinate, or of their mean size"),
]
Scale = Annotated[float | None, typer.Option("--scale", help="laplace: noise of a coordinate")]
Levels = Annotated[str, typer.Option("--levels", help="top or all")]
Components = Annotated[
    int | None, typer.Option("--components", help="coordinates of the public basis")
]
BasisFile = Annotated[Path | None, typer.Option("--basis", help="public basis (safetensors)")]
WeightsFile = Annotated[
    Path | None,
    typer.Option("--weights", help="flow weights of a release; else the plan's checkpoint"),
]
AsDicom = Annotated[
    bool, typer.Option("--dicom", help="write DICOM with SyntheticData = YES; else PNG")
]
Export = Annotated[
    bool,
    typer.Option("--export", help="charge the ledger, ask for review, write what may leave"),
]


def utility(
    state: StateFolder, release: ReleaseFolder, full: Full = False, as_json: AsJson = False
) -> None:
    """Measure a release of image + mask pairs on this hospital's own cohort.

    The result stays here.
    """
    limit_threads(state)
    from client.child.utility import measure_release, recipe
    from common.devices import resolve, settle

    # a GPU that is not there is named before the release is read
    compute = load_site(state).compute
    devices = resolve(compute)
    settle(compute, devices)
    plans = open_plans(state)
    with progress_bar("epochs") as show:
        found = measure_release(
            release,
            State(state),
            plans,
            recipe=recipe(full=full),
            device=devices[0],
            progress=show,
        )
    if as_json:
        write_line(json.dumps(asdict(found)))
        return
    for line in found.lines():
        write_line(line)


def privatize(
    state: StateFolder,
    source: Source,
    target: Target,
    plan: PlanHash = "",
    mechanism: Mechanism = "",
    epsilon: Epsilon = None,
    delta: Delta = None,
    clip: Clip = None,
    radius: Radius = None,
    scale: Scale = None,
    levels: Levels = "top",
    components: Components = None,
    basis: BasisFile = None,
    weights: WeightsFile = None,
    dicom: AsDicom = False,
    export: Export = False,
) -> None:
    """Privatize single images: on site, or with --export to hand over.

    An export needs the consent of plan, policy, ledger and review. Nothing is sent.
    """
    options = {
        "epsilon": epsilon,
        "delta": delta,
        "clip": clip,
        "radius": radius,
        "scale": scale,
        "components": components,
    }
    given = {name: value for name, value in options.items() if value is not None}
    section = _section(mechanism, given, levels, basis)
    limit_threads(state)
    from client.single.request import Request
    from client.single.single import privatize_images

    request = Request(source, target, section, basis, weights, dicom, export)
    with FolderLock(state / "lock", "kohort-site privatize"), open_site(state) as site:
        outcome = privatize_images(site, _plan_with_flow(site, plan), request, site.progress)
    for text in outcome.lines():
        write_line(text)


def _section(
    mechanism: str, given: dict[str, Any], levels: str, basis: Path | None
) -> PrivatizePlan | None:
    """Return the options as a plan's `privatize` section; None without --mechanism."""
    if not mechanism:
        stray = [*given, *(["basis"] if basis else [])]
        if stray:
            raise ConfigurationError(
                f"--{stray[0]}: needs --mechanism", hint="kohort-site privatize --help"
            )
        return None
    section = {"mechanism": mechanism, "share": 1.0, "egress": "single", "levels": levels, **given}
    if basis is not None:
        # The file of --basis is read itself: nothing is pinned on site.
        section["basis"] = {"file": "basis.safetensors", "sha256": "0" * 64}
    try:
        return PrivatizePlan.model_validate(section)
    except ValidationError as error:
        raise describe_options(error, "privatize", default="mechanism") from error


def _plan_with_flow(site: Site, prefix: str) -> Study:
    """Return the one approved plan that has a flow and whose hash starts with `prefix`."""
    found = []
    for plan_hash, study in site.plans.valid().items():
        if plan_hash.startswith(prefix) and study.models.glow is not None:
            found.append(study)
    if len(found) != 1:
        raise ConfigurationError(
            f"{len(found)} approved plans with a flow match {prefix or '(any)'!r}, expected one",
            hint="give the first letters of one hash: --plan; `kohort-site status` lists them",
        )
    return found[0]
