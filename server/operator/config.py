"""The operator's configuration: server.yaml.

In: the file. Out: a frozen `ServerConfig`.
Guarantees: an unknown key is an error; the sample file is generated from the model; nothing here
changes a privacy parameter, for those stand in the signed plan.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from common.config import FrozenModel, load_yaml, parse_yaml
from common.errors import ConfigurationError
from common.logs import LogSettings
from common.monitoring.settings import HealthSettings, MetricsSettings
from common.problems import describe
from common.storage.files import atomic_write
from common.study.fields import Identifier
from kohort.catalogue import LONGEST_DAYS
from kohort.manifest import SIGNERS_MOST, Signer

DEFAULT_PORT = 9443
LOOPBACK = {"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1", "::1": "::1"}
# labels of letters, digits and hyphens; the last one is no number, or it would be an address
DNS_NAME = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*(?![0-9]+$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
)
KeyLine = Annotated[str, Field(pattern=r"^ssh-ed25519 [A-Za-z0-9+/=]{1,200}( [^\n]{0,200})?$")]
HOST_CHARACTERS = 64  # of a certificate's common name


class Listen(FrozenModel):
    """The one port that sites reach: TLS 1.3, for the certificates of enrolled sites alone."""

    front: Literal["embedded", "nginx"] = Field(
        default="embedded",
        description="program behind the port: `embedded`, which `kohort-server run` starts, or "
        "`nginx`, with the configuration that `kohort-server front` prints",
    )
    host: str = Field(
        default="::",
        pattern=r"^[0-9a-zA-Z.:-]{1,255}$",
        description="address of the interface to listen on; `::` takes every one, IPv4 and IPv6",
    )
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535, description="TCP port to listen on")


class Limits(FrozenModel):
    """Times, counts and sizes of the server. None of them touches privacy."""

    poll_s: float = Field(
        default=0.25, gt=0, le=60, description="pause in seconds between two looks for a reply"
    )
    reask_s: float = Field(
        default=300,
        gt=0,
        le=86400,
        description="seconds after which a site that has not answered is asked again",
    )
    retry_first_s: float = Field(
        default=1,
        gt=0,
        le=3600,
        description="pause in seconds after a site's first error code; it doubles each time",
    )
    retry_cap_s: float = Field(
        default=30, gt=0, le=86400, description="longest such pause, in seconds"
    )
    goodbye_s: float = Field(
        default=120,
        ge=0,
        le=86400,
        description="seconds that the closing message waits for the sites' answers",
    )
    replies_in_memory: int = Field(
        default=4,
        ge=1,
        le=256,
        description="largest number of instructions and replies on their way in memory at once",
    )
    silent_rounds: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="rounds in a row without an answer after which a site that is offline is no "
        "longer waited for; it takes part again as soon as it is online",
    )
    failures: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="failed attempts without progress after which the study stops",
    )
    inbox_gib: int = Field(
        default=20,
        ge=1,
        le=100_000,
        description="largest size, in GiB, of what sites pushed and the study has not taken yet",
    )
    studies_gib: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="largest size, in GiB, of the folder of studies: weights, replies, images",
    )
    releases_gib: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="largest size, in GiB, of the folder in which `kohort-server release` writes",
    )


class ReleaseSigning(FrozenModel):
    """Who signs a release off besides the operator."""

    sign_offs: int = Field(
        default=0,
        ge=0,
        le=SIGNERS_MOST,
        description="how many of the signers sign a release off before it is published; with 0 "
        "`kohort-server release` publishes at once",
    )
    signers: dict[Identifier, KeyLine] = Field(
        default={},
        max_length=SIGNERS_MOST,
        description="who may sign off, each with the public key line that "
        "`kohort-server sign-off NAME --key FILE --new-key` prints",
    )

    @property
    def named(self) -> tuple[Signer, ...]:
        """The signers as a manifest lists them: in order of name, keys without comment."""
        pairs = sorted(self.signers.items())
        return tuple(Signer(name=name, key=" ".join(key.split()[:2])) for name, key in pairs)

    @model_validator(mode="after")
    def _enough_signers(self) -> ReleaseSigning:
        """Refuse more sign-offs than there are signers."""
        if self.sign_offs > len(self.signers):
            raise ValueError(
                f"sign_offs is {self.sign_offs}, expected at most as many as the "
                f"{len(self.signers)} signers"
            )
        return self


Words = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f\"\\#]*$")]


class CatalogueSettings(FrozenModel):
    """What the public catalogue of releases says of itself."""

    title: Words = Field(
        default="", description="its title in quotes, for example the consortium's full name"
    )
    contact: Words = Field(
        default="", description="whom readers ask, in quotes: an address for mail, or a page"
    )
    url: str = Field(
        default="",
        pattern=r"^(https://[A-Za-z0-9.:/_~%-]{1,200})?$",
        description="address under which the catalogue is served, https://HOST/PATH",
    )
    days: int = Field(
        default=90,
        ge=30,  # `status` names an end from two weeks before on
        le=LONGEST_DAYS,
        description="days for which a catalogue holds; `kohort-server publish` renews it when half "
        "of them have gone",
    )


class Citation(FrozenModel):
    """Whom a citation of a release names. Everything here is public."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="full name of the consortium: author and publisher of its releases; null: "
        "the catalogue's title, or else the name above",
    )
    ror: str | None = Field(
        default=None,
        pattern=r"^https://ror\.org/0[a-z0-9]{6}[0-9]{2}$",
        description="identifier of the consortium at ror.org",
    )
    website: str | None = Field(
        default=None,
        max_length=300,
        pattern=r"^https://[!-~]+$",
        description="address of the consortium's page",
    )
    contact: str | None = Field(
        default=None,
        max_length=200,
        pattern=r"^[!-?A-~]+@[!-?A-~]+$",
        description="e-mail address for questions about releases",
    )


class ServerConfig(FrozenModel):
    """The operator's file."""

    format: Literal["kohort-server/1"] = Field(
        default="kohort-server/1", description="version of this file's format"
    )
    name: Identifier = Field(
        description="name of the consortium: lower-case letters, digits and hyphens"
    )
    url: str = Field(
        max_length=300,
        description="address that the sites connect to: https://HOST:PORT, without a path",
    )
    listen: Listen = Field(default=Listen(), description="the one port that sites reach")
    limits: Limits = Field(default=Limits(), description="times, counts and sizes")
    metrics: MetricsSettings = Field(
        default=MetricsSettings(), description="where Prometheus finds the metrics"
    )
    log: LogSettings = Field(default=LogSettings(), description="how the server logs")
    health: HealthSettings = Field(
        default=HealthSettings(), description="where probes ask whether the server is well"
    )
    release: ReleaseSigning = Field(
        default=ReleaseSigning(), description="who vouches for a release besides the operator"
    )
    catalogue: CatalogueSettings = Field(
        default=CatalogueSettings(), description="what the catalogue of releases says of itself"
    )
    citation: Citation = Field(default=Citation(), description="whom a citation of a release names")

    @field_validator("url")
    @classmethod
    def _plain_https(cls, url: str) -> str:
        """Refuse what no site could connect to, or what no certificate could name."""
        parts = split_url(url)
        extra = parts.path or parts.query or parts.fragment or parts.username
        if parts.scheme != "https" or not parts.hostname or extra:
            raise ValueError(f"expected https://HOST:PORT without a path, got {url!r}")
        if not parts.port:
            raise ValueError(f"expected a port, as in https://HOST:PORT, got {url!r}")
        if len(parts.hostname) > HOST_CHARACTERS or not parts.hostname.isascii():
            raise ValueError(
                f"expected a host of at most {HOST_CHARACTERS} ASCII characters, got {url!r}"
            )
        if not is_host(parts.hostname):
            raise ValueError(
                f"expected the name or address that hospitals call, got {parts.hostname!r}"
            )
        return url

    @property
    def host(self) -> str:
        """The host in the URL, an address in its one spelling: a name of the certificate."""
        host = str(urlsplit(self.url).hostname)
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            return host

    @property
    def url_port(self) -> int:
        """The port in the URL."""
        return int(urlsplit(self.url).port or 0)


def is_host(host: str) -> bool:
    """Whether a host can be called: a DNS name, or the address of one machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return DNS_NAME.fullmatch(host) is not None
    return not (address.is_unspecified or address.is_multicast or "%" in host)


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL, its port checked; raises ValueError in plain words."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (reading it is what checks it)
    except ValueError as error:
        raise ValueError(
            f"expected https://HOST:PORT with a port of 1 to 65535, got {url!r}"
        ) from error
    return parts


def check_config(name: str, url: str) -> ServerConfig:
    """Return the configuration of a new operator: it listens on the URL's port.

    With a URL of this machine alone it listens on the loopback interface alone.

    Raises ConfigurationError that names the options of `kohort-server init`.
    """
    try:
        config = ServerConfig.model_validate({"name": name, "url": url})
    except ValidationError as error:
        problems = [f"--{item['loc'][0]}: {describe(item)}" for item in error.errors()]
        raise ConfigurationError(
            "\n".join(problems),
            problems=problems,
            hint="for example --name eye-consortium --url https://kohort.example.org:9443",
        ) from error
    listen = Listen(port=config.url_port)
    if config.host in LOOPBACK:
        listen = Listen(host=LOOPBACK[config.host], port=config.url_port)
    return config.model_copy(update={"listen": listen})


def new_config(name: str, url: str, path: Path) -> ServerConfig:
    """Return the configuration of a new operator, written to `path`."""
    atomic_write(path, sample(check_config(name, url)).encode())
    return load_config(path)


def load_config(path: Path) -> ServerConfig:
    """Return the configuration in a file; raises ConfigurationError with every problem at once."""
    return load_yaml(path, ServerConfig)


def limits_in(path: Path) -> Limits:
    """Return the limits of a configuration file; the usual ones where there is none."""
    if not path.is_file():
        return Limits()
    return load_config(path).limits


def citation_in(path: Path) -> Citation:
    """Return whom a citation names: without a name the catalogue's title, or the short name."""
    if not path.is_file():
        return Citation()
    config = load_config(path)
    name = config.citation.name or config.catalogue.title or config.name
    return config.citation.model_copy(update={"name": name})


def sample(config: ServerConfig) -> str:
    """Return a configuration as YAML, every key with its description; it reads back as it was."""
    text = (
        "# kohort-server: the operator's file. Generated; "
        "every key but name and url may be left out.\n"
    )
    text += _lines(config, "")
    assert parse_yaml(text, ServerConfig, Path("server.yaml")) == config
    return text


def _lines(model: BaseModel, indent: str) -> str:
    """One commented `key: value` line a field."""
    text = ""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            text += f"\n{indent}# {(type(value).__doc__ or '').strip()}\n{indent}{name}:\n"
            text += _lines(value, indent + "  ")
        else:
            text += f"{indent}{name}: {_spell(value)}  # {field.description}\n"
    return text


def _spell(value: object) -> str:
    """A value as YAML: quoted where it is empty, holds a space, or begins with a colon."""
    if value is None:
        return "null"
    text = str(value)
    if isinstance(value, str) and (not text or text.startswith(":") or " " in text):
        return f'"{text}"'
    return text
