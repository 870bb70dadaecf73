"""Good machines to make mutants of: a stored file taken apart, with what a restore of it needs of the host."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tests.restore.forge import Forge
from tests.restore.real import taken_apart

Ends = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Specimen:
    """A good machine as the parts of its file. *ends* makes fresh host ends in a folder, as overrides by device id."""

    name: str
    forge: Forge
    ends: Callable[[Path], Ends]

    @property
    def architecture(self) -> int:
        """ELF machine number."""
        found: int = self.forge.preamble["architecture"]
        return found

    @property
    def base(self) -> int:
        """Where its RAM begins."""
        found: int = self.data()["memory-layout/0"]["regions"][0]["gpa"]
        return found

    @property
    def transport(self) -> str:
        kinds = {section.kind for section in self.forge.sections}
        return "pci" if "virtio-pci" in kinds else "mmio" if "virtio-mmio" in kinds else "none"

    def data(self) -> dict[str, Any]:
        """Decode every section, by ``kind/instance``, anew each time: who asks changes it."""
        return {f"{one.kind}/{one.instance}": msgspec.msgpack.decode(one.payload) for one in self.forge.sections}


def no_ends(_folder: Path) -> Ends:
    """A machine that has nothing of the host."""
    return {}


def specimen(name: str, path: Path, ends: Callable[[Path], Ends] = no_ends) -> Specimen:
    """Take the good file at *path* apart."""
    return Specimen(name, taken_apart(path), ends)


def with_data(one: Specimen, name: str, changed: Mapping[str, dict[str, Any]]) -> Specimen:
    """Return *one* as another good machine, with other data in some of its sections, by ``kind/instance``."""
    encoded = {path: msgspec.msgpack.encode(data) for path, data in changed.items()}
    sections = [
        replace(part, payload=encoded.get(f"{part.kind}/{part.instance}", part.payload), length=None)
        for part in one.forge.sections
    ]
    return Specimen(name, replace(one.forge, sections=sections), one.ends)
