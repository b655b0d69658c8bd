"""What a look at the site's own pictures found: are they of the checkpoints' domain?

In: the numbers of a sample (client/child/domain.py). Out: a `Domain`, its sentences and its faults;
a file of the state folder.
Guarantees: it holds for one plan and one cohort, and for no other; it stays on this site.
Not covered: what training changes afterwards; that a picture which inverts well keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from common.alerts import Alert
from common.config import FrozenModel
from common.errors import RefusedError
from common.storage.files import atomic_write, read_capped
from common.wire.tensors import Arrays

CAP_BYTES = 1 << 20
CODE = "E-DOMAIN"
FIX = (
    "ask the operator for a checkpoint that knows pictures like these: its card names what it was "
    "trained on; `kohort-site rehearse --keep` shows what the plan would make of them"
)

MOST_LEFT_OUT = 0.1  # of all pictures
MOST_APART = 0.1  # between the shares of two labels
FEWEST = 20  # pictures of a label whose share counts
SPARE_BITS = 0.5  # per dimension, above the flow's own samples
SAMPLES_QUANTILE = 0.99
LEAST_WORTH = 0.9  # of what averages of pixels teach, for averages before noise
LEAST_TOLD = 0.6  # area under the curve from which pixels teach something


class Label(FrozenModel):
    """How many pictures of a label were looked at, and how many would be left out."""

    name: str
    pictures: int = Field(ge=0)
    left_out: int = Field(ge=0)

    @property
    def share(self) -> float:
        """The share that would be left out."""
        return self.left_out / max(1, self.pictures)


class Domain(FrozenModel):
    """What was found. `cohort`: the cohort's digest. Bits are per dimension, by the plan's flow.

    `labels` is empty for a plan without inversion, `bits` None for one without a flow. `pixels` and
    `averages`: areas under the curve of a classifier of averages before noise; None if not asked.
    """

    format: Literal["kohort-domain/1"] = "kohort-domain/1"
    plan: str
    cohort: str
    pictures: int = Field(ge=0)
    labels: tuple[Label, ...] = ()
    error: float | None = None
    bits: float | None = None
    most_bits: float | None = None
    unknown: int = Field(default=0, ge=0)
    pixels: float | None = None
    averages: float | None = None

    @classmethod
    def of(cls, found: Arrays, plan: str, cohort: str, strata: tuple[str, ...]) -> Domain:
        """Return what a sample's numbers say; `strata` names the labels."""
        labels: list[Label] = []
        error = bits = most_bits = None
        unknown = 0
        if "refused" in found:
            for number, name in enumerate(strata):
                refused = found["refused"][found["labels"] == number]
                labels.append(Label(name=name, pictures=len(refused), left_out=int(refused.sum())))
            error = _median(found["errors"])
        if "bits" in found and len(found["bits"]):
            read = np.asarray(found["bits"], np.float64)
            expected = np.asarray(found["expected"], np.float64)
            bits = _median(read)
            most_bits = float(np.quantile(expected, SAMPLES_QUANTILE)) + SPARE_BITS
            unknown = int((read > most_bits).sum())
        pixels, averages = found["worth"].tolist() if "worth" in found else (None, None)
        return cls(
            plan=plan,
            cohort=cohort,
            pictures=len(found["labels"]),
            labels=tuple(labels),
            error=error,
            bits=bits,
            most_bits=most_bits,
            unknown=unknown,
            pixels=pixels,
            averages=averages,
        )

    def lines(self) -> Iterator[str]:
        """Yield what was found, for this site's screen alone."""
        yield f"looked at {self.pictures} pictures, one a patient"
        if self.labels:
            by_label = [
                f"{label.name} {label.left_out} of {label.pictures}" for label in self.labels
            ]
            yield f"would be left out, because they do not invert: {', '.join(by_label)}"
        if self.error is not None:
            yield f"inversion's error: median {self.error:.2f} of a picture's own deviation"
        if self.bits is not None and self.most_bits is not None:
            yield (
                f"the flow reads them at {self.bits:.2f} bits per dimension; {self.unknown} of "
                f"{self.pictures} take more than {self.most_bits:.2f}, which its own samples do not"
            )

        if self.pixels is not None and self.averages is not None:
            yield (
                f"labels learned from the plan's averages before noise: area under the curve "
                f"{self.averages:.2f}; from averages of pixels {self.pixels:.2f}"
            )

    def faults(self) -> Iterator[Alert]:
        """Yield why the checkpoints do not know these pictures, if they do not.

        Without a count: a monitoring system may hear of a fault. `lines` has the numbers.
        """
        looked = sum(label.pictures for label in self.labels)
        left_out = sum(label.left_out for label in self.labels)
        if left_out > MOST_LEFT_OUT * looked:
            yield _fault(
                f"more pictures would be left out than the {MOST_LEFT_OUT:.0%} expected at most"
            )
        shares = [label.share for label in self.labels if label.pictures >= FEWEST]
        if shares and max(shares) - min(shares) > MOST_APART:
            yield _fault(
                "one label would lose more of its pictures than another, by more than the "
                f"{MOST_APART * 100:.0f} points expected at most: what is published would misstate "
                "their shares"
            )
        if self.unknown > MOST_LEFT_OUT * self.pictures:
            yield _fault(
                f"the flow does not know more of the pictures than the {MOST_LEFT_OUT:.0%} "
                "expected at most"
            )
        if self._is_worthless():
            yield _fault(
                "before any noise, the plan's averages teach a classifier less than the "
                f"{LEAST_WORTH:.0%} of what averages of pixels teach that are expected at least: "
                "epsilon would be spent on pictures that are worth little"
            )

    def _is_worthless(self) -> bool:
        """Whether averages lose what pixels teach, where those teach anything."""
        if self.pixels is None or self.averages is None or self.pixels < LEAST_TOLD:
            return False
        return self.averages < LEAST_WORTH * self.pixels

    def keep(self, folder: Path) -> None:
        """Write the file of this plan, readable by this account alone."""
        folder.mkdir(mode=0o700, exist_ok=True)
        text = self.model_dump_json().encode()
        atomic_write(folder / f"{self.plan}.json", text, mode=0o600)


def read_domain(folder: Path, plan: str, cohort: str) -> Domain | None:
    """Return what was found for this plan and this cohort; None where nobody looked since.

    Raises RefusedError for a file that is not as it was written.
    """
    path = folder / f"{plan}.json"
    if not path.is_file():
        return None
    try:
        found = Domain.model_validate_json(read_capped(path, CAP_BYTES))
    except ValidationError as error:
        raise RefusedError(
            f"{path}: not what `kohort-site check --pictures` wrote", hint="look again with it"
        ) from error
    return found if (found.plan, found.cohort) == (plan, cohort) else None


def _fault(text: str) -> Alert:
    """A fault in the pictures' domain."""
    return Alert("error", CODE, f"{text}; kohort-site check shows how many", FIX)


def _median(values: NDArray[np.generic]) -> float | None:
    """The median, None where there is none or JSON has no word for it."""
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        return None
    value = float(np.median(numbers))
    return value if np.isfinite(value) else None
