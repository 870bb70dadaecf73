"""What of the lab differs between the machines it emulates: one description for each architecture.

The outer machine of this host's own architecture has this host's root; any other gets one of Debian packages
(`tests.lab.root`). Everything else about it is said here, once, and the code is the same for all.

`-cpu` of aarch64: QEMU computes pointer authentication codes as the hardware would, which makes the whole machine three
times as slow, and SVE costs each nested switch; `PAUTH_CPU` has both where their state is what matters, with a cheap
algorithm for the codes. `NO_VHE_CPU` has no Virtualization Host Extensions: KVM's host then runs at EL1. The KVM of a
machine `WITH_GICV2` makes guests no other GIC.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, eq=False)
class Architecture:
    """One architecture of outer machines and of the guests in them."""

    name: str  # as `uname -m` says it
    debian: str
    triplet: str
    """Debian's multiarch folder of libraries, and the prefix of its cross compiler."""

    loader: str
    """Where programs expect the dynamic linker."""

    copy_relocation: int
    """The type of R_*_COPY: the program holds the variable, the library gives its first value."""

    emulator: str
    emulator_package: str
    machine: tuple[str, ...]
    cpu: str
    cpus: int
    memory_mib: int
    modules: tuple[str, ...]
    """Of the outer machine's kernel, beside those that all need."""

    kernel_options: str
    console: str
    """Of a guest, for `console=`."""

    clocksource: str
    """Of a guest, as its kernel names it."""

    unwatched: str
    """Options of a guest's kernel whose clock jumps: kvm-clock tells it that it was away, nothing else does, and its watchdogs
    then take an hour's jump for CPUs that hang."""

    interrupt_chips: Mapping[str, str]
    """What a guest's kernel calls the chip of devices' interrupts, by their transport."""

    vmgenid: bool
    """Whether a guest's kernel has a driver for it: that for device trees is of Linux 6.10."""

    loses_guests: bool
    """Whether a guest run may be lost to the emulation (`tests.lab.losses`)."""

    peer: Mapping[str, str]
    """QEMU's machine for guests with devices on a transport."""

    peer_vmgenid: frozenset[str]
    """The transports where that machine takes a VMGenID."""

    outer_kernel: str
    guest_kernel: str
    autopsy: tuple[str, ...]
    """Orders for QEMU's monitor that show where the CPUs are and make the kernel say what it knows."""

    @property
    def is_host(self) -> bool:
        """Whether this machine is one: its own programs and packages then serve."""
        return self.name == platform.machine()

    @property
    def compiler(self) -> str:
        """The C compiler for it."""
        return "gcc" if self.is_host else f"{self.triplet}-gcc"

    @property
    def compiler_package(self) -> str:
        """The Debian package that brings `compiler`."""
        return "gcc" if self.is_host else f"gcc-{self.triplet.replace('_', '-')}"


X86_64 = Architecture(
    name="x86_64",
    debian="amd64",
    triplet="x86_64-linux-gnu",
    loader="lib64/ld-linux-x86-64.so.2",
    copy_relocation=5,  # R_X86_64_COPY: System V ABI, AMD64 supplement
    emulator="qemu-system-x86_64",
    emulator_package="qemu-system-x86",
    machine=("q35",),
    cpu="max,+svm",
    # With two CPUs an interrupt from one of them that meets the other around VMRUN may reach the wrong side of it: the
    # machine died in two of seven runs of busy guests. With one it did in none of six.
    cpus=1,
    memory_mib=4096,
    modules=("kvm-amd",),
    # tsc=reliable: the emulated TSC is the host's, one for all CPUs; Linux doubts it and would read the HPET instead, an
    # exit each time.
    kernel_options="console=ttyS0 tsc=reliable unknown_nmi_panic",
    console="ttyS0",
    clocksource="kvm-clock",
    unwatched="",
    interrupt_chips={"pci": "PCI-MSI", "mmio": "IO-APIC"},
    vmgenid=True,
    loses_guests=True,
    peer={"pci": "q35", "mmio": "microvm,rtc=on,pic=on,pit=on,acpi=on"},
    peer_vmgenid=frozenset({"pci"}),
    outer_kernel="linux-image-amd64",
    guest_kernel="linux-image-cloud-amd64",
    # The kernel panics over an interrupt that it does not know, wherever the CPU is.
    autopsy=("info status", "info lapic", "info registers -a", "info registers -a", "nmi"),
)

AARCH64 = Architecture(
    name="aarch64",
    debian="arm64",
    triplet="aarch64-linux-gnu",
    loader="lib/ld-linux-aarch64.so.1",
    copy_relocation=1024,  # R_AARCH64_COPY: ELF for the Arm 64-bit Architecture
    emulator="qemu-system-aarch64",
    emulator_package="qemu-system-arm",
    machine=("virt,virtualization=on,gic-version=3,its=on",),
    cpu="max,pauth=off,sve=off,sme=off",
    cpus=2,
    memory_mib=2048,
    modules=(),
    kernel_options="console=ttyAMA0",
    console="ttyAMA0",
    clocksource="arch_sys_counter",
    unwatched="nowatchdog rcupdate.rcu_cpu_stall_suppress=1",
    interrupt_chips={"pci": "ITS-MSI", "mmio": "GICv3"},
    vmgenid=False,
    loses_guests=False,
    peer=dict.fromkeys(("pci", "mmio"), "virt,gic-version=3,its=on"),
    peer_vmgenid=frozenset(),
    outer_kernel="linux-image-arm64",
    guest_kernel="linux-image-cloud-arm64",
    autopsy=("info status", "info registers -a", "info registers -a"),
)

PAUTH_CPU = "max,pauth-impdef=on"
NO_VHE_CPU = "cortex-a72"
WITH_GICV2 = replace(AARCH64, machine=("virt,virtualization=on,gic-version=2",))

ARCHITECTURES = {architecture.name: architecture for architecture in (X86_64, AARCH64)}
