"""What `check` looks at in aarch64 machines only: CPUs, the GIC, the ITS and its tables."""

from snapkit.restore.check import gic, its, vcpus_aarch64
from snapkit.restore.check.sections import Invariant

INVARIANTS: tuple[Invariant, ...] = (
    vcpus_aarch64.mpidr_as_given,
    vcpus_aarch64.vcpus_alike,
    vcpus_aarch64.one_counter,
    gic.its_for_messages,
    gic.interrupts_as_mapped,
    gic.redistributors_in_place,
    gic.one_configuration_table,
    gic.interfaces_alike,
    its.tables_in_ram,
    its.collections_possible,
    its.devices_possible,
    its.events_possible,
    its.lpis_in_ram,
)
