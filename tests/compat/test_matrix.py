"""The matrix: a slice of it is run, its outcomes are as decided, and what is undecided, unlawful or gone is told."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from snapkit.errors import ConfigError
from tests.compat.conftest import TODAY, need_tap
from tests.compat.tree import CACHE, ROOT, Tree
from tests.kvm.harness import need_kvm
from tools import golden, matrix, matrix_view, table
from tools.decided import FILE, TREE, Decided, Outcome, Result, Seen

DOWN, SPOILED = "0.2.0/x86-64-pci-all", "0.2.0/x86-64-none-base"


def in_slice(row: str, check: str) -> bool:
    """What the tree does with each file, what its own release does with it, and what is refused; `make matrix` has all."""
    return check in {TREE, row.partition("/")[0]} or isinstance(decided().get(row, check), list)


def decided() -> Decided:
    try:
        return Decided.read(ROOT)
    except ConfigError:  # told by the test of what is decided
        return Decided({})


def names_in_slice() -> list[tuple[str, str]]:
    try:
        return [name for name in table.names(ROOT) if in_slice(*name)]
    except ConfigError:  # the same
        return []


@pytest.fixture(scope="session")
def seen() -> dict[tuple[str, str], Result]:
    """The slice, run."""
    need_kvm()
    need_tap()
    looked = matrix.look(ROOT, CACHE / "wheels", in_slice)
    return {(each.row, each.check): each for each in looked.results}


@pytest.fixture(scope="module")
def bench() -> Iterator[table.Bench]:
    with table.bench(ROOT, CACHE / "wheels") as ready:
        yield ready


@pytest.mark.parametrize(("row", "check"), names_in_slice(), ids=lambda name: name)
def test_is_restored_and_goes_on_or_is_refused_as_decided(
    seen: dict[tuple[str, str], Result], row: str, check: str
) -> None:
    result = seen[row, check]
    assert result.good, result
    foreign = result.architecture != golden.HERE
    assert result.state in ({"planned", "refused"} if foreign else {"runs", "refused"}), result


def test_everything_is_decided_and_readme_shows_it() -> None:
    assert list(matrix.problems(ROOT)) == []


def test_without_kvm_files_are_decoded_converted_checked_and_planned(bench: table.Bench) -> None:
    found = [replace(row, lacking="no KVM, for a test") for row in table.rows(ROOT, bench.scratch)]
    results = matrix.run(bench, found, decided())
    assert {(each.row, each.check) for each in results} == set(table.names(ROOT))
    for each in results:
        assert each.good, each
        if isinstance(each.decided, list):
            assert (each.state, list(each.reasons)) == ("refused", each.decided)
        else:
            assert (each.state, each.reasons) == ("planned", ("no KVM, for a test",))


@pytest.mark.parametrize(
    ("outcome", "good"),
    [("runs", False), (["vmgenid/0 must be absent"], False), (None, False)],
    ids=["decided to run", "for other reasons", "undecided"],
)
def test_another_refusal_than_decided_is_no_good(bench: table.Bench, outcome: Outcome | None, good: bool) -> None:
    rows = [row for row in table.rows(ROOT, bench.scratch) if row.name == DOWN]
    said = Decided({DOWN: {} if outcome is None else {"0.1.0": outcome}})
    (result,) = matrix.run(bench, rows, said, lambda _row, check: check == "0.1.0")
    assert (result.state, result.good) == ("refused", good)
    looked = Seen([], [result], [], 0)
    assert bool(looked.failed) is (outcome is not None), "what is undecided is missing instead"


def test_a_damaged_file_is_refused_by_each_program_for_its_own_reason(bench: table.Bench, tmp_path: Path) -> None:
    (row,) = (row for row in table.rows(ROOT, bench.scratch) if row.name == SPOILED)
    content = bytearray(row.path.read_bytes())
    content[64] ^= 1
    path = tmp_path / "spoiled.snap"
    path.write_bytes(content)
    results = matrix.run(bench, [replace(row, path=path)], decided(), lambda _row, check: check in {"0.2.0", TREE})
    assert [(each.check, each.state, each.good) for each in results] == [
        ("0.2.0", "refused", False),
        (TREE, "refused", False),
    ]
    assert all("digest" in " ".join(each.reasons) for each in results)
    assert all("support never ends" in matrix.unlawful(replace(each, decided=None), bench) for each in results)


def test_a_release_without_the_architecture_refuses_it_and_is_not_even_started(tmp_path: Path) -> None:
    with table.bench(ROOT, CACHE / "wheels") as ready:
        (row,) = (row for row in table.rows(ROOT, ready.scratch) if row.name == SPOILED)
        name, about = row.name.replace("x86-64", "aarch64"), copy(row.about)
        about.architecture, about.file = "aarch64", about.file.replace("x86-64", "aarch64")
        foreign = replace(row, about=about, path=tmp_path / "is not looked at")
        older = {"0.1.0", "0.2.0", "0.3.0", "0.4.0"}
        results = matrix.run(ready, [foreign], decided(), lambda _row, check: check in older)
        assert [(each.row, each.check, each.state, each.reasons) for each in results] == [
            (name, each, "refused", (f"release {each} has no aarch64",)) for each in sorted(older)
        ]
        assert not any(column.started for column in ready.columns.values())


def test_a_program_that_never_ends_is_ended_and_the_next_is_served(bench: table.Bench, tmp_path: Path) -> None:
    column, path = bench.columns["0.2.0"], tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert column.run(["status", str(path)], tmp_path, bound_s=1).code == -signal.SIGALRM
    assert column.run(["schema", "check"], tmp_path).code == 0


def test_each_column_is_its_own_program(bench: table.Bench, tmp_path: Path) -> None:
    for name, column in bench.columns.items():
        said = column.run(["--version"], tmp_path).out.split()[-1]
        assert said == (name if name != TREE else (ROOT / "snapkit/version.py").read_text().split('"')[1])


def result(row: str, check: str, state: str, decided: Outcome | None = None) -> Result:
    assert state in {"runs", "planned", "refused", "failed"}
    return Result(row, check, state, ("why",), decided)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (result(DOWN, "0.1.0", "refused"), ""),
        (result(DOWN, table.BACK, "refused"), ""),
        (result(DOWN, TREE, "runs"), ""),
        (result(DOWN, "0.2.0", "refused"), "support never ends"),
        (result(DOWN, TREE, "refused"), "support never ends"),
        (result(DOWN, table.ONWARD, "refused"), "support never ends"),
        (result(DOWN, "0.2.0", "planned"), "by running it"),
        (result(DOWN, "0.2.0", "failed"), "decides nothing"),
        (result(DOWN, table.ONWARD, "refused", "runs"), "decided otherwise"),
    ],
)
def test_only_what_the_law_allows_is_decided(bench: table.Bench, seen: Result, why: str) -> None:
    found = matrix.unlawful(seen, bench)
    assert why in found
    assert bool(found) is bool(why)


def test_a_release_decides_its_row_and_its_column(made: Tree) -> None:
    said = Decided.read(made.root)
    assert list(matrix.problems(made.root)) == []
    mine = {check for row, check in said.names() if row.startswith(f"{made.release}/")}
    assert mine >= {"0.1.0", made.release, TREE, table.SAVED_AGAIN, table.BACK, table.ONWARD}
    assert {said.get(row, made.release) for row in said.rows} == {"runs"}, "it restores whatever was written before"
    assert f"| {made.release} |" in matrix_view.readme_table(said)


def test_a_cell_that_is_gone_or_that_nobody_decided_is_told(ready: Tree, tmp_path: Path) -> None:
    tree = ready.copy(tmp_path / "tree")
    said = Decided.read(tree.root)
    del said.rows[DOWN][TREE]
    said.put("0.2.0/x86-64-none-gone", TREE, "runs")
    said.write(tree.root, table.names(tree.root))
    undecided, gone, readme = matrix.problems(tree.root)
    assert undecided.startswith(f"{DOWN}, tree: nobody has decided it; run `make matrix-extend`")
    assert gone.startswith("0.2.0/x86-64-none-gone, tree: it is decided, but its golden or wheel is gone; ")
    assert readme == f"README.md does not show {FILE}; run `make matrix-extend`"
    tree.commit()
    assert [reason for reason in tree.refused() if reason.startswith("matrix: ")] == [
        f"matrix: {problem}" for problem in (undecided, gone, readme)
    ]
    done = tree.run("tools.matrix", "--only", "none", "--json", "--cache", str(CACHE / "wheels"))
    shown = json.loads(done.stdout)
    assert (done.returncode, list(shown)[:3]) == (1, ["cells", "missing", "failed"])
    assert (shown["cells"], shown["missing"], shown["failed"]) == (0, 3, 0)


def test_a_matrix_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"matrix\.json is missing; .*git checkout"):
        Decided.read(tmp_path)
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text('{"0.1.0/base": {"tree": 7}}')
    with pytest.raises(ConfigError, match=r"matrix\.json cannot be read .*git checkout"):
        Decided.read(tmp_path)


# How it is shown

SHOWN = Seen(
    ["0.1.0", TREE],
    [
        Result("0.1.0/a", "0.1.0", "runs", (), "runs"),
        Result("0.1.0/a", TREE, "failed", ("it <broke> & fell",), "runs"),
        Result(
            "0.2.0/b", "0.1.0", "refused", tuple(f"reason {n}" for n in range(9)), [f"reason {n}" for n in range(9)]
        ),
        Result("0.2.0/b", TREE, "planned", ("no KVM here",), "runs"),
        Result("0.2.0/b", table.ONWARD, "runs", (), None),
    ],
    ["0.2.0/b, onward: nobody has decided it"],
    1.5,
)


def test_a_terminal_gets_a_table_the_reasons_and_what_is_wrong() -> None:
    lines = matrix_view.as_text(SHOWN).split("\n")
    assert [line.split() for line in lines[:3]] == [
        ["0.1.0", "tree", "onward"],
        ["0.1.0/a", "runs", "FAILED!"],
        ["0.2.0/b", "refused", "plans", "UNDECIDED"],
    ]
    assert "  and 5 more: --json has all" in lines
    assert lines[-1] == "5 cells, 1 missing, 1 failed; 1 not run, only decoded, checked and planned; 2 s"
    assert "  0.1.0/a, tree: failed, decided is runs" in lines


@pytest.mark.parametrize(
    ("here", "code"), [(golden.HERE, 1), ("aarch64" if golden.HERE == "x86-64" else "x86-64", 0)], ids=["here", "other"]
)
def test_where_kvm_is_required_what_only_another_architecture_runs_is_enough_planned(
    here: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = Result(f"0.5.0/{here}-none-base", TREE, "planned", ("it cannot run here",), "runs")
    monkeypatch.setattr(matrix, "look", lambda *_, **__: Seen([TREE], [planned], [], 0))
    monkeypatch.setenv("SNAPKIT_REQUIRE", "lab,kvm")
    assert matrix.main([]) == code
    assert ("it cannot run here, and SNAPKIT_REQUIRE asks for it" in capsys.readouterr().err) is bool(code)


def test_json_begins_with_the_counts() -> None:
    shown = json.loads(matrix_view.as_json(SHOWN))
    assert list(shown.items())[:3] == [("cells", 5), ("missing", 1), ("failed", 1)]
    assert [each["good"] for each in shown["checks"]] == [True, False, True, True, False]
    assert shown["checks"][2]["reasons"] == [f"reason {n}" for n in range(9)]


def test_the_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    page = matrix_view.as_html(SHOWN)
    assert re.search(r"https?:|src=|url\(|@import|<script|<link", page) is None
    assert "it &lt;broke&gt; &amp; fell" in page
    assert "<broke>" not in page
    assert page.count("<td class=") == len(SHOWN.results)
    assert 'class="verdict bad"' in page
    assert "$" not in page


# The command


def test_the_command_needs_a_checkout(tmp_path: Path) -> None:
    for words, said in (([], f"{tmp_path} is in no checkout"), (["--checkout", "/"], "/ is no checkout")):
        done = subprocess.run([*TODAY, "matrix", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr


def test_the_command_runs_the_checkouts_matrix_and_writes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "matrix.html"
    words = ["matrix", "--checkout", str(ROOT), "--only", f"{DOWN} 0.1.0", "--html", "matrix.html", "--json"]
    done = subprocess.run([*TODAY, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"] == 1
    assert "refused" in out.read_text()
