"""TAPs in a network namespace of their own, which ends with who is in it: nothing of the host's network is touched.

    python tools/tap.py tap0 -- snapkit boot ... --net id=eth0,tap=tap0

Runs the command in a new namespace with these TAPs, which are down: what a guest sends goes nowhere, and nothing comes.
`enter` is the same for the calling thread. tun(4) and namespaces: Linux Documentation/networking/tuntap.rst, unshare(2).

Runs by its path alone, with any Python: it imports nothing but the standard library.
"""

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Sequence

TUN = "/dev/net/tun"
_CLONE_NEWNET = 0x4000_0000
_TUNSETIFF, _TUNSETPERSIST = 0x4004_54CA, 0x4004_54CB
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def missing() -> str:
    """Return why there can be no TAP here; empty when there can."""
    words = [sys.executable, os.path.abspath(__file__), "tap0", "--", sys.executable, "-c", ""]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if not done.returncode else f"no TAP in a namespace of one's own: {done.stderr.strip().splitlines()[-1]}"


def enter(names: Sequence[str]) -> None:
    """Move the calling thread into a new network namespace with these TAPs. Raises OSError where that may not be."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"a network namespace may not be made: {os.strerror(error)}")
    for name in names:
        fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        finally:
            os.close(fd)


def main(words: list[str]) -> None:
    """Become the command behind ``--``, among the TAPs that are named before it."""
    at = words.index("--")
    enter(words[:at])
    os.execvp(words[at + 1], words[at + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
