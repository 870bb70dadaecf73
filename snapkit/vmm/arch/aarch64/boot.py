"""Put a kernel, its initial ramdisk and the device tree into guest memory, and say how the boot vCPU starts.

Linux Documentation/arch/arm64/booting.rst. Two kinds of kernel: arm64 Image (`image`), and ELF64 for tiny guests, entered
the same way. Everything is checked before it is used, and what the operator got wrong is a ConfigError with a sentence.
Memory must be fresh (zeros): BSS is not written.

Surprises:

- The kernel lies at the start of RAM: whatever is below it a kernel with 2 MiB text granularity could never use.
- Without PCI there is no host bridge in the tree, and so no ``pci=off``: generic Linux would only complain of the word.
"""

from typing import TYPE_CHECKING, NamedTuple

from snapkit import host
from snapkit.state.resource_allocator import ResourceAllocatorState
from snapkit.units import Gpa
from snapkit.vmm.arch import elf
from snapkit.vmm.arch.aarch64 import fdt, image
from snapkit.vmm.arch.aarch64.layout import FDT_LEN_MAX, Window, fdt_gpa, initrd_end, mpidr, vmgenid_gpa
from snapkit.vmm.arch.boot_file import BootFile, BootMemory, GuestFiles, command_line, load_initrd, open_guest

if TYPE_CHECKING:
    from snapkit.vmm.parts.fresh import Fresh

__all__ = ["BootEntry", "GuestFiles", "load_guest", "load_kernel", "open_guest"]

CMDLINE_LEN_MAX = 2047  # Linux on arm64: COMMAND_LINE_SIZE less its NUL
PSTATE_EL1H_MASKED = 0x3C5  # EL1 with its own stack pointer; D, A, I and F masked


class BootEntry(NamedTuple):
    """What the boot vCPU starts with; every other register is as KVM resets it: x1 to x3 are 0, the MMU is off."""

    pc: Gpa
    x0: Gpa
    pstate: int = PSTATE_EL1H_MASKED


def load_guest(memory: BootMemory, guest: GuestFiles, fresh: "Fresh", *, cmdline: str, vcpus: int) -> BootEntry:
    """Put the kernel and the device tree of a machine of *vcpus* into fresh RAM; return how the boot CPU starts."""
    (window,) = (
        Window(Gpa(pool.start), pool.length)
        for state in fresh.sections.values()
        if isinstance(state, ResourceAllocatorState)
        for pool in state.pools
        if pool.pool == "mmio64"
    )
    board = fdt.Board(
        mpidrs=[mpidr(vcpu) for vcpu in range(vcpus)],
        mmio64=window if fresh.transport == "pci" else None,
        mmio_slots=fresh.mmio_slots,
        generation_gsi=fresh.generation_gsi,
        seed=host.urandom(fdt.SEED_LEN),
    )
    return load_kernel(memory, guest.kernel, initrd=guest.initrd, cmdline=cmdline, board=board)


def load_kernel(
    memory: BootMemory, kernel: BootFile, *, initrd: BootFile | None = None, cmdline: str = "", board: fdt.Board
) -> BootEntry:
    """Load *kernel* for a boot with *cmdline* on *board* and return the boot vCPU's first state.

    Writes the kernel, the ramdisk and the device tree. Raises ConfigError for files that cannot be booted or do not fit.
    """
    line = command_line(cmdline, CMDLINE_LEN_MAX)
    (ram_gpa, ram_len), *_ = memory.ram
    start = kernel.read(0, image.HEADER_LEN)
    if image.is_image(start):
        loaded = image.load(memory, kernel)
        entry, end = loaded.load_gpa, loaded.end
    elif start.startswith(elf.MAGIC):
        entry, end = _load_elf(memory, kernel, ram_len)
    else:
        raise kernel.wrong(f"begins with {start[:4].hex(' ')}", "an arm64 Image or an ELF kernel")
    ramdisk = load_initrd(memory, initrd, end, initrd_end(ram_len))
    tree = fdt.build(board, ram=(ram_gpa, ram_len), cmdline=line, initrd=ramdisk)
    memory.write(fdt_gpa(ram_len), tree)
    return BootEntry(pc=entry, x0=fdt_gpa(ram_len))


def _load_elf(memory: BootMemory, kernel: BootFile, ram_len: int) -> tuple[Gpa, int]:
    """Copy the segments of *kernel*; return its entry and the end of the highest."""
    executable = elf.parse(kernel, machines={"EM_AARCH64"}, wanted="aarch64")
    if not executable.is_64bit or not executable.loads(executable.entry):
        got = f"is an ELF file with entry {executable.entry:#x}"
        raise kernel.wrong(got, "a 64-bit kernel with its entry at a physical address")
    kept_free = (vmgenid_gpa(ram_len), fdt_gpa(ram_len) + FDT_LEN_MAX, "the device tree")
    elf.load(memory, kernel, executable.segments, kept_free=[kept_free])
    return Gpa(executable.entry), executable.end
