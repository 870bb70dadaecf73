"""Run inside the aarch64 outer machine: system calls of a restore, a boot and a save fail in turn, and nothing is left behind.

inside_failure.py GUEST FOLDER [whole]

GUEST is the guest `lpi`, on two CPUs with a GIC, an ITS and devices; what is the host's of devices is the same on every
architecture (`tests/kvm/test_device_failure.py`). Registers are hundreds of calls of one name in a row:
without *whole* only the first, the last and one in the midst of each row fails. Prints one line of JSON: by what was
done, how many calls it has and by name how many of them were made to fail.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from unittest.mock import patch

from snapkit import host
from snapkit.errors import SnapkitError
from snapkit.restore.save import save_snapshot
from snapkit.units import MIB
from snapkit.vmm.machine import BootConfig, Machine
from snapkit.vmm.parts.fresh import Asked
from snapkit.vmm.run_state import RunState
from tests.kvm.harness import (
    EIO,
    Census,
    Rig,
    boot_once,
    booted,
    fails_at,
    restore_once,
    spoiled,
    spoiled_on_this_thread,
)
from tests.lab import lpis
from tests.lab.inside_lpi import HELD, LAST, MASK, TAKEN, UNMASK
from tests.lab.lpis import LpiGuest

SEED = 3
TIDYING = ("listdir", "unlink", "open_fd", "read", "pread", "data_ranges", "_seek")
"""Calls of a save that tidy up, or look for a shorter way: their failure harms nobody."""


def chosen(calls: Sequence[str], *, whole: bool) -> list[int]:
    """Return which of *calls* are to fail: all, or of each row of the same ones three."""
    if whole:
        return list(range(len(calls)))
    chance, found = random.Random(SEED), set[int]()
    for _name, row in groupby(range(len(calls)), key=lambda at: calls[at]):
        places = list(row)
        found |= {places[0], chance.choice(places), places[-1]}
    return sorted(found)


def told(calls: Sequence[str], failed: Sequence[int]) -> dict[str, object]:
    return {"calls": len(calls), "failed": Counter(calls[at].partition("(")[0] for at in failed)}


@contextmanager
def census(folder: Path) -> Iterator[Census]:
    from snapkit import host_memory

    class Patches:
        """What the census wants of pytest, which is not there."""

        setattr = staticmethod(setattr)

    with patch.multiple(host_memory, mmap=host_memory.mmap, munmap=host_memory.munmap):
        yield Census(Patches, str(folder))  # type: ignore[arg-type]


def machines_that_fail(make: Callable[[], Machine], folder: Path, *, whole: bool) -> dict[str, object]:
    """Make a machine once for each call that is to fail, and one more."""
    make().close()  # the host was asked what it can do: nothing later asks
    with census(folder) as held:
        never, calls = spoiled_on_this_thread(-1)
        with host.inject(never):
            machine = make()
        machine.close()
        failing = chosen(calls, whole=whole)
        for at in failing:
            assert fails_at(at, make, held), calls[at]
        assert not fails_at(len(calls), make, held), "it has as many calls each time"
    return told(calls, failing)


def saves_that_fail(rig: Rig, folder: Path, *, whole: bool) -> dict[str, object]:
    """Save once for each call that is to fail; the guest takes its LPIs after each, none lost and none made."""
    guest, path = LpiGuest(rig), folder / "machine.snap"
    folder.mkdir()

    def saved(at: int) -> tuple[str, list[str]]:
        hook, seen = spoiled(at)
        error = ""
        with host.inject(hook):
            try:
                save_snapshot(rig.machine, str(path))
            except SnapkitError as failed:
                error = str(failed)
        assert rig.machine.run_state is RunState.PAUSED
        return error, seen

    rig.machine.pause()
    _, calls = saved(-1)
    failing = chosen(calls, whole=whole)
    for taken, at in enumerate(failing, 1):
        rig.machine.resume()
        guest.order(*MASK)
        guest.raise_event(*LAST)
        rig.machine.pause()
        path.unlink(missing_ok=True)
        error, seen = saved(at)
        if error:
            assert EIO.search(error), error
            renamed = any(call.startswith("rename(") for call in seen[:at])
            assert os.listdir(folder) == ([path.name] if renamed else []), seen[at]
        else:
            assert seen[at].startswith(TIDYING), f"{seen[at]} failed and nobody noticed"
        rig.machine.resume()
        guest.order(*UNMASK)
        guest.wait_for(*LAST, count=taken)
        rig.machine.pause()
        rig.healthy()
        assert not {lpis.line(event, taken + 1) for event in LAST} & set(guest.lines()), "one was made"
    return told(calls, failing)


def main(kernel: str, place: str, *words: str) -> None:
    whole, folder = "whole" in words, Path(place)
    devices = (Asked("virtio-rng", "rng"), Asked("virtio-balloon", "balloon"))
    config = BootConfig(kernel=kernel, memory=4 * MIB, vcpus=lpis.VCPUS, devices=devices, transport="pci")
    file = str(folder / "lpi.snap")
    found = {"boot": machines_that_fail(lambda: boot_once(config), folder, whole=whole)}
    with booted(kernel, memory=config.memory, vcpus=config.vcpus, devices=devices, transport="pci") as rig:
        guest = LpiGuest(rig)
        rig.run()
        rig.tape.wait_for("ready\n")
        guest.raise_event(*TAKEN)
        guest.wait_for(*TAKEN, count=1)
        found["save"] = saves_that_fail(rig, folder / "saves", whole=whole)
        rig.run()
        guest.order(*MASK)
        guest.raise_event(*HELD)
        rig.save(file)
    found["restore"] = machines_that_fail(lambda: restore_once(file), folder, whole=whole)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
