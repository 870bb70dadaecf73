"""What devices add to the floor of a restore: the system calls for their host ends, doorbells, interrupts and watches.

An image is opened, looked at (is it the file that was saved?) and locked. A device in use has an eventfd and an ioeventfd
for each queue, an eventfd and an irqfd for each open vector, all routes in one KVM_SET_GSI_ROUTING before the first
irqfd, a place in epoll for each eventfd that the monitor listens to. A Unix socket is made for its owner only, as it
must never be anybody else's. A TAP is attached and told the header's length and what the guest takes. A new generation id is announced on its pin.

No disk's worker is part of it: its thread is there to do what blocks, and is not needed before something does.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import NamedTuple

from snapkit import host_net
from snapkit.host_net import _IFF_NO_PI, _IFF_TAP, _IFF_VNET_HDR
from snapkit.state.interrupt_table import InterruptTableState, RouteState
from snapkit.state.pci_function import PciFunctionState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec import virtio as spec
from snapkit.state.spec.virtio_net import HDR_LEN
from snapkit.state.virtio import VirtioState
from snapkit.state.virtio_block import LayerState, VirtioBlockState
from snapkit.state.virtio_net import VirtioNetState
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.state.virtio_vsock import VirtioVsockState
from snapkit.state.vmgenid import GENERATION_LEN, VmgenidState
from snapkit.vmm.kvm import abi
from snapkit.vmm.virtio.pci_layout import BAR, NOTIFY, NOTIFY_MULTIPLIER
from snapkit.vmm.virtio.virtio_net import offload_of
from tests.bench.calls import Call, expect, ioctl


class Pins(NamedTuple):
    """What of interrupts is an architecture's own: what KVM_IRQ_LINE calls a pin, and the routes that pins have."""

    number: Callable[[int], int]
    routes: bytes


class DeviceFloor:
    """The calls for the PCI devices of one machine, stage by stage; `release` takes back what they made."""

    def __init__(
        self, states: Mapping[SectionId, State], pins: Pins, vm: Callable[[], int], hva: Callable[[int], int]
    ) -> None:
        """*vm* gives the VM's fd, *hva* where guest memory is, once there are any."""
        self._pins, self._vm, self._hva = pins, vm, hva
        self._poll = select.epoll()  # the process had it before
        self._fds: list[int] = []
        self._watched: list[int] = []
        self._sockets: list[socket.socket] = []
        self.claim: list[Call] = []
        self.rebuild: list[Call] = []
        self.wire: list[Call] = []
        self.activate: list[Call] = []
        self.run: list[Call] = []
        for state in states.values():
            if isinstance(state, VirtioBlockState):
                self.claim += chain.from_iterable(self._image(layer, state) for layer in state.host.layers)
                self._event(self.activate, watch=True)
            elif isinstance(state, VirtioVsockState):
                self.claim += self._socket(state.host.uds)
                self.run.append(("epoll_ctl", self._watch_socket))
            elif isinstance(state, VirtioNetState):
                tap: list[int] = []
                self.claim += self._tap(tap, state)
                self.run.append(("epoll_ctl", partial(self._watch, tap)))
        for (kind, instance), state in states.items():
            if kind == "virtio-pci" and isinstance(state, VirtioPciState):
                self._doorbells(state, instance, states)
        for state in states.values():
            if isinstance(state, InterruptTableState) and state.routes:
                self._interrupts(state.routes)
            elif isinstance(state, VmgenidState):
                self.activate += self._generation(state)

    def release(self) -> None:
        """Give everything back."""
        for fd in self._watched:
            self._poll.unregister(fd)
        for fd in self._fds:
            os.close(fd)
        for listener in self._sockets:
            os.unlink(listener.getsockname())
            listener.close()
        for made in (self._watched, self._fds, self._sockets):
            made.clear()

    # Host ends

    def _image(self, layer: LayerState, disk: VirtioBlockState) -> list[Call]:
        writable = not disk.host.readonly
        return [
            ("open an image", partial(self._open, layer.path, os.O_RDWR if writable else os.O_RDONLY)),
            ("fstat", lambda: expect(os.fstat(self._fds[-1]).st_mtime_ns, layer.mtime_ns)),
            (
                "flock",
                lambda: fcntl.flock(self._fds[-1], (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB),
            ),
        ]

    def _open(self, path: str, flags: int) -> None:
        self._fds.append(os.open(path, flags | os.O_CLOEXEC))

    def _socket(self, path: str) -> list[Call]:
        return [
            ("socket", self._make_socket),
            ("fchmod", lambda: os.fchmod(self._sockets[-1].fileno(), 0o600)),
            ("bind", lambda: self._sockets[-1].bind(path)),
            ("listen", lambda: self._sockets[-1].listen(128)),
        ]

    def _make_socket(self) -> None:
        self._sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))

    def _tap(self, made: list[int], card: VirtioNetState) -> list[Call]:
        request = struct.pack("16sH22x", card.host.tap.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        header_len = HDR_LEN.to_bytes(4, "little")

        def attach() -> None:
            made[:] = self._fds[-1:]
            expect(ioctl(made[0], host_net._TUNSETIFF, request), 0)

        return [
            ("open /dev/net/tun", partial(self._open, "/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)),
            ("TUNSETIFF", attach),
            ("TUNSETVNETHDRSZ", lambda: expect(ioctl(made[0], host_net._TUNSETVNETHDRSZ, header_len), 0)),
            ("TUNSETOFFLOAD", lambda: expect(ioctl(made[0], host_net._TUNSETOFFLOAD, offload_of(card.acked)), 0)),
        ]

    # Doorbells and interrupts

    def _doorbells(self, state: VirtioPciState, instance: str, states: Mapping[SectionId, State]) -> None:
        function = states[SectionId("pci-function", instance)]
        assert isinstance(function, PciFunctionState)
        base = next(bar.address for bar in function.bars if bar.index == BAR) + NOTIFY
        (device,) = (
            one for where, one in states.items() if where.instance == instance and isinstance(one, VirtioState)
        )
        for index in range(len(device.queues)):
            fd = self._event(self.rebuild, watch=False)
            if state.device_status & spec.STATUS_DRIVER_OK:
                self.wire.append(("KVM_IOEVENTFD", partial(self._ioeventfd, fd, base + index * NOTIFY_MULTIPLIER)))
            self.activate.append(("epoll_ctl", partial(self._watch, fd)))

    def _ioeventfd(self, fd: list[int], gpa: int) -> None:
        expect(ioctl(self._vm(), abi.KVM_IOEVENTFD.number, abi.ioeventfd(fd[0], gpa, 0, 0, 0)), 0)

    def _interrupts(self, routes: list[RouteState]) -> None:
        fds = [self._event(self.rebuild, watch=False) for _ in routes]
        messages = [abi.msi_route(route.gsi, route.address, route.data, route.device_id) for route in routes]
        table = abi.routing(self._pins.routes + b"".join(messages))
        self.wire.append(
            ("KVM_SET_GSI_ROUTING", lambda: expect(ioctl(self._vm(), abi.KVM_SET_GSI_ROUTING.number, table), 0))
        )
        for fd, route in zip(fds, routes, strict=True):
            self.wire.append(("KVM_IRQFD", partial(self._irqfd, fd, route.gsi)))

    def _irqfd(self, fd: list[int], gsi: int) -> None:
        expect(ioctl(self._vm(), abi.KVM_IRQFD.number, abi.irqfd(fd[0], gsi, 0)), 0)

    def _generation(self, state: VmgenidState) -> list[Call]:
        def line(level: int) -> Call:
            told = abi.irq_level(self._pins.number(state.gsi), level)
            return "KVM_IRQ_LINE", lambda: expect(ioctl(self._vm(), abi.KVM_IRQ_LINE.number, told), 0)

        def write() -> None:
            ctypes.memmove(self._hva(state.gpa), os.urandom(GENERATION_LEN), GENERATION_LEN)

        return [("getrandom, into memory", write), line(1), line(0)]

    # Eventfds

    def _event(self, stage: list[Call], *, watch: bool) -> list[int]:
        """Add the making of an eventfd to *stage*; returns where its number will be."""
        made: list[int] = []

        def make() -> None:
            made[:] = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)]
            self._fds += made

        stage.append(("eventfd", make))
        if watch:
            stage.append(("epoll_ctl", partial(self._watch, made)))
        return made

    def _watch(self, fd: list[int]) -> None:
        self._poll.register(fd[0], select.EPOLLIN)
        self._watched += fd

    def _watch_socket(self) -> None:
        self._watch([self._sockets[-1].fileno()])
