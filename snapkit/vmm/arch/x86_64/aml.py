"""Encode ACPI machine language: the few terms and resource descriptors that a DSDT without methods needs.

ACPI specification 6.5: chapter 20 (AML) for terms, section 6.4 for resource descriptors. Every function returns the
encoded bytes of one term, and terms nest by passing the bytes of one into the next.
"""

import string
import struct

_LEAD = frozenset(string.ascii_uppercase + "_")
_TAIL = _LEAD | frozenset(string.digits)
_NAME_SEG_LEN = 4

# Opcodes, section 20.2 and table 20.1.
_ZERO, _ONE = b"\x00", b"\x01"
_NAME = b"\x08"
_BYTE, _WORD, _DWORD, _STRING, _QWORD = b"\x0a", b"\x0b", b"\x0c", b"\x0d", b"\x0e"
_SCOPE, _BUFFER, _PACKAGE = b"\x10", b"\x11", b"\x12"
_DUAL_NAME, _MULTI_NAME = b"\x2e", b"\x2f"
_DEVICE = b"\x5b\x82"

# Resource descriptor tags, section 6.4.2 (small) and 6.4.3 (large).
_IO_PORT, _END_TAG = 0x47, 0x79
_MEMORY32_FIXED, _EXTENDED_INTERRUPT = 0x86, 0x89


def _package_length(payload_len: int) -> bytes:
    """Encode PkgLength (section 20.2.4), which counts its own bytes: one up to 63, else two to four."""
    if payload_len + 1 < 1 << 6:
        return bytes([payload_len + 1])
    for extra in (1, 2, 3):
        total = payload_len + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"AML package of {payload_len} bytes is too long to encode")


def _packaged(opcode: bytes, payload: bytes) -> bytes:
    return opcode + _package_length(len(payload)) + payload


def name_path(path: str) -> bytes:
    r"""Encode a path such as ``_HID``, ``\_SB.COM1`` or ``^DEV0``; segments are padded with underscores."""
    rest = path.lstrip("\\^")
    prefix = path[: len(path) - len(rest)].encode()
    segments = rest.split(".") if rest else []
    for segment in segments:
        if not 1 <= len(segment) <= _NAME_SEG_LEN or segment[0] not in _LEAD or not _TAIL.issuperset(segment):
            raise ValueError(f"{path!r} is no ACPI name: segment {segment!r}")
    encoded = b"".join(segment.ljust(_NAME_SEG_LEN, "_").encode() for segment in segments)
    match len(segments):
        case 0:
            return prefix + _ZERO
        case 1:
            return prefix + encoded
        case 2:
            return prefix + _DUAL_NAME + encoded
        case count:
            return prefix + _MULTI_NAME + bytes([count]) + encoded


def integer(value: int) -> bytes:
    """Encode an unsigned integer of up to 64 bits, in the shortest form."""
    if value == 0:
        return _ZERO
    if value == 1:
        return _ONE
    for prefix, width in ((_BYTE, 1), (_WORD, 2), (_DWORD, 4), (_QWORD, 8)):
        if value < 1 << 8 * width:
            return prefix + value.to_bytes(width, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def text(value: str) -> bytes:
    """Encode a string constant."""
    return _STRING + value.encode("ascii") + b"\0"


def package(*elements: bytes) -> bytes:
    """Encode a Package of up to 255 elements."""
    return _packaged(_PACKAGE, bytes([len(elements)]) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """Define a named object."""
    return _NAME + name_path(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Open an existing scope and define *terms* in it."""
    return _packaged(_SCOPE, name_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Define a device whose children are *terms*."""
    return _packaged(_DEVICE, name_path(path) + b"".join(terms))


def eisa_id(identifier: str) -> bytes:
    """Encode a compressed EISA id such as ``PNP0501``: three letters in 5 bits each, four hex digits, big endian."""
    vendor, product = identifier[:3], int(identifier[3:], 16)
    packed = 0
    for letter in vendor:
        packed = packed << 5 | ord(letter) - ord("@")
    return _DWORD + struct.pack(">HH", packed, product)


def resources(*descriptors: bytes) -> bytes:
    """Encode a resource template: a buffer of descriptors with its end tag (checksum 0: not checked)."""
    payload = b"".join(descriptors) + bytes([_END_TAG, 0])
    return _packaged(_BUFFER, integer(len(payload)) + payload)


def io(port: int, length: int) -> bytes:
    """Describe *length* fixed I/O ports from *port* on, 16-bit decoding."""
    return struct.pack("<BBHHBB", _IO_PORT, 1, port, port, 1, length)


def memory32_fixed(gpa: int, length: int) -> bytes:
    """Describe a fixed, writable range of memory below 4 GiB."""
    return struct.pack("<BHBII", _MEMORY32_FIXED, 9, 1, gpa, length)


def interrupt(gsi: int, *, level: bool = False, low: bool = False) -> bytes:
    """Describe one exclusive interrupt that the device consumes; edge triggered, active high unless told otherwise."""
    flags = 1 | (not level) << 1 | low << 2
    return struct.pack("<BHBBI", _EXTENDED_INTERRUPT, 6, flags, 1, gsi)
