"""`python -m deploy.bundle ROLE --out FOLDER`: writes the bundle of a role, which installs offline.

In: a role's lock, the tracked files, and a signing key if there is one.
Out: FOLDER with wheels, requirements.lock, sbom.cdx.json, deploy/, INSTALL.txt, SHA256SUMS and,
with --key, SHA256SUMS.sig and allowed_signers.
Guarantees: what is in the folder is what the lock names by hash, for this machine's platform and
Python; an existing folder is an error.
Not covered: other platforms; build it on a machine like those that install it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from common.errors import ConfigurationError, KohortError
from common.storage.files import atomic_write
from common.wire import signing
from deploy.bundle import seal, wheels

ROLES = ("site", "server")
FOR_BOTH = ("deploy/RUNBOOK.md", "deploy/systemd", "deploy/containers", "deploy/monitoring")
# what lies beside the wheels; plans and public checkpoints only where plans are written
BESIDE = {"site": FOR_BOTH, "server": (*FOR_BOTH, "deploy/studies")}
INSTALL = """\
kohort {version}, for the role: {role}
For {machine}, Python {python}. Nothing here needs a network.

1. Check that nothing was changed. The first command names the key that signed: compare its
   fingerprint with the one that your consortium publishes.

     ssh-keygen -Y verify -f allowed_signers -I kohort -n kohort-bundle-v1 \\
       -s SHA256SUMS.sig < SHA256SUMS
     sha256sum --check --strict --quiet SHA256SUMS

2. Install into an environment of its own:

     python3 -m venv /opt/kohort-{version}
     /opt/kohort-{version}/bin/pip install --no-index -f wheels --require-hashes \\
       --requirement requirements.lock
     ln -sfn /opt/kohort-{version} /opt/kohort

3. Go on with deploy/RUNBOOK.md.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one bundle; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.bundle", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--key", type=Path, help="an Ed25519 key that signs the checksums")
    parser.add_argument("--lock", type=Path, help="a lock in place of the role's own")
    parser.add_argument(
        "--instead",
        type=Path,
        action="append",
        default=[],
        help="a wheel in place of the locked one of its name, such as torch for processors alone",
    )
    given = parser.parse_args(arguments)
    lock = given.lock or wheels.ROOT / f"requirements-{given.role}.lock"
    try:
        write_bundle(given.role, given.out, lock, given.key, given.instead)
    except KohortError as error:
        sys.stderr.write(f"bundle: error: {error}\nbundle: hint: {error.hint}\n")
        return error.exit_code
    return 0


def write_bundle(
    role: str, out: Path, lock: Path, key: Path | None, instead: Sequence[Path]
) -> None:
    """Write the bundle of a role into a new folder."""
    if out.exists():
        raise ConfigurationError(f"{out}: exists", hint="give a new folder")
    signer = None if key is None else signing.load_private(key)
    folder = out / "wheels"
    folder.mkdir(parents=True)

    # (1) the wheels: own ones first, they take no network
    with tempfile.TemporaryDirectory(prefix="kohort-") as temporary:
        wheels.build_own(Path(temporary) / "source", folder)
        for wheel in instead:
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        wanted = Path(temporary) / "wanted.lock"
        wanted.write_text(wheels.without(wheels.read_lock(lock), instead))
        wheels.download(wanted, folder)

    # (2) what names them: the bundle's own lock, the list of parts
    wheels.write_lock(folder, out / "requirements.lock")
    seal.write_sbom(out / "requirements.lock", out / seal.SBOM)

    # (3) what a person reads and starts with
    wheels.copy_tracked(out, *BESIDE[role])
    atomic_write(out / "INSTALL.txt", install_text(role).encode())

    # (4) checksums, last but the signature
    seal.write_sums(out)
    sys.stdout.write(f"bundle of {len(list(folder.iterdir()))} wheels: {out}\n")
    if signer is None:
        sys.stdout.write("not signed: give --key FILE\n")
    else:
        sys.stdout.write(f"signed; publish the fingerprint {seal.sign_sums(out, signer)}\n")


def install_text(role: str) -> str:
    """Return what a person reads who installs the bundle of a role."""
    return INSTALL.format(
        role=role,
        version=version("kohort-app"),
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
    )


if __name__ == "__main__":
    sys.exit(main())
