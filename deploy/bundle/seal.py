"""What makes a folder of wheels a bundle: its list of parts, checksums and signature.

Format: `sha256sum` and OpenSSH's SSHSIG, so that a machine without kohort can check it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import EnvironmentFault
from common.storage.files import atomic_write
from common.wire import signing
from deploy.bundle.wheels import ROOT, digest
from kohort.signatures import BUNDLE

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
SIGNERS = "allowed_signers"
SBOM = "sbom.cdx.json"
SIGNER = "kohort"


def write_sbom(lock: Path, target: Path) -> None:
    """Write the CycloneDX list of a bundle's parts, with the hash of each."""
    options = ["--pyproject", str(ROOT / "pyproject.toml"), "--of", "JSON", "--output-reproducible"]
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", *options]
    done = subprocess.run(
        [*command, "-o", str(target), str(lock)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EnvironmentFault(
            f"cyclonedx_py ended with {done.returncode}:\n{done.stderr[-2000:]}",
            hint="it comes with `make setup`",
        )


def write_sums(folder: Path) -> None:
    """Write the checksums of every file in a bundle."""
    lines = [
        f"{digest(path)}  {path.relative_to(folder)}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (SUMS, SIGNATURE, SIGNERS)
    ]
    atomic_write(folder / SUMS, "".join(lines).encode())


def sign_sums(folder: Path, key: Ed25519PrivateKey) -> str:
    """Sign the checksums; return the key's fingerprint, which goes by another channel."""
    sums = (folder / SUMS).read_bytes()
    atomic_write(folder / SIGNATURE, signing.sign(key, BUNDLE, sums))
    public = signing.public_text(key.public_key())
    atomic_write(folder / SIGNERS, f'{SIGNER} namespaces="{BUNDLE}" {public}\n'.encode())
    return signing.fingerprint(key.public_key())
