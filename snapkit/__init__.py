"""Serialised virtual-machine state, and a KVM virtual-machine monitor built around it.

A tour. Boot a guest, stop it at a moment of its life, and look at what it was:

    from snapkit import BootConfig, Console, Loop, Machine, prepare, save_snapshot

    with Loop() as loop, Machine.boot(BootConfig(kernel="demo.elf", memory=2 << 20), loop, Console.open("stdio")) as machine:
        machine.resume()
        ...                               # loop.post, loop.call_at, console.watch_for say when
        machine.pause()
        save_snapshot(machine, "work.snap")

A snapshot is versioned data. Nothing of the monitor is needed to read it:

    from snapkit import Image
    with Image.open("work.snap") as image:
        states, _ = image.sections()      # {SectionId("vcpu-x86-64", "0"): VcpuState(...), ...}

And it comes back in another process, as often as wanted, the file mapped copy-on-write and never written:

    with prepare("work.snap") as prepared, Loop() as loop, Machine(loop, Console.open("stdio")) as machine:
        prepared.run(machine)             # rebuilds everything inert, wires, loads, activates, runs; or undoes it all
        machine.run()

Where things live, each with its own architecture page in the package docstring: `snapkit.state` (what a machine is:
pure data), `snapkit.restore` (how it becomes bytes and back), `snapkit.vmm` (how it behaves), `snapkit.cli`.
Names below are resolved when first used, so importing snapkit costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from snapkit.version import __version__

if TYPE_CHECKING:
    from snapkit.errors import (
        ConfigError,
        Finding,
        HostError,
        ImageError,
        IncompatibleHost,
        InternalError,
        SnapkitError,
        StateViolation,
    )
    from snapkit.restore.image import Image
    from snapkit.restore.restore import Prepared, prepare
    from snapkit.restore.save import save_snapshot
    from snapkit.state.schema import SectionId, State
    from snapkit.vmm.backends.console import Console
    from snapkit.vmm.loop import Loop
    from snapkit.vmm.machine import BootConfig, Machine
    from snapkit.vmm.run_state import Reason, Stop

_HOMES = {
    "BootConfig": "vmm.machine",
    "ConfigError": "errors",
    "Console": "vmm.backends.console",
    "Finding": "errors",
    "HostError": "errors",
    "Image": "restore.image",
    "ImageError": "errors",
    "IncompatibleHost": "errors",
    "InternalError": "errors",
    "Loop": "vmm.loop",
    "Machine": "vmm.machine",
    "Prepared": "restore.restore",
    "Reason": "vmm.run_state",
    "SectionId": "state.schema",
    "SnapkitError": "errors",
    "State": "state.schema",
    "StateViolation": "errors",
    "Stop": "vmm.run_state",
    "prepare": "restore.restore",
    "save_snapshot": "restore.save",
}

__all__ = [
    "BootConfig",
    "ConfigError",
    "Console",
    "Finding",
    "HostError",
    "Image",
    "ImageError",
    "IncompatibleHost",
    "InternalError",
    "Loop",
    "Machine",
    "Prepared",
    "Reason",
    "SectionId",
    "SnapkitError",
    "State",
    "StateViolation",
    "Stop",
    "__version__",
    "prepare",
    "save_snapshot",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'snapkit' has no attribute {name!r}")
    return getattr(import_module(f"snapkit.{home}"), name)
