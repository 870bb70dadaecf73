"""A controller's registers as attributes of its KVM device, and as fields of a State: one table for both ways.

Registers of 32 bits are one attribute each; of 64 bits two, the lower half first, but where a group's are 64 bits wide.
A controller that is loaded was just made, so that what is 0 from reset on is written only where it is not 0: most of the
hundreds of registers are.
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.schema import State
from snapkit.vmm.kvm.abi_arm import KVM_DEV_ARM_VGIC_GRP_CTRL
from snapkit.vmm.kvm.device import DeviceFd

WORD_LEN = 4
_REFUSALS = (errno.EINVAL, errno.ENXIO, errno.EACCES)


class Bank(NamedTuple):
    """Registers of one name: what *field* of the State is. *attrs* are those of *group*, in order.

    *halves*: two attributes make one register. *listed*: the field is a list. *clear*: 0 from reset on, or a register
    whose zeros change nothing. *constant* is written whatever the State says, and not read.
    """

    field: str
    group: int
    attrs: tuple[int, ...]
    halves: bool = False
    listed: bool = False
    clear: bool = False
    constant: int | None = None


def words(first: int, count: int = 1, step: int = WORD_LEN) -> tuple[int, ...]:
    """Return the attributes of *count* registers from *first* on."""
    return tuple(range(first, first + count * step, step))


def read(device: DeviceFd, banks: Iterable[Bank]) -> dict[str, Any]:
    """Return the fields of *banks*."""
    found: dict[str, Any] = {}
    for bank in banks:
        if bank.constant is None:
            values = device.get_all(bank.group, bank.attrs)
            if bank.halves:
                values = [low | high << 32 for low, high in zip(values[::2], values[1::2], strict=True)]
            found[bank.field] = values if bank.listed else values[0]
    return found


def write(kind: str, device: DeviceFd, banks: Mapping[str, Bank], order: Sequence[str], state: State) -> None:
    """Write the fields of *state*, a *kind*, by *banks*, by name, in *order*. IncompatibleHost naming what KVM refuses."""
    groups, attrs, values, ends = list[int](), list[int](), list[int](), list[tuple[int, str]]()
    for name in order:
        bank = banks[name]
        found = _values(bank, state)
        if not bank.clear:
            attrs += bank.attrs
        elif any(found):
            attrs += compress(bank.attrs, found)
            found = [*filter(None, found)]
        else:
            continue
        values += found
        groups += [bank.group] * len(found)
        ends.append((len(values), name))
    try:
        device.set_all(groups, attrs, values)
    except HostError as error:
        if error.errno not in _REFUSALS:
            raise
        name = next(name for end, name in ends if error.done < end)
        shown = " ".join(f"{value:#x}" for value in _values(banks[name], state)[:4])
        raise IncompatibleHost(f"KVM refuses {name} of {kind} value {shown}") from error


def _values(bank: Bank, state: State) -> Sequence[int]:
    if bank.constant is not None:
        return [bank.constant] * len(bank.attrs)
    value = getattr(state, bank.field)
    values: Sequence[int] = value if bank.listed else [value]
    if bank.halves:
        return [half for value in values for half in (value & 0xFFFF_FFFF, value >> 32)]
    return values


def write_tables(device: DeviceFd, attr: int, where: str) -> None:
    """Have KVM write into guest memory by the control *attr*; a HostError has a note of *where*, as the guest gave it."""
    try:
        device.control(KVM_DEV_ARM_VGIC_GRP_CTRL, attr)
    except HostError as error:
        error.add_note(
            f"KVM writes into memory that the guest gave it by {where}: it may have given none, or too little"
        )
        raise
