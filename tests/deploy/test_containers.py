"""The container files: closed as they say, started by commands that exist, and generated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import passphrase
from deploy import compose
from server.operator.config import Listen
from tests.deploy.programs import check_line, is_ours

SERVICES = [
    ("compose.site.yaml", "site"),
    ("compose.server.yaml", "server"),
    ("compose.server.yaml", "front"),
]
CONTAINERFILES = ("Containerfile.site", "Containerfile.server")


def read(name: str) -> dict[str, Any]:
    """A compose file as data."""
    found: dict[str, Any] = yaml_of((compose.CONTAINERS / name).read_text())
    return found


@pytest.mark.parametrize("name", compose.FILES)
def test_a_compose_file_is_what_the_models_give(name: str) -> None:
    assert (compose.CONTAINERS / name).read_text() == compose.FILES[name](), (
        "run `python -m deploy.compose`"
    )


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_is_closed(name: str, service: str) -> None:
    what = read(name)["services"][service]
    assert what["read_only"] is True
    assert what["cap_drop"] == ["ALL"] and "cap_add" not in what
    assert what["security_opt"] == ["no-new-privileges:true"]
    assert int(what["user"].partition(":")[0]) >= 1000
    assert not {"privileged", "pid", "ipc", "userns_mode"} & set(what)
    assert all("noexec" in one for one in what["tmpfs"])
    writable = [one for one in what["volumes"] if not one.endswith(":ro")]
    assert len(writable) == 1 and writable[0].startswith("state:/var/lib/kohort")


def test_only_the_front_opens_a_port() -> None:
    services = read("compose.server.yaml")["services"] | read("compose.site.yaml")["services"]
    opened = {name: what["ports"] for name, what in services.items() if "ports" in what}
    assert opened == {"front": [f"{Listen().port}:{Listen().port}"]}
    assert services["server"]["network_mode"] == "none"


@pytest.mark.parametrize(("name", "service"), SERVICES[:2])
def test_a_service_starts_and_is_probed_by_commands_that_exist(name: str, service: str) -> None:
    what = read(name)["services"][service]
    check_line([f"kohort-{service}", *what["command"]])
    if "healthcheck" in what:
        check_line(what["healthcheck"]["test"][1:])


@pytest.mark.parametrize(("name", "service"), SERVICES[:2])
def test_the_passphrase_comes_as_systemd_would_hand_it_over(name: str, service: str) -> None:
    whole = read(name)
    what = whole["services"][service]
    folder = what["environment"][passphrase.CREDENTIALS]
    assert folder == "/run/secrets" and what["secrets"] == [passphrase.CREDENTIAL]
    assert set(whole["secrets"]) == {passphrase.CREDENTIAL}


def test_an_empty_passphrase_file_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/dev")
    monkeypatch.delenv(passphrase.VARIABLE, raising=False)
    monkeypatch.setenv(passphrase.CREDENTIALS, str(folder))
    monkeypatch.setattr(passphrase, "CREDENTIAL", "null")
    assert passphrase.current() is None


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_an_image_names_no_base_and_runs_as_nobody(name: str) -> None:
    lines = (compose.CONTAINERS / name).read_text().splitlines()
    told = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in told if line.startswith("FROM")] == [
        "FROM ${BASE} AS build",
        "FROM ${BASE}",
    ]
    assert "ARG BASE" in told and not any("://" in line for line in told)
    users = [line for line in told if line.startswith("USER")]
    assert users == [f"USER {compose.ACCOUNT}:{compose.ACCOUNT}"]
    # the account is set before the program, and nothing is added from elsewhere
    assert told.index(users[0]) < next(i for i, line in enumerate(told) if line.startswith("ENTRY"))
    assert not any(line.startswith("ADD") for line in told)


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_an_image_starts_and_is_probed_by_commands_that_exist(name: str) -> None:
    text = (compose.CONTAINERS / name).read_text()
    [entry] = re.findall(r'^ENTRYPOINT \["([^"]+)"\]', text, re.MULTILINE)
    [words] = re.findall(r"^CMD \[(.+)\]", text, re.MULTILINE)
    probes = re.findall(r"^    CMD \[(.+)\]", text, re.MULTILINE)
    assert is_ours(entry)
    check_line([entry, *re.findall(r'"([^"]+)"', words)])
    for probe in probes:
        check_line(re.findall(r'"([^"]+)"', probe))


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_an_image_installs_what_the_bundle_holds(name: str) -> None:
    text = (compose.CONTAINERS / name).read_text()
    assert "--no-index -f wheels" in text and "--require-hashes" in text
    assert "--network none" in text


def yaml_of(text: str) -> Any:
    """A YAML file as plain data."""
    return yaml.safe_load(text)  # noqa: TID251  # our own files, as any reader of YAML sees them
