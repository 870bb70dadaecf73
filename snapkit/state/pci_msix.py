"""The kind pci-msix: MSI-X of one function, its table, its pending bits, the GSI of each vector.

PCI Local Bus Specification 3.0, section 6.8.2. The message control word, which is in configuration space, is not
repeated here: it belongs to pci-function. *pending* has one bit a vector, packed into 64-bit words as the guest reads them.
"""

import struct
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.pci_function import PciFunctionState, find_capability
from snapkit.state.schema import U16, U32, U64, State, schema
from snapkit.state.schema import register as described_by
from snapkit.state.spec import msix, pci
from snapkit.state.spec.msix import MessageAddress, MessageControl, TableOffset, VectorControl

VECTORS_MAX = 64

_capability = struct.Struct("<HII").unpack_from  # from the message control word on: it, table, PBA


class MsixEntryState(State):
    """One table entry as the guest wrote it; bit 0 of *control* masks the vector."""

    address: U64 = 0
    data: U32 = 0
    control: Annotated[U32, described_by(VectorControl)] = 1


@schema("pci-msix", version=1, max_len=8192)
class PciMsixState(State):
    """Vectors in order: entry n, its pending bit n, its interrupt GSI n."""

    entries: Annotated[list[MsixEntryState], Meta(min_length=1, max_length=VECTORS_MAX)]
    pending: Annotated[list[U64], Meta(min_length=1, max_length=(VECTORS_MAX + 63) // 64)]
    gsis: Annotated[list[U16], Meta(min_length=1, max_length=VECTORS_MAX)]


def pba_words(vectors: int) -> int:
    """Return how many 64-bit words the pending bits of *vectors* take."""
    return -(-vectors // msix.PBA_WORD_BITS)


def table_len(vectors: int) -> int:
    """Return how many bytes the table of *vectors* takes."""
    return msix.ENTRY_LEN * vectors


def pba_len(vectors: int) -> int:
    """Return how many bytes the pending bits of *vectors* take."""
    return 8 * pba_words(vectors)


RULES = {
    "msix.reserved-bits": "A table entry holds bits that are defined: others are not kept.",
    "msix.lengths": "There is a GSI for each vector, and as many pending bits.",
    "msix.gsis": "Each vector has its own GSI: else one would fire for another.",
    "msix.pending": "Pending bits are those of vectors that there are.",
    "msix.capability": "The function of an MSI-X table has the capability that leads a guest to it.",
    "msix.size": "The capability tells the number of vectors that there is.",
    "msix.place": "Table and pending bits lie in a BAR of their function, apart: a guest reaches them through it.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: PciMsixState, component: str) -> list[Finding]:
    """Return what in *state* no MSI-X table could hold, for the section *component*."""
    vectors = len(state.entries)
    findings = [
        Finding(component, f"entries[{number}].{name}", f"{value:#x}", f"within {defined:#x}", "msix.reserved-bits")
        for name, values, defined in (
            ("address", [entry.address for entry in state.entries], MessageAddress.defined),
            ("control", [entry.control for entry in state.entries], VectorControl.defined),
        )
        for number, value in enumerate(values)
        if value & ~defined
    ]
    if len(state.gsis) != vectors:
        expected = f"{vectors}, one for each entry"
        findings.append(Finding(component, "gsis", f"a list of {len(state.gsis)}", expected, "msix.lengths"))
    if len(set(state.gsis)) != len(state.gsis):
        findings.append(Finding(component, "gsis", "a list with a GSI twice", "free of repetitions", "msix.gsis"))
    if len(state.pending) != pba_words(vectors):
        expected = f"{pba_words(vectors)} for {vectors} vectors"
        findings.append(Finding(component, "pending", f"a list of {len(state.pending)}", expected, "msix.lengths"))
    for number, word in enumerate(state.pending):
        there = (1 << max(0, min(64, vectors - 64 * number))) - 1
        if word & ~there:
            expected = f"within {there:#x}: there are {vectors} vectors"
            findings.append(Finding(component, f"pending[{number}]", f"{word:#x}", expected, "msix.pending"))
    return findings


def fits(state: PciMsixState, component: str, function: PciFunctionState, owner: str) -> list[Finding]:
    """Return where *state* does not fit the capability of its *function*, whose section is *owner*."""
    at = find_capability(function.config, pci.CAP_ID_MSIX)
    if at is None or at + msix.CAP_LEN > pci.CONFIG_LEN:
        return [
            Finding(owner, "config", "without an MSI-X capability", f"with one, for {component}", "msix.capability")
        ]
    return list(_fits(state, component, function, owner, at))


def _fits(state: PciMsixState, component: str, function: PciFunctionState, owner: str, at: int) -> Iterator[Finding]:
    vectors = len(state.entries)
    control, table_word, pba_word = _capability(function.config, at + msix.MESSAGE_CONTROL)
    size = MessageControl.TABLE_SIZE.get(control) + 1
    if size != vectors:
        expected = f"{size}, as the capability of {owner} says"
        yield Finding(component, "entries", f"a list of {vectors}", expected, "msix.size")
    spans = []
    for offset, word, what, length in (
        (msix.TABLE, table_word, "table", table_len(size)),
        (msix.PBA, pba_word, "PBA", pba_len(size)),
    ):
        index, start = word & TableOffset.BIR, word & TableOffset.OFFSET
        for bar in function.bars:
            if bar.index == index and start + length <= bar.length:
                break
        else:
            expected = f"that of a {what} of {length} bytes inside a BAR"
            yield Finding(owner, f"config[{at + offset}]", f"{word:#x}", expected, "msix.place")
        spans.append((index, start, start + length))
    (table_bar, table, table_end), (pba_bar, pba, pba_end) = spans
    if table_bar == pba_bar and table < pba_end and pba < table_end:
        expected = "apart from the table's"
        yield Finding(owner, f"config[{at + msix.PBA}]", f"{pba:#x}..{pba_end:#x}", expected, "msix.place")
