"""The checksums that the `devices` guest prints, computed beside it."""

from collections.abc import Iterator

_SECTOR_WORDS = 128
_MASK = 0xFFFF_FFFF


def device_sums() -> Iterator[str]:
    """Yield how its lines begin, from the first one on, without end: ``io 1 sum 1f…``."""
    total, round_ = 0, 0
    while True:
        round_ += 1
        for number in (round_, round_ - 1) if round_ > 1 else (round_,):
            for index in range(_SECTOR_WORDS):
                word = ((number * _SECTOR_WORDS + index) ^ 0x5BD1_E995) * 1664525 + 1013904223 & _MASK
                total = (total << 5 | total >> 27) + word & _MASK
        yield f"io {round_} sum {total:08x}"
