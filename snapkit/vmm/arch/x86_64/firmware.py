"""The one piece of firmware code that a guest may run: the entry at FFFF:0000, where a processor starts after a reset.

Linux with hardware-reduced ACPI reboots through EFI, and without EFI by going back to real mode and jumping there
(machine_real_restart in arch/x86/kernel/reboot.c), not through the FADT's reset register. So the entry asks for a reset.
"""

from snapkit.vmm.arch.x86_64.layout import RESET_PORT, RESET_VALUE

RESET_ENTRY = bytes((
    0xB0, RESET_VALUE,  # mov al, RESET_VALUE
    0xE6, RESET_PORT,   # out RESET_PORT, al
    0xF4,               # hlt
    0xEB, 0xFD,         # jmp to the hlt
))  # fmt: skip
