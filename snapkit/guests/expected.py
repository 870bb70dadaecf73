"""What the demo guest prints, computed beside it: a restored guest is right when its lines are these.

The same arithmetic as `work` in demo.c. A line costs about 2 ms here, so nobody should ask for thousands.
"""

from collections.abc import Iterator

HELLO = "hello from the snapkit demo guest"
BYE = "bye"
TICKS_PER_LINE = 10
_WORDS = 8192
_MASK = 0xFFFF_FFFF


def demo_lines() -> Iterator[str]:
    """Yield the demo guest's numbered lines from the first one on, without end: ``tick 10 work 1f… sum 1f…``."""
    area = [0] * _WORDS
    tick = checksum = total = 0
    while True:
        tick += TICKS_PER_LINE
        for index, word in enumerate(area):
            checksum = ((checksum << 5 | checksum >> 27) + (word ^ index)) & _MASK
            area[index] = (checksum * 1664525 + 1013904223) & _MASK
        total = (total + checksum) & _MASK
        yield f"tick {tick} work {checksum:08x} sum {total:08x}"
