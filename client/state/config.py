"""The hospital's own file, `site.yaml`: where data lie, what may leave, how the network looks.

In: site.yaml. Out: a frozen `SiteConfig`.
Guarantees: every limit has a default that denies more rather than less.
Not covered: whether a plan fits the policy (plan_check.py); a sample of the file (sample.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from client.state.artefacts import Limit
from client.state.dicomweb import Dicomweb
from common.compute import Compute
from common.config import FrozenModel, load_yaml
from common.errors import ConfigurationError
from common.logs import LogSettings
from common.monitoring.settings import HealthSettings, MetricsSettings
from common.study.fields import Identifier

FILE = "site.yaml"
INBOX_MESSAGES = 4  # two instructions and two replies of the largest size


Column = Literal["file", "patient", "label", "laterality", "mask"]


Doubt = Literal["mangled-ids", "placeholders", "contradictions", "many-ids", "large-share"]


class Data(FrozenModel):
    """Where the images of patients lie. Read only."""

    folder: str = Field(
        min_length=1,
        description="folder with DICOM, NIfTI or image files, or one ZIP archive of them; kohort "
        "only reads it. With dicomweb.url: the folder that `kohort-site fetch` fills, sealed",
    )
    labels_csv: str | None = Field(
        default=None,
        description="path of a CSV with the columns file, patient, label, laterality, mask; "
        "null: none",
    )
    silent_headers: Literal["accept", "refuse"] = Field(
        default="accept",
        description="files whose headers do not name the body part or the view that the plan "
        "takes; `ingest` says how many they are. PNG and JPEG files have no header that could",
    )
    derived: Literal["refuse", "accept"] = Field(
        default="refuse",
        description="DICOM images that ImageType calls SECONDARY; accept: this hospital has looked "
        "at them and vouches that they are plain copies, such as compressed ones of an archive, "
        "without text or drawings in them",
    )
    text_detector: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether photographs and radiographs are searched for text in their pixels, "
        "which takes about 0.02 s of a core each; auto: where rapidocr-onnxruntime is installed",
    )
    columns: dict[str, Column] = Field(
        default_factory=dict,
        description="names of columns in the labels file -> file, patient, label, laterality or "
        "mask, as in {Patienten-ID: patient}; columns of these names need no line",
    )
    values: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="words in the labels file -> a label of the plan, L or R, as in {DME: dme}; "
        "sides in several languages need no line",
    )

    persons_csv: str | None = Field(
        default=None,
        description="path of a CSV with the columns first, second, decision: two ids, or files as "
        "file:PATH, and whether they are the same person or different ones; null: none",
    )
    accept: tuple[Doubt, ...] = Field(
        default=(),
        description="doubts about who is one person that this site has looked into and accepts, by "
        "the names that kohort-site ingest gives them",
    )

    same_eye: Literal["join", "list", "off"] = Field(
        default="join",
        description="what becomes of two colour fundus photographs under two ids whose vessels "
        "agree: join: they are one person; list: `ingest` lists them with pictures and joins "
        "nobody; off: vessels are not compared, which takes minutes for 10,000 photographs",
    )

    @model_validator(mode="after")
    def _one_name_a_column(self) -> Data:
        for column in sorted(set(self.columns.values())):
            names = [name for name, ours in self.columns.items() if ours == column]
            if len(names) > 1:
                raise ValueError(f"columns: {names} are all {column}, expected one of them")
        return self


class Policy(FrozenModel):
    """What this hospital allows, whatever a plan or a server asks."""

    max_epsilon: float = Field(
        default=10.0,
        gt=0,
        le=100,
        description="largest epsilon that a patient may spend, over all studies of this site "
        "together",
    )
    max_delta: float = Field(
        default=1e-5,
        gt=0,
        le=0.01,
        description="delta of max_epsilon; the ledger keeps the first one, "
        "later changes are refused",
    )
    min_k: int = Field(
        default=5, ge=2, description="fewest distinct patients behind one image; 10 is recommended"
    )
    min_noise_multiplier: float = Field(
        default=0.5,
        gt=0,
        description="smallest noise of a private step: standard deviation in units of the clip "
        "norm",
    )
    groupings: tuple[Literal["similar", "similar-swap", "cells", "random", "anchors"], ...] = Field(
        default=("similar", "cells", "random", "anchors"),
        description="allowed ways to form groups; similar-swap makes the tightest groups and "
        "leaks most about who took part",
    )
    max_images: int = Field(
        default=1000,
        ge=0,
        description="largest number of images that may leave for one study; 0: none",
    )
    single_images: Literal["never", "countersigned", "allowed"] = Field(
        default="never",
        description="whether privatized images of one patient each may leave, where the plan says "
        "so too; countersigned: only once the operator has a receipt for their charge, so that a "
        "restored folder exports nothing twice",
    )
    max_epsilon_image: float = Field(
        default=10.0,
        gt=0,
        le=100,
        description="largest epsilon of one such image, per image and not per coordinate",
    )
    max_epsilon_average: float = Field(
        default=1000.0,
        gt=0,
        description="largest epsilon of all noised draws of one group's average together, over all "
        "studies of this site, where no epsilon per patient is claimed; per average and not per "
        "coordinate",
    )
    review: Literal["required", "not_required"] = Field(
        default="required",
        description="whether a person must approve each batch of images before it leaves "
        "(kohort-site review)",
    )
    reviewers: int = Field(
        default=1,
        ge=1,
        le=2,
        description="how many different persons must approve a batch, where review is required",
    )

    @property
    def average_limit(self) -> Limit:
        """The cap on all noised draws of one group's average."""
        return Limit(self.max_epsilon_average, self.max_delta)


class Network(FrozenModel):
    """How the server is reached; its address comes with the join file."""

    proxy: str | None = Field(
        default=None,
        description="http://HOST:PORT of an HTTP CONNECT proxy; null: connect directly",
    )
    poll_s: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="pause in seconds between two requests for work during a round",
    )
    send_slot_s: float = Field(
        default=2.0,
        ge=0,
        le=3600,
        description="seconds: replies and refusals leave at whole multiples of it after the "
        "instruction, which hides how long the work took; 0: at once",
    )


class Limits(FrozenModel):
    """What this machine gives."""

    max_file_mib: int = Field(
        default=256, ge=1, le=4096, description="largest image file that is opened, in MiB"
    )
    max_message_mib: int = Field(
        default=512, ge=1, le=4096, description="largest instruction that is accepted, in MiB"
    )
    inbox_mib: int = Field(
        default=0,
        ge=0,
        le=65_536,
        description="disk quota of instructions that wait and replies that are to be sent, in MiB; "
        "0: four times max_message_mib",
    )
    child_memory_gib: float = Field(
        default=0,
        ge=0,
        description="memory limit of the child process that computes, in GiB; 0: no limit",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=512,
        description="threads of the child process that computes; 0: one a core",
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=10,
        description="how often a child process that a signal ended is started again; each attempt "
        "spends the round's epsilon again",
    )

    @property
    def inbox_bytes(self) -> int:
        """The disk quota of the inbox in bytes."""
        return (self.inbox_mib or INBOX_MESSAGES * self.max_message_mib) << 20

    @model_validator(mode="after")
    def _hold_two_messages(self) -> Limits:
        if 0 < self.inbox_mib < 2 * self.max_message_mib:
            raise ValueError(
                f"inbox_mib: {self.inbox_mib}, expected 0 or at least twice max_message_mib: an "
                "instruction and its reply"
            )
        return self


class SiteCompute(Compute):
    """The devices that compute, and how exactly; the main memory's limits stand in `limits`."""

    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes that share a round of training with device `cpu`; they share "
        "limits.threads, too. With GPUs there is one process a GPU",
    )
    decoders: int = Field(
        default=0,
        ge=0,
        le=64,
        description="processes that decode image files at the same time, each within 1 GiB of "
        "memory, or 2 for volumes; 0: one a core, at most 16, and no more than fit into half of "
        "the machine's memory",
    )

    @property
    def shared(self) -> Compute:
        """What every program of kohort reads of this section."""
        return Compute.model_validate(self.model_dump(include=set(Compute.model_fields)))

    @model_validator(mode="after")
    def _share_the_processor_alone(self) -> SiteCompute:
        if self.processes > 1 and self.device != "cpu":
            raise ValueError(
                f"processes: {self.processes} with device {self.device}, expected 1: "
                "with GPUs there is one process a GPU"
            )
        return self


class SiteConfig(FrozenModel):
    """The whole of site.yaml."""

    site: Identifier = Field(
        description="this hospital's name in study plans: lower-case letters, digits and hyphens"
    )
    data: Data = Field(description="where the images of patients lie")
    dicomweb: Dicomweb = Field(
        default_factory=Dicomweb, description="which DICOMweb server `kohort-site fetch` asks"
    )
    rehearsal: bool = Field(
        default=False,
        description="whether every image of this site is public or invented; only then may "
        "`kohort-site audit --out` write what its canaries measured; false at a hospital",
    )
    policy: Policy = Field(default_factory=Policy, description="what this hospital allows")
    network: Network = Field(default_factory=Network, description="how the server is reached")
    limits: Limits = Field(default_factory=Limits, description="what this machine gives")
    compute: SiteCompute = Field(
        default_factory=SiteCompute, description="the devices that compute, and how exactly"
    )
    metrics: MetricsSettings = Field(
        default_factory=MetricsSettings, description="where Prometheus finds the metrics"
    )
    log: LogSettings = Field(default_factory=LogSettings, description="how the daemon logs")
    health: HealthSettings = Field(
        default_factory=HealthSettings, description="where probes ask whether the daemon is well"
    )


def load_site(state: Path) -> SiteConfig:
    """Return the configuration in a state folder; raises ConfigurationError with every problem."""
    if not (state / FILE).is_file():
        raise ConfigurationError(
            f"{state}: not the state folder of a site, it holds no {FILE}",
            hint="--state names the folder that `kohort-site init` made",
        )
    return load_yaml(state / FILE, SiteConfig)
