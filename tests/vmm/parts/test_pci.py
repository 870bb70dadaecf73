"""Vectors that the kernel refused: they wait, a save tries them again, and nothing is saved that could not be restored."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import HostError
from snapkit.units import MIB
from tests.grounds import X86_64
from tests.vmm.virtio.paper import PaperKernel, guarded_memory
from tests.vmm.virtio.registers import MSI_ADDRESS, TABLE, PciRegisters
from tests.vmm.virtio.whole import Whole, findings

MASKED = 1


class Refusing(PaperKernel):
    """A kernel that has run out of what an irqfd takes."""

    refuses = False

    def irqfd(self, fd: int, gsi: int, *, assign: bool) -> None:
        if assign and self.refuses:
            raise HostError("KVM_IRQFD", errno.ENOMEM)
        super().irqfd(fd, gsi, assign=assign)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whole]:
    monkeypatch.setattr("tests.vmm.virtio.whole.PaperKernel", Refusing)
    with guarded_memory([(0, 4 * MIB)]) as memory:
        whole = Whole(memory, "pci", str(tmp_path), kinds=["virtio-rng"])
        yield whole
        whole.close()


def open_vectors(machine: Whole) -> None:
    """Do what a driver does: messages, masks off, MSI-X on."""
    registers = PciRegisters(machine, 1, 1)
    machine.write(registers.function + 4, 2, 6)
    for vector in (0, 1):
        entry = registers.bar + TABLE + 16 * vector
        for offset, value in ((0, MSI_ADDRESS), (4, 0), (8, 0x40 + vector), (12, 0)):
            machine.write(entry + offset, 4, value)
    machine.write(registers.function + registers.msix + 2, 2, 0x8000)


def test_a_save_opens_what_the_kernel_refused_and_sends_what_waited(machine):
    kernel: Any = machine.kernel
    kernel.refuses = True
    open_vectors(machine)
    msix = machine.part("pci-msix", "virtio-rng").msix
    msix.trigger(1)
    assert (kernel.irqfds, msix.state.pending) == ({}, [2])
    assert any("interrupt-table/0.routes" in finding for finding in findings(machine.save()))
    kernel.refuses = False
    machine.board.pause()
    machine.board.prepare_save()
    assert sorted(kernel.irqfds.values()) == msix.state.gsis
    assert (kernel.messages(msix.state.gsis[1]), msix.state.pending) == (1, [0])
    assert findings(machine.save()) == []


@pytest.mark.parametrize(("asked", "told"), [(False, 0), (True, 1 << 3)], ids=["not asked", "asked"])
def test_a_message_tells_its_sender_where_interrupt_controllers_ask_for_it(tmp_path, monkeypatch, asked, told):
    here = X86_64._replace(map=X86_64.map._replace(sender_ids=asked))
    monkeypatch.setattr("tests.vmm.virtio.whole.X86_64", here)
    with guarded_memory([(0, 4 * MIB)]) as memory:
        whole = Whole(memory, "pci", str(tmp_path), kinds=["virtio-rng"])
        open_vectors(whole)
        assert [route.device_id for route in whole.vm.interrupts.save().routes] == [told, told]
        whole.close()


def test_a_save_fails_while_the_kernel_still_refuses_and_the_machine_goes_on(machine):
    kernel: Any = machine.kernel
    kernel.refuses = True
    open_vectors(machine)
    machine.board.pause()
    with pytest.raises(HostError, match="KVM_IRQFD"):
        machine.board.prepare_save()
    machine.board.run()
    msix = machine.part("pci-msix", "virtio-rng").msix
    msix.trigger(0)
    assert msix.state.pending == [1]
    kernel.refuses = False
    registers = PciRegisters(machine, 1, 1)
    machine.write(registers.function + registers.msix + 2, 2, 0x8000)
    assert (kernel.messages(msix.state.gsis[0]), msix.state.pending) == (1, [0])


def test_a_save_asks_the_kernel_for_nothing_where_all_is_as_it_should_be(machine):
    open_vectors(machine)
    machine.board.pause()
    kernel: Any = machine.kernel
    kernel.refuses = True  # it is not asked
    kernel.set_gsi_routing = None
    machine.board.prepare_save()
    assert findings(machine.save()) == []
