"""Where a passphrase comes from, and what an open or a protected key says about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common import passphrase
from common.errors import ConfigurationError
from common.wire import keys, signing
from tests.passphrases import descriptor_of, forget_passphrase


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_passphrase(monkeypatch)


def test_a_descriptor_gives_one_line(tmp_path: Path) -> None:
    assert passphrase.read_descriptor(descriptor_of(b"a long one\n")) == b"a long one"
    for text in (b"", b"\n", b"x" * 2000):
        with pytest.raises(ConfigurationError) as refused:
            passphrase.read_descriptor(descriptor_of(text))
        assert refused.value.code == "E-PASSPHRASE"
    with pytest.raises(ConfigurationError, match="Bad file descriptor") as closed:
        passphrase.read_descriptor(9999)
    assert "3< FILE" in closed.value.hint


def test_a_child_reads_it_from_memory_and_neither_environment_nor_command_line_holds_it() -> None:
    secret = b"correct horse"
    passphrase.offer(secret)
    script = "from common import passphrase; print(passphrase.current())"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script],
            pass_fds=passphrase.descriptors(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == repr(secret)
    assert all(secret.decode() not in value for value in os.environ.values())
    # nobody can change it
    with pytest.raises(PermissionError):
        os.pwrite(passphrase.descriptors()[0], b"x", 0)
    # who does not inherit it has none
    alone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert alone.stdout.strip() == "None"


def test_systemd_hands_over_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(passphrase.CREDENTIALS, str(tmp_path))
    assert passphrase.current() is None
    (tmp_path / passphrase.CREDENTIAL).write_bytes(b"from systemd\n")
    assert passphrase.current() == b"from systemd"


def test_a_protected_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    signer = signing.new_key()
    pair = ec.generate_private_key(ec.SECP256R1())
    for name, key in (("operator.key", signer), ("ca.key", pair)):
        (tmp_path / name).write_bytes(keys.to_pem(key, b"right"))
        assert (tmp_path / name).read_bytes().startswith(keys.PROTECTED)
    path = tmp_path / "ca.key"
    with pytest.raises(ConfigurationError, match="none was given") as missing:
        signing.load_private(tmp_path / "operator.key")
    passphrase.offer(b"wrong")
    with pytest.raises(ConfigurationError, match="does not open") as wrong:
        keys.from_pem(path.read_bytes(), path)
    assert {missing.value.code, wrong.value.code} == {"E-PASSPHRASE"}
    passphrase.offer(b"right")
    assert signing.load_private(tmp_path / "operator.key").private_bytes_raw() == (
        signer.private_bytes_raw()
    )
    opened = keys.from_pem(path.read_bytes(), path)
    assert isinstance(opened, ec.EllipticCurvePrivateKey)
    assert opened.private_numbers() == pair.private_numbers()
