"""The disk as a part, with its image files."""

from collections.abc import Mapping
from typing import Any

import msgspec

from snapkit.state.schema import SectionId, State
from snapkit.state.virtio_block import VirtioBlockState
from snapkit.vmm.backends.disk import Disk, DiskOptions, DiskOverrides, open_disk, reopen_disk
from snapkit.vmm.parts.device import DevicePart
from snapkit.vmm.parts.limits import limits
from snapkit.vmm.parts.part import Site, expect
from snapkit.vmm.virtio.rate_limiter import LimitConfig
from snapkit.vmm.virtio.virtio_block import BlockArgs, VirtioBlock, fresh_state


def open_host(section: SectionId, values: Mapping[str, Any]) -> Disk:
    """Open the image that the operator names."""
    return open_disk(
        DiskOptions(
            id=section.instance,
            path=values["path"],
            readonly=bool(values.get("readonly")),
            overlay=values.get("overlay"),
            serial=values.get("serial"),
        )
    )


def fresh(_section: SectionId, values: Mapping[str, Any], end: Disk) -> VirtioBlockState:
    """Return the State of a new disk."""
    return fresh_state(end, serial=end.serial, limits=limits(values))


def reopen(section: SectionId, state: State, overrides: Mapping[str, Any]) -> Disk:
    """Open the files that the disk had, or those that the operator names now."""
    saved = expect(state, VirtioBlockState)
    return reopen_disk(saved.host, DiskOverrides(**overrides), ident=section.instance, capacity=saved.capacity)


class DriveUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PATCH /drives/ID``."""

    drive_id: str | None = None
    path_on_host: str | None = None
    rate_limiter: LimitConfig | None = None


class BlockPart(DevicePart):
    """The disk, as the control socket shows and changes it."""

    def __init__(self, section: SectionId, device: VirtioBlock, site: Site) -> None:
        super().__init__(device, site)
        self._section, self._disk = section, device

    def describe(self) -> dict[str, Any]:
        with self._site.vm.lock:
            device = self._disk
            layers = [layer.path for layer in device.state.host.layers]
            return {
                "drive_id": self._section.instance,
                "path_on_host": layers[-1],
                "is_root_device": False,
                "is_read_only": device.state.host.readonly,
                "layers": layers,
                "capacity": device.state.capacity << 9,
                "rate_limiter": device.limiter.config(),
                "io_errors": device.io_errors,
                "last_error": str(device.last_error) if device.last_error is not None else None,
            }

    def update(self, body: bytes) -> None:
        asked = self.decoded(body, DriveUpdate)
        self.require_id(asked.drive_id, self._section.instance)
        if asked.path_on_host is not None:
            self._open(asked.path_on_host)
        if asked.rate_limiter is not None:
            with self._site.vm.lock:
                self._disk.limit(asked.rate_limiter)

    def _open(self, path: str) -> None:
        """Exchange the disk for the image *path*; or look at its own file again, which is never without its lock."""
        present: Disk = self._site.host(self._section)
        if present.is_at(path):
            with self._site.vm.lock:
                self._disk.refresh(path)
            return
        end = open_disk(DiskOptions(id=self._section.instance, path=path, readonly=present.readonly))
        try:
            with self._site.vm.lock:
                old = self._disk.replace(end)
        except BaseException:
            end.withdraw()
            raise
        self._site.exchange(self._section, end)
        old.close()


def build(section: SectionId, state: State, site: Site) -> BlockPart:
    """Build the part."""
    args = BlockArgs(memory=site.memory, backend=site.host(section))
    return BlockPart(section, VirtioBlock.restore(expect(state, VirtioBlockState), args), site)
