"""`pretrain`: trains a starting checkpoint on public images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigurationError
from common.study.plan import load_study
from common.study.training import GlowPlan, WganPlan
from server.cli.output import check_folder
from server.cli.terminal import progress_bar, write
from server.pretrain.flow_options import Pretraining
from server.pretrain.provenance import Provenance

if TYPE_CHECKING:
    from server.pretrain.gan_plan import PretrainPlan
    from server.public_data.pairs import PublicPairs

PHANTOM_PATCHES = 16
PHANTOM_ORIGIN = (
    "procedural vessel phantoms (server/public_data/phantoms.py, style public)",
    "CC0-1.0",
    "none: nobody is in them",
)
ImageSources = Annotated[
    list[Path] | None,
    typer.Argument(
        help="public images, folder or .npz; gan: one source or several; wgan: image and mask "
        "pairs, or --phantoms"
    ),
]
Out = Annotated[Path, typer.Option(help="folder for the checkpoint")]
Minutes = Annotated[float, typer.Option(min=0.01, help="how long to train")]
Model = Annotated[str, typer.Option(help="gan (with its encoder), glow or wgan")]
SizePx = Annotated[int, typer.Option("--size", min=1, help="width and height in pixels")]
Channels = Annotated[int, typer.Option(help="1 (grey) or 3 (colour)")]
CHANNELS = (1, 3)
# a checkpoint to begin with knows the coarse part; its critic waits until the encoder has adapted
ONWARDS = {"coarse": 0.0, "alone": 0.15}
ImagesFrom = Annotated[
    list[str] | None,
    typer.Option(help="model card: where the images come from; once for each source, in order"),
]
Licence = Annotated[list[str] | None, typer.Option(help="model card: the images' licence, so too")]
Attribution = Annotated[
    list[str] | None, typer.Option(help="model card: whom the licence wants named, so too")
]
Note = Annotated[str, typer.Option(help="model card: what else a reader must know of the training")]
Start = Annotated[
    Path | None,
    typer.Option(
        help="gan: folder with a checkpoint to begin with: of the same sizes, or of half the size "
        "and twice the width; glow: folder with a flow of half the size, from which this one grows"
    ),
]
Cameras = Annotated[
    bool,
    typer.Option(
        "--cameras",
        help="gan: show photographs of the fundus as other cameras would take them, in one look",
    ),
]
Exclude = Annotated[
    Path | None, typer.Option(help="gan, glow: file of image names to leave out, one a line")
]
Resume = Annotated[bool, typer.Option(help="continue the run in --out")]
StudyOption = Annotated[
    Path | None,
    typer.Option(help="take layout and size from this study.yaml, so that the checkpoint fits it"),
]
Phantoms = Annotated[
    int, typer.Option(min=0, help="wgan: number of invented patients, in place of public pairs")
]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
FieldOfView = Annotated[
    bool | None,
    typer.Option(
        help="gan, glow: whether a folder's photographs are of the fundus, to be framed by their "
        "field of view as hospitals do; default: as --study says, else if they are in colour"
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=512,
        help="channels: gan, wgan: of the last layers; glow: of the couplings; default 24, glow 40",
    ),
]
Latent = Annotated[
    int | None,
    typer.Option(min=16, max=512, help="gan, wgan: numbers in a latent code; default 128"),
]


@dataclass(frozen=True)
class Task:
    """What the command line asks for."""

    sources: tuple[Path, ...]
    out: Path
    minutes: float
    size_px: int
    channels: int
    origins: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    exclude: Path | None
    resume: bool
    study: Path | None
    phantoms: int
    device: str
    width: int | None
    latent: int | None
    field_of_view: bool | None = None
    start: Path | None = None
    cameras: bool = False
    note: str = ""

    def public_sources(self) -> tuple[Path, ...]:
        """Return the sources of public images; raises ConfigurationError where none was given."""
        if not self.sources:
            raise ConfigurationError(
                "pretrain: no public images given",
                hint="kohort-server pretrain FOLDER --out OUT; FOLDER (or an .npz) holds them",
            )
        return self.sources

    def public_images(self) -> Path:
        """Return the one source of public images; raises ConfigurationError for none or several."""
        sources = self.public_sources()
        if len(sources) > 1:
            raise ConfigurationError(
                f"pretrain: {len(sources)} sources given, expected one",
                hint="several sources: --model gan",
            )
        return sources[0]

    def provenances(self) -> tuple[Provenance, ...]:
        """Return where each source comes from.

        Raises ConfigurationError where not every source has its origin, licence and attribution.
        """
        count = max(1, len(self.sources))
        for name, given in zip(("source", "licence", "attribution"), self.origins, strict=True):
            if len(given) not in (0, count):
                raise ConfigurationError(
                    f"pretrain: --{name} given {len(given)} times for {count} sources",
                    hint=f"give --{name} once for each source, in their order",
                )
        filled = [given or ("",) * count for given in self.origins]
        return tuple(
            Provenance(source, licence, attribution, self.note)
            for source, licence, attribution in zip(*filled, strict=True)
        )

    def is_fundus(self) -> bool:
        """Return whether a folder's photographs are framed by their field of view."""
        if self.field_of_view is not None:
            return self.field_of_view
        if self.study is not None:
            return load_study(self.study).modality == "fundus"
        return self.channels == 3


def pretrain(
    images: ImageSources = None,
    *,
    out: Out,
    minutes: Minutes = 40.0,
    model: Model = "gan",
    size_px: SizePx = 64,
    channels: Channels = 3,
    source: ImagesFrom = None,
    licence: Licence = None,
    attribution: Attribution = None,
    note: Note = "",
    exclude: Exclude = None,
    resume: Resume = False,
    study: StudyOption = None,
    phantoms: Phantoms = 0,
    device: Device = "cpu",
    width: Width = None,
    latent: Latent = None,
    field_of_view: FieldOfView = None,
    start: Start = None,
    cameras: Cameras = False,
) -> None:
    """Train a starting checkpoint on public images.

    Never on patients' images: this training is not private.
    """
    if channels not in CHANNELS:
        raise ConfigurationError(
            f"--channels: expected 1 or 3, got {channels}", hint="1 is grey, 3 is colour"
        )
    check_folder("--out", out)
    origins = (tuple(source or ()), tuple(licence or ()), tuple(attribution or ()))
    if study is not None and (width or latent):
        raise ConfigurationError(
            "pretrain: --width and --latent beside --study, which says both",
            hint="give --study alone, or change the plan",
        )
    task = Task(
        tuple(images or ()),
        out,
        minutes,
        size_px,
        channels,
        origins,
        exclude,
        resume,
        study,
        phantoms,
        device,
        width,
        latent,
        field_of_view,
        start,
        cameras,
        note,
    )
    if model == "gan":
        train_gan(task)
    elif model == "glow":
        train_flow(task)
    elif model == "wgan":
        train_pairs(task)
    else:
        raise ConfigurationError(
            f"--model: expected gan, glow or wgan, got {model!r}",
            hint="`kohort-server pretrain --help` says what each is",
        )
    write(f"checkpoint in {out}; pin it with kohort-server pin STUDY.yaml\n")


def train_gan(task: Task) -> None:
    """Train the generator, its critic and the encoder."""
    from server.pretrain.gan import run
    from server.pretrain.session import Session

    images = task.public_sources()
    plan = gan_options(task)
    origins = task.provenances()
    with progress_bar("pretrain") as bar:
        row = bar.add_task("gan", total=100)

        def show(_: int, share: float) -> None:
            bar.update(row, completed=100 * share)

        session = Session(task.minutes, resume=task.resume, device=task.device, progress=show)
        is_fundus = task.is_fundus()
        run(
            images,
            task.out,
            plan,
            origins,
            session,
            task.exclude,
            field_of_view=is_fundus,
            start=task.start,
        )


def gan_options(task: Task) -> PretrainPlan:
    """Return the sizes of generator, critic and encoder: those of --study, or as given."""
    from server.pretrain.gan_plan import PretrainPlan

    given: dict[str, float] = {"size_px": task.size_px, "channels": task.channels}
    if task.width is not None:
        given |= {"width": task.width, "encoder_width": task.width}
    if task.latent is not None:
        given["latent"] = task.latent
    if task.study is not None:
        study = load_study(task.study)
        given = {"size_px": study.intake.size_px, "channels": study.intake.channels}
        if study.models.gan is not None:
            given |= {"width": study.models.gan.width, "latent": study.models.gan.latent}
        if study.models.encoder is not None:
            given["encoder_width"] = study.models.encoder.width
    given["cameras"] = task.cameras
    if task.start is not None:
        given |= ONWARDS
    return PretrainPlan(**given)  # type: ignore[arg-type]


def train_flow(task: Task) -> None:
    """Train the flow, in the layout of --study where it is given."""
    from server.pretrain import flow
    from server.public_data.images import read_names, read_source

    if task.latent is not None:
        raise ConfigurationError(
            "pretrain glow: --latent: a flow's latent code is as long as its image",
            hint="leave --latent out",
        )
    images = task.public_images()
    (origin,) = task.provenances()
    options = flow_options(task)
    size_px, channels = flow_size(task)
    names = read_names(task.exclude)
    source = read_source(images, size_px, channels, names, field_of_view=task.is_fundus())
    with progress_bar("pretrain") as bar:
        row = bar.add_task("glow", total=100)

        def show(_: int, share: float, bits: float) -> None:
            bar.update(row, completed=100 * share)

        flow.run(
            source,
            task.out,
            options,
            origin,
            resume=task.resume,
            device=task.device,
            start=task.start / flow.CHECKPOINT if task.start else None,
            progress=show,
        )


def flow_size(task: Task) -> tuple[int, int]:
    """Return size in pixels and channels: those of --study, or as given."""
    if task.study is None:
        return task.size_px, task.channels
    intake = load_study(task.study).intake
    return intake.size_px, intake.channels


def flow_options(task: Task) -> Pretraining:
    """Return the options of the flow's training."""
    plan = planned_flow(task.study)
    if plan is None:
        width = task.width or Pretraining.width
        return Pretraining(minutes=task.minutes, width=width)
    # a chest has its heart on one side, and every detector its own shape
    films = task.study is not None and load_study(task.study).modality == "chest"
    return Pretraining(
        minutes=task.minutes,
        levels=plan.levels,
        steps_per_level=plan.steps_per_level,
        width=plan.width,
        doublings=plan.doublings,
        flips="none" if films else Pretraining.flips,
        films=films,
    )


def planned_flow(study: Path | None) -> GlowPlan | None:
    """Return the flow of the plan, if there is a plan and it has one."""
    if study is None:
        return None
    return load_study(study).models.glow


def train_pairs(task: Task) -> None:
    """Train the image and mask WGAN, on public pairs or on phantoms."""
    from server.pretrain.session import Session
    from server.pretrain.wgan_checkpoint import run

    plan, size_px = pair_plan(task)
    pairs, origin = read_pair_source(task, size_px)
    with progress_bar("pretrain") as bar:
        row = bar.add_task("wgan", total=100)

        def show(_: int, share: float) -> None:
            bar.update(row, completed=100 * share)

        session = Session(task.minutes, resume=task.resume, device=task.device, progress=show)
        steps = run(pairs, task.out, plan, origin, session)
    write(f"{steps} steps; look at {task.out / 'training' / 'samples.png'}\n")


def pair_plan(task: Task) -> tuple[WganPlan, int]:
    """Return the layout and the image size, from --study where it is given."""
    from server.pretrain.wgan_checkpoint import public_plan

    if task.study is None:
        return pair_layout(task), task.size_px
    study = load_study(task.study)
    return study.models.wgan or public_plan(), study.intake.size_px


def pair_layout(task: Task) -> WganPlan:
    """Return the layout that --width and --latent ask for."""
    from server.pretrain.wgan_checkpoint import public_plan

    given: dict[str, int] = {}
    if task.width is not None:
        if task.width % 8:
            raise ConfigurationError(
                f"pretrain pairs: --width {task.width}: expected a multiple of 8",
                hint=f"take --width {task.width // 8 * 8 + 8}",
            )
        given |= {"width": task.width, "generator_width": task.width}
    if task.latent is not None:
        given["latent"] = task.latent
    return public_plan(**given)


def read_pair_source(task: Task, size_px: int) -> tuple[PublicPairs, Provenance]:
    """Return the pairs to train on and where they come from."""
    from server.public_data.pairs import phantom_pairs, read_pairs

    if (not task.sources) == (task.phantoms == 0):
        raise ConfigurationError(
            "pretrain --model wgan: expected public pairs, or --phantoms N",
            hint="give exactly one of them",
        )
    if not task.sources:
        pairs = phantom_pairs(task.phantoms, PHANTOM_PATCHES, size_px, seed=0)
        return pairs, Provenance(*PHANTOM_ORIGIN)
    (origin,) = task.provenances()
    return read_pairs(task.public_images(), size_px), origin
