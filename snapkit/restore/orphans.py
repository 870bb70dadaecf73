"""What a writer that was killed leaves beside its temporary file: a separate memory file that no snapshot speaks of.

The memory file takes its name before the snapshot does, so a writer killed between the two leaves memory without a
snapshot. Its temporary file is complete by then and names that memory. Nobody else does: the snapshot's id is new, and a
temporary file that still has its temporary name never became a snapshot. So who removes the one removes the other.

The directory may be another user's as well, who could leave a temporary file that names somebody else's memory: both
must belong to one owner, and the memory's header must say that it belongs to this very snapshot.
"""

import os

from snapkit import host
from snapkit.errors import HostError, ImageError
from snapkit.restore.manifest import MANIFEST_LEN_MAX, decode_manifest
from snapkit.restore.preamble import PREAMBLE_LEN, check_memory_header, unpack_preamble


def remove_memory_of(fd: int, path: str) -> None:
    """Remove the separate memory file of the unfinished snapshot at *path*, open as *fd*, if it has one.

    What cannot be read or removed is left: it harms nobody.
    """
    try:
        preamble = unpack_preamble(host.pread(fd, PREAMBLE_LEN, 0), None)
        if not preamble.separate_memory or preamble.manifest_len > MANIFEST_LEN_MAX:
            return
        separate = decode_manifest(host.pread(fd, preamble.manifest_len, preamble.manifest_offset)).memory.separate
        if separate is None or os.path.isabs(separate.path) or "\0" in separate.path:
            return
        beside = os.path.join(os.path.dirname(path), separate.path)
        memory = host.open_fd(beside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            ours, found = host.fstat(fd), host.fstat(memory)
            if not host.is_regular(found.st_mode) or found.st_uid != ours.st_uid:
                return
            check_memory_header(host.pread(memory, PREAMBLE_LEN, 0), preamble, None)
            host.unlink(beside)
        finally:
            host.close(memory)
    except (HostError, ImageError):
        return
