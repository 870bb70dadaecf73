"""Every converter does what its record says, and each has one."""

import shutil
from pathlib import Path

import pytest

from snapkit.errors import ConfigError
from snapkit.state import converters
from tests.compat import conversions
from tests.compat.conversions import FOLDER, problems, recorded, steps


def test_every_converter_does_what_it_did_when_it_was_recorded() -> None:
    found = list(problems())
    assert not found, "\n".join(found)


def test_a_record_shows_machines_that_go_and_machines_that_do_not() -> None:
    for name in steps():
        examples = recorded(FOLDER / f"{name}.json")
        assert any(example.gives and not example.refuses for example in examples), name
        assert len({example.golden.partition(":")[0] for example in examples}) >= 1
    refusing = [name for name in steps() if any(example.refuses for example in recorded(FOLDER / f"{name}.json"))]
    assert {"0.2.0-to-0.1.0", "virtio-pci-preview-5-to-virtio-pci-preview-4"} <= set(refusing)


def test_recording_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "FOLDER", tmp_path)
    for name in ("0.1.0-to-0.2.0", "0.2.0-to-0.1.0"):
        conversions.record(name, steps()[name])
        assert (tmp_path / f"{name}.json").read_bytes() == (FOLDER / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", steps())
def test_a_converter_or_a_record_that_is_gone_or_edited_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "conversions"
    shutil.copytree(FOLDER, folder)
    step = steps()[name]
    with monkeypatch.context() as patch:
        if isinstance(step, converters.KindStep):
            patch.delitem(converters._kind_steps, (step.kind, step.from_version, step.to_version))
        else:
            patch.delitem(converters._machine_steps, (step.from_release, step.to_release))
        (told,) = problems(folder=folder, only=lambda _step: False)
        assert told.startswith(f"the converter that {folder / name}.json records is gone; ")
        assert "git checkout" in told
    path = folder / f"{name}.json"
    path.write_bytes(path.read_bytes().replace(b'"gives":"', b'"gives":"0', 1))
    (told,) = problems(folder=folder, only=lambda each: each is step)
    assert f"the converter {name} changed, by examples[0]" in told
    assert "git checkout" in told
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ConfigError, match=r"is edited.*git checkout"):
        list(problems(folder=folder, only=lambda each: each is step))
    path.unlink()
    (told,) = problems(folder=folder, only=lambda each: each is step)
    assert f"the converter {name} has no record" in told
    assert "git checkout" in told
    assert "python -m tests.compat.conversions" in told
