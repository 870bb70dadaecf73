"""The block device against a driver of its own: data, status bytes, order, saves, resets, faults of host and guest."""

import errno
import os
import random
import struct
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import HostError, ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.virtio_block import invariants
from snapkit.vmm.backends.disk import DiskOptions, DiskOverrides, open_disk, reopen_disk
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.rate_limiter import BucketConfig, LimitConfig
from snapkit.vmm.virtio.virtio_block import INLINE_LEN, BlockArgs, VirtioBlock, fresh_state
from tests.vmm.backends.gate import opened_by_cancel
from tests.vmm.virtio.driver import drive

# VIRTIO 1.3, 5.2, declared again.
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
F_RO, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 5, 1 << 9, 1 << 13, 1 << 14
SECTORS = 256
LENGTH = SECTORS * 512
EVERYTHING = F_FLUSH | F_DISCARD | F_WRITE_ZEROES | F_RO


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector, sectors, flags=0):
    return struct.pack("<QII", sector, sectors, flags)


def seen(calls):
    """Return a hook that notes the calls made."""
    return lambda call, _arguments: calls.append(call)


class Bench:
    """A disk, its device and its driver."""

    def __init__(self, directory, *, readonly=False, overlay=False, features=EVERYTHING, ram_len=4 << 20, **ways):
        self.path = os.path.join(directory, "disk.img")
        self.content = random.Random(3).randbytes(LENGTH)
        with open(self.path, "wb") as file:
            file.write(self.content)
        self.now_ns = 0
        self.memory = GuestMemory([(0, ram_len)])
        options = DiskOptions(id="root", path=self.path, readonly=readonly, overlay=str(directory) if overlay else None)
        self.disk = open_disk(options)
        self.args = BlockArgs(self.memory, self.disk, lambda: self.now_ns)
        self.device = VirtioBlock(fresh_state(self.disk, serial=self.disk.serial), args=self.args)
        self.seen, (self.queue,) = drive(self.device, self.memory, features=features, area_len=3 << 20, **ways)
        self.lock = threading.Lock()

    def end(self):
        """Let the worker's work end and be returned, without a thread."""
        self.disk.worker.drain()
        self.device.run()

    def ask(self, kind, sector=0, *buffers):
        """Send one request and return its status and the data before it."""
        head = self.queue.add(header(kind, sector), *buffers, 1)
        self.queue.kick()
        self.end()
        ((found, self.written),) = self.queue.used()
        assert found == head
        answer = self.queue.answer(head)
        return answer[-1], answer[:-1]

    def close(self):
        self.device.disconnect()
        self.device.close()
        self.memory.close()


@contextmanager
def bench_in(directory, **options):
    made = Bench(str(directory), **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def bench(tmp_path):
    with bench_in(tmp_path) as made:
        yield made


@pytest.fixture(params=["plain", "overlay"])
def either(tmp_path, request):
    with bench_in(tmp_path, overlay=request.param == "overlay") as made:
        yield made


# Requests


def test_read_gives_the_images_bytes_and_counts_them(either):
    assert either.ask(IN, 3, 1024) == (OK, either.content[3 * 512 : 5 * 512])
    assert either.written == 1025


def test_write_is_read_back_and_lands_where_it_was_sent(either):
    assert either.ask(OUT, 5, b"w" * 1536) == (OK, b"")
    assert either.written == 1
    assert either.ask(IN, 4, 4096) == (OK, either.content[2048:2560] + b"w" * 1536 + either.content[4096:6144])


def test_data_is_spread_over_buffers_of_any_length(either):
    payload = random.Random(1).randbytes(2048)
    assert either.ask(OUT, 0, payload[:7], payload[7:1000], payload[1000:]) == (OK, b"")
    assert either.ask(IN, 0, 1, 1023, 500, 524) == (OK, payload)


def test_header_and_status_may_share_buffers_with_data_or_be_cut(bench):
    """The driver lays a message out as it likes (2.7.4.1)."""
    whole = header(OUT, 9) + b"x" * 512
    head = bench.queue.add(whole[:5], whole[5:30], whole[30:], 1)
    bench.queue.kick()
    bench.end()
    assert bench.queue.used() == [(head, 1)]
    head = bench.queue.add(header(IN, 9), 100, 413)
    bench.queue.kick()
    bench.end()
    assert bench.queue.used() == [(head, 513)]
    assert bench.queue.answer(head) == b"x" * 512 + bytes([OK])


def test_identity_is_the_serial_padded(bench):
    assert bench.ask(GET_ID, 0, 20) == (OK, b"root".ljust(20, b"\0"))
    assert bench.written == 21
    assert bench.ask(GET_ID, 0, 2) == (OK, b"ro")


def test_flush_syncs_the_image(either):
    calls = []
    either.ask(OUT, 0, b"x" * 512)
    with host.inject(lambda call, _arguments: calls.append(call)):
        assert either.ask(FLUSH) == (OK, b"")
    assert "fdatasync" in calls


def test_write_is_synced_before_its_answer_when_the_driver_cannot_flush(tmp_path):
    for features, synced in ((F_FLUSH, False), (0, True)):
        with bench_in(tmp_path, features=features) as bench:
            with host.inject(seen(calls := [])):
                assert bench.ask(OUT, 0, b"x" * 512) == (OK, b"")
            assert ("fdatasync" in calls) == synced


def test_zeroes_are_written_with_and_without_unmapping(either):
    for flags in (0, 1):
        assert either.ask(OUT, 0, b"x" * 16384)[0] == OK
        payload = segment(1, 9, flags) + segment(16, 1, flags)
        assert either.ask(WRITE_ZEROES, 0, payload) == (OK, b"")
        wanted = bytearray(b"x" * 16384)
        wanted[512:5120] = bytes(9 * 512)
        wanted[8192:8704] = bytes(512)
        assert either.ask(IN, 0, 16384) == (OK, bytes(wanted))


def test_discarded_range_reads_as_zeros_or_as_before(either):
    assert either.ask(DISCARD, 0, segment(8, 16)) == (OK, b"")
    status, data = either.ask(IN, 0, LENGTH // 2)
    assert status == OK
    assert data[:4096] == either.content[:4096]
    assert data[4096 : 3 * 4096] in {bytes(8192), either.content[4096 : 3 * 4096]}
    assert data[3 * 4096 :] == either.content[3 * 4096 : LENGTH // 2]


@pytest.mark.parametrize(
    ("kind", "sector", "buffers", "status"),
    [
        (IN, SECTORS, (512,), IOERR),
        (IN, SECTORS - 1, (1024,), IOERR),
        (IN, (1 << 64) - 1, (512,), IOERR),
        (IN, 0, (511,), IOERR),
        (IN, 0, (), OK),
        (IN, SECTORS, (), OK),
        (OUT, SECTORS, (b"x" * 512,), IOERR),
        (OUT, 1 << 63, (b"x" * 512,), IOERR),
        (OUT, 0, (b"x" * 513,), IOERR),
        (OUT, 0, (), OK),
        (2, 0, (512,), UNSUPP),
        (0xFFFF_FFFF, 0, (), UNSUPP),
        (DISCARD, 0, (), IOERR),
        (DISCARD, 0, (b"x" * 15,), IOERR),
        (DISCARD, 0, (segment(0, 8, 1),), UNSUPP),
        (DISCARD, 0, (segment(0, 8, 2),), UNSUPP),
        (DISCARD, 0, (segment(SECTORS, 1),), IOERR),
        (DISCARD, 0, (segment((1 << 64) - 1, 1),), IOERR),
        (DISCARD, 0, (segment(0, (1 << 32) - 1),), IOERR),
        (DISCARD, 0, (segment(0, 0),), OK),
        (DISCARD, 0, (segment(0, 1) * 32,), OK),
        (DISCARD, 0, (segment(0, 1) * 33,), IOERR),
        (WRITE_ZEROES, 0, (segment(0, 1, 4),), UNSUPP),
        (WRITE_ZEROES, 0, (segment(SECTORS - 1, 2),), IOERR),
    ],
)
def test_request_that_asks_wrongly_is_told_so_in_its_status(bench, kind, sector, buffers, status):
    assert bench.ask(kind, sector, *buffers)[0] == status
    assert bench.written == 1
    assert not bench.device.state.broken
    with open(bench.path, "rb") as file:
        unchanged = file.read() == bench.content
    assert unchanged or status == OK


def test_short_header_is_an_error_in_the_status(bench):
    head = bench.queue.add(header(IN)[:15], 513)
    bench.queue.kick()
    assert bench.queue.used() == [(head, 1)]
    assert bench.queue.answer(head)[-1] == IOERR
    head = bench.queue.add(513)
    bench.queue.kick()
    assert bench.queue.answer(head)[-1] == IOERR


def test_request_without_a_status_byte_fails_the_device(bench):
    bench.queue.add(header(OUT) + b"x" * 512)
    bench.queue.kick()
    assert bench.device.state.broken
    assert bench.seen.resets == 1
    assert bench.device.failure == "queue 0: request 0 has no status byte"
    bench.device.reset()
    assert not bench.device.state.broken


def test_kinds_that_were_not_negotiated_are_unsupported(tmp_path):
    with bench_in(tmp_path, features=F_FLUSH) as bench:
        assert bench.ask(DISCARD, 0, segment(0, 1))[0] == UNSUPP
        assert bench.ask(WRITE_ZEROES, 0, segment(0, 1))[0] == UNSUPP


def test_read_only_disk_says_so_and_takes_no_writing(tmp_path):
    with bench_in(tmp_path, readonly=True) as bench:
        assert bench.device.state.offered & F_RO
        assert not bench.device.state.offered & (F_DISCARD | F_WRITE_ZEROES)
        assert bench.ask(OUT, 0, b"x" * 512)[0] == IOERR
        assert bench.ask(FLUSH)[0] == OK
        assert bench.ask(IN, 0, 512) == (OK, bench.content[:512])


# Configuration


def test_configuration_space_says_what_the_state_says(bench):
    read = bench.device.read_config
    assert read(0, 8) == SECTORS
    assert read(0, 4) == SECTORS
    assert read(12, 4) == 254  # seg_max
    assert read(20, 4) == 512  # blk_size
    assert read(34, 2) == 1  # num_queues
    assert (read(36, 4), read(40, 4), read(44, 4)) == (1 << 22, 32, 8)
    assert (read(48, 4), read(52, 4), read(56, 1)) == (1 << 22, 32, 1)
    assert read(60, 4) == 0xFFFF_FFFF


def test_configuration_space_is_not_writable(bench):
    before = bench.device.config_space()
    for offset in range(70):
        bench.device.write_config(offset, 4, 0xFFFF_FFFF)
    assert bench.device.config_space() == before


# Batches, interrupts, the worker


def need_reads_that_do_not_wait(path):
    """Skip where the file system of *path* has none: tmpfs, overlayfs; the device then reads by its worker."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return  # it knows the flag, and the page is not in memory
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"the file system of {path} lacks preadv2(RWF_NOWAIT)")
    finally:
        os.close(fd)


def test_cached_reads_are_answered_on_the_spot_with_one_interrupt(bench):
    need_reads_that_do_not_wait(bench.path)
    for _ in range(2):
        heads = [bench.queue.add(header(IN, number), 512, 1) for number in range(20)]
        bench.queue.kick()
        if len(bench.seen.queues) == 1:  # the first round may have found a page that was not there
            assert bench.queue.used() == [(head, 513) for head in heads]
            return
        bench.end()
        bench.queue.used()
        bench.seen.queues.clear()
    pytest.fail("the page cache does not answer RWF_NOWAIT here")


def test_driver_that_wants_no_interrupt_gets_none(bench):
    bench.queue.put16(bench.queue.avail, 1)
    assert bench.ask(GET_ID, 0, 20)[0] == OK
    assert bench.seen.queues == []


def test_one_turn_reads_so_much_on_the_spot_and_leaves_the_rest_to_the_worker(tmp_path):
    with bench_in(tmp_path) as bench:
        per_request = LENGTH
        for _ in range(INLINE_LEN // per_request + 3):
            bench.queue.add(header(IN), (0x20_0000, per_request, True), 1)
        bench.queue.kick()
        answered = len(bench.queue.used())
        bench.end()
        assert answered + len(bench.queue.used()) == INLINE_LEN // per_request + 3
        assert answered <= INLINE_LEN // per_request


def serve_loop(bench, count):
    """Run the machine's loop in this thread until *count* requests came back, at most 30 s; returns them."""
    loop = Loop()
    used: list[tuple[int, int]] = []
    deadline = host.monotonic_ns() + 30 * 10**9

    def look():
        used.extend(bench.queue.used())
        if len(used) >= count or host.monotonic_ns() > deadline:
            loop.stop()
        else:
            loop.call_at(host.monotonic_ns() + 1_000_000, look)

    with loop:
        bench.device.connect(loop, bench.lock)
        with bench.lock:
            bench.device.run()
        look()
        loop.run()
        bench.device.disconnect()
        bench.device.disconnect()
    return used


def test_worker_and_loop_complete_what_waits(either):
    heads = [either.queue.add(header(OUT, number), bytes([number]) * 512, 1) for number in range(50)]
    assert [head for head, _ in serve_loop(either, 50)] == heads
    assert either.ask(IN, 7, 1024) == (OK, b"\7" * 512 + b"\10" * 512)
    assert 0 < len(either.seen.queues) <= 51


def test_requests_through_thread_and_loop_hold_what_a_plain_array_would(either):
    """Batches of requests that do not touch each other, half of the reads from a page cache that was emptied."""
    rng, model = random.Random(11), bytearray(either.content)
    loop = Loop()
    either.device.connect(loop, either.lock)
    for _round in range(40):
        if rng.random() < 0.5:
            for layer in either.disk._layers:
                os.fdatasync(layer.fd)
                os.posix_fadvise(layer.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        wanted: dict[int, bytes] = {}
        for slot in rng.sample(range(32), 12):
            sector, count = slot * 8 + rng.randrange(4), rng.randint(1, 4)
            start, stop = sector * 512, (sector + count) * 512
            if rng.random() < 0.5:
                wanted[either.queue.add(header(IN, sector), stop - start, 1)] = bytes(model[start:stop]) + bytes([OK])
            else:
                payload = rng.randbytes(stop - start)
                wanted[either.queue.add(header(OUT, sector), payload, 1)] = bytes([OK])
                model[start:stop] = payload
        with either.lock:
            either.device.kick(0)
        got: dict[int, bytes] = {}
        while len(got) < len(wanted):
            loop._step()  # blocks until the worker rings; a test that hangs is ended by its time limit
            got |= {head: either.queue.answer(head) for head, _ in either.queue.used()}
        assert got == wanted
    either.device.disconnect()
    loop.close()
    assert either.ask(IN, 0, LENGTH) == (OK, bytes(model))


class Gated:
    """An image whose operations are logged, and wait while the gate is closed."""

    def __init__(self, image):
        self.image, self.length = image, image.length
        self.log: list[str] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def read_now(self, *_):
        return False

    def __getattr__(self, name):
        def logged(*arguments, **options):
            self.log.append(name)
            self.begun.set()
            assert self.gate.wait(30)
            getattr(self.image, name)(*arguments, **options)

        return logged


@pytest.fixture
def gated(bench):
    bench.image = Gated(bench.disk.image)
    bench.disk.image = bench.image
    return bench


def test_flush_comes_after_the_writes_before_it(gated):
    for number in range(3):
        gated.queue.add(header(OUT, number), b"x" * 512, 1)
    flush = gated.queue.add(header(FLUSH), 1)
    gated.queue.kick()
    gated.end()
    assert gated.image.log == ["write"] * 3 + ["flush"]
    assert gated.queue.used()[-1] == (flush, 1)


def test_reset_waits_for_the_request_at_hand_and_drops_the_others(gated):
    loop = Loop()
    gated.device.connect(loop, gated.lock)
    gated.image.gate.clear()
    spots = [gated.queue.place(512) for _ in range(3)]
    for spot in spots:
        gated.queue.add(header(IN), (spot, 512, True), 1)
    gated.queue.kick()
    assert gated.image.begun.wait(30)
    opened = opened_by_cancel(gated.disk.worker, gated.image.gate)
    with gated.lock:
        gated.device.reset()
    assert gated.image.gate.is_set(), "reset did not wait"
    opened.join(30)
    for spot in spots:
        gated.memory.write(spot, b"\xaa" * 512)
    ring = gated.memory.read(gated.queue.ring, 64)
    gated.disk.worker.drain()
    gated.device.disconnect()
    loop.close()
    assert gated.image.log == ["read"]
    assert all(gated.memory.read(spot, 512) == b"\xaa" * 512 for spot in spots)
    assert gated.memory.read(gated.queue.ring, 64) == ring


def test_device_serves_again_after_a_reset_in_flight(gated):
    gated.queue.add(header(IN), 512, 1)
    gated.queue.kick()
    gated.device.reset()
    _, (gated.queue,) = drive(gated.device, gated.memory, features=EVERYTHING, area_len=3 << 20)
    assert gated.ask(IN, 1, 512) == (OK, gated.content[512:1024])


def test_driver_with_more_in_flight_than_its_queue_has_entries_fails(tmp_path):
    with bench_in(tmp_path, sizes={0: 8}) as bench:
        bench.disk.image = Gated(bench.disk.image)
        head = bench.queue.add(header(IN), 512, 1)
        for _ in range(20):
            bench.queue.kick()
            bench.queue.offer(head)
        bench.queue.kick()
        assert bench.device.state.broken
        assert bench.seen.resets == 1


def test_worker_that_cannot_start_or_be_watched_leaves_nothing_behind(bench):
    before = sorted(os.listdir("/proc/self/fd"))
    for call in ("eventfd", "epoll_control"):
        loop = Loop()
        with host.inject(failing(call)), pytest.raises(HostError):
            bench.device.connect(loop, bench.lock)
        loop.close()
        bench.device.disconnect()
        assert sorted(os.listdir("/proc/self/fd")) == before
    assert bench.ask(IN, 0, 512)[0] == OK


# Saving and restoring


def restored(bench, state, overrides=None):
    bench.device.close()
    bench.disk = reopen_disk(state.host, overrides or DiskOverrides(), ident="root", capacity=state.capacity)
    bench.args = BlockArgs(bench.memory, bench.disk, lambda: bench.now_ns)
    bench.device = VirtioBlock.restore(state, bench.args)
    bench.device.bind(bench.seen)
    bench.device.resync()
    bench.device.activate()
    bench.queue.kick = lambda: bench.device.kick(0)


def test_save_finishes_what_is_in_flight_and_records_the_synced_image(either):
    heads = [either.queue.add(header(OUT, number), b"s" * 512, 1) for number in range(5)]
    either.queue.kick()
    calls = []
    with host.inject(lambda call, _arguments: calls.append(call)):
        either.device.prepare_save()
    assert [head for head, _ in either.queue.used()] == heads
    assert calls.index("fdatasync") > calls.index("pwritev")
    state = either.device.save()
    found = os.stat(state.host.layers[-1].path)
    layer = state.host.layers[-1]
    assert (layer.length, layer.mtime_ns, layer.inode) == (found.st_size, found.st_mtime_ns, found.st_ino)
    assert invariants(state, "virtio-block/root") == []


def test_saved_device_goes_on_where_it_was_with_a_doorbell_unheard(either):
    assert either.ask(OUT, 0, b"before" * 256)[0] == OK
    head = either.queue.add(header(IN, 0), 1536, 1)  # rung, never served
    either.device.prepare_save()
    state = either.device.save()
    either.device.prepare_save()
    assert encode(either.device.save()) == encode(state), "saved twice"
    restored(either, state)
    assert encode(either.device.save()) == encode(state)
    either.device.run()
    either.end()
    assert either.queue.used() == [(head, 1537)]
    assert either.queue.answer(head) == b"before" * 256 + bytes([OK])
    assert either.ask(OUT, 3, b"x" * 512)[0] == OK


def test_guest_that_knows_its_disk_as_writable_gets_errors_when_it_is_not(bench):
    bench.device.prepare_save()
    restored(bench, bench.device.save(), DiskOverrides(readonly=True))
    assert bench.ask(OUT, 0, b"x" * 512)[0] == IOERR
    assert bench.ask(WRITE_ZEROES, 0, segment(0, 1))[0] == IOERR
    assert bench.ask(FLUSH)[0] == OK
    bench.device.prepare_save()
    assert bench.device.save().host.readonly


def test_accepted_image_of_another_capacity_is_announced(bench):
    bench.device.prepare_save()
    state = bench.device.save()
    os.truncate(bench.path, LENGTH // 2)
    restored(bench, state, DiskOverrides(accept_changed=True))
    assert bench.seen.configs == 1
    assert bench.device.read_config(0, 8) == SECTORS // 2
    assert bench.ask(OUT, SECTORS // 2, b"x" * 512)[0] == IOERR
    assert os.stat(bench.path).st_size == LENGTH // 2


def test_save_fails_when_the_image_cannot_be_synced(bench):
    bench.ask(OUT, 0, b"x" * 512)
    with host.inject(failing("fdatasync")), pytest.raises(HostError) as failed:
        bench.device.prepare_save()
    assert "disk root" in failed.value.__notes__[0]


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("capacity", 1 << 60, "capacity"),
        ("blk_size", 300, "blk_size"),
        ("blk_size", 8192, "blk_size"),
        ("seg_max", 0, "seg_max"),
        ("serial", b"a\0", "serial"),
        ("acked", 1 << 63, "acked"),
    ],
)
def test_state_that_no_disk_could_hold_is_refused_by_its_path(bench, field, value, path):
    state = checked(bench.device.state)
    setattr(state, field, value)
    with pytest.raises(ImageError) as refused:
        VirtioBlock.restore(state, bench.args)
    assert f"virtio-block.{path} is " in str(refused.value)


def test_layers_in_the_wrong_order_are_refused_by_their_path(bench):
    state = checked(bench.device.state)
    state.host.layers = state.host.layers * 2
    state.host.layers[0].path = "a\0b"
    assert [finding.path for finding in invariants(state, "x")] == [
        "host.layers[0].path",
        "host.layers[1].format",
        "host.layers[1].path",
    ]


def test_another_disk_takes_the_place_of_this_one_while_it_runs(bench, tmp_path):
    other = tmp_path / "other.img"
    other.write_bytes(b"o" * 1024)
    assert bench.ask(OUT, 0, b"x" * 512)[0] == OK
    old = bench.device.replace(open_disk(DiskOptions(id="root", path=str(other))))
    assert old is bench.disk
    old.close()
    bench.disk = bench.device.backend
    assert bench.seen.configs == 1
    assert bench.ask(IN, 0, 1024) == (OK, b"o" * 1024)
    assert bench.ask(IN, 2, 512)[0] == IOERR
    assert bench.device.state.host.layers[0].path == str(other)


def test_disk_is_replaced_under_a_running_loop(bench, tmp_path):
    other = tmp_path / "other.img"
    other.write_bytes(b"o" * LENGTH)
    loop = Loop()
    bench.device.connect(loop, bench.lock)
    new = open_disk(DiskOptions(id="root", path=str(other)))
    with host.inject(failing("eventfd")), pytest.raises(HostError):
        bench.device.replace(new)
    assert bench.device.backend is bench.disk
    bench.device.replace(new).close()
    assert bench.disk.worker.done_fd == -1
    bench.disk = new
    bench.queue.add(header(OUT, 1), b"x" * 512, 1)
    bench.queue.kick()
    bench.end()
    bench.device.disconnect()
    loop.close()
    assert other.read_bytes()[512:1024] == b"x" * 512


# Rate limits


def test_rate_limit_holds_requests_back_and_gives_them_back_to_the_ring(bench):
    bench.device.limit(LimitConfig(ops=BucketConfig(size=2, refill_time=1000)))
    heads = [bench.queue.add(header(IN, number), 512, 1) for number in range(5)]
    bench.queue.kick()
    bench.end()
    assert [head for head, _ in bench.queue.used()] == heads[:2]
    assert bench.device.state.queues[0].next_avail == 2
    bench.device.prepare_save()
    assert bench.device.save().limiter.ops is not None
    bench.now_ns += 5000 * 10**6  # while it is saved no time passes for it
    bench.device.run()
    bench.end()
    assert bench.queue.used() == []
    bench.now_ns += 1000 * 10**6
    bench.end()
    assert [head for head, _ in bench.queue.used()] == heads[2:4]
    bench.device.limit(LimitConfig(ops=BucketConfig(size=0, refill_time=0)))
    bench.end()
    assert [head for head, _ in bench.queue.used()] == heads[4:]


def test_what_a_rate_limit_held_back_goes_on_by_itself(tmp_path):
    with bench_in(tmp_path) as bench:
        bench.device.limiter._clock = host.monotonic_ns
        bench.device.limit(LimitConfig(ops=BucketConfig(size=1, refill_time=20)))
        for number in range(4):
            bench.queue.add(header(IN, number), 512, 1)
        assert len(serve_loop(bench, 4)) == 4


# Faults of the host


def failing(name, number=errno.EIO):
    def hook(call, _arguments):
        if call == name:
            raise OSError(number, "injected")

    return hook


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_error_of_the_host_is_an_io_error_of_the_guest(either, error):
    requests: list[tuple[int, int, Any]] = [
        (IN, 0, 512),
        (OUT, 8, b"x" * 512),
        (FLUSH, 0, 0),
        (WRITE_ZEROES, 0, segment(16, 16)),
        (DISCARD, 0, segment(32, 8)),
    ]
    for kind, sector, buffer in requests:
        calls: list[str] = []
        with host.inject(seen(calls)):
            assert either.ask(kind, sector, buffer)[0] == OK
        assert calls
        for number, call in enumerate(
            sorted(set(calls), reverse=True)
        ):  # a sync last: once it failed it fails for ever
            assert either.ask(OUT, 64 + 8 * kind, b"y" * 512)[0] == OK  # something to flush
            again = segment(128 + 16 * number, 16) if kind > GET_ID else buffer
            with host.inject(failing(call, error)):
                assert either.ask(kind, sector + 96 + 8 * number, again)[0] == IOERR
            assert either.device.last_error.errno == error
            assert either.ask(kind, sector + 96 + 8 * number, again)[0] == (IOERR if call == "fdatasync" else OK)
    assert not either.device.state.broken
    assert either.device.io_errors > 3


def test_image_that_was_cut_short_is_an_io_error(bench):
    os.truncate(bench.path, 1024)
    assert bench.ask(IN, 1, 1024)[0] == IOERR
    assert bench.ask(IN, 0, 1024) == (OK, bench.content[:1024])


def test_file_system_that_cannot_tell_what_is_cached_is_read_by_the_worker(bench):
    def hook(call, arguments):
        if call == "preadv" and arguments[-1]:
            raise OSError(errno.EOPNOTSUPP, "injected")

    with host.inject(hook):
        assert bench.ask(IN, 0, 512) == (OK, bench.content[:512])


# Properties


def layouts(total):
    """Give ways to cut *total* bytes into buffers."""
    return st.lists(st.integers(1, max(1, total - 1)), max_size=4).map(
        lambda cuts: [
            end - start
            for start, end in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), total], strict=True)
            if end > start
        ]
    )


@st.composite
def requests(draw):
    kind = draw(st.sampled_from([IN, IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES]))
    sector = draw(st.integers(0, SECTORS - 1))
    sectors = draw(st.integers(1, min(40, SECTORS - sector)))
    cuts = draw(layouts(sectors * 512)) if kind in {IN, OUT} else []
    return SimpleNamespace(kind=kind, sector=sector, sectors=sectors, cuts=cuts, fill=draw(st.integers(0, 255)))


def buffers_of(request):
    if request.kind == IN:
        return request.cuts
    if request.kind == OUT:
        return [bytes([request.fill]) * length for length in request.cuts]
    return [segment(request.sector, request.sectors)] if request.kind in {DISCARD, WRITE_ZEROES} else []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batches=st.lists(st.lists(requests(), min_size=1, max_size=6), max_size=8),
    overlay=st.booleans(),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    save_after=st.integers(0, 8),
)
def test_random_requests_hold_what_a_plain_array_would(
    tmp_path_factory, batches, overlay, event_idx, indirect, save_after
):
    with bench_in(tmp_path_factory.mktemp("b"), overlay=overlay, event_idx=event_idx, indirect=indirect) as bench:
        model = bytearray(bench.content)
        for number, batch in enumerate(batches):
            for request in batch:  # one after another: the device may reorder what is in flight together
                start, stop = request.sector * 512, (request.sector + request.sectors) * 512
                status, data = bench.ask(request.kind, request.sector, *buffers_of(request))
                assert status == OK
                if request.kind == IN:
                    assert data == model[start:stop]
                elif request.kind == OUT:
                    model[start:stop] = bytes([request.fill]) * (stop - start)
                elif request.kind == WRITE_ZEROES:
                    model[start:stop] = bytes(stop - start)
                elif request.kind == DISCARD:
                    model[start:stop] = bench.ask(IN, request.sector, stop - start)[1]
            if number == save_after:
                bench.device.prepare_save()
                restored(bench, bench.device.save())
        assert bench.ask(IN, 0, LENGTH) == (OK, bytes(model))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    chains=st.lists(
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.integers(0, 600),
                st.builds(header, st.integers(0, 15), st.integers(0, 300)),
                st.builds(header, st.sampled_from([IN, OUT, DISCARD]), st.integers(0, (1 << 64) - 1)),
                st.builds(segment, st.integers(0, 300), st.integers(0, 300), st.integers(0, 3)),
                st.tuples(st.integers(0, 1 << 64 - 1), st.integers(0, (1 << 32) - 1), st.booleans()),
            ),
            min_size=1,
            max_size=5,
        ),
        max_size=10,
    )
)
def test_garbage_neither_raises_nor_leaves_the_guests_memory(tmp_path_factory, chains):
    with bench_in(tmp_path_factory.mktemp("g")) as bench:
        for chain in chains:
            bench.queue.add(*chain)
            bench.queue.kick()
            bench.end()
            assert all(written <= 1 << 32 for _, written in bench.queue.used())
            if bench.device.state.broken:
                bench.device.reset()
                _, (bench.queue,) = drive(bench.device, bench.memory, features=EVERYTHING, area_len=3 << 20)
        assert bench.ask(GET_ID, 0, 20)[0] == OK
        assert os.stat(bench.path).st_size == LENGTH
