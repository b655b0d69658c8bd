"""Every wrong option and file ends in words and a fix: never in a traceback or pydantic's text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server.cli.reports import Kohort
from tests.server.operator.test_sites import request

URL = "https://server.example:9443"
RAW = ("Traceback", "pydantic", "Field required", "Input should", "String should", "valid string")
INIT = ("init", "--state", "NEW", "--name")
ENROL = ("enrol", "--state", "STATE")
CARD = ("--source", "s", "--licence", "l", "--attribution", "a")
PRETRAIN = ("pretrain", "--out", "NEW", *CARD)

NAMES = {
    "a name with a space": "A B",
    "an empty name": "",
    "a name with a capital": "Demo",
    "a name of forty letters": "x" * 40,
}
URLS = {
    "a URL without TLS": "http://server.example:9443",
    "a URL without a port": "https://server.example",
    "a URL with a path": "https://server.example:9443/kohort",
    "a URL with a query": "https://server.example:9443?a=1",
    "a URL with a user": "https://me@server.example:9443",
    "a URL with a word for a port": "https://server.example:kohort",
    "a URL with port 0": "https://server.example:0",
    "a URL with port 70000": "https://server.example:70000",
    "a URL with half an address": "https://[::1",
    "a URL with a host too long for a certificate": f"https://{'a' * 65}:9443",
    "an empty URL": "",
}
PLANS = {
    "a missing file": ("missing.yaml", "no such file"),
    "a folder": ("folder", "a folder"),
    "an empty file": ("empty.yaml", "expected `key: value` lines"),
    "a list": ("list.yaml", "expected `key: value` lines"),
    "bytes": ("bytes.yaml", "not UTF-8 text"),
    "YAML that ends early": ("open.yaml", "open.yaml:3: not readable as YAML"),
    "a foreign YAML file": ("foreign.yaml", "foreign.yaml:1: title: required, but missing"),
}
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "init in a file": (("init", "--state", "file", "--name", "a", "--url", URL), "is a file"),
    "init below a file": (("init", "--state", "file/a", "--name", "a", "--url", URL), "is a file"),
    "init where a server is": (
        ("init", "--state", "STATE", "--name", "a", "--url", URL),
        "already",
    ),
    "init without a name": (("init", "--state", "NEW", "--url", URL), "--name"),
    "sign without a server": (("sign", "empty.yaml", "--state", "NEW", "--out", "NEW"), "set up"),
    "sign into a file": (("sign", "empty.yaml", "--state", "STATE", "--out", "file"), "is a file"),
    "enrol a missing file": ((*ENROL, "missing.json"), "no such file"),
    "enrol a folder": ((*ENROL, "folder"), "no such file"),
    "enrol an empty file": ((*ENROL, "empty.yaml"), "not JSON"),
    "enrol bytes": ((*ENROL, "bytes.yaml"), "not JSON"),
    "enrol another JSON file": ((*ENROL, "foreign.json"), "site: required, but missing"),
    "enrol a list": ((*ENROL, "list.json"), "expected `key: value` lines"),
    "enrol a site of a bad name": ((*ENROL, "name.json"), "site: expected lower-case"),
    "enrol with a bad node key": ((*ENROL, "node_key.json"), "node_key.json: not an OpenSSH"),
    "enrol with a bad signing key": ((*ENROL, "sign_key.json"), "sign_key.json: not an OpenSSH"),
    "enrol an unsigned request": ((*ENROL, "signature.json"), "not an SSH signature"),
    "enrol below a file": ((*ENROL, "good.json", "--out", "file/a.json"), "is a file"),
    "enrol without a server": (("enrol", "good.json", "--state", "NEW"), "set up"),
    "sites with another verb": (("sites", "remove", "a", "--state", "STATE"), "revoke NAME"),
    "sites revoke nobody": (("sites", "revoke", "--state", "STATE"), "revoke NAME"),
    "sites revoke a stranger": (("sites", "revoke", "a", "--state", "STATE"), "no site 'a'"),
    "sites release a stranger": (("sites", "release", "a", "--state", "STATE"), "no site 'a'"),
    "status without a server": (("status", "--state", "NEW"), "set up"),
    "status of a file": (("status", "--state", "file"), "set up"),
    "run a missing bundle": (("run", "missing", "--state", "STATE"), "expected a plan bundle"),
    "run a folder": (("run", "folder", "--state", "STATE"), "expected a plan bundle"),
    "run on port 99999": (("run", "folder", "--state", "STATE", "--port", "99999"), "--port"),
    "run on port x": (("run", "folder", "--state", "STATE", "--port", "x"), "--port"),
    "run with a broken server.yaml": (("run", "folder", "--state", "BROKEN"), "server.yaml:2: url"),
    "release a folder": (("release", "folder", "--state", "STATE", "--out", "NEW"), "plan bundle"),
    "pretrain on nothing": (PRETRAIN, "no public images"),
    "pretrain another model": ((*PRETRAIN, "images", "--model", "vae"), "got 'vae'"),
    "pretrain without a licence": (("pretrain", "images", "--out", "NEW"), "licence"),
    "pretrain in two channels": ((*PRETRAIN, "images", "--channels", "2"), "got 2"),
    "pretrain at size 0": ((*PRETRAIN, "images", "--size", "0"), "--size"),
    "pretrain of width 4": ((*PRETRAIN, "images", "--width", "4"), "--width"),
    "pretrain of a latent of 8": ((*PRETRAIN, "images", "--latent", "8"), "--latent"),
    "pretrain pairs of width 12": (
        (*PRETRAIN, "--phantoms", "2", "--model", "wgan", "--width", "12"),
        "multiple of 8",
    ),
    "pretrain a flow of a latent": (
        (*PRETRAIN, "images", "--model", "glow", "--latent", "64"),
        "leave --latent out",
    ),
    "pretrain of a width beside a study": (
        (*PRETRAIN, "images", "--study", "empty.yaml", "--width", "16"),
        "beside --study",
    ),
    "pretrain on a device that is none": (
        (*PRETRAIN, "images", "--device", "abacus"),
        "--device abacus: expected cpu",
    ),
    "pretrain for no time": ((*PRETRAIN, "images", "--minutes", "0"), "--minutes"),
    "pretrain into a file": (("pretrain", "images", "--out", "file", *CARD), "is a file"),
    "pretrain a flow on bytes": ((*PRETRAIN, "bytes.yaml", "--model", "glow"), "expected a folder"),
    "pretrain a flow on a damaged picture": (
        (*PRETRAIN, "damaged", "--model", "glow"),
        "a.png: not readable as a photograph",
    ),
    "pretrain a flow without a list of names": (
        (*PRETRAIN, "images", "--model", "glow", "--exclude", "missing"),
        "missing",
    ),
    "pretrain a flow with bytes for names": (
        (*PRETRAIN, "images", "--model", "glow", "--exclude", "bytes.yaml"),
        "not UTF-8 text",
    ),
    "pretrain a flow of a foreign plan": (
        (*PRETRAIN, "images", "--model", "glow", "--study", "foreign.yaml"),
        "title: required",
    ),
    "pretrain pairs of nothing": ((*PRETRAIN, "--model", "wgan"), "--phantoms N"),
    "pretrain pairs of a file": ((*PRETRAIN, "file", "--model", "wgan"), "expected a folder"),
    "a command that is none": (("train",), "No such command"),
    "an option that is none": (("status", "--states", "STATE"), "--states"),
}


@pytest.fixture
def folder(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of files that are not what a command expects."""
    files = {
        "file": b"hello",
        "empty.yaml": b"",
        "list.yaml": b"- a\n- b\n",
        "open.yaml": b"a: [1,\n b: 2\n",
        "foreign.yaml": b"version: 3\nservices:\n  web: {image: x}\n",
        "bytes.yaml": bytes(range(256)),
        "foreign.json": b'{"a": 1}',
        "list.json": b"[1]",
        "damaged/a.png": b"no picture",
        "folder/empty": b"",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    request(tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text())
    for key in ("node_key", "sign_key", "signature"):
        (tmp_path / f"{key}.json").write_text(json.dumps({**good, key: "x"}))
    (tmp_path / "name.json").write_text(json.dumps({**good, "site": "A B"}))
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    broken = tmp_path / "BROKEN"
    state.rename(tmp_path / "STATE")
    (broken / "keys").mkdir(parents=True)
    (broken / "server.yaml").write_text("name: demo\nurl: nowhere\n")
    key = (tmp_path / "STATE" / "keys" / "operator.key").read_bytes()
    (broken / "keys" / "operator.key").write_bytes(key)
    (broken / "keys" / "operator.key").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_words(result: tuple[int, str, str], words: str) -> None:
    """It failed, and said what is wrong and what to do."""
    code, output, errors = result
    assert code in range(1, 6), errors
    assert output == ""
    assert "kohort-server: error: " in errors
    assert "kohort-server: hint: " in errors
    assert words in errors
    for raw in RAW:
        assert raw not in errors


@pytest.mark.parametrize("sentence", NAMES)
def test_init_refuses(sentence: str, folder: Path, kohort: Kohort) -> None:
    check_words(kohort(*INIT, NAMES[sentence], "--url", URL), "--name: expected lower-case letters")
    assert not (folder / "NEW").exists()


@pytest.mark.parametrize("sentence", URLS)
def test_init_refuses_also(sentence: str, folder: Path, kohort: Kohort) -> None:
    check_words(kohort(*INIT, "demo", "--url", URLS[sentence]), "--url: expected ")
    assert not (folder / "NEW").exists()


@pytest.mark.parametrize("sentence", PLANS)
@pytest.mark.parametrize("command", ["plan", "pin", "sign"])
def test_no_plan_is(command: str, sentence: str, folder: Path, kohort: Kohort) -> None:
    file, words = PLANS[sentence]
    rest = ("--state", "STATE", "--out", "NEW") if command == "sign" else ()
    check_words(kohort(command, file, *rest), words)
    assert not (folder / "NEW").exists()


@pytest.mark.parametrize("sentence", COMMANDS)
def test_no_traceback_from(sentence: str, folder: Path, kohort: Kohort) -> None:
    command, words = COMMANDS[sentence]
    check_words(kohort(*command), words)
