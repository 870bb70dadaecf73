"""releases.json: read strictly, frozen by one entry."""

from dataclasses import replace
from hashlib import sha256
from threading import Barrier, Thread

import pytest

from snapkit.errors import ConfigError, InternalError
from snapkit.state import releases
from snapkit.state.releases import Release, freeze, parse, render
from snapkit.state.schema import KINDS, current
from snapkit.version import __version__


def test_current_release_is_the_one_this_program_calls_itself():
    assert __version__.split(".dev")[0] == releases.current_release().release


def test_current_release_writes_the_newest_version_of_every_kind_that_no_other_line_keeps_to_itself():
    written = {kind for each in releases.main_line(releases.releases()) for kind in each.kinds}
    assert {kind: current(kind).version for kind in written} == dict(releases.current_release().kinds)
    assert all(kind.startswith("preview-") for kind in KINDS if kind not in written)


def test_first_release_has_its_eight_kinds_at_version_one():
    first = releases.main_line(releases.releases())[0]
    assert first.release == "0.1.0"
    assert dict.fromkeys(first.kinds, 1) == first.kinds
    assert len(first.kinds) == 8


def test_committed_file_is_spelled_as_render_spells_it():
    assert render(releases.releases()) == releases.schema_file("releases.json")


def test_threads_that_ask_first_at_once_get_each_release_once(monkeypatch):
    every, both = releases.releases(), Barrier(2)
    monkeypatch.setattr(releases, "_loaded", [])

    def parse_together(content: bytes) -> tuple[Release, ...]:
        both.wait(30)
        return parse(content)

    monkeypatch.setattr(releases, "parse", parse_together)
    other = Thread(target=releases.releases)
    other.start()
    mine = releases.releases()
    other.join()
    assert mine == releases.releases() == every


def test_freezing_records_a_date_and_the_digest_of_every_schema_file():
    release = Release(release="0.1.0", kinds={"pit": 1, "i8042": 2})
    frozen = freeze(release, "2020-01-31", {"pit/1": b"one", "i8042/2": b"two", "i8042/1": b"older"})
    assert frozen.released == "2020-01-31"
    assert frozen.digests == {"pit/1": sha256(b"one").hexdigest(), "i8042/2": sha256(b"two").hexdigest()}
    assert parse(render((frozen,))) == (frozen,)


def test_freezing_twice_or_without_a_file_is_refused():
    release = Release(release="0.1.0", kinds={"pit": 1})
    with pytest.raises(ConfigError, match="lacks schema files: pit/1"):
        freeze(release, "2020-01-31", {})
    with pytest.raises(ConfigError, match="never changes again"):
        freeze(freeze(release, "2020-01-31", {"pit/1": b""}), "2020-02-01", {"pit/1": b""})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"format":2,"releases":[]}',
        b'{"format":1,"releases":[]}',
        b'{"format":1,"releases":[{"release":"1"}]}',
    ],
)
def test_file_that_is_no_release_list_is_our_bug(content):
    with pytest.raises(InternalError, match=r"releases\.json"):
        parse(content)


A, B, C, D = (Release(release=name) for name in "ABCD")


def test_each_release_leads_to_the_next_and_the_last_of_a_line_to_the_one_that_it_joins():
    joining = replace(B, joins="D")
    with releases.temporary(A, joining, C, D):
        assert releases.neighbours() == ((A, joining), (joining, D), (C, D))
    assert releases.main_line((A, joining, C, D)) == (C, D)
    assert releases.main_line((A, B)) == (A, B)


@pytest.mark.parametrize("joins", ["A", "B", "E"])
def test_line_that_ends_at_a_release_which_does_not_follow_is_our_bug(joins):
    with pytest.raises(InternalError, match=rf"release B joins {joins}, which does not follow it"):
        parse(render((A, replace(B, joins=joins), C)))


def test_line_and_stamp_are_kept_and_left_out_where_there_are_none():
    entries = (replace(A, joins="B", stamp="a"), B)
    assert parse(render(entries)) == entries
    assert render(entries).count(b"joins") == render(entries).count(b"stamp") == 1


def test_release_is_found_by_its_name_and_by_what_its_files_say():
    for each in releases.releases():
        assert releases.find_release(each.release) is each
        assert releases.find_release(each.written_as) is each
        assert len(each.written_as.encode("ascii")) <= 16, "what a preamble has room for"
    assert releases.release_named("vpci-preview-1").release == "virtio-pci-preview-1"


def test_name_of_a_release_that_is_none_is_the_operators_mistake():
    with pytest.raises(ConfigError, match=r"release is '7', must be one of: .*0\.1\.0"):
        releases.release_named("7")


def test_schema_file_that_does_not_exist_is_none():
    assert releases.schema_file("no-such-kind/1.json") is None
