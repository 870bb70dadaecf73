"""Tiny bare-metal guests: the one that `snapkit demo` boots, and the runtimes that the tests' guests share.

`demo.c` is the same for all architectures. What such a guest is made of is in a folder each, by uname(2)'s name:
`start.S` (entry), `rt.h` (serial text, interrupts, power), `guest.lds`, with the built binary `demo.elf` (committed, so
that the demo needs no compiler) and the record of how it came to be (`BUILD.json`). `text.h` is what runtimes have in
common, `python -m snapkit.guests.build` builds and compares, `expected` models what the demo guest must print.

Rules for a guest:

- x86-64: an ELF32 file for the i386 with a PVH note (Xen ELF note 18, XEN_ELFNOTE_PHYS32_ENTRY), loaded at 1 MiB, whose
  text, data and stack end below 2 MiB; plain i386 integer instructions, and nothing that KVM's instruction emulator lacks
  in protected mode: no `iret`, no `int`, `int3` or `into`. Where the host lends neither VMX nor SVM every guest instruction
  is emulated, at 1 to 2 million a second
- aarch64: an ELF64 file loaded at 2 GiB, the start of RAM, entered as arm64 Linux is, that ends below the device tree of a
  machine of 2 MiB
- the loader zeroes what lies beyond a segment's file bytes
- nothing that a guest prints depends on time, only on how far it has come; it reads no counter but to set its timer
- `rt.h` is the only place for the monitor's addresses

Prior art: Xen's public/arch-x86/hvm/start_info.h and Linux' Documentation/arch/arm64/booting.rst (the protocols),
kvm-unit-tests (small guests as test inputs).
"""

import os

from snapkit import host
from snapkit.errors import ConfigError

FOLDER = os.path.dirname(os.path.abspath(__file__))


def path(name: str, architecture: str = "") -> str:
    """Return the path of a file of *architecture*, by default this host's: ``demo.elf`` first of all.

    Raises ConfigError when it is not there.
    """
    found = os.path.join(FOLDER, architecture or host.machine_name(), name)
    if os.path.basename(name) != name or not os.path.isfile(found):
        raise ConfigError(f"there is no guest file {name!r} in {os.path.dirname(found)}")
    return found
