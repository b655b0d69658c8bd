"""A site's image batch at a hospital's size: seconds, peak memory and growth of each stage.

    python -m benchmarks.site_scale --part PART [--json [FILE]] [--sizes 5000 50000] [--side 512]

Parts: inversion, grouping, audit, batch. Each stage runs in a process of its own, on a cohort of
one grey image a patient: a sparse file, in which every image has `LINES` written lines of pixels.
The code is the site's. In the inversion two stand-ins of one parameter take the networks' place:
what is measured is all that is not network. Alignment and flow are small, and take a few groups.
Process time of one thread. Peak memory: resident, mapped files included, of the stage alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np

from benchmarks import report
from benchmarks.cohort_scale import H100_FLOPS, H100_SHARE, LATENT, WIDTH, count_inversion, growth
from benchmarks.group import codes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from client.synthesize.group import Mode, Roster
    from client.synthesize.invert import Inversion
    from client.synthesize.reference import Reference
    from common.arrays import Images

K = 5
KEY = bytes(32)
LINES = 16  # of pixels that are written of an image; the others are holes of the file
RELEASED = 1000
FEW_GROUPS = 8
STEPS = 1
TIME_EXPONENT = 1.3
GROUPING_EXPONENT = 2.0
MEMORY_EXPONENT = 1.0
LARGEST_MIB = 4096
GROUPING_MIB = 1024
AUDIT_IMAGES, AUDIT_S, AUDIT_MIB = 8000, 10.0, 500
ALIGNMENT_STEPS = 40  # of the counted operations


# --- the cohort -----------------------------------------------------------------------------------


def make_cohort(folder: Path, count: int, side: int) -> None:
    """Write the images of `count` patients, sparsely."""
    random = np.random.default_rng(0)
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, side, side, 1)
    )
    offset = images.offset
    del images
    lines = min(LINES, side)
    with open(folder / "images.npy", "r+b") as file:
        for row in range(count):
            # eight columns of one grey value each: lines differ from image to image
            values = random.integers(0, 256, (lines, 8, 1), dtype=np.uint8)
            file.seek(offset + row * side * side)
            file.write(np.repeat(values, side // 8, axis=1).tobytes())


def read_cohort(folder: Path) -> Images:
    """Return the images as a site maps them."""
    return cast("Images", np.load(folder / "images.npy", mmap_mode="r"))


def all_patients(count: int) -> Roster:
    """Return a roster of one image a patient, in one stratum."""
    from client.synthesize.group import roster

    names = [f"{row:064x}" for row in range(count)]
    return roster(names, np.arange(count), np.zeros(count, np.int64), key=KEY)


def released_images(side: int) -> Images:
    """Return images that may leave: noise of a few fields."""
    random = np.random.default_rng(1)
    fields = random.integers(0, 256, (RELEASED, 8, 8, 1), dtype=np.uint8)
    return np.asarray(fields.repeat(side // 8, axis=1).repeat(side // 8, axis=2))


# --- the stages -----------------------------------------------------------------------------------


def stand_ins(side: int) -> tuple[nn.Module, nn.Module]:
    """Return a generator and an encoder of one number an image: they cost nothing."""
    import torch

    from common.models.encoder import Inverted
    from common.models.sizes import style_count

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size_px, self.channels, self.latent = side, 1, LATENT
            self.layer_count = style_count(side)
            self.one = torch.nn.Parameter(torch.ones(1))

        def synthesis(self, wplus: Tensor, noise: object = None) -> Tensor:
            level = torch.tanh(wplus.mean((1, 2)) * self.one)
            return level[:, None, None, None].expand(-1, 1, side, side)

        def invert(
            self, x: Tensor, generator: Any, iterations: int, keep_best: bool, fields: Tensor
        ) -> Inverted:
            level = x.mean((1, 2, 3)).clamp(-0.99, 0.99).atanh()
            wplus = level[:, None, None].expand(-1, self.layer_count, self.latent).clone()
            return Inverted(wplus, generator.synthesis(wplus))

    return Flat(), Flat()


def invert_all(folder: Path, count: int, side: int) -> None:
    """Invert the cohort into a spool, and draw the sheet of the worst."""
    from client.state.spool import Spool, bind
    from client.synthesize.inversion_sheet import draw_sheet
    from client.synthesize.invert import invert
    from client.synthesize.reference import InversionPlan

    generator, encoder = cast("tuple[Any, Any]", stand_ins(side))
    images = read_cohort(folder)
    spool = Spool.open(folder / "inversion.spool", bind("benchmark"))
    plan = InversionPlan(steps=STEPS, iterations=1)
    known = public_reference(generator.layer_count)
    found = invert(images, generator, encoder, plan, known, kept=spool)
    draw_sheet(images, found, generator, known.look_on())
    assert spool.count == count == len(found.codes)


def public_reference(layers: int) -> Reference:
    """Return public statistics of invented samples."""
    from client.synthesize.reference import GeneratorCodes, Reference, Whitening

    samples = GeneratorCodes(np.random.default_rng(2).normal(size=(192, layers * LATENT)))
    look = np.ones((2, 1), np.float32)
    return Reference(Whitening.fit(samples, 64), 1.0, 1.0, samples, np.full((192, 1), 0.5), look)


def read_spool(folder: Path, _: int, side: int) -> None:
    """Open the spool of a finished inversion, as a child of the next try does."""
    from client.state.spool import Spool, bind

    spool = Spool.open(folder / "inversion.spool", bind("benchmark"))
    assert spool.count
    del spool


def group(mode: Mode) -> Callable[[Path, int, int], None]:
    """Return the stage that groups all patients by one mode."""

    def stage(folder: Path, count: int, side: int) -> None:
        from client.synthesize.group import form_groups, patient_codes
        from client.synthesize.partition import Cells

        who = all_patients(count)
        points = None if mode == "random" else patient_codes(codes(count), who)
        cells = Cells(codes(192, seed=1)) if mode == "cells" else None
        found = form_groups(who, K, mode, key=KEY, codes=points, cells=cells)
        assert sum(len(group.members) for group in found.groups) == count

    return stage


def audit_batch(folder: Path, count: int, side: int) -> None:
    """Audit the released images against the cohort."""
    from client.egress.audit import audit

    audit(released_images(side), read_cohort(folder), np.arange(count))


def infer_members(folder: Path, count: int, side: int) -> None:
    """Ask whether the released images give away who is in a group: half of the patients."""
    from client.egress.membership import gives_away_members

    member = np.arange(count) < count // 2
    gives_away_members(released_images(side), read_cohort(folder), np.arange(count), member)


def audit_8000(channels: int) -> Callable[[Path, int, int], None]:
    """Return the audit of 8,000 images of 64 px that are in memory."""

    def stage(folder: Path, count: int, side: int) -> None:
        from client.egress.audit import audit

        random = np.random.default_rng(3)
        fields = random.integers(0, 256, (AUDIT_IMAGES + RELEASED, 8, 8, channels), dtype=np.uint8)
        images = fields.repeat(8, axis=1).repeat(8, axis=2)
        audit(images[AUDIT_IMAGES:], images[:AUDIT_IMAGES])

    return stage


def align_few(folder: Path, count: int, side: int) -> None:
    """Align a few groups of the cohort with small networks, and render them."""
    import torch

    from client.synthesize.align import (
        AlignmentPlan,
        align,
        gather_statistics,
        measure_patients,
        render_outputs,
    )
    from client.synthesize.group import form_groups
    from common.models.stylegan import Critic, Generator

    who = all_patients(count)
    groups = form_groups(who, K, "random", key=KEY).groups[:FEW_GROUPS]
    generator = Generator(side, 1, 4, LATENT).eval()
    critic = Critic(side, 1, 4).eval()
    plan = AlignmentPlan(steps=STEPS, batch=4)
    members = who.only({name for one in groups for name in one.members})
    found = inverted(count, generator.layer_count)
    common = public_reference(generator.layer_count).look_on()
    images = read_cohort(folder)
    patients = measure_patients(images, found, members, generator, critic, plan, common)
    statistics = gather_statistics(groups, patients, generator, plan)
    aligned = align(statistics, generator, critic, plan, 1.0)
    render_outputs(aligned.codes, 2, generator, torch.Generator().manual_seed(0))


def inverted(count: int, layers: int) -> Inversion:
    """Return an inversion in which every image is accepted; its codes take no memory."""
    from client.synthesize.invert import Inversion

    return Inversion(
        points=np.zeros((count, 1)),
        colours=np.zeros((count, 1)),
        codes=np.broadcast_to(np.zeros((1, 1, LATENT), np.float32), (count, layers, LATENT)),
        errors=np.zeros(count),
        accepted=np.ones(count, np.bool_),
        looks=np.ones((count, 2, 1), np.float32),
        coarse=np.zeros((count, 2, 1, 1), np.float32),
    )


def privatize_few(folder: Path, count: int, side: int) -> None:
    """Privatize averages of a few groups of the cohort by a small flow."""
    from client.synthesize.group import form_groups
    from client.synthesize.privatize import privatize
    from common.models.glow import Glow
    from common.privacy.latent_mechanisms import LatentLaplace
    from common.privacy.noise import NoiseSource

    who = all_patients(count)
    groups = form_groups(who, K, "random", key=KEY).groups[:FEW_GROUPS]
    rows = dict(zip(who.pseudonyms, who.images, strict=True))
    images = read_cohort(folder)
    members = [[np.asarray(images[list(rows[name])]) for name in one.members] for one in groups]
    flow = Glow(side, 1, 6, 1, 8).eval()
    mechanism = LatentLaplace("box", 3.0, flow.top_dimension, K, "random", 0.5)
    privatize(members, flow, mechanism, 0.7, NoiseSource())


def write_batch(folder: Path, count: int, side: int) -> None:
    """Draw every page of the contact sheet, and make the payloads and their digest."""
    from client.egress.audit import AuditReport, Nearest
    from client.egress.contact_sheet import contact_sheet, count_pages
    from client.egress.review import batch_digest
    from common.wire.tensors import dumps

    released = released_images(side)
    images = read_cohort(folder)
    nearest = [Nearest(row * count // RELEASED, (2.0,) * 3, (0.9,) * 3) for row in range(RELEASED)]
    audited = AuditReport(("A-PASS",) * RELEASED, tuple(nearest))
    for page in range(count_pages(*released.shape[:3])):
        contact_sheet(released, images, audited, page)
    parts = []
    for start in range(0, RELEASED, 100):
        some = released[start : start + 100]
        flags = {"labels": np.zeros(len(some), np.int64), "privatized": np.zeros(len(some), "u1")}
        parts.append(dumps({"images": some, **flags}))
    batch_digest(parts)


Stage = Callable[[Path, int, int], None]
PARTS: dict[str, dict[str, Stage]] = {
    "inversion": {"inversion, spool, sheet": invert_all, "open the spool": read_spool},
    "grouping": {
        "`similar`": group("similar"),
        "`similar-swap`": group("similar-swap"),
        "`cells`": group("cells"),
        "`random`": group("random"),
    },
    "audit": {"audit": audit_batch, "membership": infer_members},
    "batch": {
        f"alignment of {FEW_GROUPS} groups": align_few,
        f"flow of {FEW_GROUPS} groups": privatize_few,
        "contact sheet, payloads": write_batch,
    },
}
MODULES = {
    "inversion": ("client.synthesize.inversion_sheet", "client.state.spool"),
    "grouping": ("client.synthesize.group",),
    "audit": ("client.egress.audit", "client.egress.membership"),
    "batch": ("client.child.batch",),
}
FIXED: dict[str, Stage] = {"grey": audit_8000(1), "colour": audit_8000(3)}


# --- measuring ------------------------------------------------------------------------------------


def measure(
    stage: Stage, modules: Sequence[str], folder: Path, count: int, side: int
) -> dict[str, float]:
    """Process time, and by how much memory grew over what the modules take."""
    for name in modules:
        importlib.import_module(name)
    Path("/proc/self/clear_refs").write_text("5")
    before = read_mib("VmRSS")
    start = time.process_time()
    stage(folder, count, side)
    spent = time.process_time() - start
    peak = read_mib("VmHWM")
    return {"s": round(spent, 2), "mib": round(peak), "growth_mib": round(peak - before)}


def read_mib(name: str) -> float:
    """A line of this process's status, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def in_a_process(part: str, stage: str, folder: Path, count: int, side: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.site_scale", "--part", part, "--side", str(side)]
    command += ["--one", stage, str(count), str(folder)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    return dict(json.loads(done.stdout))


def run_part(part: str, sizes: Sequence[int], side: int, scratch: Path) -> dict[str, Any]:
    """Every stage of a part at every size."""
    found: dict[str, Any] = {"sizes": list(sizes), "side": side, "stages": {}}
    for count in sizes:
        folder = Path(tempfile.mkdtemp(prefix="site-scale-", dir=scratch))
        try:
            make_cohort(folder, count, side)
            found["stages"][str(count)] = {
                stage: in_a_process(part, stage, folder, count, side) for stage in PARTS[part]
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{part}: {count:,} done", file=sys.stderr)
    if part == "audit":
        found["fixed"] = {name: in_a_process(part, name, scratch, 0, 64) for name in FIXED}
    if part in COUNTED:
        found["counted"] = COUNTED[part](side)
    return found


# --- operations, and what they are on one H100 ----------------------------------------------------


def count_alignment(side: int) -> dict[str, float]:
    """Operations to align one group of K patients, with statistics and rendering.

    A step is one pass forward and two back through generator, critic and style filters.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from client.synthesize.features import content_features, style_features, window_grams
    from common.models.stylegan import Critic, Generator

    generator = Generator(side, 1, WIDTH, LATENT).eval().requires_grad_(False)
    critic = Critic(side, 1, WIDTH).eval().requires_grad_(False)
    wplus = torch.zeros(1, generator.layer_count, LATENT)
    with torch.no_grad(), FlopCounterMode(display=False) as drawn:
        image = generator.synthesis(wplus)
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        content_features(critic, image)
        window_grams(style_features(image), 2)
    forward = drawn.get_total_flops() + seen.get_total_flops()
    total = K * forward + (3 * ALIGNMENT_STEPS + 1) * forward + 2 * drawn.get_total_flops()
    return {"gflop": total / 1e9, "times": RELEASED}


def count_all_inversions(side: int) -> dict[str, float]:
    """Operations to invert one image."""
    return {"gflop": count_inversion(side)["gflop_an_image"], "times": 50_000}


COUNTED = {"inversion": count_all_inversions, "batch": count_alignment}
COUNTED_WORDS = {
    "inversion": "images, each inverted by 3 iterations and 20 steps",
    "batch": f"groups of {K}, each aligned in {ALIGNMENT_STEPS} steps",
}


# --- what is shown --------------------------------------------------------------------------------


def tables(part: str, found: dict[str, Any]) -> list[report.Table]:
    """Seconds, memory and exponents by stage; the audit of 8,000; the estimate."""
    sizes = found["sizes"]
    runs = found["stages"]
    rows = []
    for stage in runs[str(sizes[0])]:
        cells = [stage]
        for size in sizes:
            one = runs[str(size)][stage]
            cells += [f"{one['s']:.2f}", f"{one['mib']:.0f}", f"{one['growth_mib']:.0f}"]
        cells += [f"{growth(runs, sizes, stage, kind):.2f}" for kind in ("s", "mib")]
        rows.append(tuple(cells))
    titles = ["stage"]
    for size in sizes:
        titles += [f"{size:,}: s", f"{size:,}: peak MiB", f"{size:,}: of it grown"]
    titles += ["exponent of time", "exponent of memory"]
    shown = [report.Table(f"{part}, {found['side']} px", tuple(titles), tuple(rows))]
    if "fixed" in found:
        fixed = found["fixed"].items()
        lines = tuple((name, f"{one['s']:.2f}", f"{one['mib']:.0f}") for name, one in fixed)
        title = f"Audit of {RELEASED:,} released images against {AUDIT_IMAGES:,} of 64 px"
        shown.append(report.Table(title, ("images", "s", "peak MiB"), lines))
    if "counted" in found:
        one = found["counted"]
        minutes = one["gflop"] * 1e9 * one["times"] / (H100_FLOPS * H100_SHARE) / 60
        cells = (f"{one['times']:,.0f}", f"{one['gflop']:,.0f}", f"{minutes:,.0f}")
        note = (
            f"{COUNTED_WORDS[part]}; minutes = number x operations / "
            f"({H100_FLOPS / 1e12:.0f} TFLOP/s x {H100_SHARE}) / 60."
        )
        title = f"Networks on one H100, by counted operations (width {WIDTH}, {found['side']} px)"
        shown.append(report.Table(title, ("number", "GFLOP each", "minutes"), (cells,), note))
    return shown


def targets(part: str, found: dict[str, Any]) -> list[report.Target]:
    """Bounds on growth and memory."""
    sizes = found["sizes"]
    runs = found["stages"]
    most = GROUPING_EXPONENT if part == "grouping" else TIME_EXPONENT
    made = []
    for stage in runs[str(sizes[0])]:
        time_grows = growth(runs, sizes, stage, "s")
        memory_grows = growth(runs, sizes, stage, "mib")
        words = f"{stage}: time grows by at most n^{most}"
        made.append(report.Target(words, f"{time_grows:.2f}", time_grows <= most))
        words = f"{stage}: memory grows by at most n^{MEMORY_EXPONENT}"
        made.append(report.Target(words, f"{memory_grows:.2f}", memory_grows <= MEMORY_EXPONENT))
    last = runs[str(sizes[-1])]
    allowed = GROUPING_MIB if part == "grouping" else LARGEST_MIB
    kind = "growth_mib" if part == "grouping" else "mib"
    largest = max(one[kind] for one in last.values())
    words = f"memory at {sizes[-1]:,} at most {allowed} MiB"
    made.append(report.Target(words, f"{largest:.0f}", largest <= allowed))
    for name, one in found.get("fixed", {}).items():
        words = f"audit of {AUDIT_IMAGES:,} {name} images in {AUDIT_S:.0f} s and {AUDIT_MIB} MiB"
        met = one["s"] <= AUDIT_S and one["mib"] <= AUDIT_MIB
        made.append(report.Target(words, f"{one['s']:.2f} s, {one['mib']:.0f} MiB", met))
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--scratch", type=Path, default=None, help="folder of the sparse files")
    parser.add_argument("--one", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        stage, count, folder = options.one
        function = (PARTS[options.part] | FIXED)[stage]
        modules = MODULES[options.part]
        print(json.dumps(measure(function, modules, Path(folder), int(count), options.side)))
        return
    report.say_conditions()
    scratch = options.scratch or Path(tempfile.gettempdir())
    found = run_part(options.part, options.sizes, options.side, scratch)
    shown = tables(options.part, found)
    report.give(
        options.json, f"site_scale.{options.part}", shown, found, targets(options.part, found)
    )


if __name__ == "__main__":
    main()
