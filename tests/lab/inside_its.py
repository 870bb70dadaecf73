"""Run inside the aarch64 outer machine: what KVM's ITS itself does with tables in memory. Bare ioctls, one JSON line a result.

Each question is put to a VM of its own: RAM, CPUs that never run, a GICv3 and an ITS. What KVM refuses to restore, what it
saves after it restored tables that were made here, and what it saves after the commands of a guest.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import struct
from collections.abc import Mapping, Sequence

from snapkit.state.its_tables import Places, decode, interrupts
from snapkit.state.spec.address_map import GICD_GPA, GITS_TRANSLATER, gicr_gpa, its_gpa
from tests.state.its_faults import FAULTS, TAKEN
from tests.state.its_writer import BASE, COLLECTIONS, LEVEL2, PAGE, PENDING, PROPERTIES, VALID, Its, Ram, linux

KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020_AE46
KVM_SIGNAL_MSI = 0x4020_AEA5
KVM_ARM_VCPU_INIT = 0x4020_AEAE
KVM_ARM_PREFERRED_TARGET = 0x8020_AEAF
KVM_CREATE_DEVICE = 0xC00C_AEE0
KVM_SET_DEVICE_ATTR = 0x4018_AEE1
ARM_VGIC_V3, ARM_VGIC_ITS = 7, 8
GRP_ADDR, GRP_NR_IRQS, GRP_CTRL, GRP_REDIST_REGS, GRP_ITS_REGS = 0, 3, 4, 5, 8
ADDR_DIST, ADDR_REDIST, ADDR_ITS = 2, 3, 4
CTRL_INIT, ITS_SAVE_TABLES, ITS_RESTORE_TABLES, SAVE_PENDING_TABLES = range(4)
GICR_CTLR, GICR_PROPBASER, GICR_PENDBASER = 0x0, 0x70, 0x78
GITS_CTLR, GITS_IIDR, GITS_CBASER, GITS_CWRITER, GITS_BASER = 0x0, 0x4, 0x80, 0x88, 0x100
QUEUE = BASE + 0xF_0000
MSI_VALID_DEVID = 1
ROUNDS, SEED = 8, 7


class Vm:
    """A VM whose RAM is a copy of *ram*."""

    def __init__(self, ram: Ram, vcpus: int) -> None:
        self.kvm = os.open("/dev/kvm", os.O_RDWR)
        self.fd = fcntl.ioctl(self.kvm, KVM_CREATE_VM, 0)
        self.length = len(ram.content)
        self.pages = mmap.mmap(-1, self.length)
        self.pages[:] = bytes(ram.content)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        fcntl.ioctl(self.fd, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, BASE, self.length, self.address))
        self.vcpus = [fcntl.ioctl(self.fd, KVM_CREATE_VCPU, number) for number in range(vcpus)]
        target = bytearray(32)
        fcntl.ioctl(self.fd, KVM_ARM_PREFERRED_TARGET, target)
        for vcpu in self.vcpus:
            fcntl.ioctl(vcpu, KVM_ARM_VCPU_INIT, bytes(target))
        self.gic, self.its = (self._device(kind) for kind in (ARM_VGIC_V3, ARM_VGIC_ITS))
        self.set(self.gic, GRP_ADDR, ADDR_DIST, GICD_GPA)
        self.set(self.gic, GRP_ADDR, ADDR_REDIST, gicr_gpa(vcpus))
        self.set(self.gic, GRP_NR_IRQS, 0, 128, "<I")
        self.set(self.gic, GRP_CTRL, CTRL_INIT)
        self.set(self.its, GRP_ADDR, ADDR_ITS, its_gpa(vcpus))
        self.set(self.its, GRP_CTRL, CTRL_INIT)
        self.translater = its_gpa(vcpus) + GITS_TRANSLATER
        self.commands = 0

    def _device(self, kind: int) -> int:
        made = bytearray(struct.pack("<III", kind, 0, 0))
        fcntl.ioctl(self.fd, KVM_CREATE_DEVICE, made)
        return int.from_bytes(made[4:8], "little")

    def set(self, device: int, group: int, attribute: int, value: int = 0, layout: str = "<Q") -> None:
        payload = ctypes.create_string_buffer(struct.pack(layout, value))
        words = struct.pack("<IIQQ", 0, group, attribute, ctypes.addressof(payload))
        fcntl.ioctl(device, KVM_SET_DEVICE_ATTR, words)

    def registers(self, where: Places) -> None:
        """Load what says where tables are, in the order in which KVM wants it."""
        for number, pendbaser in enumerate(where.pendbasers):
            for offset, value in ((GICR_PROPBASER, where.propbaser), (GICR_PENDBASER, pendbaser)):
                self.set(self.gic, GRP_REDIST_REGS, number << 32 | offset, value & 0xFFFF_FFFF, "<I")
                self.set(self.gic, GRP_REDIST_REGS, number << 32 | offset + 4, value >> 32, "<I")
            self.set(self.gic, GRP_REDIST_REGS, number << 32 | GICR_CTLR, 1, "<I")
        self.set(self.its, GRP_ITS_REGS, GITS_IIDR, where.iidr)
        self.set(self.its, GRP_ITS_REGS, GITS_CBASER, VALID | QUEUE | 0xF)
        self.set(self.its, GRP_ITS_REGS, GITS_BASER, where.devices)
        self.set(self.its, GRP_ITS_REGS, GITS_BASER + 8, where.collections)

    def restore(self) -> None:
        self.set(self.its, GRP_CTRL, ITS_RESTORE_TABLES)
        self.set(self.its, GRP_ITS_REGS, GITS_CTLR, 1)

    def save(self) -> Ram:
        self.set(self.gic, GRP_CTRL, SAVE_PENDING_TABLES)
        self.set(self.its, GRP_CTRL, ITS_SAVE_TABLES)
        ram = Ram()
        ram.content[:] = self.pages[:]
        return ram

    def wipe(self, gpa: int, length: int) -> None:
        self.pages[gpa - BASE : gpa - BASE + length] = bytes(length)

    def command(self, words: Sequence[Sequence[int]]) -> None:
        """Do what a guest does: write commands into the queue, behind those before, and say where they end."""
        for four in words:
            at = QUEUE - BASE + 32 * self.commands
            self.pages[at : at + 32] = struct.pack("<4Q", *four)
            self.commands += 1
        self.set(self.its, GRP_ITS_REGS, GITS_CTLR, 1)
        self.set(self.its, GRP_ITS_REGS, GITS_CWRITER, 32 * self.commands)

    def signal(self, device: int, event: int) -> None:
        address = self.translater
        words = struct.pack("<IIIII12x", address & 0xFFFF_FFFF, address >> 32, event, MSI_VALID_DEVID, device)
        fcntl.ioctl(self.fd, KVM_SIGNAL_MSI, words)

    def close(self) -> None:
        for fd in (self.its, self.gic, *self.vcpus, self.fd, self.kvm):
            os.close(fd)


def refused(where: Places, ram: Ram) -> str:
    """Return how KVM refuses tables, or nothing."""
    vm = Vm(ram, len(where.pendbasers))
    try:
        vm.registers(where)
        vm.restore()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        vm.close()
    return ""


def taken_over(its: Its) -> bool:
    """Return whether KVM, once it has restored tables that were made here, saves what it read."""
    ram = its.write(Ram())
    vm = Vm(ram, its.vcpus)
    try:
        vm.registers(its.places)
        vm.restore()
        wipe(vm, its)
        saved = vm.save()
    finally:
        vm.close()
    return same(its, saved, its.itts())


def made(its: Its) -> tuple[bool, bool]:
    """Return whether KVM saves what commands and messages of a guest have made of an ITS, and what others then unmade."""
    vm = Vm(before(its), its.vcpus)
    try:
        vm.registers(its.places)
        vm.command(commands(its))
        for number, (_bits, events) in its.devices.items():
            for event, (lpi, _icid) in events.items():
                if lpi in its.pending:
                    vm.signal(number, event)
        itts = its.itts()
        mapped = same(its, vm.save(), itts)
        vm.command(unmap(its))
        return mapped, same(its, vm.save(), itts)
    finally:
        vm.close()


def before(its: Its) -> Ram:
    """Return memory as a guest prepares it: the first of two levels, and the configuration of LPIs."""
    ram = Ram()
    for page in range(8) if its.indirect else ():
        ram.word(its.places.devices & 0xFFFF_FFFF_0000 | 8 * page, VALID | LEVEL2 + page * PAGE)
    for lpi, byte in its.lpis.items():
        ram.write(PROPERTIES + lpi - 8192, bytes([byte]))
    return ram


def unmap(its: Its) -> list[tuple[int, int, int, int]]:
    """Take the first device, and the first event of each other one, out of *its*, and return the commands for it."""
    gone, *others = sorted(its.devices)
    itt = its.itts()[gone]
    del its.devices[gone]
    queue = [(0x08 | gone << 32, 0, itt, 0)]
    for number in others:
        events = its.devices[number][1]
        for event in [event for event, (_lpi, icid) in sorted(events.items()) if its.collections[icid] is not None][:1]:
            del events[event]
            queue.append((0x0F | number << 32, event, 0, 0))
    return queue


def commands(its: Its) -> list[tuple[int, int, int, int]]:
    """Return what a guest writes to map all of *its*: MAPC, MAPD, MAPTI (Arm IHI 0069, ITS commands)."""
    queue = [(0x09, 0, VALID | vcpu << 16 | number, 0) for number, vcpu in its.collections.items() if vcpu is not None]
    itts = its.itts()
    for number, (bits, events) in its.devices.items():
        queue.append((0x08 | number << 32, bits - 1, VALID | itts[number], 0))
        queue += [(0x0A | number << 32, event | lpi << 32, icid, 0) for event, (lpi, icid) in events.items()]
    return queue


def wipe(vm: Vm, its: Its) -> None:
    """Leave nothing of the tables but what the guest itself keeps there, the first of two levels and priorities."""
    vm.wipe(COLLECTIONS, PAGE)
    vm.wipe(PENDING, its.vcpus * PAGE)
    for number, at in its.itts().items():
        vm.wipe(its.device_at(number), 8)
        vm.wipe(at, 8 << its.devices[number][0])


def same(its: Its, saved: Ram, itts: Mapping[int, int]) -> bool:
    """Return whether what was *saved* says what *its* knows; *itts* are where devices were told to have their tables."""
    tables = decode(its.places, saved)
    collections, devices = its.decoded()
    return (
        tables.fault is None
        and tables.whole
        and sorted(tables.collections) == sorted(collections)
        and [one._replace(itt=itts[one.number]) for one in devices] == list(tables.devices)
        and list(interrupts(its.places, tables, saved)) == its.interrupts()
    )


def some_its(chance: random.Random) -> Its:
    """Make up an ITS that commands can make: no LPI has two events, for it would be pending by both."""
    vcpus = chance.randint(1, 2)
    collections = {icid: chance.choice([*range(vcpus), None]) for icid in chance.sample(range(8192), 3)}
    lpis = iter(chance.sample(range(8192, 65536), 24))
    devices = {}
    for number in chance.sample(range(65536), 4):
        bits = chance.choice([1, 2, 5, 16])
        numbers = chance.sample(range(1 << bits), min(1 << bits, 4))
        devices[number] = (bits, {event: (next(lpis), chance.choice(list(collections))) for event in numbers})
    mapped = [of for _bits, events in devices.values() for of in events.values()]
    used = {icid for _lpi, icid in mapped}
    return Its(
        vcpus=vcpus,
        collections={icid: vcpu for icid, vcpu in collections.items() if vcpu is not None or icid in used},
        devices=devices,
        lpis={lpi: chance.choice([0, 1, 0xA0, 0xA1]) for lpi, _icid in mapped},
        pending={lpi for lpi, icid in mapped if collections[icid] is not None and chance.random() < 0.5},
        indirect=chance.random() < 0.5,
    )


def main() -> None:
    for change, rule in FAULTS:
        its = linux()
        ram = its.write(Ram())
        tell("fault", change.__name__, rule=rule, refused=refused(change(its, ram), ram))
    for change in TAKEN:
        its = linux()
        ram = its.write(Ram())
        tell("strange", change.__name__, refused=refused(change(its, ram), ram))
    tell("fault", "nothing", rule="", refused=refused(linux().places, linux().write(Ram())))
    chance = random.Random(SEED)
    for number in range(ROUNDS):
        its = some_its(chance)
        over, (mapped, unmapped) = taken_over(its), made(its)
        tell("round", number, taken_over=over, mapped=mapped, unmapped=unmapped)


def tell(what: str, name: object, **more: object) -> None:
    print(json.dumps({"what": what, "name": name, **more}), flush=True)


if __name__ == "__main__":
    main()
