"""The kind rtc-pl031: what a guest can see of a PrimeCell real-time clock (PL031).

ARM DDI 0224. A real-time clock runs on while its machine is a file. So what is stored is not what DR read at the save,
but what it is off from the host's wall clock; and the match is stored as a moment of the wall clock, which tells whether
it has passed by the time that the machine goes on. CR is not stored: the clock runs, and once it does nothing stops it.
"""

from typing import Annotated

from snapkit.errors import Finding
from snapkit.state.schema import U1, U32, U64, State, doc, register, schema
from snapkit.state.spec.pl031 import COUNTS, Interrupt


@schema("rtc-pl031", version=1, max_len=1024)
class Pl031State(State):
    """The clock against the host's, its match, and its interrupt."""

    offset_s: Annotated[U32, doc("DR less the host's wall clock (Unix time in seconds), modulo 2^32")] = 0
    lr: Annotated[U32, doc("what was last loaded into the counter")] = 0
    mr: Annotated[U32, doc("the value of DR that is waited for")] = 0
    match_s: Annotated[U64, doc("Unix time in seconds at which DR is next equal to mr")] = COUNTS
    imsc: Annotated[U1, register(Interrupt)] = 0
    ris: Annotated[U1, register(Interrupt)] = 0


RULES = {
    "rtc.match": "The moment waited for is one at which the clock reads what it is compared with.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: Pl031State, component: str) -> list[Finding]:
    """Return what in *state* no PL031 could hold, for the section *component*."""
    if (state.match_s + state.offset_s - state.mr) % COUNTS:
        wanted = f"{(state.mr - state.offset_s) % COUNTS:#x} modulo 2^32, by mr and offset_s"
        return [Finding(component, "match_s", f"{state.match_s:#x}", wanted, "rtc.match")]
    return []
