"""``snapkit inspect FILE gicv3-its/0 --tables``: what people and programs are told of an ITS, on any host."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from snapkit.cli.inspect import inspect
from snapkit.errors import ConfigError, ImageError
from snapkit.restore.check import check
from snapkit.restore.image import Image
from snapkit.state.its_tables import Places
from tests.restore.its_machine import its_machine
from tests.restore.machines import save
from tests.state.its_writer import BASE, FLAT, ITTS, RAM_LEN, VALID, Its, Ram, linux


def write(path: Path, where: Places, ram: Ram, *, without: str = "") -> str:
    states = its_machine(where)
    for name in [name for name in states if name.kind == without]:
        del states[name]
    memory = [(BASE, memoryview(ram.content), RAM_LEN)]
    save(path, memoryview(ram.content), sections=states, memory=memory, architecture=183, release="0.5.0")
    return str(path)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(inspect, [*arguments, "--tables"], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture
def of_linux(tmp_path):
    its = linux()
    return write(tmp_path / "vm.snap", its.places, its.write(Ram()))


def test_each_event_is_a_line_from_its_device_to_its_cpu(of_linux):
    assert run(of_linux, "gicv3-its/0").stdout.splitlines() == [
        "collections  0 to vCPU 0, 1 to vCPU 1",
        "device         event   lpi  collection  vcpu  pending  enabled  priority",
        "00:01.0  root      0  8192           0     0       no      yes      0xa0",
        "00:01.0  root      1  8193           1     1      yes      yes      0xa0",
        "00:02.0  eth0      0  8194           0     0       no      yes      0xa0",
        "00:02.0  eth0      1  8195           1     1       no      yes      0xa0",
        "00:02.0  eth0      2  8196           0     0       no       no      0xa0",
    ]


def test_as_json_the_same_is_data(of_linux):
    told = json.loads(run(of_linux, "gicv3-its/0", "--json").stdout)
    tables = told["tables"]
    assert told["path"] == "gicv3-its/0"
    assert tables["collections"] == [{"number": 0, "vcpu": 0}, {"number": 1, "vcpu": 1}]
    assert tables["devices"][0] == {
        "device": 8,
        "address": "00:01.0",
        "owner": "root",
        "event_bits": 1,
        "table": ITTS,
    }
    assert tables["interrupts"] == [one._asdict() for one in linux().interrupts()]
    assert (tables["fault"], tables["whole"]) == (None, True)


def test_an_its_without_tables_is_told_in_a_sentence(tmp_path):
    where = linux().places
    where = where._replace(devices=where.devices & ~VALID, collections=where.collections & ~VALID)
    path = write(tmp_path / "vm.snap", where, Ram())
    expected = "the ITS is not set up: the guest has given it no memory for tables (GITS_BASER0 and GITS_BASER1)\n"
    assert run(path, "gicv3-its/0").stdout == expected


def test_an_its_that_maps_nothing_is_told_in_a_sentence(tmp_path):
    path = write(tmp_path / "vm.snap", linux().places, Ram())
    assert run(path, "gicv3-its/0").stdout == "collections  none\nno device is mapped\n"


def test_a_device_without_events_and_a_collection_without_a_cpu_have_dashes(tmp_path):
    its = Its(collections={3: None}, devices={0x18: (1, {}), 0x100: (1, {0: (9000, 3)})})
    path = write(tmp_path / "vm.snap", its.places, its.write(Ram()))
    lines = [line.split() for line in run(path, "gicv3-its/0").stdout.splitlines()]
    assert lines[0] == ["collections", "3", "to", "vCPU", "-"]
    assert lines[2] == ["00:03.0", "v0", *["-"] * 7]
    assert lines[3] == ["01:00.0", "0", "9000", "3", "-", "-", "no", "0x00"]


def test_where_kvm_would_stop_is_told_after_what_comes_before(tmp_path):
    its = linux()
    ram = its.write(Ram())
    ram.word(ITTS + 256, 7 << 16)
    path = write(tmp_path / "vm.snap", its.places, ram)
    lines = run(path, "gicv3-its/0").stdout.splitlines()
    assert lines[-2].startswith("00:01.0  root")
    expected = "gicv3-its/0.tables.devices[0x10].events[0] is INTID 7, must be an LPI, 8192 to 65535"
    assert lines[-1] == f"note: KVM refuses these tables: {expected}"
    told = json.loads(run(path, "gicv3-its/0", "--json").stdout)["tables"]["fault"]
    assert told["rule"] == "its.events"


def test_more_than_is_looked_at_is_said_to_be_more(tmp_path):
    its = Its(vcpus=1, collections={0: 0}, indirect=False)
    ram = its.write(Ram())
    entry = VALID | 1 << 49 | ITTS >> 8 << 5 | 14
    ram.write(FLAT, b"".join((entry + (n << 5)).to_bytes(8, "little") for n in range(65536)))
    path = write(tmp_path / "vm.snap", its.places, ram)
    assert "more tables than are looked at" in run(path, "gicv3-its/0").stdout
    assert json.loads(run(path, "gicv3-its/0", "--json").stdout)["tables"]["whole"] is False


@pytest.mark.parametrize("path", ["machine/0", "gicv3-its/0.baser", "gicv3-its/1", "nonsense"])
def test_tables_of_what_has_none_are_refused(of_linux, path):
    with pytest.raises(ConfigError):
        run(of_linux, path)


def test_tables_of_nothing_named_are_refused(of_linux):
    with pytest.raises(ConfigError, match="gicv3-its/0"):
        run(of_linux)


@pytest.mark.parametrize(("without", "error"), [("gicv3-its", ConfigError), ("gicv3-redistributor", ImageError)])
def test_a_machine_without_what_is_needed_is_refused(tmp_path, without, error):
    its = linux()
    path = write(tmp_path / "vm.snap", its.places, its.write(Ram()), without=without)
    with pytest.raises(error):
        run(path, "gicv3-its/0")


def test_tables_in_a_damaged_chunk_are_refused(of_linux):
    whole: Any = bytearray(Path(of_linux).read_bytes())
    at = whole.index((VALID | 1 << 16 | 1).to_bytes(8, "little"))
    whole[at] ^= 1
    Path(of_linux).write_bytes(whole)
    with pytest.raises(ImageError, match="damaged"):
        run(of_linux, "gicv3-its/0")


def test_a_restore_tells_damaged_tables_from_tables_that_kvm_refuses(tmp_path):
    its = linux()
    ram = its.write(Ram())
    sound = Path(write(tmp_path / "vm.snap", its.places, ram))
    ram.word(ITTS, 7 << 16)
    refused = write(tmp_path / "refused.snap", its.places, ram)
    whole = sound.read_bytes()
    entry = (1 << 48 | 8192 << 16).to_bytes(8, "little")
    damaged = tmp_path / "damaged.snap"
    damaged.write_bytes(whole.replace(entry, (7 << 16).to_bytes(8, "little")))
    with Image.open(refused) as image:
        states, _unknown = image.sections()
        assert [one.rule for one in check(states, image.memory) if one.path.startswith("tables")] == ["its.events"]
    with Image.open(damaged) as image, pytest.raises(ImageError, match="memory is damaged"):
        check(states, image.memory)
