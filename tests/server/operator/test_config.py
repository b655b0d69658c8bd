"""server.yaml: generated, read back, refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import parse_yaml
from common.errors import ConfigurationError
from server.operator.config import Limits, ServerConfig, load_config, new_config, sample


def test_the_generated_file_reads_back_as_the_same_value(tmp_path: Path) -> None:
    config = new_config("demo", "https://server.example:9443", tmp_path / "server.yaml")
    assert config == load_config(tmp_path / "server.yaml")
    assert (config.host, config.listen.port, config.listen.host) == (
        "server.example",
        9443,
        "::",
    )


def test_a_server_for_this_machine_alone_listens_on_loopback_alone(tmp_path: Path) -> None:
    config = new_config("demo", "https://127.0.0.1:9443", tmp_path / "server.yaml")
    assert load_config(tmp_path / "server.yaml").listen.host == config.listen.host == "127.0.0.1"


def test_the_sample_names_every_key_with_its_meaning() -> None:
    text = sample(ServerConfig(name="demo", url="https://localhost:1"))
    for name, field in Limits.model_fields.items():
        assert f"  {name}: " in text and field.description and field.description in text


BAD = {
    "http": ("http://server:80", "expected https"),
    "no port": ("https://server", "expected a port"),
    "a path": ("https://server:1/v1", "without a path"),
    "a login": ("https://a:b@server:1", "without a path"),
    "a space": ("'https://eye server:1'", "that hospitals call, got 'eye server'"),
    "a hyphen first": ("https://-eye:1", "that hospitals call"),
    "a dot last": ("https://eye.example.:1", "that hospitals call"),
    "a wildcard": ("'https://*.example:1'", "that hospitals call"),
    "every interface": ("https://0.0.0.0:1", "that hospitals call"),
    "every interface, IPv6": ("'https://[::]:1'", "that hospitals call"),
    "a number cut short": ("https://192.0.2:1", "that hospitals call"),
    "an address of one link": ("'https://[fe80::1%eth0]:1'", "that hospitals call"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_url_is_refused_with(sentence: str) -> None:
    url, reason = BAD[sentence]
    with pytest.raises(ConfigurationError, match=reason):
        parse_yaml(f"name: demo\nurl: {url}\n", ServerConfig, Path("server.yaml"))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Eye-1.Example:1", "eye-1.example"),
        ("https://eye:1", "eye"),
        ("https://192.0.2.1:1", "192.0.2.1"),
        ("https://[2001:DB8:0::1]:1", "2001:db8::1"),
    ],
)
def test_a_host_has_the_spelling_of_certificates(url: str, host: str) -> None:
    assert ServerConfig(name="demo", url=url).host == host


def test_an_unknown_key_is_named_with_its_line() -> None:
    text = "name: demo\nlimits:\n  reask: 3\nurl: https://a:1\n"
    with pytest.raises(
        ConfigurationError,
        match=r"server.yaml:3: limits.reask: unknown key; did you mean 'reask_s'",
    ):
        parse_yaml(text, ServerConfig, Path("server.yaml"))
