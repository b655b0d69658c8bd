"""nginx's configuration is made from the rules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from common.wire import signing
from server.cli.main import app
from server.front import rules
from server.front.nginx import config_path, nginx_conf
from server.operator.config import Listen, ServerConfig, new_config
from server.operator.state import ServerState

CONFIG = ServerConfig(name="demo", url="https://kohort.example.org:9443")


def test_every_call_has_its_place_its_cap_and_nothing_else_has_one() -> None:
    text = nginx_conf(ServerState(Path("/srv/k")), CONFIG)
    places = text.split("location = ")[1:]
    for place, (path, cap) in zip(places, rules.CALLS.items(), strict=True):
        assert place.startswith(f"{path} {{")
        assert f"client_max_body_size {cap};" in place
    assert text.count("location") == len(rules.CALLS) + 1
    assert "location / { return 404; }" in text
    assert "ssl_protocols TLSv1.3;" in text
    assert "ssl_verify_client on;" in text


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("::", "listen [::]:9443 ssl ipv6only=off;"),
        ("127.0.0.1", "listen 127.0.0.1:9443 ssl;"),
        ("2001:db8::1", "listen [2001:db8::1]:9443 ssl;"),
    ],
)
def test_the_address_is_that_of_server_yaml(host: str, line: str) -> None:
    config = CONFIG.model_copy(update={"listen": Listen(host=host)})
    assert line in nginx_conf(ServerState(Path("/srv/k")), config)


@pytest.mark.parametrize("folder", ["/srv/" + "x" * 100, "/srv/a;b", "/srv/a b"])
def test_a_folder_that_nginx_cannot_name_is_refused(folder: str) -> None:
    with pytest.raises(ConfigurationError, match="expected at most"):
        nginx_conf(ServerState(Path(folder)), CONFIG)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="kohort-") as folder:
        yield Path(folder)


def test_the_command_writes_it_and_says_how_to_start(
    short_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ServerState(short_folder)
    signing.save_private(state.operator_key, signing.new_key())
    new_config("demo", "https://kohort.example.org:9443", state.config)
    app(["front", "--state", str(short_folder)], standalone_mode=False)
    said = capsys.readouterr().out
    assert f"nginx -p {short_folder}/front -c {config_path(state)}" in said
    assert "set it to nginx" in said
    assert "kohort: written by" in config_path(state).read_text()
