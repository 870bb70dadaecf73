"""System calls as the floors issue them: straight to libc, no object that can go, an error where the answer is not the one
that is wanted.
"""

import ctypes
from collections.abc import Callable

Call = tuple[str, Callable[[], object]]
"""What a call is, in words, and the call."""

_libc = ctypes.CDLL(None, use_errno=True)
mmap, munmap, madvise, ioctl = _libc.mmap, _libc.munmap, _libc.madvise, _libc.ioctl
mmap.restype = ctypes.c_void_p
mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def expect(got: int | None, wanted: int) -> None:
    """Raise OSError when a call returned something else than it must."""
    if got != wanted:
        raise OSError(ctypes.get_errno(), f"a call of the floor returned {got}, must be {wanted}")
