"""Keys and SSHSIG signatures."""

import base64
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConfigurationError, EnvironmentFault, RefusedError
from common.wire import signing


def test_a_signature_holds_for_its_key_namespace_and_bytes_alone() -> None:
    key = signing.new_key()
    made = signing.sign(key, signing.PLAN, b"plan")
    signing.verify(key.public_key(), signing.PLAN, b"plan", made)
    for public, namespace, data in (
        (signing.new_key().public_key(), signing.PLAN, b"plan"),
        (key.public_key(), signing.RELEASE, b"plan"),
        (key.public_key(), signing.PLAN, b"plam"),
    ):
        with pytest.raises(RefusedError):
            signing.verify(public, namespace, data, made)


def test_every_byte_of_a_signature_counts() -> None:
    key = signing.new_key()
    made = signing.sign(key, signing.MESSAGE, b"x")
    for at in range(len(made)):
        with pytest.raises(RefusedError):
            signing.verify(
                key.public_key(),
                signing.MESSAGE,
                b"x",
                made[:at] + bytes([made[at] ^ 1]) + made[at + 1 :],
            )


def test_openssh_accepts_our_signatures_and_we_accept_its(tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    key = signing.new_key()
    signing.save_private(tmp_path / "key", key)
    (tmp_path / "data").write_bytes(b"some bytes")
    (tmp_path / "allowed").write_text(f"me {signing.public_text(key.public_key())}\n")
    (tmp_path / "ours.sig").write_bytes(signing.sign(key, "n1", b"some bytes"))
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        "allowed",
        "-I",
        "me",
        "-n",
        "n1",
        "-s",
        "ours.sig",
    ]
    assert (
        subprocess.run(
            verify, cwd=tmp_path, input=b"some bytes", capture_output=True, check=False
        ).returncode
        == 0
    )
    sign = ["ssh-keygen", "-Y", "sign", "-f", "key", "-n", "n1", "data"]
    assert subprocess.run(sign, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    signing.verify(key.public_key(), "n1", b"some bytes", (tmp_path / "data.sig").read_bytes())


def test_keys_are_for_their_owner_and_never_replaced(tmp_path: Path) -> None:
    key = signing.new_key()
    signing.save_private(tmp_path / "keys" / "sign.key", key)
    assert stat.S_IMODE((tmp_path / "keys" / "sign.key").stat().st_mode) == 0o600
    assert signing.public_text(
        signing.load_private(tmp_path / "keys" / "sign.key").public_key()
    ) == signing.public_text(key.public_key())
    with pytest.raises(EnvironmentFault, match="File exists"):
        signing.save_private(tmp_path / "keys" / "sign.key", signing.new_key())


def test_other_keys_and_garbage_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"hello")
    with pytest.raises(ConfigurationError, match="not an unencrypted OpenSSH private key"):
        signing.load_private(tmp_path / "key")
    other = ec.generate_private_key(ec.SECP256R1())
    line = other.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    with pytest.raises(ConfigurationError, match="Ed25519"):
        signing.parse_public(line.decode())
    with pytest.raises(ConfigurationError, match="ssh-ed25519"):
        signing.parse_public("nonsense")


def test_a_signature_that_is_not_ascii_is_refused() -> None:
    key = signing.new_key()
    good = signing.sign(key, signing.MESSAGE, b"data")
    place = len(good) // 2
    for wrong in (b"\xff", b"\xc3", b"!"):
        broken = good[:place] + wrong + good[place + 1 :]
        with pytest.raises(RefusedError, match="not an SSH signature"):
            signing.verify(key.public_key(), signing.MESSAGE, b"data", broken)


def _ssh_line(kind: bytes, *parts: bytes) -> str:
    """A public key line with these parts."""
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, *parts))
    return f"{kind.decode()} {base64.b64encode(blob).decode()}"


def test_a_key_line_that_the_library_does_not_know_is_refused() -> None:
    lines = [
        _ssh_line(b"ecdsa-sha2-nistp256", b"nistp256", b"\x02" + bytes(32)),
        _ssh_line(b"ssh-ed25519", b"short"),
        "ssh-ed25519 \udcff",
        "sk-ssh-ed25519@openssh.com AAAA",
        "",
    ]
    for line in lines:
        with pytest.raises(ConfigurationError, match="not an OpenSSH public key line"):
            signing.parse_public(line)
