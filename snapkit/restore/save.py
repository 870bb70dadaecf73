"""From a running machine to a file: prepare all, then read all, then the memory, last."""

from snapkit import host
from snapkit.errors import InternalError
from snapkit.restore.target import Source
from snapkit.restore.writer import WriteResult, write_image
from snapkit.state.machine import MachineState
from snapkit.state.releases import current_release
from snapkit.state.schema import SectionId
from snapkit.version import __version__


def save_snapshot(
    source: Source, path: str, *, parent_id: bytes | None = None, key: bytes | None = None
) -> WriteResult:
    """Write *source*, which must be paused, to *path*; it stays paused and unharmed, whatever happens.

    Raises HostError when the host fails, ConfigError when *path* cannot be written to.
    """
    source.prepare_save()
    sections = source.save()
    machine = sections[SectionId("machine", "0")]
    if not isinstance(machine, MachineState):
        raise InternalError("the machine section is not of its current version")
    memory = source.memory_spans()
    return write_image(
        path,
        sections=sections,
        memory=memory,
        architecture=machine.architecture,
        release=current_release().release,
        machine_id=machine.machine_id,
        snapshot_id=host.urandom(16),
        parent_id=parent_id or bytes(16),
        facts={
            "vcpus": machine.vcpu_count,
            "memory": sum(length for _gpa, _hva, length in memory),
            "cpu": machine.cpu_profile,
        },
        producer=f"snapkit {__version__}",
        key=key,
    )
