"""A guest's side of a socket device, for tests: sends packets, takes what comes, gives buffers back."""

import struct
from typing import Any, NamedTuple

from snapkit.units import KIB
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.virtio_vsock import VirtioVsock
from tests.vmm.virtio.driver import Interrupts, drive

# Section 5.10, declared again so that a slip in the monitor's own table cannot hide.
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
F_RECEIVE, F_SEND = 1, 2
HEADER = struct.Struct("<QQIIIHHIII")
CID = 42
ALLOC = 256 * KIB
AREA_LEN = 0x8_0000
RAM_LEN = 4 * AREA_LEN


class Packet(NamedTuple):
    """One packet of the device."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    payload: bytes


class Guest:
    """The driver: *buffers* of *buffer_len* bytes wait on rx, and on event if there are to be any."""

    def __init__(
        self, device: VirtioVsock, memory: GuestMemory, *, buffers: int = 16, buffer_len: int = 4096, events: int = 2
    ) -> None:
        self.device, self.memory, self.buffer_len = device, memory, buffer_len
        self.seen: Interrupts
        self.seen, drivers = drive(device, memory, area_len=AREA_LEN)
        self.rx, self.tx, self.event = drivers
        self.offer(buffers)
        for _ in range(events):
            self.event.add(4)
        self.event.kick()

    def offer(self, buffers: int) -> None:
        """Give the device so many buffers on rx."""
        for _ in range(buffers):
            self.rx.add(44, self.buffer_len)
        self.rx.kick()

    def post(self, op: int, src_port: int, dst_port: int, payload: bytes = b"", **changed: Any) -> None:
        """Put a packet on tx, without a word to the device; *changed* are fields of the header."""
        fields = {
            "src_cid": CID,
            "dst_cid": 2,
            "src_port": src_port,
            "dst_port": dst_port,
            "len": len(payload),
            "type": 1,
            "op": op,
            "flags": 0,
            "buf_alloc": ALLOC,
            "fwd_cnt": 0,
        }
        assert changed.keys() <= fields.keys()
        header = HEADER.pack(*(fields | changed).values())
        self.tx.add(header, payload) if payload else self.tx.add(header)

    def send(self, op: int, src_port: int, dst_port: int, payload: bytes = b"", **changed: Any) -> None:
        """Send a packet; the device has taken it when this returns."""
        self.post(op, src_port, dst_port, payload, **changed)
        self.tx.kick()
        self.spin()
        assert all(written == 0 for _, written in self.tx.used())

    def receive(self, *, offer: bool = True) -> list[Packet]:
        """Take what came, and give as many buffers again if they are to be *offer*ed."""
        found = self.rx.used()
        packets = []
        for head, written in found:
            if written:
                content = self.rx.answer(head)[:written]
                packets.append(Packet._make((*HEADER.unpack(content[:44]), content[44:])))
        assert all(len(packet.payload) == packet.len for packet in packets)
        if offer and found:
            self.offer(len(found))
        return packets

    def events(self) -> list[bytes]:
        """Take what came on event."""
        return [self.event.answer(head)[:written] for head, written in self.event.used()]

    def spin(self) -> None:
        """Do what the device asked to be kicked again for."""
        while self.seen.again:
            self.device.kick(self.seen.again.pop(0))
