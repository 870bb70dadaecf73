"""An aarch64 machine goes to no release that does not know the architecture, for that reason and no other."""

import pytest

from snapkit.state.converters import Refusal, convert_sections
from snapkit.state.law import committed_files, violations
from snapkit.state.releases import releases
from tests.grounds import AARCH64
from tests.restore.device_machine import busy_machine, fresh_machine

FIRST = "0.5.0"
NAMES = [each.release for each in releases()]
OLDER = NAMES[: NAMES.index(FIRST)]


@pytest.mark.parametrize("release", OLDER)
@pytest.mark.parametrize("transport", [None, "pci", "mmio"])
def test_an_older_release_is_refused_for_the_architecture_alone(release, transport):
    states = busy_machine(transport, AARCH64) if transport else fresh_machine(None, 2, AARCH64)
    with pytest.raises(Refusal) as caught:
        convert_sections(states, FIRST, release)
    (reason,) = caught.value.findings
    told = "machine/0.architecture is 183 (0xb7), must be 62 (x86-64): releases before 0.5.0 know no aarch64 machines"
    assert str(reason) == told


def test_an_x86_machine_goes_down_and_up_again_unchanged():
    states = busy_machine("pci")
    down = convert_sections(states, FIRST, "0.4.0")
    assert convert_sections(down, "0.4.0", FIRST) == states


def test_the_law_holds():
    assert list(violations(committed_files())) == []
