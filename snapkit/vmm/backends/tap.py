"""The host's end of a network card: a TAP interface, which has to be there already.

Documentation/networking/tuntap.rst. The operator makes it (``ip tuntap add NAME mode tap user USER``), gives it
addresses or a bridge and brings it up; here it is only opened, so no privilege is needed but that of its owner. Every packet
carries a 12-byte virtio-net header both ways, so that checksums and segmentation stay undone where both sides agree.

One process holds a TAP at a time (there are no multi-queue TAPs here). Packets that come while nobody reads wait in the
interface's own queue (txqueuelen), which is how a paused guest loses none at first.
"""

import errno
import re
from array import array
from collections.abc import Sequence
from typing import Self

from snapkit import host, host_net
from snapkit.errors import ConfigError, Finding, HostError, IncompatibleHost
from snapkit.host_net import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO
from snapkit.state.spec.virtio_net import HDR_LEN
from snapkit.state.virtio_net import TAP_NAME_MAX, VirtioNetState
from snapkit.vmm.virtio.virtio_net import offload_of

_OFFLOADS = (
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_UFO,
    TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
    TUN_F_CSUM,
    0,
)
"""What to ask a TAP for, best first. UFO went from Linux 4.14 to come back at once as this flag only."""


class Tap:
    """One open TAP. `offloads` is all that it can do (TUN_F_*), `mtu` what the interface had when opened."""

    def __init__(self, name: str, fd: int, *, offloads: int, mtu: int) -> None:
        self.name, self.fd, self.offloads, self.mtu = name, fd, offloads, mtu

    @classmethod
    def open(cls, name: str, *, who: str) -> Self:
        """Open the TAP *name* for the device *who*.

        Raises ConfigError when the interface is not there, is none, or is in use; HostError when the host says no
        otherwise.
        """
        _check_name(name, who)
        if not host_net.interface_index(name):
            raise ConfigError(f"{who} wants TAP {name}, which does not exist (ip tuntap add {name} mode tap)")
        fd = host_net.open_tun()
        try:
            _attach(fd, name, who)
            offloads = _offloads(fd)
            return cls(name, fd, offloads=offloads, mtu=host_net.interface_mtu(name))
        except BaseException:
            host.close(fd)
            raise

    @classmethod
    def claim(cls, state: VirtioNetState, component: str, *, tap: str | None = None) -> Self:
        """Open the TAP that a restored card *component* needs, or the one called *tap* in its place.

        Raises IncompatibleHost when it cannot be had, or lacks an offload that the guest counts on.
        """
        name = tap if tap is not None else state.host.tap
        try:
            made = cls.open(name, who=component)
        except (ConfigError, HostError) as error:
            finding = Finding(component, "host.tap", name, "a TAP interface of this host that is free", "net.tap")
            raise IncompatibleHost(str(error), findings=[finding]) from error
        if missing := offload_of(state.acked) & ~made.offloads:
            made.close()
            words = f"a TAP with the offloads {offload_of(state.acked):#x}, as the guest uses them"
            finding = Finding(component, "host.tap", f"{name}, without {missing:#x}", words, "net.offload")
            raise IncompatibleHost(f"TAP {name} cannot do what {component} needs", findings=[finding])
        return made

    def set_offload(self, offload: int) -> None:
        """Say which unfinished packets the guest takes."""
        host_net.set_tap_offload(self.fd, offload)

    def read(self, vector: "array[int]") -> int:
        """Read one packet into *vector*; -1 when none waits."""
        return host_net.read_packet(self.fd, vector)

    def write(self, spans: Sequence[tuple[int, int]]) -> int:
        """Send one packet; -1 when the interface takes none now. Raises HostError for one that it will never take."""
        return host_net.write_packet(self.fd, spans)

    def close(self) -> None:
        """Let the interface go; harmless twice."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            host.close(fd)

    def withdraw(self) -> None:
        """Close: the interface is the operator's."""
        self.close()


def _check_name(name: str, who: str) -> None:
    # Linux's dev_valid_name, but for characters that no one should have to print.
    if not re.fullmatch(rf"[!-.0-9;-~]{{1,{TAP_NAME_MAX}}}", name) or name in {".", ".."}:
        raise ConfigError(f"{who} wants TAP {name!r}, must be 1 to {TAP_NAME_MAX} visible characters without / and :")


def _attach(fd: int, name: str, who: str) -> None:
    try:
        host_net.attach_tap(fd, name, HDR_LEN)
    except HostError as error:
        words = {
            errno.EBUSY: "which another process has open",
            errno.EINVAL: "which is no TAP interface, or is one with several queues",
            errno.EPERM: "which belongs to another user (ip tuntap add ... user USER)",
        }
        if error.errno in words:
            raise ConfigError(f"{who} wants TAP {name}, {words[error.errno]}: {error}") from error
        error.add_note(f"opening TAP {name} for {who}")
        raise


def _offloads(fd: int) -> int:
    """Find the most that the TAP can do, and leave it doing nothing."""
    for offload in _OFFLOADS:
        try:
            host_net.set_tap_offload(fd, offload)
        except HostError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            break
    host_net.set_tap_offload(fd, 0)
    return offload
