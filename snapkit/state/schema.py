"""How a State is declared: the base struct, integers with widths, bounds, and the registry of every version ever.

A State is a keyword-only struct that forbids unknown fields; `@schema(kind, version=N)` registers it. The *current*
version of a kind is the one with the highest number; older ones stay registered for ever, beside their converters.

Surprises of msgspec that shape this module:

- constructors validate nothing, only decoding does: `checked` sends a State through its encoding, which also detaches it;
- bounds stop at int64, so U64 carries its upper bound for the JSON schema only; msgpack itself has no wider integer,
  and the codec refuses wider ones that come from JSON;
- ``kw_only`` is not inherited (``forbid_unknown_fields`` is), so a metaclass hands it to every State;
- an int subclass is not encodable: registers are stored as plain integers.

The registry is module state by design: declaring a class is what registers it. `temporary` swaps it for an empty one,
so that tests can declare private kinds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, dataclass_transform

import msgspec
from msgspec import Meta

from snapkit.bits import Register
from snapkit.errors import InternalError


class _StateMeta(msgspec.StructMeta):
    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(cls, name, bases, namespace, **{"kw_only": True, **options})


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class State(msgspec.Struct, metaclass=_StateMeta, forbid_unknown_fields=True):
    """Base of every State. Fields are plain data: integers with widths, bounded bytes and lists, other States.

    Constructed by keyword only.
    """


U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U64 = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": 0xFFFF_FFFF_FFFF_FFFF})]
U1 = Annotated[int, Meta(ge=0, le=1)]
I8 = Annotated[int, Meta(ge=-(1 << 7), le=(1 << 7) - 1)]
I16 = Annotated[int, Meta(ge=-(1 << 15), le=(1 << 15) - 1)]
I32 = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
I64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


def doc(text: str) -> Meta:
    """Say what a State field means; the words go into the JSON schema and are part of the promise.

    Use: ``load_ns: Annotated[U64, doc("time since the counter was loaded, at the save")] = 0``.
    """
    return Meta(description=text)


def register(declaration: type[Register]) -> Meta:
    """Attach a register's fields to a State field, so that inspect and the JSON schema can name its bits.

    Use: ``lcr: Annotated[U8, register(Lcr)] = 0``.
    """
    return Meta(extra={"register": declaration}, extra_json_schema={"x-register": declaration.describe()})


def named(names: Mapping[int, str]) -> Meta:
    """Give the values of a State field their *names*: inspect shows them, and finds list items by them.

    Use: ``index: Annotated[U32, named(MSRS)]``; then ``.msrs[IA32_TSC]`` is the item with that index. The mapping may name
    more values than it goes through: those that it goes through are in the JSON schema and may be written.
    """
    return Meta(extra={"names": names})


class SectionId(NamedTuple):
    """Which section: ``kind/instance``."""

    kind: str
    instance: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.instance}"


class Schema(NamedTuple):
    """One version of one kind. *max_len* bounds its encoded payload in bytes; *required* sections stop an unaware reader."""

    kind: str
    version: int
    type: type[State]
    max_len: int
    required: bool


S = TypeVar("S", bound=State)

KINDS: dict[str, str] = {
    "machine": "machine",
    "memory-layout": "memory_layout",
    "vcpu-x86-64": "vcpu_x86_64",
    "irqchip-x86": "irqchip_x86",
    "pit": "pit",
    "kvm-clock": "kvm_clock",
    "serial-16550": "serial_16550",
    "i8042": "i8042",
    "resource-allocator": "resource_allocator",
    "interrupt-table": "interrupt_table",
    "pci-segment": "pci_segment",
    "pci-function": "pci_function",
    "pci-msix": "pci_msix",
    "virtio-pci": "virtio_pci",
    "virtio-mmio": "virtio_mmio",
    "virtio-block": "virtio_block",
    "virtio-net": "virtio_net",
    "virtio-vsock": "virtio_vsock",
    "virtio-rng": "virtio_rng",
    "virtio-balloon": "virtio_balloon",
    "vmgenid": "vmgenid",
    "vcpu-aarch64": "vcpu_aarch64",
    "gicv3-distributor": "gicv3_distributor",
    "gicv3-redistributor": "gicv3_redistributor",
    "gicv3-cpu-interface": "gicv3_cpu_interface",
    "gicv3-its": "gicv3_its",
    "serial-pl011": "serial_pl011",
    "rtc-pl031": "rtc_pl031",
    "preview-block": "preview_block",
    "preview-net": "preview_net",
    "preview-rng": "preview_rng",
    "preview-device-manager": "preview_device_manager",
    "preview-msi": "preview_msi",
    "preview-function": "preview_function",
}
"""Every kind there ever was, with the module of `snapkit.state` that declares it. Kinds are permanent."""

_registry: dict[str, dict[int, Schema]] = {}


def schema(kind: str, *, version: int, max_len: int = 64 << 10, required: bool = True) -> Callable[[type[S]], type[S]]:
    """Register a State class as *version* of *kind*."""

    def register_class(cls: type[S]) -> type[S]:
        versions = _registry.setdefault(kind, {})
        if kind not in KINDS:
            raise InternalError(f"kind {kind} is not listed in KINDS")
        if version in versions:
            raise InternalError(f"{kind} version {version} is declared twice")
        versions[version] = Schema(kind, version, cls, max_len, required)
        _by_type[cls] = versions[version]
        return cls

    return register_class


_by_type: dict[type[State], Schema] = {}


def versions_of(kind: str) -> dict[int, Schema]:
    """Return every version of *kind* by number, importing its module; KeyError when there is no such kind."""
    if kind not in _registry:
        import_module(f"snapkit.state.{KINDS[kind]}")
    return _registry[kind]


def current(kind: str) -> Schema:
    """Return the newest version of *kind*."""
    versions = versions_of(kind)
    return versions[max(versions)]


def schema_of(state: State) -> Schema:
    """Return the schema that *state* is an instance of."""
    return _by_type[type(state)]


@contextmanager
def temporary(*kinds: str) -> Iterator[None]:
    """Swap the registry for an empty one that knows only *kinds*; put the real one back at the end.

    `snapkit.state.converters.temporary` does the same for converters and releases; tests want that one.
    """
    tables: tuple[dict[Any, Any], ...] = (KINDS, _registry, _by_type)
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    KINDS.update({kind: kind.replace("-", "_") for kind in kinds})
    _registry.update({kind: {} for kind in kinds})
    try:
        yield
    finally:
        for table, content in zip(tables, kept, strict=True):
            table.clear()
            table.update(content)


class Persist(Protocol):
    """The one trait of everything that is saved.

    `save` returns a detached State. `restore` is a classmethod that *constructs* the object from a checked State and
    host things (*args*: fds, callbacks, the Vm); nothing is created first and overwritten after. Guest-visible things
    are state, host things are args, nothing is both.
    """

    kind: ClassVar[str]

    def save(self) -> State: ...

    @classmethod
    def restore(cls, state: State, args: object) -> Self: ...
