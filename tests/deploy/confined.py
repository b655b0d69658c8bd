"""Starts a unit's command as systemd would confine it: `python confined.py UNIT WORD...`.

For machines without systemd as process 1. Applied: the file system read-only but the state folder
and temporary files, no new privileges, no capabilities, the unit's list of system calls and of
address families, no writable code where the unit says so, limits and umask.
Not applied: PrivateUsers, PrivateDevices, the accounts, IPAddressDeny.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from tests.deploy.units import Unit

SET_NO_NEW_PRIVS, CAPBSET_DROP, SET_MDWE = 38, 24, 65
REFUSE_EXEC_GAIN = 1
CAPABILITIES = 41
ALLOW, REFUSE_EPERM = 0x7FFF0000, 0x00050000 | 1
EQUAL = 4  # SCMP_CMP_EQ
READ_ONLY = ("/", "/opt", "/srv", "/run")
NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class Argument(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def calls_of(words: str) -> set[str]:
    """Return the system calls of a list such as `@system-service mount`."""
    found: set[str] = set()
    for word in words.split():
        if not word.startswith("@"):
            found.add(word)
            continue
        listed = subprocess.run(
            ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
        ).stdout
        lines = [line.strip() for line in listed.splitlines()[1:]]
        found |= calls_of(" ".join(line for line in lines if line and not line.startswith("#")))
    return found


def allowed_calls(unit: Unit) -> set[str]:
    """Return the system calls that a unit allows."""
    allowed = calls_of("@default")
    for line in unit.keys["SystemCallFilter"]:
        if line.startswith("~"):
            allowed -= calls_of(line.removeprefix("~"))
        else:
            allowed |= calls_of(line)
    return allowed


def libc() -> ctypes.CDLL:
    """Return the C library."""
    return ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *values: int) -> None:
    """Call prctl; raise OSError where the kernel refuses."""
    if libc().prctl(option, *values, *([0] * (4 - len(values)))):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def filter_calls(allowed: set[str], families: list[str]) -> None:
    """Load a filter that refuses every other system call, and sockets of other families."""
    seccomp = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(REFUSE_EPERM))
    for name in sorted(allowed - {"socket"}):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            assert seccomp.seccomp_rule_add(context, ALLOW, number, 0) == 0, name
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        value = int(getattr(socket, family))
        same = Argument(0, EQUAL, value, 0)
        rule = seccomp.seccomp_rule_add_array(context, ALLOW, number, 1, ctypes.byref(same))
        assert rule == 0, family
    assert seccomp.seccomp_load(context) == 0, "the filter was not loaded"


def close_files(unit: Unit) -> None:
    """Make every file system read-only but the folders of the unit, and of temporary files."""
    for name in unit.keys.get("RuntimeDirectory", []):
        own = Path("/run") / name
        own.mkdir(mode=int(unit.one("RuntimeDirectoryMode"), 8), exist_ok=True)
        subprocess.run(["mount", "--bind", str(own), str(own)], check=True)
    for place in READ_ONLY:
        subprocess.run(["mount", "-o", "bind,remount,ro", place], check=True)
    os.environ["TMPDIR"] = "/var/tmp"


def drop_rights() -> None:
    """Give up every capability, for good."""
    for number in range(CAPABILITIES):
        prctl(CAPBSET_DROP, number)
    prctl(SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc().capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def main() -> None:
    """Apply a unit's switches to this process, then become its command."""
    unit, command = Unit.read(sys.argv[1]), sys.argv[2:]
    allowed = allowed_calls(unit)
    os.umask(int(unit.one("UMask"), 8))
    for limit, key in (
        (resource.RLIMIT_CORE, "LimitCORE"),
        (resource.RLIMIT_NOFILE, "LimitNOFILE"),
    ):
        if key not in unit.keys:
            continue
        value = min(int(unit.one(key)), resource.getrlimit(limit)[1])
        resource.setrlimit(limit, (value, value))
    close_files(unit)
    if unit.keys.get("PrivateNetwork") == ["yes"] and libc().unshare(NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    drop_rights()
    if unit.keys.get("MemoryDenyWriteExecute") == ["yes"]:
        prctl(SET_MDWE, REFUSE_EXEC_GAIN)
    filter_calls(allowed, unit.one("RestrictAddressFamilies").split())
    os.environ.pop("PYTHONPATH", None)  # it was for this program alone
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
