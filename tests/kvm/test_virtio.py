"""virtio under KVM: a guest's own accesses bring devices up over both transports, and a snapshot anywhere changes nothing.

The guest is `poke.c`; its registers are touched by its instructions, its rings are laid by the test.
"""

import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapkit.vmm.parts.fresh import Asked, Transport
from tests.kvm.virtio_bench import (
    CONTENT,
    F_FLUSH,
    FLUSH,
    GET_ID,
    IN,
    LINE_VECTOR,
    OUT,
    SECTORS,
    TRANSPORTS,
    Bench,
    bench_of,
    sector,
    step_names,
)
from tests.vmm.virtio.registers import NEEDS_RESET, VERSION_1, PciRegisters

EVENT_IDX, INDIRECT = 1 << 29, 1 << 28
TYPES = {"virtio-block": 2, "virtio-rng": 4, "virtio-balloon": 5, "virtio-vsock": 19}
RNG = Asked("virtio-rng", "rng")


@pytest.fixture
def rng(transport: Transport, tmp_path: Path) -> Iterator[Bench]:
    with bench_of(transport, tmp_path, RNG) as bench:
        yield bench


# Negotiation


def test_the_driver_finds_what_the_device_is_and_offers(block: Bench) -> None:
    registers = block.registers
    if isinstance(registers, PciRegisters):
        assert block.poker.config_read(1, 0) == 0x1042_1AF4
    else:
        assert [block.poker.read32(block.base + at) for at in (0, 4, 8)] == [0x7472_6976, 2, 2]
    for step in registers.enable_steps():
        registers.do(step)
    offered = registers.offered()
    assert not offered & ~((1 << 41) - 1)
    for feature in (VERSION_1, F_FLUSH, EVENT_IDX, INDIRECT):
        assert offered & feature
    assert registers.config(0, 4) == SECTORS
    assert registers.status() == 0


def test_features_that_nobody_offers_are_refused_and_chosen_anew(block: Bench) -> None:
    registers = block.registers
    (driver,) = block.drivers()
    for step in registers.steps([driver], 1 << 50):
        if step.name == "features-ok":
            break
        registers.do(step)
    registers.do(registers.step_status("features-ok", 11))
    assert registers.status() == 3
    for step in registers.choose_steps(VERSION_1):
        registers.do(step)
    registers.do(registers.step_status("features-ok", 11))
    assert registers.status() == 11


def test_a_snapshot_keeps_every_register_that_the_driver_reads(block: Bench) -> None:
    block.start(F_FLUSH)
    registers = block.registers

    def read() -> list[int]:
        if isinstance(registers, PciRegisters):
            return [block.poker.read32(registers.bar + at) for at in range(0, 0x38, 4)]
        return [block.poker.read32(block.base + at) for at in (0x10, 0x34, 0x44, 0x60, 0x70, 0xFC, 0x100)]

    before = read()
    block.again()
    assert read() == before


# Data


def test_what_the_guest_reads_is_what_the_image_holds(block: Bench) -> None:
    (queue,) = block.start(F_FLUSH)
    assert block.ask(queue, IN, 3, 100, 924) == sector(3, 2) + b"\0"
    assert block.ask(queue, GET_ID, 0, 20) == b"root".ljust(20, b"\0") + b"\0"


def test_what_the_guest_writes_is_in_the_image_and_is_read_back(block: Bench, image: Path) -> None:
    (queue,) = block.start(F_FLUSH)
    payload = random.Random(1).randbytes(1536)
    assert block.ask(queue, OUT, 9, payload[:7], payload[7:]) == b"\0"
    assert block.ask(queue, FLUSH, 0) == b"\0"
    assert image.read_bytes() == CONTENT[: 9 * 512] + payload + CONTENT[12 * 512 :]
    assert block.ask(queue, IN, 9, 1536) == payload + b"\0"


@pytest.mark.parametrize(
    "ways", [{"event_idx": True}, {"indirect": True}, {"event_idx": True, "indirect": True}], ids=str
)
def test_every_way_of_the_ring_works_before_and_after_a_snapshot(block: Bench, ways: dict[str, bool]) -> None:
    features = EVENT_IDX * ways.get("event_idx", False) | INDIRECT * ways.get("indirect", False)
    (queue,) = block.start(F_FLUSH | features, **ways)
    for number in range(12):
        assert block.ask(queue, IN, number, 512) == sector(number) + b"\0"
    block.again()
    for number in range(12, 40):  # once around the ring
        assert block.ask(queue, IN, number, 512) == sector(number) + b"\0"


def test_many_requests_at_once_come_back_each_with_its_own_data(block: Bench) -> None:
    (queue,) = block.start(F_FLUSH)
    heads = {queue.add(struct.pack("<IIQ", IN, 0, number), 512, 1): number for number in range(5)}
    block.notify(0)
    found: list[int] = []

    def all_there() -> bool:
        found.extend(head for head, _ in queue.used())
        return len(found) == len(heads)

    block.until(all_there, "the last answer")
    assert [queue.answer(head) for head in heads] == [sector(number) + b"\0" for number in heads.values()]


def test_random_bytes_come_and_are_never_the_same_twice(rng: Bench) -> None:
    (queue,) = rng.start()
    seen = set()
    for _ in range(3):
        head = queue.add(64)
        rng.notify(0)
        rng.wait(0)
        assert queue.used() == [(head, 64)]
        seen.add(queue.answer(head))
        rng.again()
    assert len(seen) == 3
    assert bytes(64) not in seen


# Interrupts


def test_each_batch_of_answers_is_one_interrupt(block: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    image = block.device.backend.image

    def read_now(offset: int, spans: Any, _length: int) -> bool:
        """Take what is not in the page cache for cached: what goes to the worker comes back one by one."""
        image.read(offset, spans)
        return True

    monkeypatch.setattr(image, "read_now", read_now)
    (queue,) = block.start(F_FLUSH)
    block.ask(queue, IN, 0, 512)
    for number in range(3):
        queue.add(struct.pack("<IIQ", IN, 0, number), 512, 1)
    block.notify(0)
    block.wait(0)
    assert len(queue.used()) == 3
    assert block.poker.count(block.vector(0)) == 0


def test_a_driver_that_wants_no_interrupt_gets_none(block: Bench) -> None:
    (queue,) = block.start(F_FLUSH)
    queue.put16(queue.avail, 1)
    head = queue.add(struct.pack("<IIQ", IN, 0, 1), 512, 1)
    block.notify(0)
    block.until(lambda: bool(queue.used()), "the answer")
    assert queue.answer(head) == sector(1) + b"\0"
    assert block.poker.count(block.vector(0)) == 0


def test_a_configuration_change_interrupts_where_the_driver_said(tmp_path: Path, transport: Transport) -> None:
    with bench_of(transport, tmp_path, Asked("virtio-balloon", "balloon")) as bench:
        bench.start()
        with bench.poker.rig.vm.lock:
            bench.device.set_target(7)
        vector = bench.vector(-1)
        bench.poker.wait_vector(vector)
        assert bench.registers.config(0, 4) == 7
        if transport == "mmio":
            assert bench.poker.causes(LINE_VECTOR) == 2
        bench.again()
        assert bench.registers.config(0, 4) == 7


def test_a_line_that_is_not_acknowledged_stays_high_across_a_snapshot(tmp_path: Path) -> None:
    with bench_of("mmio", tmp_path, RNG) as bench:
        poker = bench.poker
        (queue,) = bench.start()
        counts = []
        for snapshot in (False, True):
            poker.hold_interrupts()
            queue.add(16)
            bench.notify(0)
            bench.until(lambda: bool(queue.used()), "the bytes")
            if snapshot:
                bench.again()
            assert poker.read32(bench.base + 0x60) == 1
            assert poker.count(LINE_VECTOR) == 0
            poker.let_interrupts()
            poker.wait_vector(LINE_VECTOR)
            assert poker.causes(LINE_VECTOR) == 1
            assert poker.read32(bench.base + 0x60) == 0
            counts.append(poker.count(LINE_VECTOR))
            poker.forget_counts()
        assert counts[0] == counts[1], "the snapshot adds no interrupt and loses none"


def test_a_message_that_is_held_back_by_the_guest_survives_a_snapshot(tmp_path: Path) -> None:
    with bench_of("pci", tmp_path, RNG) as bench:
        (queue,) = bench.start()
        bench.poker.hold_interrupts()
        queue.add(16)
        bench.notify(0)
        bench.until(lambda: bool(queue.used()), "the bytes")
        bench.again()
        assert bench.poker.count(bench.vector(0)) == 0
        bench.poker.let_interrupts()
        bench.poker.wait_vector(bench.vector(0))
        assert bench.poker.count(bench.vector(0)) == 1


# A snapshot at every step

STEPS = [(transport, name) for transport in TRANSPORTS for name in step_names(transport)]


@pytest.mark.parametrize(("transport", "name"), STEPS, ids=lambda value: value)
def test_a_snapshot_after_any_step_of_the_initialisation_is_completed(
    tmp_path: Path, transport: Transport, name: str
) -> None:
    with bench_of(transport, tmp_path, RNG) as bench:
        bench.listen()
        (queue,) = drivers = bench.drivers()
        steps = bench.registers.steps(drivers)
        at = [step.name for step in steps].index(name)
        for step in steps[: at + 1]:
            bench.registers.do(step)
        status = bench.registers.status()
        bench.again()
        assert bench.registers.status() == status
        for step in steps[at + 1 :]:
            bench.registers.do(step)
        assert bench.registers.status() == 15
        head = queue.add(32)
        bench.notify(0)
        bench.wait(0)
        assert queue.used() == [(head, 32)]
        assert any(queue.answer(head))


@pytest.mark.parametrize("name", ["reset", "acknowledge", "driver", "features-ok", "driver-ok", "failed"])
def test_a_snapshot_at_any_status_lets_the_driver_begin_anew(rng: Bench, name: str) -> None:
    registers = rng.registers
    rng.listen()
    drivers = rng.drivers()
    for step in registers.steps(drivers):
        registers.do(step)
        if step.name == name:
            break
    if name == "failed":
        registers.do(registers.step_status("failed", 0x8F))
    rng.again()
    registers.reset()
    assert registers.status() == 0
    (queue,) = rng.start()
    head = queue.add(8)
    rng.notify(0)
    rng.wait(0)
    assert queue.used() == [(head, 8)]


# What is under way


def test_a_doorbell_that_was_rung_but_not_served_is_served_after_the_restore(block: Bench) -> None:
    (queue,) = block.start(F_FLUSH)
    with block.poker.unserved():
        head = queue.add(struct.pack("<IIQ", IN, 0, 5), 512, 1)
        block.notify(0)
        assert queue.used() == []
        path = block.poker.save()
        assert queue.used() == []
        block.poker.close()
    block.poker.restore(path)
    block.wait(0)
    assert queue.used() == [(head, 513)]
    assert queue.answer(head) == sector(5) + b"\0"


def test_a_request_that_the_worker_is_at_is_finished_by_the_save(block: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (queue,) = block.start(F_FLUSH)
    end = block.device.backend
    may_go_on, real_read, real_drain = threading.Event(), end.image.read, end.worker.drain

    def read(offset: int, spans: Any) -> None:
        assert may_go_on.wait(60)
        real_read(offset, spans)

    def drain() -> None:
        may_go_on.set()
        real_drain()

    monkeypatch.setattr(end.image, "read_now", lambda *_: False)
    monkeypatch.setattr(end.image, "read", read)
    monkeypatch.setattr(end.worker, "drain", drain)
    head = queue.add(struct.pack("<IIQ", IN, 0, 6), 1024, 1)
    block.notify(0)
    block.until(lambda: block.device._in_flight == 1, "the request at the worker")
    assert queue.used() == []
    block.again()
    block.wait(0)
    assert queue.used() == [(head, 1025)]
    assert queue.answer(head) == sector(6, 2) + b"\0"
    assert block.poker.count(block.vector(0)) == 0
    assert block.ask(queue, IN, 7, 512) == sector(7) + b"\0"


def test_a_device_that_needs_a_reset_still_does_after_a_restore_and_then_works(block: Bench) -> None:
    (queue,) = block.start(F_FLUSH)
    queue.put16(queue.avail + 2, 0x7FFF)
    block.notify(0)
    block.until(lambda: bool(block.registers.status() & NEEDS_RESET), "DEVICE_NEEDS_RESET")
    block.again()
    assert block.registers.status() == 15 | NEEDS_RESET
    block.notify(0)
    assert block.registers.status() == 15 | NEEDS_RESET
    block.registers.reset()
    assert block.registers.status() == 0
    block.poker.forget_counts()
    (queue,) = block.start(F_FLUSH)
    assert block.ask(queue, IN, 2, 512) == sector(2) + b"\0"


def test_a_queue_that_was_taken_back_is_given_anew_after_a_restore(tmp_path: Path) -> None:
    """VIRTIO 1.3, section 4.2.2: 0 written to QueueReady."""
    with bench_of("mmio", tmp_path, RNG) as bench:
        (queue,) = bench.start()
        head = queue.add(8)
        bench.notify(0)
        bench.wait(0)
        assert queue.used() == [(head, 8)]
        bench.registers.reset_queue(0)
        assert bench.poker.read32(bench.base + 0x44) == 0
        queue.fresh()
        queue.add(8)
        bench.notify(0)
        bench.again()
        assert queue.used() == []
        assert bench.poker.read32(bench.base + 0x44) == 0
        for step in bench.registers.queue_steps(0, queue):
            bench.registers.do(step)
        bench.notify(0)
        bench.wait(0)
        assert [written for _, written in queue.used()] == [8]


def test_a_queue_is_not_reset_over_pci_unless_that_was_negotiated(tmp_path: Path) -> None:
    with bench_of("pci", tmp_path, RNG) as bench:
        (queue,) = bench.start()
        bench.registers.reset_queue(0)
        queue.add(8)
        bench.notify(0)
        bench.wait(0)
        assert [written for _, written in queue.used()] == [8]
