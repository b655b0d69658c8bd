"""The alignment beside the paper's loop: CPU-seconds per group-step and per released image.

    python benchmarks/align.py [--json [FILE]] [--sizes 64 128 256 512] [--weights FILE]

Equal networks, equal loss, k = 5, 4×4 windows, float32:
  loop   benchmarks/paper/loop.py, one group at a time
  ours   benchmarks/paper/alignment.py on four groups at once, with the same random weights
  light  client/synthesize/align.py at 256 px with the product's own networks: another row
Time does not depend on the weights; --weights takes the pinned ones.

How equal they are is measured in float32 as timed, and by one step of both in float64.
`own rounding` is the loop's float32 loss against its own float64 loss.
One thread, process time, alternating, the smallest of the repeats after a warm-up, large malloc
thresholds for both. Per image: 100 steps and what a group costs before them, without inversion.
"""

import argparse
import copy
import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import resnet50, vgg19

from client.synthesize import features

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

from benchmarks import report
from benchmarks.paper.alignment import PaperLoss
from benchmarks.paper.external import Content, PaperFeatures, Texture, load_content, load_texture
from benchmarks.paper.loop import PaperLoop
from benchmarks.paper.stylegan2 import PaperGenerator
from client.state.group_store import Group, Stratum
from client.synthesize import align
from common.config import load_yaml
from common.models.stylegan import Critic, Generator

T = TypeVar("T")
K = 5
BATCH = 4  # groups at once
STEPS = 100
LIGHT_PX = 256
LIGHT_WIDTH = 64
LIGHT_LATENT = 256
LEAST_SPEEDUP = {64: 4.0, 128: 3.0, 256: 2.8, 512: 2.2}
LEAST_LIGHT_SPEEDUP = 10.0


@dataclass
class Row:
    """Least CPU-seconds of the loop and of ours, per group-step and per group before the steps; how
    equal they are.

    Differences are relative: of the losses in float32 and in float64, and of the loop's float32
    loss from its float64 one.
    """

    size_px: int
    loop: float
    ours: float
    loop_start: float
    ours_start: float
    loss_difference: float
    cosine: float
    loss_difference_64: float
    cosine_64: float
    own_rounding: float

    @property
    def speedup(self) -> float:
        return self.loop / self.ours


@dataclass
class Networks:
    """VGG-19 and ResNet-50 in both forms, with the same weights."""

    vgg: nn.Sequential
    resnet: nn.Module
    texture: Texture
    content: Content

    @classmethod
    def make(cls, weights: Path | None) -> "Networks":
        vgg = vgg19(weights=None).features.eval()
        resnet = resnet50(weights=None).eval()
        resnet.fc = nn.Identity()
        if weights is None:
            texture = Texture()
            for name, layer in texture.features.items():
                layer.load_state_dict(vgg[int(name)].state_dict())
            content = Content(copy.deepcopy(resnet))
        else:
            pinned = load_yaml(weights, PaperFeatures)
            texture = load_texture(pinned.vgg19)
            content = load_content(pinned.moco_v2)
            for name, layer in texture.features.items():
                vgg[int(name)].load_state_dict(layer.state_dict())
            given = {
                n: torch.from_numpy(a)
                for n, a in pinned.moco_v2.read().items()
                if not n.startswith("fc.")
            }
            resnet.load_state_dict(given, strict=False)
        return cls(*(net.requires_grad_(False) for net in (vgg, resnet, texture, content)))

    def double(self) -> "Networks":
        """A copy in float64."""
        return Networks(
            *(
                copy.deepcopy(net).double()
                for net in (self.vgg, self.resnet, self.texture, self.content)
            )
        )

    def reloaded(self) -> tuple[nn.Sequential, nn.Module]:
        """Both networks built and filled anew, as the loop does for every group."""
        vgg = vgg19(weights=None, init_weights=False).features
        resnet = resnet50(weights=None)
        vgg.load_state_dict(self.vgg.state_dict())
        resnet.fc = nn.Identity()
        resnet.load_state_dict(self.resnet.state_dict())
        dtype = next(self.vgg.parameters()).dtype
        return vgg.to(dtype).eval().requires_grad_(False), resnet.to(dtype).eval().requires_grad_(
            False
        )


def compare(size_px: int, networks: Networks, repeats: int, generator: PaperGenerator) -> Row:
    """One size: the loop and ours in turn on the same weights, sources and codes."""
    real, inverted = (torch.rand(BATCH, K, 3, size_px, size_px) * 2 - 1 for _ in range(2))
    codes = torch.randn(BATCH, generator.layer_count, generator.latent)
    loop = PaperLoop(generator, networks.reloaded)
    frozen = copy.deepcopy(generator).requires_grad_(False)
    ours = PaperLoss(frozen, networks.texture, networks.content)
    loop_start, _ = time_call(lambda: loop.start(real[0], inverted[0]))
    ours_start, targets = time_call(lambda: ours.targets(real, inverted))

    def one() -> tuple[Tensor, Tensor]:
        code = codes[0].clone().requires_grad_()
        loss = loop.loss(code)
        loss.backward()
        assert code.grad is not None
        generator.zero_grad(set_to_none=True)
        return loss.detach(), code.grad

    def all_at_once() -> tuple[Tensor, Tensor]:
        code = codes.clone().requires_grad_()
        loss = ours(code, targets)
        return loss.detach()[0], torch.autograd.grad(loss.sum(), [code])[0][0]

    all_at_once()
    least_loop = least_ours = float("inf")
    for _ in range(repeats):
        seconds, (theirs, slope) = time_call(one)
        least_loop = min(least_loop, seconds)
        seconds, (value, gradient) = time_call(all_at_once)
        least_ours = min(least_ours, seconds / BATCH)
    times = (least_loop, least_ours, loop_start, ours_start / BATCH)
    exact_loss, exact_ours, exact_cosine = exact_step(
        networks, generator, real[0], inverted[0], codes[0]
    )
    return Row(
        size_px,
        *times,
        abs(float(value) / float(theirs) - 1),
        cosine_of(gradient, slope),
        abs(exact_ours / exact_loss - 1),
        exact_cosine,
        abs(float(theirs) / exact_loss - 1),
    )


def exact_step(
    networks: Networks, generator: PaperGenerator, real: Tensor, inverted: Tensor, code: Tensor
) -> tuple[float, float, float]:
    """One group's losses in float64, of the loop and of ours, and the cosine of their gradients."""
    networks = networks.double()
    generator = copy.deepcopy(generator).double()
    real = real.double()
    inverted = inverted.double()
    code = code.double()
    loop = PaperLoop(generator, networks.reloaded)
    loop.start(real, inverted)
    theirs = code.clone().requires_grad_()
    loop_loss = loop.loss(theirs)
    loop_loss.backward()
    assert theirs.grad is not None
    ours = PaperLoss(
        copy.deepcopy(generator).requires_grad_(False), networks.texture, networks.content
    )
    codes = code[None].clone().requires_grad_()
    loss = ours(codes, ours.targets(real[None], inverted[None]))
    gradient = torch.autograd.grad(loss.sum(), [codes])[0][0]
    return float(loop_loss.detach()), float(loss.detach()[0]), cosine_of(gradient, theirs.grad)


def cosine_of(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


def light(repeats: int) -> float:
    """CPU-seconds per group-step of the product's own alignment at 256 px."""
    generator = Generator(LIGHT_PX, 3, LIGHT_WIDTH, LIGHT_LATENT).requires_grad_(False)
    critic = Critic(LIGHT_PX, 3, LIGHT_WIDTH).requires_grad_(False)
    plan = align.AlignmentPlan(windows=4)
    codes = torch.randn(BATCH, generator.layer_count, LIGHT_LATENT)
    with torch.no_grad():
        image = generator.synthesis(codes)
        contents = features.content_features(critic, image)
        grams = features.window_grams(features.style_features(image), plan.windows)
    group = Group(tuple(f"patient-{i}" for i in range(K)), Stratum(0), K)
    rows = zip(codes, contents, grams, strict=True)
    targets = [
        align.GroupStatistics(group, code, content, gram, (K,) * len(gram))
        for code, content, gram in rows
    ]
    moved = codes + 0.1 * torch.randn_like(codes)

    def step() -> Tensor:
        code = moved.clone().requires_grad_()
        loss = align.alignment_loss(code, targets, generator, critic, plan, 1.0)
        return torch.autograd.grad(loss.sum(), [code])[0]

    step()
    return min(time_call(step)[0] for _ in range(repeats + 1)) / BATCH


def time_call(what: Callable[[], T]) -> tuple[float, T]:
    """CPU-seconds of this process, and the result."""
    gc.collect()
    start = time.process_time()
    found = what()
    return time.process_time() - start, found


def large_malloc_thresholds() -> None:
    """Let glibc keep what it freed: without this each large tensor is new pages from the kernel."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def table(rows: Sequence[Row], light_seconds: float | None) -> report.Table:
    """A row a size, and one for the product's own networks."""
    lines = []
    for row in rows:
        loop_image = row.loop_start + STEPS * row.loop
        ours_image = row.ours_start + STEPS * row.ours
        lines.append(
            (
                str(row.size_px),
                f"{row.loop:.2f}",
                f"{row.ours:.2f}",
                f"{row.speedup:.2f}",
                f"{loop_image:.0f}",
                f"{ours_image:.0f}",
                f"{row.loss_difference:.1e}",
                f"{row.cosine:.7f}",
                f"{row.loss_difference_64:.1e}",
                f"{row.cosine_64:.7f}",
                f"{row.own_rounding:.1e}",
            )
        )
        if light_seconds is not None and row.size_px == LIGHT_PX:
            lines.append(
                (
                    f"{row.size_px}, light",
                    f"{row.loop:.2f}",
                    f"{light_seconds:.3f}",
                    f"{row.loop / light_seconds:.1f}",
                    f"{loop_image:.0f}",
                    f"{STEPS * light_seconds:.0f}",
                    "other networks",
                    *[""] * 4,
                )
            )
    columns = (
        "px",
        "loop s/step",
        "ours s/step",
        "speedup",
        "loop s/image",
        "ours s/image",
        "loss differs by",
        "gradient cosine",
        "in float64",
        "cosine",
        "own rounding",
    )
    title = "Per group-step and per released image (100 steps)"
    return report.Table(title, columns, tuple(lines))


def figures(rows: Sequence[Row], light_seconds: float | None) -> dict[str, float]:
    """The same for machines."""
    found = {f"speedup_{row.size_px}": round(row.speedup, 3) for row in rows}
    for row in rows:
        found[f"loop_s_{row.size_px}"] = round(row.loop, 4)
        found[f"ours_s_{row.size_px}"] = round(row.ours, 4)
        found[f"loss_difference_64_{row.size_px}"] = row.loss_difference_64
        if light_seconds is not None and row.size_px == LIGHT_PX:
            found["speedup_light_256"] = round(row.loop / light_seconds, 3)
            found["light_s_256"] = round(light_seconds, 4)
    return found


def targets(found: dict[str, float]) -> list[report.Target]:
    """How many times the loop's speed was asked for."""
    lines = []
    for size_px, least in LEAST_SPEEDUP.items():
        if (speedup := found.get(f"speedup_{size_px}")) is not None:
            asked = f"{size_px} px: at least {least:g} times the loop's speed"
            lines.append(report.Target(asked, f"{speedup:.2f}", speedup >= least))
    if (speedup := found.get("speedup_light_256")) is not None:
        asked = f"256 px with the product's own networks: at least {LEAST_LIGHT_SPEEDUP:g} times"
        lines.append(report.Target(asked, f"{speedup:.1f}", speedup >= LEAST_LIGHT_SPEEDUP))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    report.add_json(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--weights",
        type=Path,
        help="YAML with vgg19 and moco_v2: file and sha256 (benchmarks/paper/external.py)",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    large_malloc_thresholds()
    light_seconds = light(options.repeats) if LIGHT_PX in options.sizes else None
    networks = Networks.make(options.weights)
    rows = []
    for size_px in options.sizes:
        rows.append(compare(size_px, networks, options.repeats, PaperGenerator(size_px)))
        gc.collect()
        print(rows[-1], file=sys.stderr, flush=True)
    found = figures(rows, light_seconds)
    report.give(options.json, "align", [table(rows, light_seconds)], found, targets(found))


if __name__ == "__main__":
    main()
