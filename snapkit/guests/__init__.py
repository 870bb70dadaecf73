"""Tiny bare-metal guests: the one that `snapkit demo` boots, and the runtime that the tests' guests share.

Here live `demo.c` with its built binary `demo.elf` (committed, so that the demo needs no compiler), what every such guest
is made of (`start.S`: entry by the PVH boot protocol, `rt.h`: ports, serial text, interrupts, power, `guest.lds`), the
record of how the binary came to be (`BUILD.json`), the tool that builds and compares (`python -m snapkit.guests.build`)
and a model of what the demo guest must print (`expected`).

Rules for a guest:

- an ELF32 file for the i386 with a PVH note (Xen ELF note 18, XEN_ELFNOTE_PHYS32_ENTRY), loaded at 1 MiB, whose text,
  data and stack end below 2 MiB; the loader zeroes what lies beyond a segment's file bytes
- plain i386 integer instructions, and nothing that KVM's instruction emulator lacks in protected mode: no `iret`, no
  `int`, `int3` or `into`. Where the host lends neither VMX nor SVM every guest instruction is emulated, at 1 to 2 million
  a second
- nothing that a guest prints depends on time, only on how far it has come; it does not read the TSC
- `rt.h` is the only place for port numbers; SLEEP_CONTROL and RESET_PORT there are the monitor's

Prior art: Xen's public/arch-x86/hvm/start_info.h (the protocol), kvm-unit-tests (small guests as test inputs).
"""

import os

from snapkit.errors import ConfigError

FOLDER = os.path.dirname(os.path.abspath(__file__))


def path(name: str) -> str:
    """Return the path of a file of this package, ``demo.elf`` first of all. Raises ConfigError when it is not there."""
    found = os.path.join(FOLDER, name)
    if os.path.basename(name) != name or not os.path.isfile(found):
        raise ConfigError(f"there is no guest file {name!r} in {FOLDER}")
    return found
