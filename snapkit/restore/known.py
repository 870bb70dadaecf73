"""What is known of a file whose front was read before: that it is sound, and which hosts can run what it holds.

`check` is a pure function of the sections and of the few places of guest memory that it looks at (`Pages.peek`), and
`compatible` one of the sections and a host's facts. So a file that is restored again and again is judged once, and memory
that was looked at then is compared each time: where it differs, nothing is known.
"""

from collections.abc import Callable
from functools import partial

from snapkit.restore.front import Sound
from snapkit.restore.image import Image, Sections, decompress
from snapkit.restore.manifest import SectionEntry
from snapkit.state import codec
from snapkit.state.host_facts import HostFacts
from snapkit.state.releases import current_release, find_release
from snapkit.state.schema import KINDS, SectionId, State, versions_of
from snapkit.units import KIB

LOOKED_AT_MAX = 256 * KIB
"""Of guest memory. A machine of which more is looked at, an ITS with hundreds of devices, is judged each time."""
HOSTS_MAX = 64


def recall(image: Image) -> Sections | None:
    """Return what *image* holds, decoded; None unless it is known to be sound."""
    sound = image.front.sound
    if sound is None or not image.memory.still(sound.looked_at):
        return None
    content = image.front.content
    states = {section: decode(content[start:end]) for section, start, end, decode in sound.sections}
    return Sections(states, list(sound.dropped))


def is_newest(image: Image) -> bool:
    """Return whether *image* is known to be of the current release, so that there is nothing to convert."""
    return image.front.sound is not None and image.front.sound.newest


def remember(image: Image, dropped: list[str]) -> None:
    """Remember of *image*, whose sections were decoded but for those *dropped*, that `check` has found nothing."""
    looked_at = image.memory.take_peeked()
    if not image.front.content or sum(len(content) for _offset, content in looked_at) > LOOKED_AT_MAX:
        return
    sections = tuple(
        (SectionId(entry.kind, entry.instance), entry.offset, entry.offset + entry.stored_length, decode)
        for entry in image.entries
        if (decode := _decoder(entry)) is not None
    )
    newest = find_release(image.preamble.release) is current_release()
    image.front.sound = Sound(sections, tuple(dropped), looked_at, newest)


def fits(image: Image, facts: HostFacts) -> bool:
    """Return whether the host of *facts* is known to be able to run what *image* holds."""
    return facts in image.front.fitting


def remember_fit(image: Image, facts: HostFacts) -> None:
    """Remember that it is."""
    if len(image.front.fitting) < HOSTS_MAX:
        image.front.fitting.add(facts)


def _decoder(entry: SectionEntry) -> Callable[[bytes], State] | None:
    schema = versions_of(entry.kind).get(entry.version) if entry.kind in KINDS else None
    if schema is None:
        return None
    decode = codec.decoder_of(schema.type)
    if entry.codec == "raw":
        return decode
    return partial(_decode_compressed, decode, entry.length, f"section {entry.path}")


def _decode_compressed(decode: Callable[[bytes], State], length: int, what: str, stored: bytes) -> State:
    return decode(decompress(stored, length, what))
