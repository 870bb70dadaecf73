"""KVM's paravirtual clock: nanoseconds that the guest has lived, and the wall time at which that was read."""

from snapkit.state.schema import U64, State, schema


@schema("kvm-clock", version=1, max_len=256)
class KvmClockState(State):
    """*clock_ns* is struct kvm_clock_data.clock; *realtime_ns* the host's wall clock (UTC) at the same moment."""

    clock_ns: U64
    realtime_ns: U64
