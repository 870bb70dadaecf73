"""The kind i8042: what a guest can see of the keyboard controller.

IBM PS/2 Hardware Interface Technical Reference. No keyboard and no auxiliary device hang on it, so there is no queue
of scan codes: one output buffer is all it holds.
"""

from typing import Annotated

from snapkit.errors import Finding
from snapkit.state.schema import U8, State, register, schema
from snapkit.state.spec.i8042 import CommandByte, OutputPort, Status


@schema("i8042", version=1, max_len=1024)
class I8042State(State):
    """Registers of one keyboard controller."""

    status: Annotated[U8, register(Status)] = Status.reset
    command_byte: Annotated[U8, register(CommandByte)] = CommandByte.reset
    output_buffer: U8 = 0
    """The byte port 0x60 reads; `Status.OBF` says whether it is new."""
    pending_command: U8 = 0
    """The command that waits for its data byte, 0 if none does."""
    last_command: U8 = 0
    """The command last written to port 0x64."""
    outputs: Annotated[U8, register(OutputPort)] = OutputPort.reset
    """Output port as last driven; the two interrupt bits follow from the status."""


RULES = {
    "i8042.ibf": "The input buffer is empty: a command is taken as soon as it is written.",
    "i8042.reserved-bits": "The command byte holds bits that the controller has.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: I8042State, component: str) -> list[Finding]:
    """Return what in *state* this controller never holds, for the section *component*."""
    findings = []
    if state.status & Status.IBF:
        findings.append(
            Finding(component, "status", f"{state.status:#04x}", "with IBF clear (input is taken at once)", "i8042.ibf")
        )
    if state.command_byte & ~CommandByte.defined:
        findings.append(
            Finding(
                component,
                "command_byte",
                f"{state.command_byte:#04x}",
                f"within the defined bits {CommandByte.defined:#04x}",
                "i8042.reserved-bits",
            )
        )
    return findings
