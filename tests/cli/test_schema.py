"""`snapkit schema`: what it prints and what it exits with."""

import json

import pytest
from click.testing import CliRunner

from snapkit.cli.schema import schema
from snapkit.errors import ConfigError
from snapkit.state import converters
from snapkit.state.converters import downgrade, machine_downgrade, machine_upgrade, upgrade
from snapkit.state.releases import Release, release_named, releases
from snapkit.state.schema import KINDS, U8, U16, State
from snapkit.state.schema import schema as declare


def run(*arguments, code=0):
    result = CliRunner().invoke(schema, arguments)
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


class Lamp1(State):
    """A lamp."""

    level: U8


class Lamp2(State):
    """A brighter lamp."""

    level: U16


class Panel1(State):
    """A panel."""

    level: U8 = 0


@pytest.fixture
def lamps():
    entries = (
        Release(release="0.1.0", released="2020-01-31", kinds={"lamp": 1}, digests={"lamp/1": "0"}),
        Release(release="0.2.0", kinds={"lamp": 2, "panel": 1}),
    )
    with converters.temporary(*entries, kinds=("lamp", "panel")):
        declare("lamp", version=1)(Lamp1)
        declare("lamp", version=2)(Lamp2)
        declare("panel", version=1)(Panel1)
        upgrade("lamp", 1, changes={"level": "widened: lamps got brighter"})(lambda old: Lamp2(level=old.level))
        downgrade("lamp", 2, changes={"level": "refused above 255"})(lambda new, _: Lamp1(level=new.level))
        moved = {"lamp.level": "stays", "panel": "begins and ends"}
        both = frozenset({"lamp", "panel"})
        machine_upgrade("0.1.0", "0.2.0", kinds=both, changes=moved)(dict)
        machine_downgrade("0.2.0", "0.1.0", kinds=both, changes=moved)(lambda sections, _: sections)
        yield


def test_list_names_every_kind_with_its_version_and_releases():
    text = run("list").stdout
    assert all(kind in text for kind in KINDS)
    rows = run_json("list")
    assert list(dict.fromkeys(row["kind"] for row in rows)) == list(KINDS)
    assert rows[0]["releases"] == [each.release for each in releases()]
    assert rows[0]["version"] == 1


def test_show_prints_fields_with_bounds_meanings_and_bits():
    lines = run("show", "serial-16550").stdout.splitlines()
    assert lines[0] == "serial-16550 version 1"
    assert any(line.split() == ["dll", "integer", "0..255", "Divisor", "latch,", "low", "byte."] for line in lines)
    assert any(line.strip().startswith("[7] DLAB: ") for line in lines)


def test_show_as_json_is_the_schema_file():
    from snapkit.state.releases import schema_file

    content = schema_file("pit/1.json")
    assert content is not None
    assert run_json("show", "pit") == json.loads(content) == run_json("show", "pit", "--version", "1")


def test_show_of_what_is_not_there_names_what_is():
    with pytest.raises(ConfigError, match=r"kind is 'clock', must be one of: machine, memory-layout"):
        run("show", "clock")
    with pytest.raises(ConfigError, match=r"version of pit is 9, must be one of: 1"):
        run("show", "pit", "--version", "9")


def test_show_history_says_that_nothing_changed_yet():
    assert run("show", "pit", "--history").stdout.splitlines()[-1] == "nothing has changed so far"
    assert run_json("show", "pit", "--history") == []


@pytest.mark.usefixtures("lamps")
def test_show_history_gives_every_step_with_its_reasons():
    assert run("show", "lamp", "--history").stdout.splitlines() == [
        "release 0.1.0 (released 2020-01-31) writes lamp version 1",
        "release 0.2.0 (not released yet) writes lamp version 2",
        "from version 1 to version 2:",
        "  level: widened: lamps got brighter (widened, from 0..255 to 0..65535)",
        "from version 2 to version 1:",
        "  level: refused above 255 (narrowed, from 0..65535 to 0..255)",
        "from release 0.1.0 to release 0.2.0:",
        "  lamp.level: stays (widened, from 0..255 to 0..65535)",
        "from release 0.2.0 to release 0.1.0:",
        "  lamp.level: stays (narrowed, from 0..65535 to 0..255)",
    ]
    assert run("show", "panel", "--history").stdout.splitlines() == [
        "release 0.2.0 (not released yet) writes panel version 1",
        "from release 0.1.0 to release 0.2.0:",
        "  panel: begins and ends (the kind begins, with version 1)",
        "from release 0.2.0 to release 0.1.0:",
        "  panel: begins and ends (the kind ends, with version 1)",
    ]
    first = run_json("show", "lamp", "--history")[0]
    assert first == {
        "from": "version 1",
        "to": "version 2",
        "changes": [
            {
                "path": "level",
                "what": ["widened, from 0..255 to 0..65535"],
                "why": "widened: lamps got brighter",
            }
        ],
    }


def test_show_history_of_the_real_tables_says_where_they_came_from_and_why():
    text = run("show", "interrupt-table", "--history").stdout
    assert "from release 0.1.0 to release 0.2.0:" in text
    assert "the one interrupt line of such a machine is its serial port's (the kind begins, with version 1)" in text
    assert "refused where anything but the serial port interrupts (the kind ends, with version 1)" in text


def test_check_is_content_with_the_tree_as_it_is():
    result = run("check")
    assert result.stdout == ""
    assert "no violations" in result.stderr
    assert run_json("check")["violations"] == []


@pytest.mark.usefixtures("lamps")
def test_check_lists_violations_and_exits_1():
    result = run("check", code=1)
    assert "missing: schemas/lamp/1.json is missing, must be there: take it back from the repository" in result.stdout
    assert "missing: schemas/lamp/2.json is missing, must be there: run `make schemas`" in result.stdout
    assert "3 violations" in result.stderr
    assert {found["rule"] for found in run_json("check", code=1)["violations"]} == {"missing"}


@pytest.mark.usefixtures("lamps")
def test_diff_shows_what_changed_between_releases_and_exits_1():
    assert run("diff", "0.1.0", "0.2.0", code=1).stdout.splitlines() == [
        "lamp: version 1 to 2",
        "  level is widened, from 0..255 to 0..65535",
        "panel: added, version 1",
    ]
    assert run("diff", "0.2.0", "0.1.0", code=1).stdout.splitlines()[-1] == "panel: removed, version 1"
    lamp, panel = run_json("diff", "0.2.0", "0.1.0", code=1)
    assert (lamp["how"], lamp["from"], lamp["to"]) == ("changed", 2, 1)
    assert lamp["fields"] == [{"path": "level", "what": "narrowed", "from": "0..65535", "to": "0..255"}]
    assert panel == {"kind": "panel", "how": "removed", "from": 1, "to": None, "fields": []}


def test_diff_of_the_first_two_releases_names_every_kind_that_came():
    rows = run_json("diff", "0.1.0", "0.2.0", code=1)
    assert {row["how"] for row in rows} == {"added"}
    assert {row["kind"] for row in rows} == set(release_named("0.2.0").kinds) - set(release_named("0.1.0").kinds)
    assert run_json("diff", "0.2.0", "0.1.0", code=1)[0]["how"] == "removed"


def test_diff_of_a_release_with_itself_is_empty():
    result = run("diff", "0.1.0", "0.1.0")
    assert result.stdout == ""
    assert "the same versions" in result.stderr
    with pytest.raises(ConfigError, match=r"release is '3', must be one of: .*0.1.0"):
        run("diff", "0.1.0", "3")


@pytest.mark.parametrize("command", ["list", "show", "check", "diff"])
def test_help_of_every_command_has_an_example(command):
    assert "snapkit schema" in run(command, "--help").stdout


def test_generate_has_nothing_left_to_write():
    assert run("generate").stdout == ""
