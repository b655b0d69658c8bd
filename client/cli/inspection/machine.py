"""Looks at the program, the disk, the lock and the devices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import packages_distributions

from client.cli.inspection.scene import Scene, list_faults, name_fault
from client.daemon.device import find_devices, noted_devices
from client.fleet import health
from client.state.config import load_site
from common.alerts import Alert
from common.errors import EnvironmentFault
from common.process import usable_cores
from common.storage.lock import FolderLock

DISTRIBUTION = "kohort-app"  # the name in pyproject.toml
DISK_BYTES = 2 << 30


def look_at_packages(scene: Scene) -> Iterator[Alert | str]:
    """No other distribution has a package of our general names."""
    owners = packages_distributions()
    for name in ("client", "common", "server"):
        others = sorted(set(owners.get(name, [])) - {DISTRIBUTION})
        if others:
            yield name_fault(
                "E-SHADOWED",
                f"the package name {name} also belongs to {', '.join(others)}",
                "give kohort an environment of its own",
            )


def look_at_disk(scene: Scene) -> Iterator[Alert | str]:
    """The disk has space."""
    load_site(scene.root)
    free = shutil.disk_usage(scene.root).free
    if free < DISK_BYTES:
        yield name_fault(
            "E-DISK-FULL",
            f"{scene.root}: {free >> 20} MiB free, at least {DISK_BYTES >> 20} needed",
            "free some space on the disk of the state folder",
        )


def look_at_lock(scene: Scene) -> Iterator[Alert | str]:
    """The daemon runs and is healthy, or nobody works on the folder."""
    daemon = scene.daemon
    if daemon.alive:
        yield f"kohort-site run is {daemon.words()}"
        return
    if daemon.state == "hung":
        state = health.UNRESPONSIVE
        yield name_fault(state.code, f"kohort-site run is {daemon.words()}", state.fix)
        return
    try:
        FolderLock(scene.root / "lock", "kohort-site").release()
    except EnvironmentFault as error:
        yield from list_faults(error)


def look_at_device(scene: Scene) -> Iterator[Alert | str]:
    """The devices of site.yaml are there; a daemon that runs has looked already."""
    compute = scene.config.compute
    yield from (scene.daemon.alive and noted_devices(scene.place)) or find_devices(compute)
    cores = usable_cores()
    if compute.processes > cores:
        yield f"compute.processes is {compute.processes}: no faster than {cores}, the cores"
