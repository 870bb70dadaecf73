"""KVM of aarch64 under our own objects: a whole machine saved, loaded and saved again, and what each edge of an order is for."""

import json
import re

import pytest

from snapkit.state.spec.address_map import AARCH64
from tests.lab.outer import Outer
from tests.order_tables import EDGES, is_aarch64

pytestmark = pytest.mark.lab

REGISTERS = 241
"""KVM_GET_REG_LIST of Linux 6.1 without SVE, less the counter, which is the first CPU's."""
NORMALISED = {
    "gicv3-redistributor/0.propbaser",
    "gicv3-redistributor/0.pendbaser",
    "gicv3-redistributor/1.propbaser",
    "gicv3-redistributor/1.pendbaser",
    "gicv3-its/0.cbaser",
    "gicv3-its/0.baser",
}
"""Addresses, which KVM gives attributes of shareability and cacheability that it has."""

ELSEWHERE = {
    ("rebuild", "machine", "vcpu-aarch64"),
    *(("rebuild", "memory-layout", kind) for kind in AARCH64.pins),  # tests/vmm/parts/test_board.py
}
"""Shown by a whole machine, or by its parts: the script has no machine without a VM, and no board."""
NEEDS_SVE = {
    ("vcpu-aarch64", "VCPU_INIT", "SVE_VLS"),
    ("vcpu-aarch64", "SVE_VLS", "VCPU_FINALIZE"),
    ("vcpu-aarch64", "VCPU_FINALIZE", "VECTORS"),
}
WRONG = {
    ("rebuild", "vcpu-aarch64", "gicv3-distributor"): r"refused KVM_CREATE_VCPU\(.*\) failed: EBUSY",
    ("rebuild", "gicv3-distributor", "gicv3-redistributor"): "refused a part of the GIC is made before its distributor",
    ("rebuild", "gicv3-distributor", "gicv3-cpu-interface"): "refused a part of the GIC is made before its distributor",
    ("load", "vcpu-aarch64", "gicv3-redistributor"): "refused KVM refuses STATUSR of gicv3-redistributor",
    ("load", "gicv3-redistributor", "gicv3-its"): "refused KVM refuses the tables of the ITS",
    ("vcpu-aarch64", "VCPU_INIT", "SVE_VLS"): "refused KVM_SET_ONE_REG.* failed: ENOEXEC",
    ("vcpu-aarch64", "SVE_VLS", "VCPU_FINALIZE"): "refused KVM refuses KVM_REG_ARM64_SVE_VLS",
    ("vcpu-aarch64", "VCPU_FINALIZE", "VECTORS"): "refused KVM refuses Z0",
    ("vcpu-aarch64", "VCPU_INIT", "REGS"): "refused KVM_SET_ONE_REG.* failed: ENOEXEC",
    ("vcpu-aarch64", "VCPU_INIT", "VCPU_EVENTS"): "refused KVM_SET_VCPU_EVENTS.* failed: ENOEXEC",
    ("vcpu-aarch64", "VCPU_INIT", "MP_STATE"): "lost vcpu-aarch64/1.mp_state",
    ("redistributor", "PROPBASER", "GICR_CTLR"): "refused KVM refuses the tables of the ITS",
    ("redistributor", "PENDBASER", "GICR_CTLR"): "refused KVM refuses the tables of the ITS",
    ("redistributor", "ICENABLER0", "ISENABLER0"): "lost gicv3-redistributor/0.isenabler0",
    ("its", "CBASER", "CREADR"): "lost memory",
    ("its", "BASER", "TABLES"): "lost memory",
    ("its", "CWRITER", "CTLR"): "lost memory",
}
"""Edges, and what comes of swapping one."""
OWN = {
    (table, edge.before, edge.after): edge.either
    for table, edge in EDGES
    if is_aarch64(table, edge) and table not in {"save", "stages"}
}


def test_every_edge_is_shown_to_matter_or_is_marked() -> None:
    assert {key for key, either in OWN.items() if not either} - ELSEWHERE == set(WRONG)


def test_a_machine_is_the_same_after_each_way_through_a_file(outer_aarch64: Outer) -> None:
    done = outer_aarch64.run([outer_aarch64.python, "-m", "tests.lab.inside_arm_kvm", "edges"], timeout=300)
    assert done.code == 0, done
    hold(done.stdout, sve=False)


def hold(output: str, *, sve: bool) -> None:
    """Hold what `inside_arm_kvm` printed against what a KVM with SVE, or without, has to say."""
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (whole,) = [one for one in told if one["what"] == "round"]
    first, second = whole["registers"]
    assert first == second + 1
    assert second >= REGISTERS
    assert set(whole["taken"]) == NORMALISED
    assert whole["again"] == []
    assert whole["ram_again"]
    assert whole["kept"]
    assert whole["pending"], "an LPI that is pending shows that none is lost"
    assert {"what": "twice", "same": True} in told
    assert {"what": "resumed", "differs": [], "behind": False} in told
    outcomes = {(one["table"], one["before"], one["after"]): one["outcome"] for one in told if one["what"] == "edge"}
    assert outcomes.keys() == OWN.keys()
    for key, outcome in outcomes.items():
        if key in WRONG and (sve or key not in NEEDS_SVE):
            assert re.match(WRONG[key], outcome), (key, outcome)
        elif OWN[key]:
            assert outcome == "same", (key, OWN[key])
