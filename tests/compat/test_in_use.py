"""A feature in use stops the way down by its name; the same feature idle does not. Each of them alone, on stored machines."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from snapkit.state.converters import Refusal, Sections, convert_sections
from snapkit.state.pci_function import bar_offset
from snapkit.state.releases import release_named
from snapkit.state.schema import SectionId
from tests.compat.conversions import stored_sections

CLAIMS, TABLE = SectionId("resource-allocator", "0"), SectionId("interrupt-table", "0")
BALLOON = "x86-64-pci-disk-net-rng-balloon"
Change = Callable[[Sections], None]


def copied(release: str, name: str) -> Sections:
    """Return the sections of a golden, to be changed at will."""
    return deepcopy(dict(stored_sections(release, name)))


def reasons(sections: Sections, start: str, end: str) -> set[str]:
    """Return where everything is that is in the way, nothing where the machine goes."""
    try:
        convert_sections(sections, start, end)
    except Refusal as refusal:
        return {f"{finding.component}.{finding.path}".rstrip(".") for finding in refusal.findings}
    return set()


def without(sections: Sections, instance: str) -> Sections:
    """Leave out a device, with what it claims and how it interrupts."""
    left: Sections = {where: state for where, state in sections.items() if where.instance != instance}
    for where, names in ((CLAIMS, ("claims",)), (TABLE, ("lines", "routes"))):
        table: Any = left.get(where)
        for name in names if table else ():
            setattr(table, name, [each for each in getattr(table, name) if not each.owner.endswith(f"/{instance}")])
    return left


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_each_section_that_0_1_0_does_not_know_is_refused_alone_by_name(transport: str) -> None:
    idle, busy = copied("0.2.0", "x86-64-none-base"), copied("0.2.0", f"x86-64-{transport}-all")
    assert reasons(idle, "0.2.0", "0.1.0") == set()
    unknown = [
        where for where in busy if where.kind not in release_named("0.1.0").kinds and where not in {CLAIMS, TABLE}
    ]
    assert len(unknown) > 9
    for where in unknown:
        assert reasons({**idle, where: busy[where]}, "0.2.0", "0.1.0") == {str(where)}
    everything = {**idle, **{where: busy[where] for where in unknown}}
    assert reasons(everything, "0.2.0", "0.1.0") == {str(where) for where in unknown}


@pytest.mark.parametrize(("where", "name"), [(CLAIMS, "claims"), (TABLE, "lines"), (TABLE, "routes")])
def test_each_entry_of_a_table_that_0_1_0_does_not_have_is_refused_alone_by_number(where: SectionId, name: str) -> None:
    busy: Any = copied("0.2.0", "x86-64-pci-all")[where]
    for entry in getattr(busy, name):
        sections = copied("0.2.0", "x86-64-none-base")
        entries = getattr(sections[where], name)
        if entry in entries:  # the serial port's own line
            continue
        entries.append(entry)
        assert reasons(sections, "0.2.0", "0.1.0") == {f"{where}.{name}[{len(entries) - 1}]"}


def begin_a_move(sections: Sections) -> None:
    function: Any = sections[SectionId("pci-function", "rng")]
    at = bar_offset(function.bars[0].index) + 3
    function.config = function.config[:at] + bytes([function.config[at] ^ 1]) + function.config[at + 1 :]


def reserve_a_bit(sections: Sections) -> None:
    table: Any = sections[SectionId("pci-msix", "rng")]
    table.entries[0].control |= 2


def drop_a_gsi(sections: Sections) -> None:
    table: Any = sections[SectionId("pci-msix", "rng")]
    table.gsis.pop()


def other_owner(sections: Sections) -> None:
    allocator: Any = sections[CLAIMS]
    allocator.claims[0].owner = "virtio-rng/nobody"


IN_USE: dict[str, tuple[str, Change, str]] = {
    "a move that waits": ("virtio-pci-preview-4", begin_a_move, "pci-function/rng.config["),
    "a bit that is not a mask": ("virtio-pci-preview-4", reserve_a_bit, "pci-msix/rng.entries[0].control"),
    "a vector without a GSI": ("virtio-pci-preview-4", drop_a_gsi, "pci-msix/rng.gsis"),
    "a range of another": ("virtio-pci-preview-3", other_owner, "resource-allocator/0.claims[0].owner"),
}


def test_a_balloon_is_in_the_way_to_the_release_before_it_by_each_of_its_sections() -> None:
    last, before = "virtio-pci-preview-5", "virtio-pci-preview-4"
    sections = copied(last, BALLOON)
    (where,) = (where for where in sections if where.kind == "virtio-balloon")
    assert str(where) in reasons(sections, last, before)
    for release in ("virtio-pci-preview-4", "virtio-pci-preview-1"):
        assert reasons(without(copied(last, BALLOON), where.instance), last, release) == set()


@pytest.mark.parametrize("name", IN_USE)
def test_what_an_older_release_cannot_say_is_refused_by_its_field_and_idle_it_goes(name: str) -> None:
    end, use, path = IN_USE[name]
    last = "virtio-pci-preview-5"
    sections = without(copied(last, BALLOON), "balloon")
    assert reasons(sections, last, end) == set()
    use(sections)
    told = reasons(sections, last, end)
    assert len(told) == 1, told
    assert told.pop().startswith(path)


@pytest.mark.parametrize("name", ["vsock", "mmio"])
def test_what_the_modelled_line_never_had_is_refused_by_name_in_it(name: str) -> None:
    golden = "x86-64-mmio-all" if name == "mmio" else "x86-64-pci-all"
    sections = copied("0.2.0", golden)
    for release in ("virtio-pci-preview-5", "virtio-pci-preview-1"):
        told = reasons(sections, "0.2.0", release)
        assert any(path.startswith(f"virtio-{name}/") for path in told), told
