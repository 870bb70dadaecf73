"""System calls of networking: TAP interfaces, and packets scattered over memory by address.

Documentation/networking/tuntap.rst and the UAPI's linux/if_tun.h. One call each, `HostError` when it fails, and
`host.inject` can make it fail.

Surprises met on the way:

- TUNSETIFF makes an interface that is not there, if it may: ask `interface_index` first;
- a packet longer than the room is cut off and read(2) does not tell: leave a byte more than there is room for;
- the TAP does not write the header's num_buffers, it skips them.
"""

import ctypes
import errno
import os
import struct
from array import array
from collections.abc import Sequence
from itertools import chain

from snapkit import host
from snapkit.host import enter, failed, seam

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO = 0x01, 0x02, 0x04, 0x10
IOV_MAX = 1024

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_SIOCGIFMTU = 0x8921
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ_LEN = 40
_NAME_LEN = 16

_libc = ctypes.CDLL(None, use_errno=True)
_c_readv = _libc.readv
_c_readv.restype = ctypes.c_ssize_t
_c_readv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_c_writev = _libc.writev
_c_writev.restype = ctypes.c_ssize_t
_c_writev.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_c_if_nametoindex = _libc.if_nametoindex
_c_if_nametoindex.argtypes = (ctypes.c_char_p,)
_c_if_nametoindex.restype = ctypes.c_uint
_c_socket = _libc.socket
_get_errno = ctypes.get_errno
_u8, _u16 = ctypes.c_uint8.from_address, ctypes.c_uint16.from_address


# Interfaces


def interface_index(name: str) -> int:
    """Return the number of the network interface *name*; 0 when there is none in this network namespace."""
    enter("if_nametoindex", (name,))
    found: int = _c_if_nametoindex(os.fsencode(name))
    return found


def interface_mtu(name: str) -> int:
    """Return how long a packet of the interface *name* may be, without its Ethernet header."""
    request = ctypes.create_string_buffer(os.fsencode(name), _IFREQ_LEN)
    fd = _control_socket()
    try:
        host.ioctl(fd, "SIOCGIFMTU", _SIOCGIFMTU, ctypes.addressof(request))
    finally:
        host.close(fd)
    found: int = struct.unpack_from("=i", request.raw, _NAME_LEN)[0]
    return found


@seam
def _control_socket() -> int:
    fd: int = _c_socket(1, 2 | os.O_CLOEXEC, 0)  # AF_UNIX, SOCK_DGRAM: any socket serves the SIOC ioctls
    if fd < 0:
        raise OSError(_get_errno(), "socket")
    return fd


# TAP


def open_tun() -> int:
    """Open the TUN/TAP driver, non-blocking; `attach_tap` makes the fd an interface's."""
    return host.open_fd("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)


def attach_tap(fd: int, name: str, header_len: int) -> None:
    """Make *fd* the other end of the TAP *name*: bare Ethernet frames, each behind a virtio-net header.

    Fails with EBUSY when somebody else is, and with EINVAL when *name* is an interface of another kind.
    """
    request = bytearray(_IFREQ_LEN)
    struct.pack_into("=16sH", request, 0, os.fsencode(name), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    lent = (ctypes.c_char * _IFREQ_LEN).from_buffer(request)
    host.ioctl(fd, "TUNSETIFF", _TUNSETIFF, ctypes.addressof(lent))
    host.ioctl(fd, "TUNSETVNETHDRSZ", _TUNSETVNETHDRSZ, struct.pack("=i", header_len))


def set_tap_offload(fd: int, offload: int) -> None:
    """Say which unfinished packets (TUN_F_*) the reader of the TAP takes. EINVAL when the TAP cannot."""
    host.ioctl(fd, "TUNSETOFFLOAD", _TUNSETOFFLOAD, offload)


# Packets


def read_packet(fd: int, vector: "array[int]") -> int:
    """Read one packet into *vector*, address and length of each piece in turn; -1 when none waits."""
    enter("readv", (fd,))
    address, items = vector.buffer_info()
    while True:
        done: int = _c_readv(fd, address, items >> 1)
        if done >= 0:
            return done
        number = _get_errno()
        if number == errno.EAGAIN:
            return -1
        if number != errno.EINTR:
            raise failed("readv", number, (fd,))


def write_packet(fd: int, spans: Sequence[tuple[int, int]]) -> int:
    """Write one packet from *spans*; -1 when the interface takes none now."""
    enter("writev", (fd,))
    count = len(spans)
    vector = struct.pack(f"={2 * count}Q", *chain.from_iterable(spans))
    while True:
        done: int = _c_writev(fd, vector, count)
        if done >= 0:
            return done
        number = _get_errno()
        if number == errno.EAGAIN:
            return -1
        if number != errno.EINTR:
            raise failed("writev", number, (fd,))


# Memory. A view made for two bytes costs three times as much


def put8(address: int, value: int) -> None:
    """Write a byte of mapped memory."""
    _u8(address).value = value


def put16(address: int, value: int) -> None:
    """Write two bytes of mapped memory, little-endian as the host is."""
    _u16(address).value = value
