"""A snapshot of a machine that worked, and the same taken apart, so that a test can change one part and sign it again.

Where there is no /dev/kvm a machine is made up: its parts as a boot lays them out, its CPUs and chips invented.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from snapkit.state import codec
from snapkit.state.releases import current_release
from snapkit.state.schema import SectionId, State, versions_of
from snapkit.vmm.parts.fresh import fresh_sections
from tests.grounds import X86_64
from tests.restore.chips import chips
from tests.restore.forge import ENTRY, PREAMBLE, Forge, Section, snapshot_parts
from tests.restore.machines import MIB, ram, save, sections

# Where KVM is required its absence must fail a test, not skip it or put something else in its place.
REQUIRED = "kvm" in os.environ.get("SNAPKIT_REQUIRE", "").split(",")
HAS_KVM = REQUIRED or os.access("/dev/kvm", os.R_OK | os.W_OK)
VCPUS = 2


def write_real(path: Path) -> Path:
    """Snapshot the demo guest, working on two CPUs in 2 MiB, to *path*."""
    if not HAS_KVM:
        states = made_up()
        page = {4096: b"made up" * 500}
        facts = {"cpu": "host", "vcpus": VCPUS}
        save(path, ram(2 * MIB, page), sections=states, facts=facts, release=current_release().release)
        return path
    from tests.kvm.harness import booted  # it needs Linux

    with booted(vcpus=VCPUS) as rig:
        rig.run()
        rig.tape.wait_for("tick 30")
        rig.save(str(path))
    return path


def made_up() -> dict[SectionId, State]:
    """Return the sections of a machine without devices, without a machine."""
    states = sections(2 * MIB) | fresh_sections([], None, X86_64, bytes(16)).sections | chips(VCPUS)
    machine: Any = states[SectionId("machine", "0")]
    machine.vcpu_count = VCPUS
    return states


def taken_apart(path: Path) -> Forge:
    """Return what writes the file at *path* again, byte for byte, unless it is changed."""
    content = path.read_bytes()
    parts = snapshot_parts(content)
    manifest = json.loads(content[4096 : 4096 + parts["manifest_len"]])
    stored = []
    for entry in manifest["sections"]:
        payload = content[entry["offset"] : entry["offset"] + entry["stored_length"]]
        words = {name: entry[name] for name in ("kind", "instance", "version", "required", "codec", "length")}
        stored.append(Section(payload=payload, **words))
    table = content[parts["chunks_offset"] : parts["chunks_offset"] + parts["chunks_len"]]
    chunks = [
        content[offset : offset + length] if number else None for offset, length, number, _ in ENTRY.iter_unpack(table)
    ]

    def describe(made: dict[str, Any]) -> None:
        made["machine"] = manifest["machine"]
        made["memory"] = manifest["memory"]

    kept = ("architecture", "release", "machine_id", "created_ns", "parent_id", "snapshot_id", "producer", "kernel")
    return Forge(sections=stored, chunks=chunks, preamble={name: parts[name] for name in kept}, manifest=describe)


def states_of(forge: Forge) -> dict[SectionId, Any]:
    """Decode the sections of *forge*."""
    return {
        SectionId(one.kind, one.instance): codec.decode(versions_of(one.kind)[one.version], one.payload, where="")
        for one in forge.sections
    }


def with_states(forge: Forge, states: Mapping[SectionId, State], **changes: Any) -> Forge:
    """Return *forge* with these sections."""
    stored = [Section(name.kind, name.instance, codec.encode(state)) for name, state in states.items()]
    return replace(forge, sections=stored, **changes)


def re_labelled(content: bytes, forge: Forge, **fields: Any) -> bytes:
    """Return *content* with fields of its preamble changed and the preamble's digest made right."""
    head = bytearray(content[:4064])
    for name, value in fields.items():
        struct.pack_into("<" + PREAMBLE[name][1], head, PREAMBLE[name][0], value)
    return bytes(head) + forge.digest(bytes(head)) + content[4096:]
