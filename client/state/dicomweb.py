"""The section `dicomweb` of site.yaml: which server `kohort-site fetch` asks, and for what.

In: values of site.yaml. Out: a frozen `Dicomweb`.
Guarantees: no password stands in it; a connection without TLS stays on this machine; a query is
narrowed by something.
Not covered: what the server answers (client/dicomweb).
"""

from __future__ import annotations

from datetime import date
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from common.config import FrozenModel

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FORMS = {"url": "https://HOST/PATH", "proxy": "http://HOST:PORT"}

Code = Annotated[str, Field(pattern=r"^[A-Z0-9 _]{1,16}$")]


class Dicomweb(FrozenModel):
    """The hospital's DICOMweb server. Only `kohort-site fetch` calls it, and it only reads."""

    url: str | None = Field(
        default=None,
        description="address below which studies lie, such as https://pacs/dicom-web; null: none. "
        "`kohort-site fetch` then fills data.folder, sealed. http:// only on this machine",
    )
    ca_file: str | None = Field(
        default=None,
        description="PEM file of the authority that the server's certificate must have; null: "
        "those of this machine",
    )
    proxy: str | None = Field(
        default=None, description="http://HOST:PORT of an HTTP proxy; null: connect directly"
    )
    modalities: tuple[Code, ...] = Field(
        default=(), description="series of these modalities, as in [DX, CR]; empty: any"
    )
    body_parts: tuple[Code, ...] = Field(
        default=(),
        description="series whose BodyPartExamined is one of these, or is not answered; empty: any",
    )
    from_date: date | None = Field(
        default=None, description="studies of this day or later, as in 2024-01-31; null: any"
    )
    to_date: date | None = Field(
        default=None, description="studies of this day or earlier; null: any"
    )
    studies_file: str | None = Field(
        default=None,
        description="path of a text file with a StudyInstanceUID a line, instead of asking for "
        "studies; null: none",
    )
    max_instances: int = Field(
        default=200_000, ge=1, le=1_000_000, description="most images that are fetched"
    )
    max_gib: float = Field(
        default=500.0, gt=0, le=65_536, description="most GiB that the sealed folder may hold"
    )
    timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="seconds that one read from the server may take"
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> Dicomweb:
        for name, address in (("url", self.url), ("proxy", self.proxy)):
            if address is not None:
                _check_address(name, address)
        if self.url is None:
            return self
        if urlsplit(self.url).scheme == "http" and urlsplit(self.url).hostname not in LOOPBACK:
            raise ValueError("url: images of patients would pass in clear, expected https://")
        if not (self.modalities or self.from_date or self.to_date or self.studies_file):
            raise ValueError(
                "asks for every study of the server, expected modalities, from_date, to_date or "
                "studies_file"
            )
        return self


def _check_address(name: str, address: str) -> None:
    """Raise ValueError for what is no address, or holds more than one; it is not repeated."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{name}: expected {FORMS[name]}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not address.isascii():
        raise ValueError(f"{name}: expected {FORMS[name]}")
    if name == "url" and (parts.username is not None or parts.password is not None):
        raise ValueError("url: holds a user or a password, expected `fetch --credential-fd`")
    if parts.query or parts.fragment or not address.isprintable() or " " in address:
        raise ValueError(f"{name}: expected an address without ?, # or blanks")
