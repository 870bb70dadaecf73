"""virtio under KVM, where it touches the host: memory that is given back, sockets, and the files of disks."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapkit import host_memory
from snapkit.errors import ConfigError, IncompatibleHost
from snapkit.vmm.parts.fresh import Asked, Transport
from tests.kvm.commands import finished
from tests.kvm.harness import Census
from tests.kvm.poker import Poker
from tests.kvm.virtio_bench import CONTENT, F_FLUSH, IN, OUT, Bench, bench_of, disk, sector

# Balloon


def test_pages_in_the_balloon_leave_the_process_and_read_as_zeros(tmp_path: Path, transport: Transport) -> None:
    first, pages = 0x28_0000, 128
    with bench_of(transport, tmp_path, Asked("virtio-balloon", "balloon")) as bench:
        inflate, _deflate, *_ = bench.start()

        def resident() -> int:
            own, filed = host_memory.count_pages(bench.memory.hva(first, pages * 4096), pages * 4096)
            return own + filed

        for again in (False, True):
            bench.memory.write(first, b"x" * 4096 * pages)
            if again:  # now the pages are the file's
                bench.again()
                assert bench.poker.read32(first + 4096) == 0x7878_7878
            else:
                assert resident() == pages
            head = inflate.add(struct.pack(f"<{pages}I", *range(first >> 12, (first >> 12) + pages)))
            bench.notify(0)
            bench.wait(0)
            assert inflate.used() == [(head, 0)]
            assert resident() == 0
            assert [bench.poker.read32(first + 4096 * page) for page in (0, 1, pages - 1)] == [0, 0, 0]
            assert bench.poker.read32(first + 4096 * pages) == 0
            bench.poker.write32(first, 7)
            assert bench.poker.read32(first) == 7


# Sockets


class Calls:
    """A guest's side of its socket device: eight buffers on rx, one on event."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rx, self.tx, self.event = bench.start()
        self.told: list[tuple[int, ...]] = []
        self.data = b""
        for _ in range(8):
            self.rx.add(1024)
        self.event.add(4)
        for index in (0, 2):
            bench.notify(index)

    def send(self, op: int, guest_port: int, host_port: int, payload: bytes = b"") -> None:
        header = struct.pack("<QQIIIHHIII", 3, 2, guest_port, host_port, len(payload), 1, op, 0, 65536, 0)
        self.tx.add(header + payload)
        self.bench.notify(1)

    def hear(self, op: int) -> tuple[int, ...]:
        """Wait for a packet *op* and take it; what data came before it is kept."""

        def there() -> bool:
            for head, written in self.rx.used():
                packet = self.rx.answer(head)[:written]
                self.told.append(struct.unpack("<QQIIIHHIII", packet[:44]))
                self.data += packet[44:]
            return any(packet[6] == op for packet in self.told)

        self.bench.until(there, f"packet {op}")
        at = next(number for number, packet in enumerate(self.told) if packet[6] == op)
        return self.told.pop(at)

    def connected(self, client: socket.socket, port: int) -> int:
        """Have a program of the host connected to *port*; returns its own port."""
        client.send(b"CONNECT %d\n" % port)
        asked = self.hear(1)
        assert (asked[0], asked[1], asked[3]) == (2, 3, port)
        self.send(2, port, asked[2])
        assert self.received(client, 5 + len(str(asked[2])) - 1) == b"OK %d\n" % asked[2]
        return asked[2]

    def received(self, client: socket.socket, length: int) -> bytes:
        """What comes to the host's program: *length* bytes, or less at the end."""
        found = b""
        over = False

        def there() -> bool:
            nonlocal found, over
            try:
                more = client.recv(length - len(found))
            except BlockingIOError:
                return False
            found += more
            over = not more
            return over or len(found) == length

        self.bench.until(there, f"{length} bytes")
        return found


@contextmanager
def client_of(uds: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(uds))
        client.setblocking(False)
        yield client


def test_the_host_reaches_the_guest_and_both_ends_learn_of_a_restore(tmp_path: Path, transport: Transport) -> None:
    uds = tmp_path / "v.sock"
    device = Asked("virtio-vsock", "v0", {"cid": "3", "uds": str(uds)})
    with bench_of(transport, tmp_path, device) as bench:
        guest = Calls(bench)
        assert bench.registers.config(0, 4) == 3
        with client_of(uds) as client:
            port = guest.connected(client, 7)
            client.send(b"to the guest")
            guest.hear(5)
            assert guest.data == b"to the guest"
            guest.send(5, 7, port, b"to the host")
            assert guest.received(client, 11) == b"to the host"
            assert guest.event.used() == []
            bench.again()
            assert guest.received(client, 1) == b"", "the host's program is cut off"
        bench.until(lambda: guest.event.last_used != guest.event.u16(guest.event.ring + 2), "the transport reset")
        ((head, written),) = guest.event.used()
        assert (written, guest.event.answer(head)) == (4, bytes(4)), "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET"
        guest.send(5, 7, port, b"who?")
        assert guest.hear(3)[2:4] == (port, 7), "what is left of the connection is reset"
        with client_of(uds) as client:
            assert guest.connected(client, 8) != port


# Files


def test_an_image_that_has_changed_is_refused_by_name_and_accepted_when_told(block: Bench, image: Path) -> None:
    (queue,) = block.start(F_FLUSH)
    path = block.poker.save()
    block.poker.close()
    with image.open("r+b") as file:
        file.write(b"changed!" * 64)
    os.utime(image, ns=(1, 1))
    with pytest.raises(IncompatibleHost, match="disk root is not as it was saved") as refused:
        block.poker.restore(path)
    assert str(image) in str(refused.value)
    block.poker.close()
    block.poker.restore(path, {"root": {"accept_changed": True}})
    assert block.ask(queue, IN, 0, 512) == b"changed!" * 64 + b"\0"


def test_a_changed_or_missing_image_is_exit_code_4(tmp_path: Path, image: Path) -> None:
    with bench_of("pci", tmp_path, disk(image)) as bench:
        path = bench.poker.save()
    image.write_bytes(CONTENT + bytes(512))
    ran = finished("restore", path, "--timeout", "60")
    assert (ran.returncode, "virtio-block/root.host.layers[0].length" in ran.stderr) == (4, True)
    image.unlink()
    ran = finished("restore", path, "--timeout", "60")
    assert (ran.returncode, str(image) in ran.stderr) == (4, True)
    assert "Traceback" not in ran.stderr


def test_a_second_writer_is_refused_and_told_who_has_the_image(block: Bench, tmp_path: Path, image: Path) -> None:
    path = block.poker.save()
    other = Poker(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by this process, pid {os.getpid()}"):
        other.restore(path)
    other.close()
    ran = finished("restore", path, "--timeout", "60")
    assert ran.returncode == 2
    assert f"pid {os.getpid()}" in ran.stderr
    assert str(image) in ran.stderr


def test_clones_with_overlays_run_at_once_and_their_disks_diverge(
    transport: Transport, tmp_path: Path, image: Path
) -> None:
    with bench_of(transport, tmp_path, disk(image)) as bench:
        (queue,) = bench.start(F_FLUSH)
        assert bench.ask(queue, OUT, 1, b"before".ljust(512, b".")) == b"\0"
        path = bench.poker.save()
    before = image.read_bytes()
    pokers = [Poker(tmp_path) for _ in range(3)]
    try:
        clones = []
        for poker in pokers:
            poker.restore(path, {"root": {"overlay": str(tmp_path)}})
            clone = Bench(poker, bench.asked, transport)
            clones.append((clone, clone.adopt(queue)))
        for number, (clone, rings) in enumerate(clones):
            assert clone.ask(rings, OUT, 2, bytes([number]) * 512) == b"\0"
        for number, (clone, rings) in enumerate(clones):
            written = b"before".ljust(512, b".") + bytes([number]) * 512
            assert clone.ask(rings, IN, 1, 1536) == written + sector(3) + b"\0"
    finally:
        for poker in pokers:
            poker.close()
    assert image.read_bytes() == before
    assert len(list(tmp_path.glob("*.overlay"))) == 3


def test_machines_with_every_device_leave_nothing_behind(
    transport: Transport, tmp_path: Path, image: Path, census: Census
) -> None:
    socket_device = Asked("virtio-vsock", "v0", {"cid": "3", "uds": str(tmp_path / "v.sock")})
    more = (Asked("virtio-rng", "rng"), Asked("virtio-balloon", "balloon"), socket_device)
    with bench_of(transport, tmp_path, disk(image), *more) as bench:
        (queue,) = bench.start(F_FLUSH)
        bench.again()
        assert bench.ask(queue, IN, 0, 512) == CONTENT[:512] + b"\0"
    census.check()
    assert not (tmp_path / "v.sock").exists()
