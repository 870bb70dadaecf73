"""Write a snapshot anew with other sections, its memory as it is: what `convert` and `edit` come to.

The new file is another snapshot: it has an id of its own, and the one that it was made of as its parent. An id names one
content for ever, so who stores files by their id never has two for one, and where a file came from can be followed. The
machine stays the same machine, saved when and where it was: machine id, time and host kernel go along; the producer is
the program that wrote this very file. Memory that has a file of its own gets a new one, because its header carries the
snapshot's id.

The original is opened read-only, and never replaced by what is made of it.
"""

import errno
from collections.abc import Mapping

import msgspec

from snapkit import host
from snapkit.errors import ConfigError, Finding, HostError, InternalError
from snapkit.restore.atomic import check_target
from snapkit.restore.carry import Carried
from snapkit.restore.check import check, check_labels
from snapkit.restore.check.identity import facts_of
from snapkit.restore.image import Image
from snapkit.restore.preamble import ID_LEN
from snapkit.restore.source import naming
from snapkit.restore.writer import Progress, WriteResult, memory_name, write_image
from snapkit.state.converters import Sections, upgrade_sections
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.releases import release_named
from snapkit.state.schema import SectionId, State
from snapkit.version import __version__


class Rewritten(msgspec.Struct, frozen=True, kw_only=True):
    """What was written; *shared* says whether the new file has its memory in common with the old one."""

    written: WriteResult
    parent_id: bytes
    release: str
    shared: bool


def upgraded(image: Image, states: Sections, release: str) -> Sections:
    """Return *states*, as *release* writes them, as the current release does. Raises ImageError naming the file."""
    with naming(image.path):
        return upgrade_sections(states, release)


def unsound(image: Image, current: Sections) -> list[Finding]:
    """Return everything that keeps *current* sections from being a machine over the memory of *image*."""
    return check(current, image.memory)


def mislabelled(image: Image, current: Sections) -> list[Finding]:
    """Return where the labels of *image* say something else than *current* sections."""
    return check_labels(current, image.preamble, image.manifest)


def check_place(image: Image, path: str) -> None:
    """Refuse, with ConfigError, to write anything made of *image* to *path*: it would replace the original, or cannot be."""
    check_target(path)
    try:
        there = host.stat_path(path)
    except HostError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP}:
            raise
        return
    for fd, what in ((image.fd, "the snapshot"), (image.memory.fd, "the memory of the snapshot")):
        status = host.fstat(fd)
        if (status.st_dev, status.st_ino) == (there.st_dev, there.st_ino):
            raise ConfigError(f"{path} is {what} that it would be made of, and that is never modified")


def rewrite(
    image: Image,
    path: str,
    sections: Mapping[SectionId, State],
    *,
    release: str,
    current: Mapping[SectionId, State],
    key: bytes | None = None,
    progress: Progress | None = None,
) -> Rewritten:
    """Write *sections*, as *release* writes them, with the memory of *image* to *path*.

    *current* is the same machine as the current release says it: the new file's labels come from it. With *key* all
    digests are keyed; where that is the key of *image*, no memory is read for it.

    Raises ConfigError when *path* cannot be written or is the original, HostError when the host fails; then *path* is as
    it was and nothing is left behind.
    """
    check_place(image, path)
    machine, layout = current[SectionId("machine", "0")], current[SectionId("memory-layout", "0")]
    if not isinstance(machine, MachineState) or not isinstance(layout, MemoryLayoutState):
        raise InternalError("the sections of a machine are not of their current versions")
    snapshot_id = host.urandom(ID_LEN)
    facts = facts_of(machine, layout)
    memory = Carried(image.memory)
    written = write_image(
        path,
        sections=sections,
        memory=memory,
        architecture=machine.architecture,
        release=release_named(release).written_as,
        machine_id=machine.machine_id,
        snapshot_id=snapshot_id,
        parent_id=image.preamble.snapshot_id,
        facts={name: facts.get(name, value) for name, value in image.manifest.machine.items()},
        created_ns=image.preamble.created_ns,
        producer=f"snapkit {__version__}",
        host_kernel=image.preamble.host_kernel,
        compress=any(entry.codec != "raw" for entry in image.entries),
        key=key,
        memory_path=memory_name(path, snapshot_id) if image.preamble.separate_memory else None,
        progress=progress,
    )
    return Rewritten(written=written, parent_id=image.preamble.snapshot_id, release=release, shared=memory.shared)
