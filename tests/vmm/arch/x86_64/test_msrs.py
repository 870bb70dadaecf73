"""Which MSRs are state, where that can be said without a CPU."""

import pytest

from snapkit.state.vcpu_x86_64 import CpuidEntry, Msr
from snapkit.vmm.arch.x86_64.msrs import drop_unkept

SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
WIDE = 0xFFFF_FE00_0000_3000


def vendor(name):
    ebx, edx, ecx = (int.from_bytes(name[at : at + 4], "little") for at in (0, 4, 8))
    return [CpuidEntry(function=0, eax=1, ebx=ebx, ecx=ecx, edx=edx)]


@pytest.mark.parametrize(("name", "kept"), [(b"GenuineIntel", WIDE), (b"AuthenticAMD", WIDE & 0xFFFF_FFFF)])
def test_only_intel_keeps_the_upper_halves_of_the_sysenter_pointers(name, kept):
    saved = [Msr(index=index, data=WIDE) for index in (SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP)]
    drop_unkept(saved, vendor(name))
    assert [msr.data for msr in saved] == [WIDE, kept, kept]
