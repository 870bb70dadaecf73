"""ACPI tables of the x86-64 machine: RSDP, XSDT, FADT, MADT, DSDT, MCFG. Pure: addresses in, bytes out.

ACPI specification 6.5, chapter 5. The tables lie in guest RAM, so they are part of every snapshot. What each choice
does to Linux (6.1, arch/x86/kernel/acpi/boot.c and drivers/acpi):

- HW_REDUCED_ACPI: no fixed-hardware registers, no PM timer, no SCI. Linux then uses neither PIT interrupts nor the 8259
  (acpi_generic_reduced_hw_init); its tick is the local APIC timer, calibrated against the TSC where TSC-deadline mode
  is missing. So Linux must learn the TSC rate in tsc_early_init: from kvm-clock, from ``tsc_early_khz=`` on its command
  line, from CPUID leaf 0x15 (Intel only), or else by timing PIT channel 2 through port 0x61, which fails when exits
  are slow. If all fail, it waits for a tick that never comes, silently: the slower PIT method needs an 8259.
- Power-off writes SLEEP_CONTROL; Linux offers no S5 unless both sleep registers *and* ``_S5`` are there. Reset writes
  RESET_VALUE to RESET_REG, only if RESET_REG_SUP is set.
- IAPC_BOOT_ARCH says no VGA, no CMOS RTC (each probe of a missing RTC costs a Linux guest seconds) and, by not
  setting its bit, no 8042. Bits 3 and 4 stay clear: set, they would forbid MSI and ASPM.
- No interrupt source overrides. KVM's default routing sends GSI n to IOAPIC pin n for every n, the PIT's GSI 0
  included (arch/x86/kvm/irq_comm.c, default_routing), which is ACPI's default too. The usual "IRQ 0 is GSI 2" is what
  monitors need that route GSI 0 to pin 2 themselves; whoever replaces the routing must keep pin n for GSI n.
- COM1 uses an extended interrupt descriptor: Linux takes those as they are, while for the short ISA form it looks for
  an override first, and a hardware-reduced Linux has no ISA interrupts to find.
- The MCFG and the PCI root are there only where there is PCI; a machine without it has the tables of release 0.1.0, byte
  for byte. Linux uses the ECAM only because E820 and MBRD reserve it, which they do in every machine.
"""

import struct
from collections.abc import Sequence

from snapkit.errors import InternalError
from snapkit.units import Gpa, align_up
from snapkit.vmm.arch.x86_64 import acpi_devices, aml
from snapkit.vmm.arch.x86_64.layout import (
    ECAM_LEN,
    ECAM_START,
    GSI_SERIAL,
    IOAPIC_GPA,
    LAPIC_GPA,
    PCI_BUS,
    PCI_SEGMENT,
    RESET_PORT,
    RESET_VALUE,
    RSDP_GPA,
    SERIAL_PORT,
    SERIAL_PORT_LEN,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
    SLP_TYP_S5,
    VMGENID_GPA,
)

_OEM_ID = b"SNAPKT"
_OEM_TABLE_ID = b"SNAPKIT "
_CREATOR_ID = b"SNPK"
_REVISION = 1
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_TABLE_ALIGNMENT = 64
_RSDP_LEN = 36

# FADT, section 5.2.9.
_FADT_LEN = 276
_WBINVD = 1 << 0
_PWR_BUTTON = 1 << 4  # set: there is no fixed-hardware power button
_SLP_BUTTON = 1 << 5  # set: nor a sleep button
_FIX_RTC = 1 << 6  # set: nor RTC wake status
_RESET_REG_SUP = 1 << 10
_HW_REDUCED_ACPI = 1 << 20
_VGA_NOT_PRESENT = 1 << 2
_CMOS_RTC_NOT_PRESENT = 1 << 5
_SYSTEM_IO, _BYTE_ACCESS = 1, 1

# MADT, section 5.2.12.
_PCAT_COMPAT = 1  # there are 8259s: an operating system that knows them must mask them
_LOCAL_APIC, _IO_APIC = 0, 1
_ENABLED = 1


def build_tables(vcpus: int, *, devices: Sequence[bytes] = (), pci: bool = False) -> list[tuple[Gpa, bytes]]:
    r"""Build every table for *vcpus* processors (local APIC ids 0, 1, ...), the RSDP first.

    *devices* are AML device terms (`acpi_devices`) put into ``\_SB`` after the built-in ones, in their order. With
    *pci* there are an MCFG and the PCI root, before them. Raises InternalError when the tables outgrow their place.
    """
    tables: list[tuple[Gpa, bytes]] = []
    free = align_up(RSDP_GPA + _RSDP_LEN, _TABLE_ALIGNMENT)

    def put(table: bytes) -> Gpa:
        nonlocal free
        gpa = Gpa(free)
        free = align_up(free + len(table), _TABLE_ALIGNMENT)
        if free > VMGENID_GPA:
            raise InternalError(f"ACPI tables end at {free:#x}, must end below {VMGENID_GPA:#x}")
        tables.append((gpa, table))
        return gpa

    dsdt = put(_table(b"DSDT", 2, _dsdt([acpi_devices.pci_root(), *devices] if pci else devices)))
    listed = [put(_table(b"FACP", 6, _fadt(dsdt))), put(_table(b"APIC", 5, _madt(vcpus)))]
    if pci:
        listed.append(put(_table(b"MCFG", 1, _mcfg())))
    xsdt = put(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    return [(RSDP_GPA, _rsdp(xsdt)), *tables]


def _sum_to_zero(payload: bytes | bytearray) -> int:
    return -sum(payload) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    maker = (_OEM_ID, _OEM_TABLE_ID, _REVISION, _CREATOR_ID, _REVISION)
    table = bytearray(_HEADER.pack(signature, _HEADER.size + len(body), revision, 0, *maker) + body)
    table[9] = _sum_to_zero(table)
    return bytes(table)


def _rsdp(xsdt: Gpa) -> bytes:
    """Section 5.2.5.3: the first checksum covers the first 20 bytes, the extended one all 36."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, 0, _RSDP_LEN, xsdt, 0))
    rsdp[8] = _sum_to_zero(rsdp[:20])
    rsdp[32] = _sum_to_zero(rsdp)
    return bytes(rsdp)


def _io_register(port: int) -> bytes:
    """Encode a generic address structure, section 5.2.3.2, for one 8-bit port."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8, 0, _BYTE_ACCESS, port)


def _fadt(dsdt: Gpa) -> bytes:
    flags = _WBINVD | _PWR_BUTTON | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP | _HW_REDUCED_ACPI
    fadt = bytearray(_FADT_LEN)
    struct.pack_into("<I", fadt, 40, dsdt)
    struct.pack_into("<H", fadt, 109, _VGA_NOT_PRESENT | _CMOS_RTC_NOT_PRESENT)
    struct.pack_into("<I", fadt, 112, flags)
    struct.pack_into("<12sB", fadt, 116, _io_register(RESET_PORT), RESET_VALUE)
    fadt[131] = 5  # minor version: 6.5
    struct.pack_into("<Q", fadt, 140, dsdt)
    struct.pack_into("<12s12s", fadt, 244, _io_register(SLEEP_CONTROL_PORT), _io_register(SLEEP_STATUS_PORT))
    struct.pack_into("<8s", fadt, 268, b"SNAPKIT\0")  # hypervisor vendor identity
    return bytes(fadt[_HEADER.size :])


def _madt(vcpus: int) -> bytes:
    entries = [struct.pack("<II", LAPIC_GPA, _PCAT_COMPAT)]
    entries += [struct.pack("<BBBBI", _LOCAL_APIC, 8, cpu, cpu, _ENABLED) for cpu in range(vcpus)]
    entries.append(struct.pack("<BBBxII", _IO_APIC, 12, 0, IOAPIC_GPA, 0))  # id 0, as KVM's has; GSI base 0
    return b"".join(entries)


def _mcfg() -> bytes:
    """PCI Firmware Specification 3.3, section 4.1.2: where the configuration space of segment 0, bus 0 is."""
    return struct.pack("<8xQHBB4x", ECAM_START, PCI_SEGMENT, PCI_BUS, PCI_BUS)


def _dsdt(devices: Sequence[bytes]) -> bytes:
    motherboard = aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.memory32_fixed(ECAM_START, ECAM_LEN), aml.io(SLEEP_CONTROL_PORT, 2))),
    )
    serial = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_DDN", aml.text("COM1")),
        aml.name("_CRS", aml.resources(aml.io(SERIAL_PORT, SERIAL_PORT_LEN), aml.interrupt(GSI_SERIAL))),
    )
    s5 = aml.name("_S5", aml.package(aml.integer(SLP_TYP_S5), aml.integer(0), aml.integer(0), aml.integer(0)))
    return s5 + aml.scope("_SB", motherboard, serial, *devices)
