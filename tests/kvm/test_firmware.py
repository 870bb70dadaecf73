"""The reset entry of the firmware, run as Linux runs it: real mode, FFFF:0000."""

from snapkit.vmm.arch.x86_64.layout import RESET_ENTRY_GPA
from snapkit.vmm.run_state import Reason
from tests.kvm.harness import booted


def test_jumping_to_the_reset_entry_in_real_mode_resets_the_machine():
    with booted() as rig:
        (vcpu,) = rig.vcpus

        def enter_real_mode():
            fd = vcpu.state.fd
            sregs, regs = fd.get_sregs(), fd.get_regs()
            sregs.cr0 &= ~1
            sregs.cs.base, sregs.cs.selector, sregs.cs.limit, sregs.cs.db, sregs.cs.g = 0xFFFF0, 0xFFFF, 0xFFFF, 0, 0
            regs.rip = RESET_ENTRY_GPA - sregs.cs.base
            fd.set_sregs(sregs)
            fd.set_regs(regs)

        vcpu.thread.call(enter_real_mode)
        rig.machine.resume()
        assert rig.machine.run().reason is Reason.RESET
