"""The tables of an ITS, which KVM wrote into guest memory and reads there again (KVM_DEV_ARM_ITS_RESTORE_TABLES).

These invariants read guest memory, and no others do. It is the guest's, but what lies in these tables KVM wrote last, when
it saved; where it would refuse them, a restore could only fail in its midst. So a finding is what KVM refuses (it was asked,
table by table), or an LPI of more bits than it lets anybody map. A guest can bring that about all the same, if it writes to
memory that it gave to the ITS, gives it none (a valid GITS_BASER that points nowhere), or makes a table shorter than what is
in it. Then nothing can be done for it: the machine that it is saved from runs on, no KVM takes its tables, and here it is said
why. (Linux before 5.19 takes one thing that later ones refuse: a collection beyond its table, which it skips. A file may
come to any KVM.)

What a guest may bring about without harm is none: a message that is sent to an event which is not mapped (DISCARD, or MAPD
without V, before its vector was masked) comes to nothing, as it would have done; `remarks` tells of it. So are two events of
one LPI, and LPIs that are beyond what PROPBASER says by now.
"""

from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.its_tables import Tables, decode, places


@invariant("its.ram")
def tables_in_ram(index: Index, pages: Pages) -> Findings:
    """Tables lie in RAM as far as KVM looks through them, which is up to the entry that says it is the last."""
    return _faults(index, pages, "its.ram")


@invariant("its.collections")
def collections_possible(index: Index, pages: Pages) -> Findings:
    """A collection is there once, fits into its table, and goes to a CPU that there is: KVM refuses others."""
    return _faults(index, pages, "its.collections")


@invariant("its.devices")
def devices_possible(index: Index, pages: Pages) -> Findings:
    """A mapped device and its events have numbers that KVM's ITS has bits for: it maps no others."""
    return _faults(index, pages, "its.devices")


@invariant("its.events")
def events_possible(index: Index, pages: Pages) -> Findings:
    """A mapped event leads to an LPI and to a collection that is known, and the next one is its device's: KVM looks."""
    return _faults(index, pages, "its.events")


@invariant("its.lpis")
def lpis_in_ram(index: Index, pages: Pages) -> Findings:
    """A mapped LPI has its configuration and its pending bit in RAM: KVM reads both when it maps it."""
    return _faults(index, pages, "its.lpis")


def its_tables(index: Index, pages: Pages) -> Tables | None:
    """Return what the tables say; None where there is no ITS. To be asked for by `Index.once`."""
    where = places(index.sections)
    if where is None:
        return None
    tables = decode(where, _AsMapped(pages))
    if tables.fault is not None:
        decode(where, pages)  # raises where memory is damaged: then its tables are not wrong
    return tables


class _AsMapped:
    """Memory as KVM will find it: no digest is made of what is mapped unchecked a moment later."""

    def __init__(self, pages: Pages) -> None:
        self.regions, self.read = pages.regions, pages.peek


def _faults(index: Index, pages: Pages, rule: str) -> Findings:
    tables = index.once(its_tables, pages)
    if tables is not None and tables.fault is not None and tables.fault.rule == rule:
        yield tables.fault
