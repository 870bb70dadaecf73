"""Keyboard controller with nothing plugged in: IBM PS/2 Hardware Interface Technical Reference. The chip only.

It is there for its reset line, and answers enough that a guest which probes it finishes quickly: the controller is
sound, it has no auxiliary port, and a byte sent to the keyboard comes back at once as "resend" with the time-out bit,
as the controller itself does when no keyboard clocks the byte in. Commands take no time: the input buffer is never
seen full. The A20 gate is stored and read back, but address line 20 always passes.

Surprise: Linux tests for an auxiliary port by looping a byte back (0xD3). Answering as the keyboard, so without
`Status.ODS`, says "none" at once; not answering at all would cost its time-out.
"""

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

from snapkit.state.codec import adopted, checked
from snapkit.state.i8042 import I8042State
from snapkit.state.spec import i8042 as spec
from snapkit.state.spec.i8042 import CommandByte, OutputPort, Status
from snapkit.vmm.devices.pins import IrqLine

_INPUT_PORT = 0x80  # keyboard not locked; the rest are jumpers that no board has any more


class I8042Args(NamedTuple):
    """Host things of a keyboard controller. *irq* is ISA interrupt 1, or None where it is not wired.

    *reset_requested* runs inside a guest's access: it should note the fact and return.
    """

    reset_requested: Callable[[], None]
    irq: IrqLine | None = None


class I8042:
    """One controller, behind a bus: ports 0x60 (offset 0) and 0x64 (offset 4). Every method needs the machine's lock."""

    kind: ClassVar[str] = "i8042"

    def __init__(self, state: I8042State, *, reset_requested: Callable[[], None], irq: IrqLine | None = None) -> None:
        # Runtime glue
        self._irq, self._reset_requested = irq, reset_requested
        self.faults = 0
        # Guest-visible state
        self.state = state
        self._level = self._irq_level()  # adopted: the pin had this level before

    @classmethod
    def restore(cls, state: I8042State, args: I8042Args) -> Self:
        """Construct the controller that *state* describes; its pin is not touched.

        Raises ImageError naming the field that is out of bounds.
        """
        return cls(adopted(state), reset_requested=args.reset_requested, irq=args.irq)

    def save(self) -> I8042State:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def reset(self) -> None:
        """Go back to the state that firmware leaves behind: self test passed, keyboard and auxiliary port disabled."""
        self.state = I8042State()
        self._update_irq()

    def resync(self) -> None:
        """Drive the pin again after a restore, if its controller forgot the level without that being an edge."""
        if self._irq is not None and not self._irq.edge:
            self._irq.set_level(self._level)

    # The bus

    def read(self, offset: int, length: int) -> int:
        """Read port 0x60 or 0x64; all ones for anything else."""
        if length == 1:
            if offset == spec.COMMAND:
                return self.state.status
            if offset == spec.DATA:
                return self._read_data()
        self.faults += 1
        return (1 << 8 * length) - 1

    def write(self, offset: int, length: int, value: int) -> None:
        """Write port 0x60 or 0x64; nothing for anything else."""
        if length == 1 and offset == spec.COMMAND:
            self._write_command(value & 0xFF)
        elif length == 1 and offset == spec.DATA:
            self._write_data(value & 0xFF)
        else:
            self.faults += 1

    # Registers, in offset order

    def _read_data(self) -> int:
        self.state.status &= ~(Status.OBF | Status.ODS | Status.TO)
        self._update_irq()
        return self.state.output_buffer

    def _write_data(self, value: int) -> None:
        state = self.state
        state.status &= ~Status.CD
        command, state.pending_command = state.pending_command, 0
        # A command without an entry writes the controller's own RAM, of which only the command byte is kept.
        action = self._data_writes.get(command)
        if action is not None:
            action(value)

    def _write_command(self, value: int) -> None:
        state = self.state
        state.status |= Status.CD
        state.last_command, state.pending_command = value, 0
        if value >= spec.CMD_PULSE:
            if not value & OutputPort.RESET:
                self._reset_requested()
        elif value & 0xE0 == spec.CMD_READ_COMMAND_BYTE:  # 0x20-0x3F read bytes 0-31 of the RAM
            self._answer(state.command_byte if not value & 0x1F else 0)
        elif value & 0xE0 == spec.CMD_WRITE_COMMAND_BYTE or value in self._data_writes:  # 0x60-0x7F write them
            state.pending_command = value
        elif (action := self._commands.get(value)) is not None:
            action()

    # Commands

    def _self_test(self) -> None:
        self.state.status |= Status.SYS
        self.state.command_byte |= CommandByte.SYS
        self._answer(spec.SELF_TEST_PASSED)

    def _disable_keyboard(self) -> None:
        self.state.command_byte |= CommandByte.KDIS

    def _enable_keyboard(self) -> None:
        self.state.command_byte &= ~CommandByte.KDIS

    def _write_command_byte(self, value: int) -> None:
        state = self.state
        state.command_byte = CommandByte.merge(0, value)
        state.status &= ~Status.SYS
        if state.command_byte & CommandByte.SYS:
            state.status |= Status.SYS
        self._update_irq()

    def _read_output_port(self) -> None:
        # The interrupt bits show the buffer as it was before this answer filled it.
        state = self.state
        pins = state.outputs & OutputPort.writable
        if state.status & Status.OBF:
            pins |= OutputPort.IRQ12 if state.status & Status.ODS else OutputPort.IRQ1
        self._answer(pins)

    def _write_output_port(self, value: int) -> None:
        self.state.outputs = OutputPort.merge(self.state.outputs, value) | OutputPort.RESET
        if not value & OutputPort.RESET:
            self._reset_requested()

    def _to_keyboard(self, value: int) -> None:
        self._enable_keyboard()  # sending to the keyboard enables it
        self._answer(spec.RESEND, Status.TO)

    # Interrupt logic

    def _irq_level(self) -> bool:
        status = self.state.status
        return bool(status & Status.OBF and not status & Status.ODS and self.state.command_byte & CommandByte.KIE)

    def _update_irq(self) -> None:
        level = self._irq_level()
        if level != self._level:
            self._level = level
            if self._irq is not None:
                self._irq.set_level(level)

    # Helpers

    def _answer(self, value: int, status: int = 0) -> None:
        # A byte that nobody read is replaced, and the pin goes down and up: the new byte is a new interrupt.
        self.state.status &= ~(Status.OBF | Status.ODS | Status.TO)
        self._update_irq()
        self.state.output_buffer = value
        self.state.status |= Status.OBF | status
        self._update_irq()

    # Tables: made at the first access, which a restored guest may never need

    @cached_property
    def _commands(self) -> dict[int, Callable[[], None]]:
        return {
            spec.CMD_AUX_TEST: lambda: self._answer(spec.AUX_CLOCK_STUCK_LOW),
            spec.CMD_SELF_TEST: self._self_test,
            spec.CMD_KEYBOARD_TEST: lambda: self._answer(spec.KEYBOARD_TEST_PASSED),
            spec.CMD_KEYBOARD_DISABLE: self._disable_keyboard,
            spec.CMD_KEYBOARD_ENABLE: self._enable_keyboard,
            spec.CMD_READ_INPUT_PORT: lambda: self._answer(_INPUT_PORT),
            spec.CMD_READ_OUTPUT_PORT: self._read_output_port,
            spec.CMD_READ_TEST_INPUTS: lambda: self._answer(0),
        }

    @cached_property
    def _data_writes(self) -> dict[int, Callable[[int], None]]:
        return {
            0: self._to_keyboard,
            spec.CMD_WRITE_COMMAND_BYTE: self._write_command_byte,
            spec.CMD_WRITE_OUTPUT_PORT: self._write_output_port,
            spec.CMD_WRITE_OUTPUT_BUFFER: self._answer,
            spec.CMD_WRITE_AUX_OUTPUT_BUFFER: self._answer,
            spec.CMD_WRITE_AUX: lambda _value: self._answer(spec.RESEND, Status.TO),
        }
