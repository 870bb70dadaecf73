"""What a proper driver asks of each kind of device, and the answer that it must get."""

import socket
import struct
from typing import Any

from tests.vmm.virtio.driver import Driver
from tests.vmm.virtio.registers import Registers
from tests.vmm.virtio.whole import CID, DISK_SECTORS, Whole

AREA, AREA_LEN = 0x2_0000, 0x2_0000
LISTENING = 5000


def bring_up(machine: Whole, kind: str, registers: Registers, features: int = 0) -> list[Driver]:
    """Reset the device and start it with all of its queues."""
    queues = machine.device(kind).state.queues
    drivers = [
        Driver(machine.memory, AREA + index * AREA_LEN, min(queue.max_size, 64), area_len=AREA_LEN)
        for index, queue in enumerate(queues)
    ]
    registers.start(drivers, features)
    assert registers.status() == 15
    return drivers


def answers(machine: Whole, kind: str, registers: Registers) -> None:
    """Assert that the device works for a driver that resets it first."""
    registers.reset()
    machine.turn()
    _ASKS[kind](machine, registers)


def interrupted(machine: Whole, kind: str, index: int) -> None:
    """Assert that the driver heard of queue *index*."""
    if machine.transport == "mmio":
        assert machine.kernel.levels[machine.part("virtio-mmio", kind).transport.state.gsi] == 1
        return
    gsis = machine.part("pci-msix", kind).msix.state.gsis
    assert machine.kernel.messages(gsis[index + 1]) > 0


def _block(machine: Whole, registers: Registers) -> None:
    (queue,) = bring_up(machine, "virtio-block", registers, 1 << 9)
    assert registers.config(0, 4) == DISK_SECTORS
    payload = bytes(range(256)) * 4

    def ask(kind: int, *buffers: bytes | int) -> bytes:
        head = queue.add(struct.pack("<IIQ", kind, 0, 7), *buffers, 1)
        registers.notify(0)
        machine.turn()
        assert [found for found, _ in queue.used()] == [head]
        return queue.answer(head)

    assert ask(1, payload) == b"\0"
    assert ask(0, 1024) == payload + b"\0"
    assert ask(4) == b"\0"
    assert ask(8, 20) == b"block".ljust(20, b"\0") + b"\0"
    interrupted(machine, "virtio-block", 0)


def _net(machine: Whole, registers: Registers) -> None:
    assert machine.tap is not None
    machine.tap.waiting.clear()
    rx, tx = bring_up(machine, "virtio-net", registers)
    assert registers.config(0, 4) == 2
    frame = bytes(range(100))
    machine.tap.sent.clear()
    head = tx.add(bytes(12), frame)
    registers.notify(1)
    machine.turn()
    assert tx.used() == [(head, 0)]
    assert machine.tap.sent == [bytes(12) + frame]
    head = rx.add(2048)
    registers.notify(0)
    machine.turn()
    machine.tap.arrive(frame)
    machine.turn()
    assert rx.used() == [(head, 112)]
    assert rx.answer(head)[12:112] == frame
    interrupted(machine, "virtio-net", 0)


def _vsock(machine: Whole, registers: Registers) -> None:
    device: Any = machine.device("virtio-vsock")
    rx, tx, _event = bring_up(machine, "virtio-vsock", registers)
    assert registers.config(0, 4) == CID
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{device._host.uds}_{LISTENING}")
        listener.listen()
        heads = [rx.add(2048) for _ in range(8)]
        registers.notify(0)
        tx.add(struct.pack("<QQIIIHHIII", CID, 2, 999, LISTENING, 0, 1, 1, 0, 65536, 0))
        registers.notify(1)
        machine.turn()
        tx.used()
        told = [struct.unpack("<QQIIIHHIII", rx.answer(head)[:44]) for head, _ in rx.used()]
        assert (2, CID, LISTENING, 999, 0, 1, 2) in [packet[:7] for packet in told]
        assert len(heads) > len(told)
        accepted, _ = listener.accept()
        with accepted:
            tx.add(struct.pack("<QQIIIHHIII", CID, 2, 999, LISTENING, 5, 1, 5, 0, 65536, 0), b"hello")
            registers.notify(1)
            machine.turn()
            assert accepted.recv(100) == b"hello"
    interrupted(machine, "virtio-vsock", 0)


def _rng(machine: Whole, registers: Registers) -> None:
    (queue,) = bring_up(machine, "virtio-rng", registers)
    head = queue.add(64)
    registers.notify(0)
    machine.turn()
    assert queue.used() == [(head, 64)]
    assert any(queue.answer(head))
    interrupted(machine, "virtio-rng", 0)


def _balloon(machine: Whole, registers: Registers) -> None:
    inflate, deflate, *_ = bring_up(machine, "virtio-balloon", registers)
    page = 0x1C_0000
    for queue, index in ((inflate, 0), (deflate, 1)):
        machine.memory.write(page, b"full" * 1024)
        head = queue.add(struct.pack("<I", page >> 12))
        registers.notify(index)
        machine.turn()
        assert queue.used() == [(head, 0)]
        assert any(machine.memory.read(page, 4096)) == (index == 1)
        interrupted(machine, "virtio-balloon", index)


_ASKS = {
    "virtio-block": _block,
    "virtio-net": _net,
    "virtio-vsock": _vsock,
    "virtio-rng": _rng,
    "virtio-balloon": _balloon,
}
