"""``--disk``, ``--net``, ``--vsock``, ``--rng``, ``--balloon``: what the operator says of a machine's devices.

Each takes ``key=value`` pairs and flags, parted by commas; ``id=`` says which device is meant. At a boot they ask for
devices, at a restore they say which host end a saved device gets instead of its own.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from snapkit.errors import ConfigError

if TYPE_CHECKING:
    from snapkit.vmm.parts.fresh import Asked, Transport

F = TypeVar("F", bound=Callable[..., Any])

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class DeviceOption(NamedTuple):
    """One option: the kind it makes, what must be said at a boot, what may be, and what a restore may say."""

    kind: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    override_flags: tuple[str, ...]
    help: str


_LIMITS = ("bandwidth", "bandwidth-burst", "ops", "ops-burst")
_RX_TX = tuple(f"{way}-{limit}" for way in ("rx", "tx") for limit in _LIMITS)

OPTIONS: Mapping[str, DeviceOption] = {
    "disk": DeviceOption(
        "virtio-block",
        ("id", "path"),
        ("overlay", "serial", *_LIMITS),
        ("readonly",),
        ("path", "overlay"),
        ("readonly",),
        "A disk: id=root,path=P[,readonly][,overlay=DIR][,serial=S][,bandwidth=BYTES/S][,ops=N/S].",
    ),
    "net": DeviceOption(
        "virtio-net",
        ("id", "tap"),
        ("mac", "mtu", *_RX_TX),
        (),
        ("tap",),
        (),
        "A network card on a TAP: id=eth0,tap=T[,mac=M][,mtu=N][,rx-bandwidth=BYTES/S]...",
    ),
    "vsock": DeviceOption(
        "virtio-vsock",
        ("id", "cid", "uds"),
        (),
        (),
        ("uds",),
        (),
        "Sockets between host and guest: id=v0,cid=3,uds=P.",
    ),
}
FLAGS: Mapping[str, tuple[str, str, str]] = {
    "rng": ("virtio-rng", "rng", "An entropy device."),
    "balloon": ("virtio-balloon", "balloon", "A balloon, driven through the control socket."),
}


def asked_devices(asked: dict[str, Any]) -> "tuple[tuple[Asked, ...], Transport | None]":
    """Take the device options out of *asked*; return the devices in a fixed order, and the transport.

    Raises ConfigError for what is missing, unknown or said twice.
    """
    from snapkit.vmm.parts.fresh import Asked

    devices = []
    for name, option in OPTIONS.items():
        for text in asked.pop(name):
            values = _parse(f"--{name}", text, (*option.needed, *option.optional), option.flags)
            for needed in option.needed:
                if needed not in values:
                    raise ConfigError(f"--{name} {text} does not say {needed}=")
            devices.append(Asked(option.kind, values.pop("id"), values))
    for name, (kind, device_id, _help) in FLAGS.items():
        if asked.pop(name):
            devices.append(Asked(kind, device_id))
    transport: Transport | None = asked.pop("transport")
    if transport not in {None, "pci", "mmio"}:
        raise ConfigError(f"transport is {transport!r}, must be pci or mmio")
    return tuple(devices), transport


class Overrides(NamedTuple):
    """What a restore uses instead of what was saved: values by device id, each id with the option that named it."""

    values: dict[str, dict[str, Any]]
    options: dict[str, str]

    def require_known(self, sections: Mapping[Any, Any]) -> None:
        """Raise ConfigError for an id that no such device of the file has."""
        for device_id, option in self.options.items():
            kinds = [OPTIONS[option if option in OPTIONS else "disk"].kind]  # only a disk has an image that may change
            if not any((kind, device_id) in sections for kind in kinds):
                there = sorted(str(section) for section in sections if section.kind in kinds)
                raise ConfigError(f"--{option} {device_id}: the file has no such device, only {there or 'none'}")


def asked_overrides(asked: dict[str, Any]) -> Overrides:
    """Take the device overrides of a restore out of *asked*. Raises ConfigError like `asked_devices`."""
    overrides = Overrides({}, {})
    for name, option in OPTIONS.items():
        for text in asked.pop(name):
            values = _parse(f"--{name}", text, ("id", *option.overrides), option.override_flags)
            device_id = values.pop("id", None)
            if device_id is None:
                raise ConfigError(f"--{name} {text} does not say id=")
            if device_id in overrides.values:
                raise ConfigError(f"--{name} {text}: {device_id} is named twice")
            overrides.values[device_id] = values
            overrides.options[device_id] = name
    for device_id in asked.pop("accept_changed"):
        overrides.values.setdefault(device_id, {})["accept_changed"] = True
        overrides.options.setdefault(device_id, "accept-changed")
    return overrides


def _parse(option: str, text: str, keys: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        known = key in keys if equals else key in flags
        if not known:
            listed = [*(f"{name}=" for name in keys), *flags]
            raise ConfigError(f"{option} {text}: {word!r} is none of {', '.join(listed)}")
        if key in values:
            raise ConfigError(f"{option} {text}: {key} is said twice")
        if equals and not value:
            raise ConfigError(f"{option} {text}: {key} is empty")
        values[key] = value if equals else True
    if "id" in values and not _ID.fullmatch(values["id"]):
        raise ConfigError(
            f"{option} {text}: id is {values['id']!r}, must be 1 to 32 of a-z 0-9 _ -, a letter or digit first"
        )
    return values


def device_options(command: F) -> F:
    """Add the device options of `boot` to a command."""
    transport = click.option(
        "--transport", metavar="pci|mmio", help="How devices are found. [default: pci, where there is a device]"
    )
    command = transport(command)
    for name, (_kind, _id, text) in reversed(list(FLAGS.items())):
        command = click.option(f"--{name}", is_flag=True, help=text)(command)
    for name, option in reversed(list(OPTIONS.items())):
        command = click.option(f"--{name}", multiple=True, metavar="SPEC", help=option.help)(command)
    return command


def override_options(command: F) -> F:
    """Add the device options of `restore` to a command."""
    accept = click.option(
        "--accept-changed", multiple=True, metavar="ID", help="Restore although the image of disk ID has changed."
    )
    command = accept(command)
    for name, option in reversed(list(OPTIONS.items())):
        may = [*(f"[,{key}=...]" for key in option.overrides), *(f"[,{flag}]" for flag in option.override_flags)]
        text = f"Another host end for a saved device: id=ID{''.join(may)}."
        command = click.option(f"--{name}", multiple=True, metavar="SPEC", help=text)(command)
    return command
