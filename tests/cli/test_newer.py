"""A file of a release that is still to come: inspect shows what it can and says what it cannot; restore and verify refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from snapkit.cli.inspect import inspect
from snapkit.errors import ConfigError, ImageError
from snapkit.restore.image import Image
from snapkit.state.converters import upgrade_sections
from snapkit.state.schema import KINDS
from tests.restore.forge import Forge, Section
from tests.restore.machines import MIB, ram, save
from tests.restore.real import made_up, taken_apart

NEWER = "9.8.7"
LATER = [
    Section("flux-capacitor", "0", b"\x80"),
    Section("mood-light", "left", b"\x81\xa1x\x01", version=3, required=False),
]


def content_to_come(made: dict[str, Any]) -> None:
    made["machine"] = {"cpu": "host", "vcpus": 2, "temper": "good"}


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """What writes a machine of today as release 9.8.7 would: a newer PIT, two kinds more, another fact for people."""
    save(tmp_path / "today.snap", ram(2 * MIB, {}), sections=made_up(), facts={"cpu": "host", "vcpus": 2})
    today = taken_apart(tmp_path / "today.snap")
    stored = [
        replace(each, version=2, payload=b"\x81\xa3new\x01", length=6) if each.kind == "pit" else each
        for each in today.sections
    ]
    describe = today.manifest

    def manifest(made: dict[str, Any]) -> None:
        describe(made)
        content_to_come(made)

    preamble = {**today.preamble, "release": NEWER.encode(), "producer": b"snapkit 9.8.7"}
    return replace(today, sections=[*stored, *LATER], preamble=preamble, manifest=manifest)


@pytest.fixture
def newer(forge: Forge, tmp_path: Path) -> Path:
    return forge.write(tmp_path / "newer.snap")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(inspect, [str(word) for word in words])


def test_who_when_for_what_and_every_section_are_shown(newer: Path, forge: Forge) -> None:
    result = run(newer)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["release", "9.8.7,", "container", "1"] in lines
    assert any(line[:1] == ["written"] and "9.8.7" in line for line in lines)
    assert ["temper", "good"] in lines
    shown = {line[0]: line for line in lines if "version" in line and "bytes" in " ".join(line)}
    for section in forge.sections:
        row = shown[f"{section.kind}/{section.instance}"]
        assert row[1:3] == ["version", f"{section.version},"]
        assert ("optional" in row) != section.required
    notes = [line for line in result.stdout.splitlines() if line.startswith("note")]
    assert [note.removeprefix("note").strip() for note in notes] == [
        "written by release 9.8.7, which this one does not know",
        "section pit/0 has version 2, newer than this release knows (required)",
        "section flux-capacitor/0 is of a kind that this release does not know (required)",
        "section mood-light/left is of a kind that this release does not know (optional)",
    ]


def test_the_same_is_there_as_json(newer: Path, forge: Forge) -> None:
    said = json.loads(run(newer, "--json").stdout)
    assert said["identity"]["release"] == NEWER
    assert said["preamble"]["producer"] == "snapkit 9.8.7"
    assert said["authenticated"]
    entries = {f"{entry['kind']}/{entry['instance']}": entry for entry in said["manifest"]["sections"]}
    assert {name: (entry["version"], entry["required"]) for name, entry in entries.items()} == {
        f"{each.kind}/{each.instance}": (each.version, each.required) for each in forge.sections
    }
    assert len(said["remarks"]) == 4


def test_every_section_that_is_known_is_still_decoded(newer: Path, forge: Forge) -> None:
    for section in forge.sections:
        where = f"{section.kind}/{section.instance}"
        result = run(newer, where, "--json")
        if section.kind in KINDS and section.version == 1:
            assert result.exit_code == 0, (where, result.output)
            assert json.loads(result.stdout)["path"] == where
        else:
            assert isinstance(result.exception, ImageError)
            assert f"section {where} " in str(result.exception)
            assert "written by release 9.8.7" in str(result.exception)
    absent = run(newer, "serial-16550/7")
    assert isinstance(absent.exception, ConfigError)


def test_it_is_not_used_for_anything(newer: Path) -> None:
    with Image.open(newer) as image:
        with pytest.raises(ImageError, match=r"pit/0 has version 2.*written by a newer release \(9\.8\.7\)"):
            image.sections()
        states = image.sections(refuse_unknown=False).states
    with pytest.raises(ImageError, match=r"written by release '9\.8\.7', the newest known here is"):
        upgrade_sections(states, NEWER)


def test_only_what_is_optional_and_unknown_is_dropped(forge: Forge, tmp_path: Path) -> None:
    path = replace(
        forge, sections=[LATER[1], *(each for each in forge.sections if each.version == 1 and each.kind in KINDS)]
    )
    with Image.open(path.write(tmp_path / "optional.snap")) as image:
        states, dropped = image.sections()
    assert len(states) == len(forge.sections) - 3
    assert dropped == ["section mood-light/left is of a kind that this release does not know"]


@pytest.mark.parametrize("algorithm", [1, 7])
@pytest.mark.parametrize("as_json", [False, True])
def test_of_a_newer_container_the_first_64_bytes_are_shown(tmp_path: Path, algorithm: int, as_json: bool) -> None:
    preamble = {"version": 4, "length": 8192, "release": NEWER.encode(), "flags": 1 << 30, "algorithm": algorithm}
    path = Forge(preamble={**preamble, "manifest_offset": 1, "architecture": 183}).write(tmp_path / "later.snap")
    path.write_bytes(path.read_bytes()[:64])
    result = run(path, *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    expected = ["9.8.7", "container version 4, this release reads 1", "not authenticated", (b"M" * 16).hex()]
    expected += ["183"] if as_json else ["aarch64"]
    assert all(words in result.stdout for words in expected)
    with pytest.raises(ImageError, match="written by a newer release"):
        Image.open(path)
