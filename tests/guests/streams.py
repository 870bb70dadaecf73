"""The numbered byte stream of the `string_io` guest: what it sends, and what it wants to be sent."""

OUT_PORT = 0x5F0
IN_PORT = 0x5F1


def string_bytes(start: int, count: int) -> bytes:
    """Return *count* bytes of the stream from byte *start* on; the same in both directions, counted separately."""
    return bytes((index * 0x9E37_79B1 & 0xFFFF_FFFF) >> 24 for index in range(start, start + count))
