"""Encode ACPI machine language: the terms and resource descriptors that a DSDT with a few small methods needs.

ACPI specification 6.5: chapter 20 (AML) for terms, section 6.4 for resource descriptors. Every function returns the
encoded bytes of one term, and terms nest by passing the bytes of one into the next.
"""

import string
import struct
import uuid as _uuid

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
_METHOD, _IF, _RETURN = b"\x14", b"\xa0", b"\xa4"
_LOCAL0, _ARG0 = 0x60, 0x68
_STORE, _AND, _OR, _NOTIFY = b"\x70", b"\x7b", b"\x7d", b"\x86"
_CREATE_DWORD_FIELD = b"\x8a"
_NOT, _EQUAL = b"\x92", b"\x93"
_SERIALIZED = 1 << 3  # of a method's flags

# Resource descriptor tags, section 6.4.2 (small) and 6.4.3 (large).
_IO_PORT, _END_TAG = 0x47, 0x79
_MEMORY32_FIXED, _EXTENDED_INTERRUPT = 0x86, 0x89
_DWORD_ADDRESS_SPACE, _WORD_ADDRESS_SPACE, _QWORD_ADDRESS_SPACE = 0x87, 0x88, 0x8A

# Address space descriptors, section 6.4.3.5: resource types, and flags. A range is produced (bit 0 clear: a bridge
# hands it on), decoded positively, and both its ends are fixed.
_MEMORY_RANGE, _BUS_NUMBER_RANGE = 0, 2
_FIXED_ENDS = 1 << 2 | 1 << 3
_READ_WRITE = 1 << 0  # memory; attributes 0: not cacheable, so not prefetchable


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


def buffer(content: bytes) -> bytes:
    """Encode a constant Buffer."""
    return _packaged(_BUFFER, integer(len(content)) + content)


def uuid(identifier: str) -> bytes:
    """Encode what ToUUID makes of *identifier*: a buffer with the first three groups little endian (section 19.6.143)."""
    return buffer(_uuid.UUID(identifier).bytes_le)


# Methods


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Define a method of up to seven *arguments*. It is serialized: a method may create named objects then."""
    return _packaged(_METHOD, name_path(path) + bytes([arguments | _SERIALIZED]) + b"".join(terms))


def argument(number: int) -> bytes:
    """Name Arg0 to Arg6 of the method at hand."""
    if not 0 <= number <= 6:
        raise ValueError(f"a method has no argument {number}")
    return bytes([_ARG0 + number])


def local(number: int) -> bytes:
    """Name Local0 to Local7 of the method at hand."""
    if not 0 <= number <= 7:
        raise ValueError(f"a method has no local {number}")
    return bytes([_LOCAL0 + number])


def if_(condition: bytes, *terms: bytes) -> bytes:
    """Do *terms* if *condition* is not zero."""
    return _packaged(_IF, condition + b"".join(terms))


def equal(left: bytes, right: bytes) -> bytes:
    """Compare two integers, strings or buffers."""
    return _EQUAL + left + right


def not_(value: bytes) -> bytes:
    """Negate a truth value."""
    return _NOT + value


def store(value: bytes, target: bytes) -> bytes:
    """Put *value* into *target*."""
    return _STORE + value + target


def and_(left: bytes, right: bytes, target: bytes) -> bytes:
    """Put the bits that both have into *target*."""
    return _AND + left + right + target


def or_(left: bytes, right: bytes, target: bytes) -> bytes:
    """Put the bits that either has into *target*."""
    return _OR + left + right + target


def dword_field(source: bytes, offset: int, path: str) -> bytes:
    """Name the four bytes at *offset* of the buffer *source*."""
    return _CREATE_DWORD_FIELD + source + integer(offset) + name_path(path)


def notify(path: str, value: int) -> bytes:
    """Tell the driver of the device *path* that event *value* happened."""
    return _NOTIFY + name_path(path) + integer(value)


def return_(value: bytes) -> bytes:
    """Leave the method with *value*."""
    return _RETURN + value


# Identifiers and resources


def eisa_id(identifier: str) -> bytes:
    """Encode a compressed EISA id such as ``PNP0501``: three letters in 5 bits each, four hex digits, big endian."""
    vendor, product = identifier[:3], int(identifier[3:], 16)
    packed = 0
    for letter in vendor:
        packed = packed << 5 | ord(letter) - ord("@")
    return _DWORD + struct.pack(">HH", packed, product)


def resources(*descriptors: bytes) -> bytes:
    """Encode a resource template: a buffer of descriptors with its end tag (checksum 0: not checked)."""
    return buffer(b"".join(descriptors) + bytes([_END_TAG, 0]))


def io(port: int, length: int) -> bytes:
    """Describe *length* fixed I/O ports from *port* on, 16-bit decoding."""
    return struct.pack("<BBHHBB", _IO_PORT, 1, port, port, 1, length)


def memory32_fixed(gpa: int, length: int) -> bytes:
    """Describe a fixed, writable range of memory below 4 GiB."""
    return struct.pack("<BHBII", _MEMORY32_FIXED, 9, 1, gpa, length)


def interrupt(*gsis: int, level: bool = False, low: bool = False) -> bytes:
    """Describe exclusive interrupts that the device consumes; edge triggered, active high unless told otherwise."""
    flags = 1 | (not level) << 1 | low << 2
    return struct.pack(f"<BHBB{len(gsis)}I", _EXTENDED_INTERRUPT, 2 + 4 * len(gsis), flags, len(gsis), *gsis)


def bus_numbers(first: int, last: int) -> bytes:
    """Describe the PCI buses behind a bridge."""
    return _address_space("H", _WORD_ADDRESS_SPACE, _BUS_NUMBER_RANGE, 0, first, last)


def memory32_window(first: int, last: int) -> bytes:
    """Describe memory below 4 GiB that a bridge hands on."""
    return _address_space("I", _DWORD_ADDRESS_SPACE, _MEMORY_RANGE, _READ_WRITE, first, last)


def memory64_window(first: int, last: int) -> bytes:
    """Describe memory anywhere that a bridge hands on."""
    return _address_space("Q", _QWORD_ADDRESS_SPACE, _MEMORY_RANGE, _READ_WRITE, first, last)


def _address_space(width: str, tag: int, kind: int, flags: int, first: int, last: int) -> bytes:
    """Section 6.4.3.5.1 to 6.4.3.5.3: granularity and translation offset are zero."""
    body = struct.pack(f"<BBB5{width}", kind, _FIXED_ENDS, flags, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(body)) + body
