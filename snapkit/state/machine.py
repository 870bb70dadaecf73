"""The machine as a whole: what everything else is part of."""

from typing import Annotated, Literal

from msgspec import Meta

from snapkit.state.schema import U8, U16, U32, State, schema

EM_X86_64 = 62
EM_AARCH64 = 183

MachineId = Annotated[bytes, Meta(min_length=16, max_length=16)]


@schema("machine", version=1, max_len=4096)
class MachineState(State):
    """Identity and shape. *architecture* is the ELF machine number; *tsc_khz* 0 means that no rate is required."""

    architecture: U16
    machine_id: MachineId
    vcpu_count: U8
    cpu_profile: Literal["host", "baseline"]
    tsc_khz: U32
