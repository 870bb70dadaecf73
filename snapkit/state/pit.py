"""The in-kernel 8254 interval timer (struct kvm_pit_state2).

KVM keeps the host's monotonic time at which a channel was loaded. That means nothing on another host, so the state
holds the *age* of the load at the save. Channel 0 has none: KVM restarts it whenever its state is set.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.state.schema import U8, U16, U32, U64, State, schema


class PitChannel(State):
    """struct kvm_pit_channel_state, with *load_age_ns* in the place of count_load_time."""

    count: U32
    latched_count: U16
    count_latched: U8
    status_latched: U8
    status: U8
    read_state: U8
    write_state: U8
    write_latch: U8
    rw_mode: U8
    mode: U8
    bcd: U8
    gate: U8
    load_age_ns: U64


@schema("pit", version=1, max_len=4096)
class PitState(State):
    """Three channels and the KVM_PIT_FLAGS_* of the state."""

    channels: Annotated[list[PitChannel], Meta(min_length=3, max_length=3)]
    flags: U32
