"""The machine's interrupts: pins of its controllers, and messages (MSI) that an eventfd raises in the kernel.

A GSI becomes a message by a route in KVM's table (KVM_SET_GSI_ROUTING, which replaces the whole table), and an eventfd
raises a GSI once it is registered (KVM_IRQFD). Documentation/virt/kvm/api.rst.

Rules that stand here and nowhere else:

- A route is there before its irqfd, or the first interrupts are lost; an irqfd goes before its route.
- A vector that is disabled holds neither. Its eventfd is made when it is first enabled, and kept.
- Changes inside `batch` are at most one KVM_SET_GSI_ROUTING, whatever their number; what is enabled there comes about
  as a whole or not at all.
- `disable` and `close` cannot fail: whoever masks a vector or takes a device away has no other way to go.
- KVM hears that a route is gone when it is next told of one that is new: nothing leads there without an irqfd. So a
  guest that masks a vector and unmasks it pays for the irqfd alone, 45 us instead of 165 us (measured on KVM-PVM).

Surprises: KVM looks at the eventfd's counter while it registers it (kvm_irqfd_assign), so that a `trigger` between
`enable` and the end of the batch arrives. An eventfd that is closed takes its irqfd along (irqfd_wakeup, EPOLLHUP):
that is what `disable` does when KVM refuses to take the irqfd back.

`enable`, `disable` and `trigger` of vectors may be called from any thread, with the machine's lock held or not: the
table has a lock of its own, under which nothing else is taken. A batch holds it.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, Protocol, Self

import msgspec

from snapkit import host
from snapkit.errors import ConfigError, Finding, HostError, InternalError
from snapkit.state.codec import adopted
from snapkit.state.interrupt_table import ROUTES_MAX, InterruptTableState, LineState, RouteState
from snapkit.units import Gsi


class RoutingFd(Protocol):
    """What the table needs of the hypervisor; `snapkit.vmm.kvm.vm.VmFd` is one."""

    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        """Replace every message route by *routes*; the pins of the interrupt controllers stay as they are."""
        ...

    def irqfd(self, fd: int, gsi: int, *, assign: bool) -> None: ...

    def set_irq_line(self, gsi: Gsi, level: int) -> None: ...


class GsiLine:
    """An interrupt pin of the in-kernel controllers, as a device sees it."""

    def __init__(self, fd: RoutingFd, gsi: int, *, edge: bool) -> None:
        self.gsi = Gsi(gsi)
        self._fd, self._edge = fd, edge

    @property
    def edge(self) -> bool:
        return self._edge

    def set_level(self, level: bool) -> None:
        self._fd.set_irq_line(self.gsi, int(level))


class MsiVector:
    """One message-signalled interrupt of a device. Made by `InterruptTable.vector`."""

    __slots__ = ("_eventfd", "_registered", "_table", "device_id", "enabled", "gsi", "owner")

    def __init__(self, table: "InterruptTable", gsi: int, owner: str, device_id: int) -> None:
        # Configuration
        self.gsi, self.owner, self.device_id = gsi, owner, device_id
        # Runtime glue
        self._table = table
        self._eventfd = -1
        # Derived state
        self.enabled = False
        self._registered = False

    def enable(self, address: int, data: int) -> None:
        """Have `trigger` write *data* to *address* from now on, or from the end of the batch; again to change them.

        Raises HostError, everything being as before, when KVM takes neither route nor irqfd. In a batch it is the
        end of the batch that raises.
        """
        self._table.enable(self, address, data)

    def disable(self) -> None:
        """Let go of irqfd and route; what is triggered later is lost."""
        self._table.disable(self)

    def trigger(self) -> None:
        """Interrupt the guest. Nothing happens while disabled: what is pending then is kept by the MSI-X table."""
        if self.enabled:
            host.eventfd_signal(self._eventfd)

    def close(self) -> None:
        """Disable, close the eventfd, give the GSI back to the table. Nobody may be in `trigger`."""
        self._table.close_vector(self)

    # For the table, with its lock held

    def _start(self) -> None:
        """Have an eventfd with nothing in it."""
        if self._eventfd < 0:
            self._eventfd = host.eventfd()
        else:
            host.eventfd_take(self._eventfd)  # a trigger on another thread may have come later than `disable`
        self.enabled = True

    def _close_eventfd(self) -> None:
        if self._eventfd >= 0:
            host.close(self._eventfd)
            self._eventfd = -1


class InterruptTable:
    """Every line and every route of one machine."""

    kind: ClassVar[str] = "interrupt-table"

    def __init__(self, fd: RoutingFd, pins: int = 24) -> None:
        """*pins*: how many GSIs are pins of the interrupt controllers; those from there on stand for messages."""
        # Configuration
        self._pins = pins
        # Runtime glue
        self._fd = fd
        self._lock = threading.RLock()
        # Derived state: devices make it again
        self._lines: dict[int, LineState] = {}
        self._vectors: dict[int, MsiVector] = {}
        self._routes: dict[int, RouteState] = {}
        """What every enabled vector is to send."""
        self._told: dict[int, RouteState] = {}
        """What KVM's table has: routes that are gone as well, until it is next told."""
        self._good: dict[int, RouteState] = {}
        """What `_routes` was when all of it last came about."""
        self._starting: list[MsiVector] = []
        """Vectors that have been enabled since."""
        self._batches = 0

    # Persist

    @classmethod
    def restore(cls, state: InterruptTableState, args: RoutingFd) -> Self:
        """Build an empty table, whatever *state* says: devices wire their own lines and vectors, `agree` compares."""
        adopted(state)
        return cls(args)

    def save(self) -> InterruptTableState:
        """Return the lines in use and the routes of enabled vectors."""
        with self._lock:
            return InterruptTableState(
                lines=[msgspec.structs.replace(line) for _, line in sorted(self._lines.items())],
                routes=[msgspec.structs.replace(route) for _, route in sorted(self._routes.items())],
            )

    def agree(self, state: InterruptTableState, component: str = "interrupt-table/0") -> list[Finding]:
        """Return where *state*, as it was saved, differs from what the devices have wired by now."""
        findings: list[Finding] = []
        with self._lock:
            lines, routes = (
                [item for _, item in sorted(table.items())] == saved
                for table, saved in ((self._lines, state.lines), (self._routes, state.routes))
            )
        if lines and routes:
            return findings
        own = self.save()
        pairs: tuple[tuple[str, Sequence[LineState | RouteState], Sequence[LineState | RouteState]], ...] = (
            ("lines", state.lines, own.lines),
            ("routes", state.routes, own.routes),
        )
        for name, saved, wired in pairs:
            rule = f"interrupt-table.{name}"
            by_gsi = {item.gsi: _shown(item) for item in wired}
            for number, item in enumerate(saved):
                expected = by_gsi.pop(item.gsi, "what a device wires")
                if _shown(item) != expected:
                    findings.append(Finding(component, f"{name}[{number}]", _shown(item), expected, rule))
            findings += [Finding(component, name, "without it", f"with {item}", rule) for item in by_gsi.values()]
        return findings

    # Pins

    def line(self, gsi: int, owner: str, *, edge: bool) -> GsiLine:
        """Wire *owner* to the pin *gsi*; ConfigError when another has it or there is no such pin."""
        if not 0 <= gsi < self._pins:
            raise ConfigError(f"{owner} wants interrupt line {gsi}, there are 0..{self._pins - 1}")
        with self._lock:
            if gsi in self._lines:
                raise ConfigError(f"{owner} wants interrupt line {gsi}, which {self._lines[gsi].owner} has")
            self._lines[gsi] = LineState(gsi=gsi, edge=edge, owner=owner)
        return GsiLine(self._fd, gsi, edge=edge)

    def drop_line(self, gsi: int) -> None:
        """Unwire the pin *gsi*."""
        with self._lock:
            self._lines.pop(gsi, None)

    # Messages

    def vector(self, gsi: int, owner: str, device_id: int = 0) -> MsiVector:
        """Make the vector of *gsi*, disabled; ConfigError when another has it or it is none of these.

        *device_id* is bus, device and function of the sender where the interrupt controller asks for it, else 0.
        """
        if not self._pins <= gsi < ROUTES_MAX:
            raise ConfigError(f"{owner} wants GSI {gsi} for messages, there are {self._pins}..{ROUTES_MAX - 1}")
        with self._lock:
            if gsi in self._vectors:
                raise ConfigError(f"{owner} wants GSI {gsi}, which {self._vectors[gsi].owner} has")
            vector = self._vectors[gsi] = MsiVector(self, gsi, owner, device_id)
        return vector

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Tell KVM of what is enabled and disabled inside only at the end, at once. Batches nest.

        When the end fails, or the inside, vectors that were enabled in the batch are disabled again and those that
        were changed go on as before; what was disabled stays so.
        """
        with self._lock:
            self._batches += 1
            try:
                yield
            except BaseException:
                self._batches -= 1
                if not self._batches:
                    self._take_back()
                raise
            self._batches -= 1
            if not self._batches:
                self._commit()

    def close(self) -> None:
        """Close what is left, for good. KVM lets go of an irqfd whose eventfd is closed, so it is not asked to."""
        with self._lock:
            for vector in self._vectors.values():
                vector.enabled = vector._registered = False
                vector._close_eventfd()
            for table in (self._vectors, self._routes, self._good, self._lines):
                table.clear()
            self._starting.clear()

    # For MsiVector

    def enable(self, vector: MsiVector, address: int, data: int) -> None:
        """See `MsiVector.enable`."""
        with self._lock:
            if self._vectors.get(vector.gsi) is not vector:
                raise InternalError(f"GSI {vector.gsi} of {vector.owner} is enabled after it was closed")
            route = _route(vector, address, data)
            if self._routes.get(vector.gsi) == route:
                return
            if not vector.enabled:
                vector._start()
                self._starting.append(vector)
            self._routes[vector.gsi] = route
            if not self._batches:
                self._commit()

    def disable(self, vector: MsiVector) -> None:
        """See `MsiVector.disable`."""
        with self._lock:
            if vector.enabled:
                self._let_go(vector)

    def close_vector(self, vector: MsiVector) -> None:
        """See `MsiVector.close`."""
        with self._lock:
            self.disable(vector)
            vector._close_eventfd()
            if self._vectors.get(vector.gsi) is vector:
                del self._vectors[vector.gsi]

    # Private, all with the lock held

    def _commit(self) -> None:
        """Bring about what was changed: routes first, then the irqfds of those that start; all or nothing."""
        try:
            self._tell()
            for vector in self._starting:
                self._fd.irqfd(vector._eventfd, vector.gsi, assign=True)
                vector._registered = True
        except BaseException:
            self._take_back()
            raise
        self._starting.clear()
        self._good = dict(self._routes)

    def _take_back(self) -> None:
        """Undo what was changed since it all last came about, except that what was disabled stays so."""
        for vector in list(self._starting):
            self._let_go(vector)
        for gsi in self._routes:
            self._routes[gsi] = self._good[gsi]
        if self._told != self._routes:
            with suppress(HostError):  # the error at hand is the one to tell of; the next commit tries again
                self._replace_table()

    def _let_go(self, vector: MsiVector) -> None:
        """Unregister *vector*, then drop its route."""
        vector.enabled = False
        if vector._registered:
            vector._registered = False
            try:
                self._fd.irqfd(vector._eventfd, vector.gsi, assign=False)
            except HostError:
                vector._close_eventfd()
        if vector in self._starting:
            self._starting.remove(vector)
        del self._routes[vector.gsi]

    def _tell(self) -> None:
        """Make KVM's table hold every route that is wanted."""
        if any(self._told.get(gsi) != route for gsi, route in self._routes.items()):
            self._replace_table()

    def _replace_table(self) -> None:
        self._fd.set_gsi_routing(self._routes.values())
        self._told = dict(self._routes)


def _route(vector: MsiVector, address: int, data: int) -> RouteState:
    return RouteState(gsi=vector.gsi, address=address, data=data, device_id=vector.device_id, owner=vector.owner)


def _shown(item: LineState | RouteState) -> str:
    if isinstance(item, LineState):
        return f"GSI {item.gsi} {'edge' if item.edge else 'level'} of {item.owner}"
    return f"GSI {item.gsi} to {item.address:#x} data {item.data:#x} device {item.device_id:#x} of {item.owner}"
