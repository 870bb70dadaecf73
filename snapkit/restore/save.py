"""From a running machine to a file: prepare all, then read all, then the memory, last."""

import os
from collections.abc import Callable

from snapkit import host
from snapkit.errors import ConfigError, InternalError
from snapkit.restore.capture import Capture
from snapkit.restore.target import Source
from snapkit.restore.writer import WriteResult, memory_name, write_image
from snapkit.state.machine import MachineState
from snapkit.state.releases import current_release
from snapkit.state.schema import SectionId
from snapkit.version import __version__


def save_snapshot(
    source: Source,
    path: str,
    *,
    parent_id: bytes | None = None,
    key: bytes | None = None,
    memory_file: bool = False,
    memory_path: str | None = None,
    captured: Callable[[], None] | None = None,
) -> WriteResult:
    """Write *source*, which must be paused, to *path*; it stays paused and unharmed, whatever happens.

    With *memory_file* its memory goes into a file of its own beside *path*, with a new name that contains the
    snapshot's id; with *memory_path* it goes there. No such file may exist. *captured* is called as soon as the guest
    may go on, which is before the disk has it all; the save does not look at *source* any more.

    Raises HostError when the host fails, ConfigError when *path* cannot be written to.
    """
    if memory_path is not None and _same_name(path, memory_path):
        raise ConfigError(f"{memory_path} cannot be both the snapshot and its memory file")
    source.prepare_save()
    sections = source.save()
    machine = sections[SectionId("machine", "0")]
    if not isinstance(machine, MachineState):
        raise InternalError("the machine section is not of its current version")
    memory = source.memory_spans()
    snapshot_id = host.urandom(16)
    if memory_path is None and memory_file:
        memory_path = memory_name(path, snapshot_id)
    return write_image(
        path,
        sections=sections,
        memory=Capture(memory),
        architecture=machine.architecture,
        release=current_release().release,
        machine_id=machine.machine_id,
        snapshot_id=snapshot_id,
        parent_id=parent_id or bytes(16),
        facts={
            "vcpus": machine.vcpu_count,
            "memory": sum(length for _gpa, _hva, length in memory),
            "cpu": machine.cpu_profile,
        },
        producer=f"snapkit {__version__}",
        key=key,
        memory_path=memory_path,
        captured=captured,
    )


def _same_name(first: str, second: str) -> bool:
    directories = {os.path.realpath(os.path.dirname(path) or ".") for path in (first, second)}
    return len(directories) == 1 and os.path.basename(first) == os.path.basename(second)
