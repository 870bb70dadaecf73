"""`Image.describe` says what it can about a file that cannot be used, and what it cannot."""

import os

import pytest

from snapkit import host
from snapkit.errors import ConfigError, ImageError
from snapkit.restore.describe import describe
from snapkit.restore.image import Image
from tests.restore.forge import Forge, Section
from tests.restore.machines import save

KEY = bytes(range(32))


def test_a_good_file_is_described_without_remarks(tmp_path):
    result = save(tmp_path / "a.snap")
    said = Image.describe(tmp_path / "a.snap")
    assert said.authenticated
    assert said.remarks == ()
    assert said.length == result.length
    assert said.preamble is not None
    assert said.preamble.snapshot_id == result.snapshot_id
    assert said.manifest is not None
    assert [entry.path for entry in said.manifest.sections] == ["machine/0", "memory-layout/0"]


def test_describing_reads_only_the_head(tmp_path):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem")
    (tmp_path / "a.mem").unlink()
    calls: list[str] = []
    with host.inject(lambda call, _arguments: calls.append(call)):
        said = Image.describe(tmp_path / "a.snap")
    assert calls == ["open_fd", "fstat", "pread"]
    assert said.remarks == ()


def test_a_keyed_file_is_described_without_its_key_but_not_trusted(tmp_path):
    save(tmp_path / "a.snap", key=KEY)
    said = Image.describe(tmp_path / "a.snap")
    assert not said.authenticated
    assert said.remarks == ("its digests are keyed and no key was given", "not authenticated")
    assert said.manifest is not None
    assert Image.describe(tmp_path / "a.snap", key=KEY).authenticated
    with pytest.raises(ImageError, match="another key"):
        Image.describe(tmp_path / "a.snap", key=bytes(32))


def test_a_key_for_an_unkeyed_file_is_a_remark(tmp_path):
    save(tmp_path / "a.snap")
    assert Image.describe(tmp_path / "a.snap", key=KEY).remarks == ("a key was given, but the digests are not keyed",)


def test_of_a_newer_container_the_first_64_bytes_are_described(tmp_path):
    Forge(preamble={"version": 7, "length": 12288, "release": b"9.9.9"}).write(tmp_path / "a.snap")
    said = Image.describe(tmp_path / "a.snap")
    assert said.identity.release == "9.9.9"
    assert said.identity.architecture == 62
    assert (said.preamble, said.manifest) == (None, None)
    assert "written by a newer release (9.9.9): container version 7" in said.remarks[0]
    assert said.remarks[-1] == "not authenticated"


def test_unknown_kinds_newer_versions_and_unclaimed_bytes_are_remarks(tmp_path):
    strange = [Section("flux-capacitor", "0", b"\x80", required=False), Section("machine", "0", b"\x80", version=9)]
    Forge(sections=strange, trailer=b"more").write(tmp_path / "a.snap")
    remarks = describe(os.fspath(tmp_path / "a.snap"), versions={"machine": 1}).remarks
    assert remarks[0] == "section flux-capacitor/0 is of a kind that this release does not know (optional)"
    assert remarks[1] == "section machine/0 has version 9, newer than this release knows (required)"
    assert "are claimed by nothing" in remarks[2]


def test_a_manifest_with_more_in_it_than_this_release_knows_is_a_remark(tmp_path):
    def add(manifest):
        manifest["surprise"] = 1

    Forge(manifest=add).write(tmp_path / "a.snap")
    said = Image.describe(tmp_path / "a.snap")
    assert said.manifest is None
    assert "unknown field `surprise`" in said.remarks[0]


@pytest.mark.parametrize("change", [{"manifest_digest": bytes(32)}, {"magic": b"ELF"}, {"manifest_offset": 1 << 50}])
def test_what_is_damaged_or_no_snapshot_is_refused(tmp_path, change):
    Forge(preamble=change).write(tmp_path / "a.snap")
    with pytest.raises(ImageError):
        Image.describe(tmp_path / "a.snap")


def test_a_missing_file_is_the_operators_mistake(tmp_path):
    with pytest.raises(ConfigError):
        Image.describe(tmp_path / "none")
