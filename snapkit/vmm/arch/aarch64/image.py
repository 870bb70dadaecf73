"""arm64 Image: the header of a Linux kernel, and the kernel put into guest memory, plain or compressed by gzip.

Linux Documentation/arch/arm64/booting.rst. The kernel is entered at its first byte, with the MMU off; the whole file goes
to ``text_offset`` behind a 2 MiB boundary, and ``image_size`` bytes from there on are the kernel's (its BSS is behind the
file's end). Distributions' ``vmlinuz`` is this, with a PE header in it that firmware would use and nobody here looks at.

Surprises:

- A compressed kernel is inflated piece by piece straight into its place, and never further than the header inside says:
  a small file that inflates to terabytes costs no more than the RAM that the kernel may have anyway.
- What lies behind ``image_size`` (a signature) is no part of the kernel, and is not loaded.
- An ``image_size`` of 0 marks kernels before 3.17, whose text_offset cannot be relied on.
- The page size in the flags is for the reader only: a kernel whose pages this CPU lacks parks itself at once.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from snapkit.units import MIB, Gpa, format_len
from snapkit.vmm.arch.aarch64.layout import RAM_START, initrd_end
from snapkit.vmm.arch.boot_file import BootFile, BootMemory, require_ram

MAGIC = b"ARM\x64"
GZIP_MAGIC = b"\x1f\x8b"
HEADER_LEN = 64
_HEADER = struct.Struct("<4x4xQQQ24x4s4x")
_ZBOOT_MAGIC = b"MZ\0\0zimg"
_BIG_ENDIAN = 1 << 0
_TEXT_OFFSET_MAX = 2 * MIB
_GZIP = 16 + zlib.MAX_WBITS
_PIECE_LEN = 4 * MIB


class Image(NamedTuple):
    """A kernel's header, checked."""

    load_gpa: Gpa
    image_len: int

    @property
    def end(self) -> int:
        """The end of the memory that the kernel uses before it reads the memory map."""
        return self.load_gpa + self.image_len


def is_image(start: bytes) -> bool:
    """Tell by the first 64 bytes of a file whether it is an Image, or something compressed that may be one."""
    return start[0x38:0x3C] == MAGIC or start.startswith((GZIP_MAGIC, _ZBOOT_MAGIC))


def load(memory: BootMemory, file: BootFile) -> Image:
    """Put the kernel in *file* into its place and return its header.

    Raises ConfigError for a file that holds no such kernel, or one for which there is no room.
    """
    start = file.read(0, HEADER_LEN)
    if start.startswith(_ZBOOT_MAGIC):
        raise file.wrong("unpacks itself only under EFI (zboot)", "the Image inside it")
    pieces = _inflated(file) if start.startswith(GZIP_MAGIC) else _plain(file)
    piece = next(pieces, b"")
    image = _parse(file, piece)
    (_, ram_len), *_ = memory.ram
    require_ram(memory, image.load_gpa, image.end, f"kernel {file.path!r}")
    if image.end > (limit := initrd_end(ram_len)):
        got = f"needs {format_len(image.image_len)} from {image.load_gpa:#x} on"
        raise file.wrong(got, f"one that leaves {limit:#x} and above to the device tree")
    gpa: int = image.load_gpa
    while piece and gpa < image.end:
        memory.write(gpa, piece[: image.end - gpa])
        gpa += len(piece)
        piece = next(pieces, b"") if gpa < image.end else b""
    return image


def _parse(file: BootFile, start: bytes) -> Image:
    if len(start) < HEADER_LEN:
        raise file.wrong(f"holds {len(start)} bytes", "a whole Image")
    text_offset, image_len, flags, magic = _HEADER.unpack_from(start)
    if magic != MAGIC:
        raise file.wrong(f"holds something with magic {magic.hex(' ')}", f"an Image, magic {MAGIC.hex(' ')}")
    if flags & _BIG_ENDIAN:
        raise file.wrong("is a big-endian kernel", "a little-endian one")
    if not image_len:
        raise file.wrong("does not say how much memory it needs", "a kernel of Linux 3.17 or newer")
    if text_offset >= _TEXT_OFFSET_MAX:
        raise file.wrong(f"has text_offset {text_offset:#x}", f"one below {_TEXT_OFFSET_MAX:#x}")
    return Image(Gpa(RAM_START + text_offset), image_len)


def _plain(file: BootFile) -> Iterator[bytes]:
    offset = 0
    while piece := file.read(offset, _PIECE_LEN):
        yield piece
        offset += len(piece)


def _inflated(file: BootFile) -> Iterator[bytes]:
    """Give what is inside a gzip file, at most _PIECE_LEN bytes at a time, the first piece a whole header or all."""
    stream = zlib.decompressobj(_GZIP)
    kept = b""
    for packed in _plain(file):
        rest = packed
        while rest and not stream.eof:
            try:
                kept += stream.decompress(rest, _PIECE_LEN)
            except zlib.error as error:
                raise file.wrong(
                    f"cannot be decompressed ({error})", "an Image, plain or compressed by gzip"
                ) from error
            rest = stream.unconsumed_tail
            if len(kept) >= HEADER_LEN:
                yield kept
                kept = b""
    if not stream.eof:
        raise file.wrong("ends inside its compressed kernel", "a whole file")
    yield kept
