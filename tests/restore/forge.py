"""A second, independent writer of snapshot files, made of `struct` and `json` alone, that can also write wrong ones.

It restates the container's layout with its own constants, so that a slip in snapkit's tables cannot hide, and makes every
digest right for whatever it was told to write: what is refused is then refused for what it says, not for its digest.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

CHUNK = 2 << 20
ALIGN = 64 << 10
ENTRY = struct.Struct("<QIB3x32s")
PREAMBLE = {
    "magic": (0, "8s"),
    "version": (8, "I"),
    "length": (12, "I"),
    "architecture": (16, "H"),
    "page_shift": (18, "B"),
    "algorithm": (19, "B"),
    "flags": (20, "I"),
    "release": (24, "16s"),
    "machine_id": (40, "16s"),
    "zero": (56, "8s"),
    "created_ns": (64, "Q"),
    "parent_id": (72, "16s"),
    "snapshot_id": (88, "16s"),
    "producer": (104, "32s"),
    "kernel": (136, "64s"),
    "manifest_offset": (200, "Q"),
    "manifest_len": (208, "Q"),
    "manifest_digest": (216, "32s"),
    "chunks_offset": (248, "Q"),
    "chunks_len": (256, "Q"),
    "chunks_digest": (264, "32s"),
    "memory_offset": (296, "Q"),
    "memory_len": (304, "Q"),
    "padding": (312, "3752s"),
}


@dataclass
class Section:
    """One section as it is stored; *says* overrides what its manifest entry says."""

    kind: str
    instance: str
    payload: bytes
    version: int = 1
    required: bool = True
    codec: str = "raw"
    length: int | None = None
    says: dict[str, Any] = field(default_factory=dict)


@dataclass
class Forge:
    """What to write: right by default, wrong where told."""

    sections: list[Section] = field(default_factory=list)
    chunks: list[bytes | None] = field(default_factory=lambda: [b"\x55" * CHUNK, None])
    preamble: dict[str, Any] = field(default_factory=dict)
    manifest: Callable[[dict[str, Any]], None] = lambda _manifest: None
    manifest_text: Callable[[bytes], bytes] = lambda text: text
    table: Callable[[bytearray], None] = lambda _table: None
    padding: int = 0
    trailer: bytes = b""
    key: bytes | None = None

    def digest(self, payload: bytes) -> bytes:
        return blake3(payload, key=self.key).digest() if self.key else blake3(payload).digest()

    def write(self, path: Path) -> Path:
        text = b""
        for _attempt in range(6):
            at, entries = 4096 + len(text), []
            for section in self.sections:
                entries.append(
                    {
                        "kind": section.kind,
                        "instance": section.instance,
                        "version": section.version,
                        "required": section.required,
                        "codec": section.codec,
                        "offset": at,
                        "stored_length": len(section.payload),
                        "length": len(section.payload) if section.length is None else section.length,
                        "digest": self.digest(section.payload).hex(),
                        **section.says,
                    }
                )
                at += len(section.payload)
            content: dict[str, Any] = {
                "machine": {"vcpus": 1},
                "memory": {
                    "chunk_length": CHUNK,
                    "regions": [{"gpa": 0, "length": CHUNK * len(self.chunks)}],
                    "separate": None,
                },
                "sections": entries,
            }
            self.manifest(content)
            text = self.manifest_text(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
        table, stored, chunks_at = bytearray(), [], at
        memory_at = -(-(chunks_at + 48 * len(self.chunks)) // ALIGN) * ALIGN
        offset = memory_at
        for chunk in self.chunks:
            table += bytes(48) if chunk is None else ENTRY.pack(offset, len(chunk), 1, self.digest(chunk))
            if chunk is not None:
                stored.append(chunk)
                offset += len(chunk)
        self.table(table)
        values: dict[str, Any] = {
            "magic": b"SNAPKIT\0",
            "version": 1,
            "length": 4096,
            "architecture": 62,
            "page_shift": 12,
            "algorithm": 2 if self.key else 1,
            "release": b"0.1.0",
            "machine_id": b"M" * 16,
            "snapshot_id": b"S" * 16,
            "producer": b"forge",
            "kernel": b"6.1.0",
            "manifest_offset": 4096,
            "manifest_len": len(text),
            "manifest_digest": self.digest(text),
            "chunks_offset": chunks_at,
            "chunks_len": len(table),
            "chunks_digest": self.digest(bytes(table)),
            "memory_offset": memory_at,
            "memory_len": sum(map(len, stored)),
        }
        values.update(self.preamble)
        preamble = bytearray(4064)
        for name, value in values.items():
            struct.pack_into("<" + PREAMBLE[name][1], preamble, PREAMBLE[name][0], value)
        preamble += self.digest(bytes(preamble))
        head = b"".join([bytes(preamble), text, *(section.payload for section in self.sections), bytes(table)])
        gap = bytearray(memory_at - len(head))
        if self.padding:
            gap[self.padding] = 1
        path.write_bytes(b"".join([head, bytes(gap), *stored, self.trailer]))
        return path


def snapshot_parts(content: bytes) -> dict[str, Any]:
    """Read the preamble of a file's *content* with nothing but its layout."""
    return {name: struct.unpack_from("<" + code, content, at)[0] for name, (at, code) in PREAMBLE.items()}
