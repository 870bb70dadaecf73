"""A whole machine: its VM, memory, vCPUs, chips and devices, what it is doing, and why it stopped.

`boot` makes one from a kernel; a restore makes one step by step, by the methods that `snapkit.restore.target` names.
Every step has its counterpart, and `close` takes whatever is there back in the order that the kernel wants: vCPU
threads, kvm_run mappings and vCPU fds, the VM's fd, RAM.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from snapkit import host
from snapkit.errors import ConfigError, IncompatibleHost, SnapkitError, StateViolation
from snapkit.state.codec import adopted, checked
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId, State
from snapkit.vmm.arch import Chip, ClockPolicy, Vcpu, native
from snapkit.vmm.backends.console import Console
from snapkit.vmm.facts import live
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import FilePages, GuestMemory
from snapkit.vmm.parts.board import CONSTRUCT_ORDER, Board
from snapkit.vmm.run_state import Reason, RunState, Stop
from snapkit.vmm.save_order import read_in_order
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.parts.fresh import Asked, Transport  # what only `boot` needs is imported when it is used


class BootConfig(NamedTuple):
    """What `boot` builds. *memory* in bytes; without *transport* it is PCI where there are *devices*, else none."""

    kernel: str
    initrd: str | None = None
    cmdline: str = ""
    memory: int = 256 << 20
    vcpus: int = 1
    cpu: str = "host"
    devices: "tuple[Asked, ...]" = ()
    transport: "Transport | None" = None


class Machine:
    """One machine. The methods below are called on the main thread; vCPU threads only call the sink's."""

    def __init__(
        self,
        loop: Loop,
        console: Console,
        *,
        verify_memory: bool = False,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        clock: ClockPolicy = "continue",
    ) -> None:
        """*overrides*: host ends instead of saved ones, by device id. *clock*: where a restored guest's clocks go on."""
        # Configuration
        self._loop, self._verify_memory, self._clock = loop, verify_memory, clock
        self._platform = native()
        # Runtime glue
        self.run_state = RunState.BUILDING
        self.stop_info: Stop | None = None
        self.boot_source: BootConfig | None = None
        self.on_first_resume: Callable[[], None] | None = None
        self._kvm: Kvm | None = None
        self._vm: Vm | None = None
        self._memory: GuestMemory | None = None
        self._was_paused = False
        self.board = Board(loop, console, self, overrides)
        # Guest-visible state
        self._state: MachineState | None = None
        self._vcpus: dict[SectionId, Vcpu] = {}
        self._chips: dict[SectionId, Chip] = {}

    # Making one

    @classmethod
    def boot(
        cls, config: BootConfig, loop: Loop, console: Console, *, claimed: Callable[[], None] | None = None
    ) -> Self:
        """Build a machine that is about to run *config*'s kernel; on failure nothing is left behind.

        *claimed* is called once everything of the host is open and nothing is made of it: a restore's *claim* is over.
        Raises ConfigError for what the operator got wrong, IncompatibleHost or HostError for what the host lacks.
        """
        platform = native()
        regions = platform.ram_regions(config.memory)
        if not 1 <= config.vcpus <= platform.VCPUS_MAX:
            raise ConfigError(f"vcpus is {config.vcpus}, must be 1 to {platform.VCPUS_MAX}")
        if config.cpu not in platform.CPUS:
            raise ConfigError(f"cpu is {config.cpu!r}, must be {' or '.join(platform.CPUS)} on {platform.MAP.name}")
        machine = cls(loop, console)
        machine.boot_source = config
        with ExitStack() as undo:
            undo.callback(machine.close)
            machine._boot(config, regions, claimed)
            undo.pop_all()
        return machine

    def _boot(self, config: BootConfig, regions: Sequence[tuple[int, int]], claimed: Callable[[], None] | None) -> None:
        from snapkit.vmm.parts.fresh import fresh_sections, open_devices

        platform = self._platform
        opened = open_devices(config.devices, self.board.adopt)
        with platform.open_guest(config.kernel, config.initrd) as guest:
            self.open_hypervisor()
            fresh = fresh_sections(opened, config.transport, platform.ground(self._need_kvm(), regions))
            if claimed is not None:
                claimed()
            self.create_vm(
                MachineState(
                    architecture=platform.MAP.architecture,
                    machine_id=host.urandom(16),
                    vcpu_count=config.vcpus,
                    cpu_profile="baseline" if config.cpu == "baseline" else "host",
                    tsc_khz=0,
                )
            )
            memory = self._memory = GuestMemory(regions)
            self._use_memory(memory)
            entry = platform.load_guest(memory, guest, fresh, cmdline=config.cmdline, vcpus=config.vcpus)
        for section in platform.kernel_parts(config.vcpus, fresh.transport):
            self.construct(section, None)
        platform.reset(self._need_vm(), self._need_state(), self._vcpus, entry)
        for kind in CONSTRUCT_ORDER:
            for section, state in fresh.sections.items():
                if section.kind == kind:
                    self.construct(section, state)
        self.wire()
        self.activate()

    # Steps of a restore

    facts = staticmethod(live)

    def create_vm(self, state: MachineState) -> None:
        """Create the VM that *state* describes, without memory."""
        wanted = self._platform.MAP.architecture
        if state.architecture != wanted:
            raise IncompatibleHost(
                f"the machine's architecture is {state.architecture} (ELF number), must be {wanted} here"
            )
        kvm = self._need_kvm()
        limit = kvm.extension(abi.KVM_CAP_MAX_VCPUS)
        if state.vcpu_count > limit:
            raise ConfigError(f"vcpus is {state.vcpu_count}, this KVM allows {limit}")
        self._vm = self._platform.open_vm(kvm, self)
        try:
            self._state = adopted(state)
        except BaseException:
            self.close_vm()
            raise

    def close_vm(self) -> None:
        """Close the VM."""
        if self._vm is not None:
            self._vm.close()
            self._vm = None

    def open_hypervisor(self) -> None:
        """Open what makes VMs: the last of what a machine opens by path."""
        self._kvm = Kvm()

    def close_hypervisor(self) -> None:
        """Let go of what makes VMs; the VM must be closed."""
        if self._kvm is not None:
            self._kvm.close()
            self._kvm = None

    def map_memory(self, state: MemoryLayoutState, pages: FilePages) -> None:
        """Make RAM and lay the file's memory over it, copy-on-write; or copy and check it."""
        memory = GuestMemory((region.gpa, region.length) for region in state.regions)
        try:
            if self._verify_memory:
                pages.load((region.gpa, region.hva, region.length) for region in memory.regions)
            else:
                fd = pages.fd
                for run in pages.runs():
                    memory.lay(run.gpa, run.length, fd, run.offset)
            self._use_memory(memory)
        except BaseException:
            memory.close()
            raise

    def unmap_memory(self) -> None:
        """Unmap RAM; the VM must be gone or about to go."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _use_memory(self, memory: GuestMemory) -> None:
        memory.seal()
        self._need_vm().set_memory(memory)
        self._memory = memory
        self.board.place(self._need_vm(), self._platform.MAP, memory, restored=self.boot_source is None)

    def claim(self, section: SectionId, state: State) -> None:
        """Open what the host lends to the device *section*: its image, its TAP, its socket."""
        self.board.claim(section, state)

    def unclaim(self, section: SectionId) -> None:
        """Close what the host lent to the device *section*."""
        self.board.unclaim(section)

    def construct(self, section: SectionId, state: State | None) -> None:
        """Create the part *section*, inert; None for a chip or vCPU as KVM resets it."""
        vm, platform = self._need_vm(), self._platform
        if section.kind == platform.VCPU:
            self._vcpus[section] = platform.make_vcpu(state, section, vm, self._need_state(), self)
        elif section.kind in platform.CHIPS:
            self._chips[section] = platform.make_chip(state, section, vm, self._need_state(), self._chips)
        elif state is not None:
            self.board.construct(section, state)

    def discard(self, section: SectionId) -> None:
        """Take the part *section* back; a chip goes with its VM."""
        vcpu = self._vcpus.pop(section, None)
        if vcpu is not None:
            vcpu.thread.close()
        chip = self._chips.pop(section, None)
        if chip is not None:
            chip.close()
        self.board.discard(section)

    def wire(self) -> None:
        """Arm doorbells, load the interrupt routes, register what fires them."""
        self.board.wire(self._need_vm())

    def unwire(self) -> None:
        """Take doorbells and routes back."""
        if self._vm is not None:
            self.board.unwire(self._vm)

    def load(self, section: SectionId) -> None:
        """Write the state that a part of KVM's holds into KVM."""
        if section in self._vcpus:
            vcpu = self._vcpus[section]
            vcpu.thread.call(vcpu.state.load)
        else:
            self._chips[section].load()

    def activate(self) -> None:
        """Let devices drive their level-triggered pins, watch their host ends, make vCPU threads."""
        try:
            self.board.activate()
            for vcpu in self._vcpus.values():
                vcpu.thread.start()
        except BaseException:
            self.deactivate()
            raise
        self.run_state = RunState.PAUSED

    def deactivate(self) -> None:
        """End vCPU threads, let go of host ends."""
        self.run_state = RunState.BUILDING
        try:
            for vcpu in self._vcpus.values():
                vcpu.thread.stop()
        finally:
            self.board.deactivate()

    # Running

    def resume(self) -> None:
        """Let the guest run: the first time with its clocks started, later with its watchdog told of the pause."""
        self._require("resume", RunState.PAUSED, "pause it first")
        vcpus = list(self._vcpus.values())
        if self._was_paused:
            for job in [vcpu.thread.post(vcpu.state.tell_paused) for vcpu in vcpus]:
                job.wait()
        else:  # nobody was in KVM_RUN yet, so this thread may; every counter is set before any vCPU reads one
            self._platform.start_clocks(self._chips.values(), vcpus, self._clock)
        for chip in self._chips.values():
            chip.start_clock()
        self.board.run()
        self.run_state = RunState.RUNNING
        for vcpu in vcpus:
            vcpu.thread.resume()
        if self.on_first_resume is not None and not self._was_paused:
            self.on_first_resume()

    def pause(self) -> None:
        """Park every vCPU with no exit in flight."""
        self._require("pause", RunState.RUNNING, "resume it first")
        for job in [vcpu.thread.pause() for vcpu in self._vcpus.values()]:
            job.wait()
        self._was_paused = True
        self.board.pause()
        self.run_state = RunState.PAUSED
        for chip in self._chips.values():
            chip.stop_clock()

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the guest still in the with block; afterwards it goes on if it ran before, whatever happened.

        What is yielded lets it go on earlier.
        """
        ran = self.run_state is RunState.RUNNING
        if ran:
            self.pause()
        self._require("hold the guest", RunState.PAUSED, "let it be built, or boot it again")

        def go_on() -> None:
            if ran and self.run_state is RunState.PAUSED and self.stop_info is None:
                self.resume()

        try:
            yield go_on
        finally:
            go_on()

    def run(self) -> Stop:
        """Serve the loop until the machine stops; returns why."""
        if self.stop_info is None:
            self._loop.run()
        self.run_state = RunState.STOPPED
        return self.stop_info or Stop(Reason.STOPPED)

    def request_stop(self, stop: Stop) -> None:
        """End the run, from any thread; the first reason counts."""
        if self.stop_info is None:
            self.stop_info = stop
        for vcpu in list(self._vcpus.values()):
            vcpu.thread.halt()
        self._loop.post(self._loop.stop)

    def close(self) -> None:
        """Give everything back, in the kernel's order. Safe at any time, and twice."""
        self.run_state = RunState.CLOSED
        with ExitStack() as order:
            order.callback(self.unmap_memory)
            order.callback(self.board.close_hosts)
            order.callback(self.close_hypervisor)
            order.callback(self.close_vm)
            order.callback(self.board.close_parts)
            order.callback(self.unwire)
            for section in [*self._chips, *self._vcpus]:
                order.callback(self.discard, section)
            order.callback(self.board.deactivate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The guest's word, from vCPU threads

    def power_off(self) -> None:
        self.request_stop(Stop(Reason.POWER_OFF))

    def reset(self) -> None:
        self.request_stop(Stop(Reason.RESET))

    def triple_fault(self, vcpu: int) -> None:
        self.request_stop(Stop(Reason.TRIPLE_FAULT, f"vcpu {vcpu}"))

    def system_event(self, vcpu: int, event: int) -> None:
        reason = {
            abi.KVM_SYSTEM_EVENT_SHUTDOWN: Reason.POWER_OFF,
            abi.KVM_SYSTEM_EVENT_RESET: Reason.RESET,
        }.get(event, Reason.FAILED)
        self.request_stop(Stop(reason, f"vcpu {vcpu}, system event {event}"))

    def vcpu_failed(self, vcpu: int, error: SnapkitError) -> None:
        self.request_stop(Stop(Reason.FAILED, f"vcpu {vcpu}", error))

    # Saving

    def prepare_save(self) -> None:
        """Bring what is between guest and host to rest; changes devices, so the machine must be paused."""
        self._require("prepare a save", RunState.PAUSED, "pause it first")
        self.board.prepare_save()

    def save(self) -> dict[SectionId, State]:
        """Return the state of everything, read in the order of `save_order`."""
        self._require("save", RunState.PAUSED, "pause it first")
        first: dict[SectionId, State] = {
            SectionId("machine", "0"): checked(self._need_state()),
            SectionId("memory-layout", "0"): self._need_memory().save(),
        }
        vcpus = {section: partial(vcpu.thread.call, vcpu.state.save) for section, vcpu in self._vcpus.items()}
        chips = {section: chip.save for section, chip in self._chips.items()}
        parts = {section: part.save for section, part in self.board.parts.items()}
        saved = read_in_order({**vcpus, **chips, **parts})
        self._platform.save_clocks(self._chips.values(), self._vcpus, saved)
        return first | saved

    @property
    def state(self) -> MachineState:
        """Identity and shape."""
        return self._need_state()

    def counters(self) -> Mapping[str, Mapping[str, int]]:
        """What the guest did that nothing was there for, since this process has it: per bus, and per device."""
        vm = self._need_vm()
        return {
            "unclaimed": {bus.name: bus.unclaimed for bus in (vm.ports, vm.mmio)},
            "faults": self.board.faults(),
        }

    def memory_spans(self) -> Sequence[tuple[int, int, int]]:
        """RAM as (gpa, monitor's address, length)."""
        return [(region.gpa, region.hva, region.length) for region in self._need_memory().regions]

    # Private

    def _require(self, what: str, required: RunState, way_out: str) -> None:
        if self.run_state is not required:
            raise StateViolation(what, actual=str(self.run_state), required=str(required), way_out=way_out)

    def _need_vm(self) -> Vm:
        if self._vm is None:
            raise StateViolation("use the VM", actual="not created", required="created", way_out="create_vm first")
        return self._vm

    def _need_kvm(self) -> Kvm:
        if self._kvm is None:
            raise StateViolation("use KVM", actual="not open", required="open", way_out="open_hypervisor first")
        return self._kvm

    def _need_memory(self) -> GuestMemory:
        if self._memory is None:
            raise StateViolation("use memory", actual="not mapped", required="mapped", way_out="map_memory first")
        return self._memory

    def _need_state(self) -> MachineState:
        if self._state is None:
            raise StateViolation("use the VM", actual="not created", required="created", way_out="create_vm first")
        return self._state
