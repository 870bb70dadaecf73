"""What `convert`, `edit` and `encode` say of the file that they wrote."""

from typing import TYPE_CHECKING, Any

from snapkit.units import format_len

if TYPE_CHECKING:
    from snapkit.restore.rewrite import Rewritten


def memory_text(done: "Rewritten") -> str:
    """Say how memory came into the new file."""
    length = format_len(done.written.memory_len)
    if done.shared:
        return f"{length} of memory shared with the original"
    return f"{length} of memory, {format_len(done.written.written)} of it copied"


def written_data(done: "Rewritten") -> dict[str, Any]:
    """Return what was written as ``--json`` gives it."""
    return {
        "path": done.written.path,
        "memory_path": done.written.memory_path,
        "release": done.release,
        "snapshot_id": done.written.snapshot_id.hex(),
        "parent_id": done.parent_id.hex(),
        "memory": done.written.memory_len,
        "memory_written": done.written.written,
        "memory_shared": done.shared,
    }
