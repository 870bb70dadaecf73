"""What is asked for and cannot be: one sentence on stderr that names the thing, exit 2, no traceback; a file that is no
snapshot: exit 3.
"""

import os
import re
from pathlib import Path

import pytest

from tests.kvm.commands import finished
from tests.kvm.harness import DEMO, booted


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files by what they are; `{name}` in an argument stands for one."""
    (tmp_path / "text").write_text("this is no kernel\n" * 100)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(Path(DEMO).read_bytes()[:100])
    (tmp_path / "big").write_bytes(b"")
    os.truncate(tmp_path / "big", 64 << 20)
    os.mkfifo(tmp_path / "fifo")
    return {
        **{name: str(tmp_path / name) for name in ("text", "empty", "cut", "big", "fifo")},
        "folder": str(tmp_path),
        "missing": str(tmp_path / "missing"),
        "nowhere": str(tmp_path / "missing" / "file"),
        "demo": DEMO,
    }


BOOTS = {
    "a kernel that is none": (("{text}",), "{text}"),
    "an empty kernel": (("{empty}",), "{empty}"),
    "a cut kernel": (("{cut}",), "{cut}"),
    "a folder as kernel": (("{folder}",), "{folder}"),
    "a FIFO as kernel": (("{fifo}",), "{fifo}"),
    "a missing kernel": (("{missing}",), "{missing}"),
    "a missing initrd": (("{demo}", "--initrd", "{missing}"), "{missing}"),
    "a folder as initrd": (("{demo}", "--initrd", "{folder}"), "{folder}"),
    "an initrd beyond memory": (("{demo}", "--initrd", "{big}", "--memory", "16M"), "{big}"),
    "no vCPU": (("{demo}", "--vcpus", "0"), "vcpus is 0"),
    "less than none": (("{demo}", "--vcpus", "-1"), "vcpus is -1"),
    "9 vCPUs": (("{demo}", "--vcpus", "9"), "vcpus is 9"),
    "vCPUs that are no number": (("{demo}", "--vcpus", "two"), "vcpus"),
    "no memory": (("{demo}", "--memory", "0"), "memory"),
    "memory of 3K": (("{demo}", "--memory", "3K"), "memory"),
    "memory that is no number": (("{demo}", "--memory", "lots"), "memory is 'lots'"),
    "negative memory": (("{demo}", "--memory", "-1M"), "memory"),
    "unreasonable memory": (("{demo}", "--memory", "99999999T"), "memory"),
    "memory in half pages": (("{demo}", "--memory", "2050K"), "memory"),
    "memory smaller than the kernel": (("{demo}", "--memory", "1M"), "1"),
    "an unknown CPU": (("{demo}", "--cpu", "pentium"), "pentium"),
    "snapshot-when alone": (("{demo}", "--snapshot-when", "tick"), "--snapshot-to"),
    "snapshot-to alone": (("{demo}", "--snapshot-to", "{missing}"), "--snapshot-when"),
    "an unknown serial": (("{demo}", "--serial", "modem"), "modem"),
    "a serial file without a path": (("{demo}", "--serial", "file:"), "file:"),
    "a serial file in a missing folder": (("{demo}", "--serial", "file:{nowhere}"), "{nowhere}"),
    "a folder as serial file": (("{demo}", "--serial", "file:{folder}"), "{folder}"),
    "a snapshot into a missing folder": (
        ("{demo}", "--memory", "2M", "--snapshot-when", "tick", "--snapshot-to", "{nowhere}"),
        "{nowhere}",
    ),
    "a snapshot over a folder": (
        ("{demo}", "--memory", "2M", "--snapshot-when", "tick", "--snapshot-to", "{folder}"),
        "{folder}",
    ),
    "a snapshot over a FIFO": (
        ("{demo}", "--memory", "2M", "--snapshot-when", "tick", "--snapshot-to", "{fifo}"),
        "{fifo}",
    ),
    "a time limit that is none": (("{demo}", "--timeout", "nan"), "timeout"),
    "an endless time limit": (("{demo}", "--timeout", "inf"), "timeout"),
    "a negative time limit": (("{demo}", "--timeout", "-1"), "timeout"),
    "a command line that is too long": (("{demo}", "--cmdline", "x" * 70000), "command line"),
    "an unknown option": (("{demo}", "--fast"), "--fast"),
    "no kernel": ((), "KERNEL"),
}


def assert_one_clear_paragraph(errors: str, named: str) -> None:
    assert "Traceback" not in errors
    assert named in errors, errors
    told = [line for line in errors.splitlines() if not re.match(r"Usage:|Try |$", line)]
    assert len(told) == 1, errors
    assert re.match(r"(snapkit|Error): \S", told[0]), errors


@pytest.mark.parametrize("case", BOOTS)
def test_an_impossible_boot_is_refused_with_a_sentence(case, files):
    words, named = BOOTS[case]
    done = finished(
        "boot", *(word.format(**files) for word in words), "--timeout=20" if "time" not in case else "--json"
    )
    assert done.returncode == 2, done.stderr
    assert_one_clear_paragraph(done.stderr, named.format(**files))


RESTORES = {
    "text": ("{text}", 3),
    "an empty file": ("{empty}", 3),
    "a kernel": ("{demo}", 3),
    "zeros": ("{big}", 3),
    "a folder": ("{folder}", 3),
    "a FIFO": ("{fifo}", 3),
    "a device": ("/dev/zero", 3),
    "nothing": ("{missing}", 2),
    "nothing in a missing folder": ("{nowhere}", 2),
    "no path": ("", 2),
}


@pytest.mark.parametrize("case", RESTORES)
def test_what_is_no_snapshot_is_refused_with_a_sentence(case, files):
    word, code = RESTORES[case]
    path = word.format(**files)
    done = finished("restore", path)
    assert done.returncode == code, done.stderr
    assert_one_clear_paragraph(done.stderr, path)


def test_a_cut_snapshot_and_a_changed_one_are_refused(tmp_path):
    path = str(tmp_path / "demo.snap")
    with booted() as rig:
        rig.run()
        rig.save(path)
    with open(path, "rb") as file:
        whole = file.read()
    for spoiled in (whole[:-4096], whole[:5000] + bytes((whole[5000] ^ 1,)) + whole[5001:], whole + b"\0"):
        with open(path, "wb") as file:
            file.write(spoiled)
        done = finished("restore", path, "--timeout", "5")
        assert done.returncode == 3, done.stderr
        assert_one_clear_paragraph(done.stderr, path)
        assert done.stdout == ""


def test_damaged_memory_is_refused_when_it_is_asked_to_be_verified(tmp_path):
    path = str(tmp_path / "demo.snap")
    with booted() as rig:
        rig.run()
        rig.save(path)
    with open(path, "r+b") as file:
        file.seek(-4096 * 200, os.SEEK_END)
        file.write(b"x")
    done = finished("restore", path, "--verify-memory", "--timeout", "5")
    assert done.returncode == 3, done.stderr
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr
