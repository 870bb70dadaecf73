"""What each architecture decides of a new machine, on a usual KVM: for machines that are made up."""

from snapkit.state.rtc_pl031 import Pl031State
from snapkit.state.schema import SectionId
from snapkit.state.serial_pl011 import Pl011State
from snapkit.state.spec import address_map
from snapkit.units import Gpa
from snapkit.vmm.arch import Platform
from snapkit.vmm.arch.aarch64 import platform as aarch64
from snapkit.vmm.arch.x86_64 import platform as x86_64
from snapkit.vmm.parts.part import Ground

PLATFORMS: tuple[Platform, ...] = (x86_64, aarch64)
"""Every one that there is, as the type checker sees it: modules are found by name at run time."""

X86_64 = x86_64.ground(None, ())
AARCH64 = Ground(
    map=address_map.AARCH64,
    generation_gpa=Gpa((2 << 30) + (3 << 20)),
    parts={SectionId("serial-pl011", "0"): Pl011State(), SectionId("rtc-pl031", "0"): Pl031State()},
)
