"""What is given back while the guest runs is gone at once, for the guest and from the process."""

import pytest

from snapkit import host_memory
from snapkit.units import MIB, PAGE_LEN
from tests.guests.build import guest
from tests.kvm.harness import Rig, booted, restored

LENGTH = 64 * MIB
PROBED = 0x10_0000 + (LENGTH - 0x10_0000) // 8 * 4  # one of the places that memory_probe wrote, and reads for ever
DISCARDED = (PROBED & -PAGE_LEN, 16 * MIB)
FILL_AT = DISCARDED[0] + PAGE_LEN
FILLED = b"\xa5" * (4 * MIB)


def filled_pages(rig: Rig) -> int:
    """How many pages of what `fill` wrote the process has to itself."""
    return host_memory.count_pages(rig.machine._need_memory().hva(FILL_AT, len(FILLED)), len(FILLED))[0]


def discard_while_it_runs(rig: Rig) -> None:
    gpa, length = DISCARDED
    assert rig.machine._need_memory().discard(gpa, length)
    rig.tape.wait_for(f"BAD at {PROBED:08x} is 00000000\n")


def fill(rig: Rig) -> None:
    """Write to memory that the guest has no word in."""
    rig.machine._need_memory().write(FILL_AT, FILLED)


def test_guest_reads_zeros_where_its_memory_was_given_back_and_the_process_has_less():
    with booted(guest("memory_probe"), memory=LENGTH) as rig:
        fill(rig)
        rig.run().tape.wait_for("verify 1 OK")
        assert filled_pages(rig) == len(FILLED) // PAGE_LEN
        discard_while_it_runs(rig)
        assert filled_pages(rig) == 0


@pytest.mark.parametrize("verify", [False, True], ids=["mapped", "copied"])
def test_guest_of_a_snapshot_reads_zeros_and_not_the_file_again(tmp_path, verify):
    with booted(guest("memory_probe"), memory=LENGTH) as rig:
        rig.run().tape.wait_for("verify 1 OK")
        path = rig.save(str(tmp_path / "before.snap"))
    with restored(path, verify_memory=verify) as rig:
        fill(rig)
        rig.run().tape.wait_for("verify 2 OK")
        assert "BAD" not in rig.tape.text
        assert filled_pages(rig) == len(FILLED) // PAGE_LEN
        discard_while_it_runs(rig)
        assert filled_pages(rig) == 0
        again = rig.save(str(tmp_path / "after.snap"))
    with restored(again) as rig:  # what was given back is zero in the next snapshot too
        gpa, length = DISCARDED
        assert not any(rig.machine._need_memory().read(gpa, length))
