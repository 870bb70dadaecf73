"""``convert``, ``diff``, ``edit``, ``decode`` and ``encode``: what they print and exit with, on files that need no KVM."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from snapkit import host, host_memory
from snapkit.cli import COMMANDS
from snapkit.errors import ConfigError, ImageError, SnapkitError
from snapkit.restore.capture import Capture
from snapkit.restore.image import Image
from snapkit.restore.writer import write_image
from snapkit.state.memory_layout import MemoryLayoutState, RegionState
from snapkit.state.schema import SectionId
from snapkit.units import CHUNK_LEN, GIB, MIB
from tests.restore.device_machine import RAM_LEN, busy_machine, fresh_machine
from tests.restore.machines import MACHINE_ID, ram, save, sections

VERBS = ("convert", "diff", "edit", "decode", "encode")
KEY = b"k" * 32


def run(*arguments: str | Path, code: int = 0, stdin: bytes = b"") -> Result:
    command = getattr(import_module(f"snapkit.cli.{arguments[0]}"), str(arguments[0]))
    words = [str(word) for word in arguments[1:]]
    result = CliRunner().invoke(command, words, standalone_mode=False, input=stdin)
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == code, result.output
    return result


def fails(*arguments: str | Path, stdin: bytes = b"") -> BaseException:
    command = getattr(import_module(f"snapkit.cli.{arguments[0]}"), str(arguments[0]))
    result = CliRunner().invoke(command, [str(word) for word in arguments[1:]], standalone_mode=False, input=stdin)
    assert result.exception is not None, result.output
    return result.exception


def snapshot(path: Path, *, devices: bool = False, **options: Any) -> Path:
    states = busy_machine("pci") if devices else fresh_machine(None)
    content = ram(RAM_LEN, {0: b"first", 5 * 4096: b"sixth"})
    if (generation := states.get(SectionId("vmgenid", "0"))) is not None:
        content[generation.gpa : generation.gpa + 16] = generation.generation
    facts = {"cpu": "host", "vcpus": 1, "memory": RAM_LEN}
    save(path, content, sections=states, facts=facts, release="0.3.0", **options)
    return path


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_examples_and_json(verb):
    assert verb in COMMANDS
    shown = CliRunner().invoke(getattr(import_module(f"snapkit.cli.{verb}"), verb), ["--help"])
    assert "Examples:" in shown.output
    assert "--json" in shown.output


def test_convert_writes_and_tells(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    shown = run("convert", path, tmp_path / "older.snap", "--to", "0.1.0").stdout
    assert shown.startswith(f"{tmp_path}/older.snap: from release 0.3.0 to 0.1.0, 2 sections of ")
    told = json.loads(run("convert", path, tmp_path / "older.snap", "--to", "0.1.0", "--json").stdout)
    with Image.open(path) as before, Image.open(tmp_path / "older.snap") as image:
        assert told["written"]["snapshot_id"] == image.preamble.snapshot_id.hex()
        assert told["written"]["parent_id"] == before.preamble.snapshot_id.hex()
    assert {"section": "interrupt-table/0", "from": 1, "to": None} in told["changes"]
    assert run("diff", path, tmp_path / "older.snap").exit_code == 0


def test_convert_check_says_what_would_happen_and_writes_nothing(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    shown = run("convert", path, "--to", "0.1.0", "--check").stdout
    assert "interrupt-table/0: version 1 goes" in shown
    assert "nothing was written" in shown
    told = json.loads(run("convert", path, tmp_path / "older.snap", "--to", "0.1.0", "--check", "--json").stdout)
    assert (told["possible"], told["written"]) == (True, None)
    assert names(tmp_path) == ["vm.snap"]


def test_convert_check_gives_every_reason_of_a_refusal(tmp_path):
    path = snapshot(tmp_path / "vm.snap", devices=True)
    shown = run("convert", path, tmp_path / "older.snap", "--to", "0.1.0", "--check", code=2).stdout
    told = json.loads(run("convert", path, tmp_path / "older.snap", "--to", "0.1.0", "--json", code=2).stdout)
    assert told["possible"] is False
    assert f"for {len(told['reasons'])} reasons" in shown
    assert len(shown.splitlines()) == len(told["reasons"]) + 1 > 41
    error = fails("convert", path, tmp_path / "older.snap", "--to", "0.1.0")
    assert isinstance(error, SnapkitError)
    assert (error.exit_code, len(error.findings)) == (2, len(told["reasons"]))
    assert names(tmp_path) == ["vm.snap"]


def test_convert_check_refuses_the_very_places_that_convert_would(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    for out in (path, tmp_path, tmp_path / "missing" / "x.snap"):
        assert isinstance(fails("convert", path, out, "--to", "0.1.0", "--check"), ConfigError)
    assert isinstance(fails("convert", path, "--to", "0.1.0"), click.UsageError)
    assert isinstance(fails("convert", tmp_path / "none.snap", "x", "--to", "0.1.0"), ConfigError)
    assert isinstance(fails("convert", tmp_path, "x", "--to", "0.1.0"), ImageError)


def test_keyed_files_go_through_every_verb_with_their_key(tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    path = snapshot(tmp_path / "vm.snap", key=KEY)
    key = ("--key-file", tmp_path / "key")
    run("convert", path, tmp_path / "older.snap", "--to", "0.1.0", *key)
    run("edit", path, "vcpu-x86-64/0.regs.rax=1", "-o", tmp_path / "edited.snap", *key)
    run("diff", path, tmp_path / "edited.snap", *key, code=1)
    document = run("decode", path, "pit/0", *key).stdout
    run("encode", "--into", path, "-o", tmp_path / "encoded.snap", *key, stdin=document.encode())
    run("diff", path, tmp_path / "encoded.snap", *key)
    for verb in (("convert", path, "x", "--to", "0.1.0"), ("diff", path, path), ("decode", path, "pit/0")):
        assert isinstance(fails(*verb), ImageError)


def test_convert_keys_a_file_anew(tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    path = snapshot(tmp_path / "vm.snap")
    run("convert", path, tmp_path / "keyed.snap", "--to", "0.3.0", "--new-key-file", tmp_path / "key")
    assert isinstance(fails("verify", tmp_path / "keyed.snap"), ImageError)
    run("verify", tmp_path / "keyed.snap", "--key-file", tmp_path / "key")
    with Image.open(path) as image:
        (chunk, *_) = image.memory.table.chunks()
    with path.open("r+b") as file:
        file.seek(chunk.offset)
        file.write(b"damaged")
    words = ("convert", path, tmp_path / "signed.snap", "--to", "0.3.0", "--new-key-file", tmp_path / "key")
    assert isinstance(fails(*words), ImageError)
    assert names(tmp_path) == ["key", "keyed.snap", "vm.snap"]


def test_diff_exits_with_1_and_lists_values_and_pages(tmp_path):
    path = snapshot(tmp_path / "a.snap")
    run("edit", path, "serial-16550/0.lcr.DLAB=1", "-o", tmp_path / "b.snap")
    shown = run("diff", path, tmp_path / "b.snap", code=1).stdout
    assert shown.splitlines()[0] == "serial-16550/0.lcr.DLAB: 0 -> 1"
    assert "1 value in 1 of " in shown
    told = json.loads(run("diff", path, tmp_path / "b.snap", "--json", code=1).stdout)
    assert told["equal"] is False
    assert told["fields"] == [{"path": "serial-16550/0.lcr.DLAB", "before": 0, "after": 1}]
    assert told["memory"] == {"length": RAM_LEN, "pages": 0, "changed": [], "only_before": [], "only_after": []}
    equal = run("diff", path, path)
    assert "are equal" in equal.stdout
    assert json.loads(run("diff", path, path, "--json").stdout)["equal"] is True


def test_diff_shortens_a_long_list_of_ranges(tmp_path):
    length = 4 * MIB
    save(tmp_path / "a.snap", ram(length))
    save(tmp_path / "b.snap", ram(length, dict.fromkeys(range(0, length, 8192), b"x")))
    shown = run("diff", tmp_path / "a.snap", tmp_path / "b.snap", code=1).stdout
    assert "more ranges, --whole lists them" in shown
    whole = run("diff", tmp_path / "a.snap", tmp_path / "b.snap", "--whole", code=1).stdout
    assert len(whole.splitlines()) == 512 + 1


def test_edit_changes_what_it_was_told_and_nothing_else(tmp_path):
    path = snapshot(tmp_path / "vm.snap", devices=True)
    before = path.read_bytes()
    changes = ("vcpu-x86-64/0.regs.rax=0x77", "virtio-net/eth0.state.config.mac=020000000001")
    assert isinstance(fails("edit", path, *changes, "-o", tmp_path / "out.snap"), ConfigError), "one is no path"
    shown = run("edit", path, changes[0], "serial-16550/0.scr=9", "-o", tmp_path / "out.snap").stdout
    assert "vcpu-x86-64/0.regs.rax" in shown
    assert "2 sections changed" in shown
    told = json.loads(run("diff", path, tmp_path / "out.snap", "--json", code=1).stdout)
    assert {one["path"]: one["after"] for one in told["fields"]} == {
        "vcpu-x86-64/0.regs.rax": 0x77,
        "serial-16550/0.scr": 9,
    }
    assert path.read_bytes() == before
    json.loads(run("edit", path, changes[0], "-o", tmp_path / "out.snap", "--json").stdout)


def test_edit_refuses_a_machine_that_could_not_be_and_writes_nothing(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    error = fails("edit", path, "machine/0.vcpu_count=2", "memory-layout/0.page_shift=13", "-o", tmp_path / "out.snap")
    assert isinstance(error, ConfigError)
    assert len(error.findings) > 1
    assert isinstance(fails("edit", path, "machine/0.vcpu_count=1", "-o", path), ConfigError)
    assert names(tmp_path) == ["vm.snap"]


def test_edit_repairs_what_restore_refuses_and_labels_follow(tmp_path):
    states = fresh_machine(None)
    states[SectionId("machine", "0")].vcpu_count = 3
    save(tmp_path / "vm.snap", ram(RAM_LEN), sections=states, facts={"vcpus": 3, "cpu": "host"}, release="0.3.0")
    assert isinstance(fails("convert", tmp_path / "vm.snap", "--to", "0.1.0", "--check"), ImageError)
    ident = "f" * 32
    changes = ("machine/0.vcpu_count=1", f"machine/0.machine_id={ident}")
    run("edit", tmp_path / "vm.snap", *changes, "-o", tmp_path / "out.snap")
    with Image.open(tmp_path / "out.snap") as image:
        assert image.manifest.machine == {"vcpus": 1, "cpu": "host"}
        assert image.preamble.machine_id.hex() == ident
    run("verify", tmp_path / "out.snap")


def test_decode_then_encode_gives_the_bytes_of_every_section(tmp_path):
    path = snapshot(tmp_path / "vm.snap", devices=True)
    with Image.open(path) as image:
        for entry in image.entries:
            document = run("decode", path, entry.path).stdout
            assert run("encode", stdin=document.encode()).stdout_bytes == image.payload(entry)
            told = json.loads(run("encode", "--json", stdin=document.encode()).stdout)
            assert (told["section"], told["length"]) == (entry.path, entry.length)


def test_decode_and_encode_refuse_what_is_no_section(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    for where in ("pit", "pit/0.channels", "pit/7", "nothing/0"):
        assert isinstance(fails("decode", path, where), ConfigError)
    assert isinstance(fails("encode", stdin=b"{}"), ConfigError)
    assert isinstance(fails("encode", "--into", path, stdin=b"{}"), click.UsageError)
    other = json.loads(run("decode", path, "pit/0").stdout) | {"instance": "1"}
    words = ("encode", "--into", path, "-o", tmp_path / "out.snap")
    assert isinstance(fails(*words, stdin=json.dumps(other).encode()), ConfigError)
    assert names(tmp_path) == ["vm.snap"]


@contextmanager
def bytes_read() -> Iterator[list[int]]:
    """Give how many bytes every read asks for."""
    asked: list[int] = []

    def note(call: str, arguments: tuple[object, ...]) -> None:
        if call in {"pread", "read"}:
            asked.append(int(str(arguments[1])))
        assert call not in {"pread_into", "preadv", "mmap"}, "a read that is not counted"

    with host.inject(note):
        yield asked


@pytest.mark.parametrize("path_within", [None, "machine/0.tsc_khz"])
def test_inspect_of_4_gib_reads_less_than_1_mib(tmp_path, path_within):
    spans = [(0, 3 * GIB), (4 * GIB, GIB)]
    states = sections()
    regions = [RegionState(gpa=gpa, length=length) for gpa, length in spans]
    states[SectionId("memory-layout", "0")] = MemoryLayoutState(page_shift=12, regions=regions)
    prot = host_memory.PROT_READ | host_memory.PROT_WRITE
    flags = host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS | host_memory.MAP_NORESERVE
    address = host_memory.mmap(4 * GIB, prot, flags)
    try:
        for at in range(0, 4 * GIB, 16 * CHUNK_LEN):
            host_memory.copy_in(address + at, b"in use")
        memory = Capture([(gpa, address + (gpa if not gpa else 3 * GIB), length) for gpa, length in spans])
        options: dict[str, Any] = {"architecture": 62, "release": "0.3.0", "machine_id": MACHINE_ID}
        write_image(tmp_path / "vm.snap", sections=states, memory=memory, **options)
    finally:
        host_memory.munmap(address, 4 * GIB)
    words = ["inspect", tmp_path / "vm.snap", *([path_within] if path_within else [])]
    with bytes_read() as asked:
        assert ("tsc_khz" if path_within else "memory-layout/0") in run(*words).stdout
    assert 0 < sum(asked) < MIB
