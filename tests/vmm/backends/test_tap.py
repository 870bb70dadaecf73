"""A real TAP, in a network namespace of the test's own: opened, refused, and packets both ways through a whole card."""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

import pytest

from snapkit import host, host_net
from snapkit.errors import ConfigError, HostError, IncompatibleHost
from snapkit.units import MIB
from snapkit.vmm.backends.tap import Tap
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.virtio_net import NetArgs, NetOptions, VirtioNet, fresh_state
from tests.vmm.virtio.driver import drive

TUN = "/dev/net/tun"
CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE = 1, 2, 0x1000, 0x100
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU, SIOCSARP = 0x8914, 0x8916, 0x891C, 0x8922, 0x8955
IFF_UP, ATF_COM, ATF_PERM = 1, 2, 4
HOST_IP, GUEST_IP = "10.77.0.1", "10.77.0.2"
GUEST_MAC = bytes.fromhex("021122334455")
GUEST_CSUM, GUEST_TSO4, MRG_RXBUF = 1 << 1, 1 << 7, 1 << 15
NEEDS_CSUM = 1
PATIENCE_S = 20.0


def need_tun(reason: str) -> None:
    """Skip, naming what is missing, or fail where SNAPKIT_REQUIRE says that it must be there."""
    if "kvm" in os.environ.get("SNAPKIT_REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and SNAPKIT_REQUIRE asks for it")
    pytest.skip(reason)


@pytest.fixture
def inside() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Run a function in a network namespace that ends with the test: a namespace is a thread's own."""
    if not os.access(TUN, os.R_OK | os.W_OK):
        need_tun(f"{TUN} is missing or may not be opened")
    libc = ctypes.CDLL(None, use_errno=True)
    with ThreadPoolExecutor(1) as thread:
        if thread.submit(libc.unshare, CLONE_NEWNET).result():
            need_tun("a network namespace may not be made here")
        yield lambda function: thread.submit(function).result(60)


class Net:
    """The namespace's interfaces, changed by ioctl; SIOC calls of an operator's ip(8)."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def make(self, name: str, flags: int = IFF_TAP | IFF_NO_PI) -> None:
        fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
        os.close(fd)

    def set(self, name: str, request: int, payload: bytes) -> None:
        fcntl.ioctl(self.socket, request, struct.pack("16s24s", name.encode(), payload))

    def raise_up(self, name: str) -> None:
        """Give the interface the host's address, bring it up, and tell the kernel where the guest is, for good: carrier changes."""
        address = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(HOST_IP))
        self.set(name, SIOCSIFADDR, address)
        self.set(name, SIOCSIFNETMASK, struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton("255.255.255.0")))
        self.set(name, SIOCSIFFLAGS, struct.pack("=H", IFF_UP))
        guest = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(GUEST_IP))
        hardware = struct.pack("=H6s8x", 1, GUEST_MAC)
        fcntl.ioctl(
            self.socket,
            SIOCSARP,
            struct.pack("=16s16si16s16s", guest, hardware, ATF_COM | ATF_PERM, b"", name.encode()),
        )

    def open(self, name: str) -> Tap:
        """Make, open and bring up a TAP. In this order: a carrier that comes later is noticed up to a second later."""
        self.make(name)
        tap = Tap.open(name, who="virtio-net/eth0")
        self.raise_up(name)
        return tap


def checksum(payload: bytes) -> int:
    """RFC 1071, over an even number of bytes or as if a zero followed."""
    total: int = sum(struct.unpack(f">{(len(payload) + 1) // 2}H", payload + bytes(len(payload) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def udp_frame(payload: bytes, to_mac: bytes) -> bytes:
    """An Ethernet frame with a datagram from the guest's port 5 to the host's port 7."""
    datagram = struct.pack(">HHHH", 5, 7, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(GUEST_IP) + socket.inet_aton(HOST_IP)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0) + ends
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return to_mac + GUEST_MAC + b"\x08\x00" + header + datagram


def is_udp(frame: bytes) -> bool:
    """Whether the kernel sent it for the test; it also announces itself by IPv6."""
    return frame[12:14] == b"\x08\x00" and frame[23] == 17


def mac_of(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        return fcntl.ioctl(asker, 0x8927, struct.pack("16s24x", name.encode()))[18:24]  # SIOCGIFHWADDR


def test_a_tap_is_opened_with_what_it_can_do(inside):
    def body() -> None:
        with Net() as net:
            net.make("tap0")
            net.set("tap0", SIOCSIFMTU, struct.pack("=i", 1400))
            tap = Tap.open("tap0", who="virtio-net/eth0")
            assert (tap.name, tap.mtu) == ("tap0", 1400)
            assert tap.offloads & 7 == 7
            assert not os.get_blocking(tap.fd)
            assert not os.get_inheritable(tap.fd)
            tap.set_offload(tap.offloads)
            with pytest.raises(HostError, match=r"TUNSETOFFLOAD.*EINVAL"):
                tap.set_offload(0x8000)
            tap.close()
            tap.close()
            Tap.open("tap0", who="virtio-net/eth0").close()

    inside(body)


def test_a_tap_that_cannot_be_had_is_refused_by_name_and_nothing_stays_open(inside):
    def body() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        with Net() as net:
            net.make("tap0")
            net.make("tun0", IFF_TUN | IFF_NO_PI)
            net.make("many0", IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE)
            with pytest.raises(ConfigError, match="virtio-net/eth0 wants TAP tap9, which does not exist"):
                Tap.open("tap9", who="virtio-net/eth0")
            assert host_net.interface_index("tap9") == 0, "asking for it must not make it"
            first = Tap.open("tap0", who="virtio-net/eth0")
            with pytest.raises(ConfigError, match="tap0, which another process has open"):
                Tap.open("tap0", who="virtio-net/eth1")
            first.close()
            for name in ("lo", "tun0", "many0"):
                with pytest.raises(ConfigError, match=f"{name}, which is no TAP"):
                    Tap.open(name, who="virtio-net/eth0")
        assert sorted(os.listdir("/proc/self/fd")) == before

    inside(body)


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", "..", "a:1", "täp", "a\n"])
def test_a_name_that_no_interface_can_have_is_refused_before_any_call(name):
    before = host.calls_made()
    with pytest.raises(ConfigError, match="virtio-net/eth0 wants TAP"):
        Tap.open(name, who="virtio-net/eth0")
    assert host.calls_made() == before


def test_a_restore_without_its_tap_is_told_which_and_takes_another(inside):
    state = fresh_state(NetOptions("eth0", "gone0"), mac=GUEST_MAC, offloads=7)

    def body() -> None:
        with Net() as net:
            net.make("tap0")
            with pytest.raises(IncompatibleHost, match="gone0") as refused:
                Tap.claim(state, "virtio-net/eth0")
            assert [(each.component, each.path) for each in refused.value.findings] == [("virtio-net/eth0", "host.tap")]
            Tap.claim(state, "virtio-net/eth0", tap="tap0").close()

    inside(body)


def test_a_restore_needs_the_offloads_that_the_guest_counts_on(inside):
    state = fresh_state(NetOptions("eth0", "tap0"), mac=GUEST_MAC, offloads=7)
    state.acked = GUEST_CSUM | GUEST_TSO4

    def refuse(name: str, arguments: tuple[object, ...]) -> None:
        if name == "TUNSETOFFLOAD" and isinstance(arguments[1], int) and arguments[1] & 2:
            raise OSError(errno.EINVAL, "no")

    def body() -> None:
        with Net() as net:
            net.make("tap0")
            with host.inject(refuse), pytest.raises(IncompatibleHost, match="tap0, without 0x2"):
                Tap.claim(state, "virtio-net/eth0")
            Tap.claim(state, "virtio-net/eth0").close()

    inside(body)


@pytest.mark.parametrize(
    "call", ["open_fd", "TUNSETIFF", "TUNSETVNETHDRSZ", "TUNSETOFFLOAD", "SIOCGIFMTU", "_control_socket"]
)
def test_a_call_that_fails_leaves_nothing_open(inside, call):
    def fail(name: str, _arguments: tuple[object, ...]) -> None:
        if name == call:
            raise OSError(errno.ENOMEM, "injected")

    def body() -> None:
        with Net() as net:
            net.make("tap0")
            before = sorted(os.listdir("/proc/self/fd"))
            with host.inject(fail), pytest.raises(HostError, match="ENOMEM"):
                Tap.open("tap0", who="virtio-net/eth0")
            assert sorted(os.listdir("/proc/self/fd")) == before

    inside(body)


class Guest:
    """A card on a real TAP and a real loop, which runs in a thread; the test is the driver."""

    def __init__(self, tap: Tap, *, features: int) -> None:
        self.memory = GuestMemory([(0, 4 * MIB)])
        self.lock = threading.Lock()
        self.loop = Loop()
        self._parts: list[bytes] = []
        self._frames: deque[tuple[bytes, bytes]] = deque()
        state = fresh_state(NetOptions("eth0", tap.name), mac=GUEST_MAC, offloads=tap.offloads)
        self.device = VirtioNet.restore(state, NetArgs(self.memory, tap))
        self.device.connect(self.loop, self.lock)
        with self.lock:
            seen, (self.rx, self.tx) = drive(self.device, self.memory, features=features)
            self.device.bind(seen, lambda index: self.loop.post(lambda: self.kick(index)))
            self.device.run()
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.post(self.loop.stop)
        self.thread.join()
        self.device.disconnect()
        with self.lock:
            self.device.close()
        self.loop.close()
        self.memory.close()

    def kick(self, index: int) -> None:
        with self.lock:
            self.device.kick(index)

    def offer(self, count: int, length: int) -> None:
        with self.lock:
            for _ in range(count):
                self.rx.add(length)
        self.loop.post(lambda: self.kick(0))

    def receive(self) -> tuple[bytes, bytes]:
        """Wait for a datagram's frame; returns its virtio-net header and itself."""
        _wait(self._look)
        return self._frames.popleft()

    def _look(self) -> bool:
        with self.lock:
            self._parts += [self.rx.answer(head)[:written] for head, written in self.rx.used()]
        while self._parts and len(self._parts) >= (count := struct.unpack_from("<H", self._parts[0], 10)[0]):
            whole = b"".join(self._parts[:count])
            del self._parts[:count]
            if is_udp(whole[12:]):
                self._frames.append((whole[:12], whole[12:]))
        return bool(self._frames)

    def send(self, frame: bytes) -> None:
        with self.lock:
            self.tx.add(bytes(12), frame)
        self.loop.post(lambda: self.kick(1))


@pytest.mark.parametrize("merge", [False, True])
def test_packets_pass_both_ways_to_the_byte(inside, merge):
    def body() -> None:
        with Net() as net, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            tap = net.open("tap0")
            peer.bind((HOST_IP, 7))  # the address is there now
            peer.settimeout(PATIENCE_S)
            features = GUEST_CSUM | (MRG_RXBUF if merge else 0)
            with Guest(tap, features=features) as guest:
                guest.offer(40, 300 if merge else 1530)
                for length in (1, 300, 1472):
                    said = os.urandom(length)
                    peer.sendto(said, (GUEST_IP, 5))
                    header, frame = guest.receive()
                    assert frame[:6] == GUEST_MAC
                    assert frame[42:] == said
                    assert header[0] & NEEDS_CSUM, "the checksum is left to the guest, which said it can"
                    guest.send(udp_frame(said[::-1], mac_of("tap0")))
                    assert peer.recvfrom(2000) == (said[::-1], (GUEST_IP, 5))

    inside(body)


def test_a_guest_without_checksum_offload_gets_finished_packets(inside):
    def body() -> None:
        with (
            Net() as net,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
            Guest(net.open("tap0"), features=0) as guest,
        ):
            guest.offer(20, 1530)
            peer.sendto(b"finished", (GUEST_IP, 5))
            header, frame = guest.receive()
            assert header[0] == 0
            datagram = frame[34:]
            pseudo = frame[26:34] + struct.pack(">BBH", 0, 17, len(datagram))
            assert checksum(pseudo + datagram) == 0

    inside(body)


def test_packets_wait_in_the_tap_while_paused(inside):
    def body() -> None:
        with (
            Net() as net,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
            Guest(net.open("tap0"), features=GUEST_CSUM) as guest,
        ):
            guest.offer(60, 1530)
            guest.device.pause()
            for number in range(20):
                peer.sendto(b"%d" % number, (GUEST_IP, 5))
            with guest.lock:
                assert not any(is_udp(guest.rx.answer(head)[12:]) for head, _ in guest.rx.used())
            guest.loop.post(lambda: _run(guest))
            assert [int(guest.receive()[1][42:]) for _ in range(20)] == list(range(20))

    inside(body)


def _run(guest: Guest) -> None:
    with guest.lock:
        guest.device.run()


def test_an_interface_that_is_down_or_gone_drops_packets_and_ends_nothing(inside):
    def body() -> None:
        with Net() as net:
            net.make("tap0")
            with Guest(Tap.open("tap0", who="virtio-net/eth0"), features=0) as guest:
                guest.offer(4, 1530)
                guest.send(udp_frame(b"nobody hears", bytes(6)))
                _wait(lambda: guest.device.dropped_tx == 1)
                _delete("tap0")
                _wait(lambda: guest.device.faults > 0)
                guest.send(udp_frame(b"still nobody", bytes(6)))
                _wait(lambda: guest.device.dropped_tx == 2)
                assert not guest.device.state.broken

    inside(body)


def _wait(done: Callable[[], bool]) -> None:
    deadline = host.monotonic_ns() + int(PATIENCE_S * 1e9)
    while not done():
        assert host.monotonic_ns() < deadline, "it never came about"
        os.sched_yield()


def _delete(name: str) -> None:
    """Remove the interface by RTM_DELLINK, as ``ip link delete`` does while somebody has it open."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)
        link.sendto(struct.pack("=IHHII", 16 + len(body), 17, 5, 1, 0) + body, (0, 0))
        link.settimeout(PATIENCE_S)
        with suppress(TimeoutError):
            assert struct.unpack_from("=i", link.recv(4096), 16) == (0,)


def test_a_header_that_the_tap_refuses_drops_its_packet_only(inside):
    def body() -> None:
        with Net() as net, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            tap = net.open("tap0")
            peer.bind((HOST_IP, 7))
            peer.settimeout(PATIENCE_S)
            with Guest(tap, features=0) as guest:
                with guest.lock:
                    guest.tx.add(b"\1\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0", udp_frame(b"bad", mac_of("tap0")))
                guest.send(udp_frame(b"good", mac_of("tap0")))
                assert peer.recv(2000) == b"good"
                assert guest.device.dropped_tx == 1

    inside(body)
