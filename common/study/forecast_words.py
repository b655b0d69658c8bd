"""The forecast of a plan in words and as facts, for `kohort-server plan` and a site's `approve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from common.study.forecast import HARDWARE, Hardware, Phase, hours, peak_bytes, phases
from common.study.plan import Study
from common.study.traffic import traffic_of
from common.study.yield_words import yield_facts, yield_table

MB = 1e6
GIB = 1 << 30


def forecast_lines(study: Study) -> Iterator[str]:
    """Yield what the plan will take: images, bytes, memory and hours. All of it is an estimate."""
    found = phases(study)
    traffic = traffic_of(study)
    patients = study.privacy.planned_patients
    yield f"  forecast for {patients:,} patients a site (an estimate; rates of 1 core measured)"
    if study.synthesis is not None:
        yield from _image_lines(study)
    if study.models.wgan is not None:
        yield f"    pairs: {study.models.wgan.released_pairs:,} in the release"
    for model, size_bytes in traffic.round_bytes.items():
        yield f"    wire, {model}: {size_bytes / MB:,.2f} MB to each site and back, every round"
    yield (
        f"    wire, whole study: {traffic.site_down_bytes / MB:,.1f} MB to a site, "
        f"{traffic.site_up_bytes / MB:,.1f} MB from it; "
        f"{traffic.server_wire_bytes / MB:,.1f} MB at the server"
    )
    yield (
        f"    disk: {traffic.site_disk_bytes / MB:,.1f} MB at a site, "
        f"{traffic.server_disk_bytes / MB:,.1f} MB at the server"
    )
    yield from phase_lines(found)


def phase_lines(
    found: tuple[Phase, ...], machines: tuple[Hardware, ...] = HARDWARE
) -> Iterator[str]:
    """Yield memory and hours of each phase at a site, then all of them."""
    for phase in found:
        times = ", ".join(f"{m.name} {_duration(hours(phase, m))}" for m in machines)
        yield f"    {phase.name}: {phase.memory_bytes / GIB:.1f} GiB; {times}"
    total = ", ".join(
        f"{m.name} {_duration(sum(hours(phase, m) for phase in found))}" for m in machines
    )
    yield f"    all phases: at most {peak_bytes(found) / GIB:.1f} GiB at a time; {total}"


def forecast_facts(study: Study) -> dict[str, object]:
    """Return the forecast as `plan --json` prints it."""
    rows = []
    for phase in phases(study):
        times = {machine.name: hours(phase, machine) for machine in HARDWARE}
        rows.append(asdict(phase) | {"hours": times})
    return {
        "estimate": True,
        "traffic": asdict(traffic_of(study)),
        "images_of_a_label": yield_facts(study),
        "phases": rows,
        "hardware": [asdict(machine) for machine in HARDWARE],
    }


def _image_lines(study: Study) -> Iterator[str]:
    """How many images leave at most, and what a label gives by its people."""
    assert study.synthesis is not None
    traffic = traffic_of(study)
    sites = len(study.sites)
    yield (
        f"    images: at most {traffic.images:,} of a site, {sites * traffic.images:,} of "
        f"{sites} sites ({sites * traffic.images_bytes / MB:,.1f} MB)"
    )
    yield from yield_table(study)


def _duration(amount_h: float) -> str:
    """Hours in words: minutes below one."""
    if amount_h < 1:
        minutes = round(60 * amount_h)
        return f"{minutes} min" if minutes else "under 1 min"
    return f"{amount_h:,.1f} h"
