"""Whether the runtime can serve, and what an operator has to do if it cannot."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lfx_local_runtimes.errors import DeviceUnavailable, RuntimeFault, SettingsFault
from lfx_local_runtimes.runtimes.devices import Device, DeviceProbe, select_device
from lfx_local_runtimes.runtimes.planning import Rules
from lfx_local_runtimes.settings import Settings

HealthState = Literal["healthy", "degraded", "unhealthy"]

DISK_LOW = 2**30
DISK_FULL = 64 * 2**20
"""Free bytes in the data folder. Below the second one registrations and downloads fail."""


@dataclass(frozen=True)
class Facts:
    """What the state of health follows from."""

    free_disk: int
    """Bytes, in the data folder."""
    home: Path
    lost: Collection[str] = ()
    """Devices that were there at the start and are not now."""
    needed: str | None = None
    """The device that FORCE_DEVICE names."""
    resting: Sequence[str] = ()
    """Models that died so often that they are not loaded for a while."""


def assess(facts: Facts) -> tuple[HealthState, list[str]]:
    """The state and its reasons. Unhealthy: no request, or no new model, can be served until somebody acts.

    A model that dies is no reason for that: a probe would restart all the others because of one broken file.
    """
    bad: list[str] = []
    poor: list[str] = []
    free = f"{facts.free_disk / 2**20:,.0f} MiB are free in {facts.home}. Free some disk space."
    if facts.free_disk < DISK_FULL:
        bad.append(f"The disk is full: {free}")
    elif facts.free_disk < DISK_LOW:
        poor.append(f"The disk is nearly full: {free}")
    for key in sorted(facts.lost):
        forced = facts.needed is not None and key.startswith(facts.needed)
        what = "FORCE_DEVICE names it, so no model can be loaded" if forced else "models run on other devices"
        (bad if forced else poor).append(f"The device {key} is lost: {what}. Look at its driver, then restart.")
    poor += [f"{name} died repeatedly and is not loaded for a while. Its last_exit says how." for name in facts.resting]
    return ("unhealthy" if bad else "degraded" if poor else "healthy"), [*bad, *poor]


def free_disk(folder: Path) -> int:
    """Free bytes where a folder is, or where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_machine(settings: Settings, probe: DeviceProbe) -> tuple[Device, Rules]:
    """The device of models that name none, and the rules for engines.

    Raises:
        SettingsFault: FORCE_DEVICE names a device that is not there, or the rules file has an error.
    """
    try:
        device = select_device(force=settings.force_device, probe=probe)
    except DeviceUnavailable as error:
        raise SettingsFault(error.message, hint=f"{error.hint} Correct FORCE_DEVICE, or unset it.") from error
    return device, Rules.load(settings.rules_file)


def describe(device: Device, probe: DeviceProbe) -> str:
    """A device for a log: its key, name and memory."""
    try:
        total = f", {probe.memory(device).total / 2**30:.1f} GiB"
    except RuntimeFault:
        total = ""
    return f"{device.key} ({device.name or 'no name'}{total})"
