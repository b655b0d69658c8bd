"""Finds out on which devices the children of this site will compute, before anything is spent.

In: the site's `compute`. Out: the devices in words, kept for `kohort-site status`.
Guarantees: a GPU that was asked for and is not there is refused with E-DEVICE; `auto` falls back to
the processor and says so. A process with a child's environment looks; this one imports no torch.
Not covered: a GPU that goes later: the child refuses then, and the round's reservation stays spent.
"""

from __future__ import annotations

import json
import subprocess
import sys

from client.daemon.jobs import environment
from client.state.folder import State
from client.state.machine import has_gpu_driver
from common.compute import Compute
from common.errors import (
    ConfigurationError,
    EnvironmentFault,
    KohortError,
    RefusedError,
    damage_named,
)
from common.storage.files import atomic_write, read_capped

FILE = "device.json"
CAP_BYTES = 1 << 16
LOOK_S = 120


def find_devices(compute: Compute) -> list[str]:
    """Return the devices that children will compute on, a line of words each.

    Raises ConfigurationError (E-DEVICE) for a GPU that is not there, EnvironmentFault where torch
    does not answer.
    """
    if compute.device == "cpu":
        return ["cpu"]
    # torch need not be asked, which takes seconds
    if compute.device == "auto" and not has_gpu_driver():
        return [_fallback()]
    found = _ask(compute)
    if found[0]["device"] == "cpu":
        return [_fallback()]
    lines: list[str] = []
    for device in found:
        size_gib = int(device["memory_bytes"]) / 2**30
        lines.append(f"{device['device']}: {device['name']}, {size_gib:.0f} GiB")
    return lines


def _fallback() -> str:
    """What `auto` took where there is no GPU."""
    return "cpu; compute.device is auto, and torch sees no GPU here"


def _ask(compute: Compute) -> list[dict[str, str]]:
    """What a process with a child's environment sees."""
    shared = Compute.model_validate(compute.model_dump(include=set(Compute.model_fields)))
    command = [sys.executable, "-P", "-m", "client.child.device"]
    silent = EnvironmentFault(
        "torch did not say which devices it sees",
        hint="`python -c 'import torch; print(torch.cuda.device_count())'` in this environment "
        "shows why; or set compute.device to cpu",
    )
    try:
        done = subprocess.run(
            command,
            input=shared.model_dump_json().encode() + b"\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(1),
            timeout=LOOK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise silent from error
    with damage_named(silent):
        answer = json.loads(done.stdout[:CAP_BYTES])
    if isinstance(answer, dict):
        raise _refusal(answer)
    with damage_named(silent):
        return [{name: str(value) for name, value in device.items()} for device in answer]


def _refusal(answer: dict[str, str]) -> KohortError:
    """The refusal of the process that looked."""
    return ConfigurationError(answer["message"], hint=answer["hint"], code=answer["code"])


def note_devices(state: State, lines: list[str]) -> None:
    """Keep what was found for `kohort-site status`."""
    atomic_write(state.root / FILE, json.dumps(lines).encode(), mode=0o600)


def noted_devices(state: State) -> list[str]:
    """Return what the last run found; empty before the first one."""
    path = state.root / FILE
    if not path.is_file():
        return []
    damage = RefusedError(
        f"{path}: not what kohort-site wrote", hint="delete it; kohort-site run writes it again"
    )
    with damage_named(damage):
        lines = json.loads(read_capped(path, CAP_BYTES))
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError("lines")
        return lines
