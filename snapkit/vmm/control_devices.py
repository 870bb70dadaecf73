"""The part of the control socket's API that is about devices: GET shows each, PATCH changes what may change at run time.

Paths and bodies are Firecracker's (src/firecracker/swagger/firecracker.yaml) where it has them; it shows only its balloon
by GET, so for the other devices GET answers with the body that its PUT would take.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from snapkit.errors import ConfigError
from snapkit.vmm.backends.reply import Reply

COLLECTIONS: Mapping[str, str] = {"drives": "virtio-block", "network-interfaces": "virtio-net"}
SINGLES: Mapping[str, str] = {"balloon": "virtio-balloon", "entropy": "virtio-rng", "vsock": "virtio-vsock"}


class Device(Protocol):
    """A device as the API sees it."""

    def describe(self) -> dict[str, Any]: ...

    def update(self, body: bytes) -> None: ...


class Devices(Protocol):
    """All devices of a machine; `snapkit.vmm.parts.board.Board` is one."""

    def device(self, kind: str, instance: str | None = None) -> Device | None: ...

    def devices(self, kind: str) -> Iterator[tuple[str, Device]]: ...


def listed(devices: Devices) -> dict[str, Any]:
    """Return every device, by collection, for ``GET /vm/config``."""
    shown: dict[str, Any] = {
        name: [device.describe() for _id, device in devices.devices(kind)] for name, kind in COLLECTIONS.items()
    }
    for name, kind in SINGLES.items():
        device = devices.device(kind)
        if device is not None:
            shown[name] = device.describe()
    return shown


def answer(devices: Devices, method: str, path: str, body: bytes) -> Reply | None:
    """Carry out a request about a device; None when it is about none. Raises ConfigError."""
    first, _, rest = path.strip("/").partition("/")
    if first not in COLLECTIONS and first not in SINGLES:
        return None
    device, below = _find(devices, first, rest)
    if method == "GET":
        shown: Any = device.describe()
        for name in below:
            if not isinstance(shown, dict) or name not in shown:
                raise ConfigError(f"there is no GET {path}")
            shown = shown[name]
        return Reply(200, json.dumps(shown).encode())
    if method == "PATCH":
        device.update(_below(body, below))
        return Reply(204)
    raise ConfigError(f"there is no {method} {path}")


def _find(devices: Devices, first: str, rest: str) -> tuple[Device, list[str]]:
    words = rest.split("/") if rest else []
    if first in SINGLES:
        device = devices.device(SINGLES[first])
        if device is None:
            raise ConfigError(f"the machine has no {first}")
        return device, words
    if not words:
        raise ConfigError(f"/{first} wants an id: /{first}/ID")
    device = devices.device(COLLECTIONS[first], words[0])
    if device is None:
        there = [instance for instance, _ in devices.devices(COLLECTIONS[first])]
        raise ConfigError(f"there is no {words[0]!r} among {first}, only {there or 'none'}")
    return device, words[1:]


def _below(body: bytes, names: list[str]) -> bytes:
    """Put the body of a PATCH to a part of a device under that part's name."""
    if not names:
        return body
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is not what was expected: {error}") from error
    for name in reversed(names):
        content = {name: content}
    return json.dumps(content).encode()
