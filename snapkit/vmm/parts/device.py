"""What the parts of all virtio devices share: one device, started and stopped with the machine."""

from typing import Any, TypeVar

import msgspec

from snapkit.errors import ConfigError
from snapkit.state.schema import State
from snapkit.vmm.parts.part import Part, Site
from snapkit.vmm.virtio.device import VirtioDevice

T = TypeVar("T")


class DevicePart(Part):
    """A virtio device. Its transport, a part of its own that comes later, activates and kicks it."""

    def __init__(self, device: VirtioDevice[Any], site: Site) -> None:
        self.device, self._site = device, site

    @property
    def faults(self) -> int:
        return self.device.faults

    def describe(self) -> dict[str, Any]:
        """Return the device as the control socket shows it, named as Firecracker's API does."""
        return {}

    def update(self, body: bytes) -> None:
        """Change the device by the body of a PATCH. Raises ConfigError."""
        raise ConfigError(f"{self.device.kind} has nothing that can be changed")

    @staticmethod
    def decoded(body: bytes, shape: type[T]) -> T:
        """Return *body* as *shape*. Raises ConfigError."""
        try:
            return msgspec.json.decode(body, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"the body is not what was expected: {error}") from error

    @staticmethod
    def require_id(said: str | None, found: str) -> None:
        """Raise ConfigError when the body names another device than the path."""
        if said not in {None, found}:
            raise ConfigError(f"the body is about {said!r}, the path about {found!r}")

    def save(self) -> State:
        state: State = self.device.save()
        return state

    def activate(self) -> None:
        self.device.connect(self._site.loop, self._site.vm.lock)
        with self._site.vm.lock:
            self.device.resync()

    def deactivate(self) -> None:
        self.device.disconnect()

    def run(self) -> None:
        with self._site.vm.lock:
            self.device.run()

    def pause(self) -> None:
        self.device.pause()

    def prepare_save(self) -> None:
        with self._site.vm.lock:
            self.device.prepare_save()

    def close(self) -> None:
        self.device.close()
