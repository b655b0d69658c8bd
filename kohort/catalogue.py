"""The catalogue: which releases an operator publishes, signed, numbered and dated.

In: the bytes of catalogue.json and of its signature. Out: a `Catalogue`, or RefusedError.
Guarantees: the key inside has signed it, under a namespace of its own; every text is printable on
one line; a path is made of the release's own name and version; no version is listed twice.
Not covered: whether that key deserves trust, and whether a newer catalogue was seen
(kohort/seen.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictInt, ValidationError, model_validator

from kohort import signatures
from kohort.errors import ConfigurationError, RefusedError
from kohort.frozen import FrozenModel
from kohort.header import Hex64, Name

FORMAT = "kohort-catalogue/1"
CATALOGUE = "catalogue.json"
SIGNATURE = "catalogue.json.sig"
RELEASES = "releases"
CAP_BYTES = 1 << 22
MOST = 1000  # of releases, and of withdrawals
LONGEST_DAYS = 366
TIME = "%Y-%m-%dT%H:%M:%SZ"
EXPIRED = "E-CATALOGUE-EXPIRED"

Reason = Literal["privacy", "consent", "quality", "licence", "other"]
REASONS: dict[Reason, str] = {
    "privacy": "a promise of privacy does not hold",
    "consent": "somebody withdrew a consent or a contract",
    "quality": "the images or labels are wrong",
    "licence": "it may not be passed on",
    "other": "another reason",
}


def _printable(text: str) -> str:
    """A text without control characters, line ends, or marks that turn the direction of reading."""
    if not text.isprintable():
        raise ValueError("expected printable characters on one line")
    return text


def _moment(text: str) -> str:
    """A time in UTC, in its one spelling."""
    if datetime.strptime(text, TIME).strftime(TIME) != text:
        raise ValueError("expected YYYY-MM-DDTHH:MM:SSZ")
    return text


Line = Annotated[str, Field(max_length=300), AfterValidator(_printable)]
Moment = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9TZ:-]{15}$"), AfterValidator(_moment)]
Day = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]


def version_order(version: str) -> tuple[int, ...]:
    """Return three numbers by which versions are put in order."""
    return tuple(int(part) for part in version.split("."))


def folder_of(name: str, version: str) -> str:
    """Return the path of a release below the catalogue."""
    return f"{RELEASES}/{name}-{version}"


class Entry(FrozenModel):
    """One release that can be had. `sums`: the SHA-256 of its SHA256SUMS.

    `key`: the fingerprint of the operator's key that signed it. `superseded_by`: a later version of
    the same release, "" for none. `k` is None where k-anonymity is not claimed.
    """

    name: str = Name
    version: Version
    path: str = Field(max_length=100)
    sums: str = Hex64
    key: str = Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")
    title: Line
    date: Day
    licence: Line
    images: Annotated[StrictInt, Field(ge=0, le=10**6)]
    labels: tuple[Label, ...] = Field(max_length=1000)
    sites: Annotated[StrictInt, Field(ge=1, le=10**4)]
    size_bytes: Annotated[StrictInt, Field(ge=0, le=1 << 50)]
    k: Annotated[StrictInt, Field(ge=2, le=10**6)] | None
    grouping: Label
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0)
    superseded_by: Version | Literal[""] = ""

    @model_validator(mode="after")
    def _own_path(self) -> Entry:
        """Refuse a path that leads anywhere else."""
        if self.path != folder_of(self.name, self.version):
            raise ValueError("path: expected releases/NAME-VERSION")
        return self


class Withdrawal(FrozenModel):
    """One release that must not be used any more, since when, and why."""

    name: str = Name
    version: Version
    sums: str = Hex64
    date: Day
    reason: Reason
    sentence: Line


class Catalogue(FrozenModel):
    """The content of catalogue.json.

    `version` rises with every change and renewal. After `expires` a reader does not rely on it.
    """

    format: Literal["kohort-catalogue/1"]
    name: str = Name
    title: Line
    contact: Line
    operator_key: str = Field(pattern=r"^ssh-ed25519 [A-Za-z0-9+/=]{1,200}$")
    version: Annotated[StrictInt, Field(ge=1, le=10**9)]
    created: Moment
    expires: Moment
    releases: tuple[Entry, ...] = Field(max_length=MOST)
    withdrawn: tuple[Withdrawal, ...] = Field(max_length=MOST)

    @model_validator(mode="after")
    def _consistent(self) -> Catalogue:
        """Refuse a version that is listed twice, and an end before the beginning."""
        listed = [(one.name, one.version) for one in self.releases]
        listed += [(one.name, one.version) for one in self.withdrawn]
        if len(set(listed)) != len(listed):
            raise ValueError("a release is listed twice")
        if not self.created < self.expires:
            raise ValueError("expires: expected after created")
        return self

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key that signed it."""
        return signatures.fingerprint(signatures.parse_public(self.operator_key))

    def knows(self, name: str) -> bool:
        """Return whether a release of this name is offered or was withdrawn."""
        names = {one.name for one in self.releases} | {one.name for one in self.withdrawn}
        return name in names

    def newest(self, name: str) -> Entry | None:
        """Return the newest version of a release; None where it has none."""
        found = [one for one in self.releases if one.name == name]
        return max(found, key=lambda one: version_order(one.version), default=None)

    def find(self, name: str, version: str) -> Entry | None:
        """Return one version of a release; None where it is not offered."""
        for one in self.releases:
            if (one.name, one.version) == (name, version):
                return one
        return None

    def withdrawal(self, name: str, version: str) -> Withdrawal | None:
        """Return why one version was withdrawn; None where it was not."""
        for one in self.withdrawn:
            if (one.name, one.version) == (name, version):
                return one
        return None


def parse_time(text: str) -> datetime:
    """Return a time as a catalogue spells it."""
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)


def open_catalogue(data: bytes, signature: bytes) -> Catalogue:
    """Return a catalogue that the key inside it has signed; raises RefusedError."""
    if len(data) > CAP_BYTES:
        raise RefusedError(f"{CATALOGUE}: larger than the {CAP_BYTES} bytes allowed")
    try:
        catalogue = Catalogue.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RefusedError(
            f"{CATALOGUE}: not a catalogue as {FORMAT} has it: {place}: {first['msg']}",
            hint="is this the catalogue's own address? A newer `kohort` may know a newer format",
        ) from error
    try:
        key = signatures.parse_public(catalogue.operator_key)
    except ConfigurationError as error:
        raise RefusedError(f"{CATALOGUE}: {error}") from error
    signatures.verify(key, signatures.CATALOGUE, data, signature, what=CATALOGUE)
    return catalogue


def check_fresh(catalogue: Catalogue, now: datetime) -> None:
    """Raise RefusedError (E-CATALOGUE-EXPIRED) for a catalogue that has ended at `now`."""
    if now >= parse_time(catalogue.expires):
        raise RefusedError(
            f"the catalogue of {catalogue.name} ended on {catalogue.expires[:10]}; a server may "
            "hold newer ones back, with the withdrawals in them",
            hint="ask its operator to renew it, or check this machine's clock; --accept-old takes "
            "it as it is",
            code=EXPIRED,
        )
