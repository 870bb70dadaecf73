"""Make a release of the checkout that this file lies in: ``make release``, or

    python -m tools.release                  release the version that snapkit/version.py announces
    python -m tools.release --next 0.2.0     begin to work on the next one
    python -m tools.release --here           a trial: without the goldens that other machines write

First everything is looked at, and every reason to refuse is told at once, each with what to do. Then, in a copy of the
tracked files: the version loses its ``.dev0``, ``schemas/releases.json`` gets the date and the digests of the schema files,
the law is checked once more, the wheel is built twice (the same bytes), installed with its pinned packages into an
environment of its own, and *that program* writes the goldens on ``/dev/kvm`` and restores them; those of another architecture
in the lab's machine (`tools.elsewhere`). The matrix gets its rows and its column: every release is given the new goldens, the
new one all others, and what comes out is decided, unless it is against the law; then there is no release. The last step moves
the results into the checkout; whatever fails before or in it leaves the checkout as it was. Committing is left to a person.

The date comes from the heading of the release in CHANGELOG.md and is also the time of the files in the wheel, so that the
same tree gives the same wheel on any day.

Afterwards the tree still calls itself by the release: what it writes is what the release writes, until a schema changes,
which the law refuses before ``--next`` has opened the next release.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import snapkit
from snapkit.errors import SnapkitError
from snapkit.guests import build
from snapkit.state.law import committed_files, violations
from snapkit.state.releases import Release, freeze, render
from tools import decided, elsewhere, golden, golden_maker, matrix, matrix_view, stored, tap, wheels

ROOT = Path(__file__).resolve().parents[1]
VERSION, CHANGELOG, RELEASES = Path("snapkit/version.py"), Path("CHANGELOG.md"), Path("schemas/releases.json")
CHANGED = (VERSION, RELEASES, decided.FILE, matrix_view.README)
"""What a release changes; beside these it only adds."""
KVM = "/dev/kvm"
_MATRIX_S = 3600
PLANNED = re.compile(r"(\d+\.\d+\.\d+)\.dev0")


class RefusedError(Exception):
    """No release: every reason, each with what to do."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class Plan:
    """What is to be released."""

    release: str
    date: date
    entries: tuple[Release, ...]
    elsewhere: tuple[str, ...] = ()
    """Architectures of which other machines than this one write the goldens."""


# What is looked at first


def reasons(root: Path, others: Sequence[str] = ()) -> Iterator[str]:
    """Give every reason not to release the tree at *root*, with what to do. *others* write goldens as well."""
    yield from _unclean(root)
    yield from _version(root)
    yield from _changelog(root)
    for finding in violations(committed_files()):
        yield f"schema: {finding.rule}: {finding}; see schemas/README.md"
    for problem in stored.problems(root):
        yield f"stored: {problem}"
    for problem in matrix.problems(root):
        yield f"matrix: {problem}"
    for name in build.stale_files():
        yield f"guest: snapkit/guests/{name} is not what BUILD.json records: run python -m snapkit.guests.build"
    if missing := build.missing_toolchain():
        yield f"toolchain: {missing}: the guests of the goldens are built from source"
    if not os.access(KVM, os.R_OK | os.W_OK):
        yield f"kvm: {KVM} is missing or may not be opened: goldens are written from live machines"
    for architecture in others:
        if missing := elsewhere.missing(architecture):
            yield f"lab: {missing}: goldens of {architecture} are written in its machine; make setup fetches the rest"
    if missing := tap.missing():
        yield f"network: {missing}: goldens have a network card; be root, load the module tun"
    try:
        wheels.pinned(root)
    except SnapkitError as error:
        yield f"packages: {error}"


def _unclean(root: Path) -> Iterator[str]:
    done = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"tree: git cannot say what {root} holds ({done.stderr.strip()}): release from a clone"
    elif changed := [line[3:] for line in done.stdout.splitlines()]:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        yield f"tree: not committed: {shown}: commit or remove them, a release is made of what the repository holds"


def _version(root: Path) -> Iterator[str]:
    version, entry = _announced(root), stored.releases(root)[-1]
    planned = PLANNED.fullmatch(version)
    if entry.released is not None:
        yield (
            f"version: release {entry.release} was released on {entry.released} and never changes again: "
            "begin the next with python -m tools.release --next X.Y.Z"
        )
    elif planned is None:
        yield f"version: {VERSION} says {version!r}, must be {entry.release}.dev0 before release {entry.release}"
    elif planned[1] != entry.release:
        yield f"version: {VERSION} announces {planned[1]}, {RELEASES} ends with {entry.release}: make them agree"


def _changelog(root: Path) -> Iterator[str]:
    release = stored.releases(root)[-1].release
    heading = re.search(
        rf"^## {re.escape(release)}(.*)\n((?:(?!## ).*\n?)*)", (root / CHANGELOG).read_text(), re.MULTILINE
    )
    if heading is None:
        yield f"changelog: {CHANGELOG} has no section for {release}: write `## {release}, YYYY-MM-DD` and what changed"
    elif (when := _date(heading[1].removeprefix(", "))) is None:
        yield (
            f"changelog: the section for {release} is headed `## {release}{heading[1]}`: "
            f"give it its date, `## {release}, {datetime.now(UTC).date()}`"
        )
    elif when > datetime.now(UTC).date():
        yield f"changelog: the section for {release} is dated {when}, which is to come"
    elif not heading[2].strip():
        yield f"changelog: the section for {release} is empty: write what changed"


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _announced(root: Path) -> str:
    found = re.search(r'^__version__ = "(.*)"$', (root / VERSION).read_text(), re.MULTILINE)
    return found[1] if found else ""


def plan(root: Path, *, here: bool = False) -> Plan:
    """Return what is to be released, *here*: without other machines. Raises RefusedError with every reason not to."""
    if Path(snapkit.__file__).resolve().parents[1] != root:
        raise RefusedError([f"tree: this is the snapkit of {snapkit.__file__}, not of {root}: run it in that folder"])
    entries = stored.releases(root)
    others = () if here else tuple(sorted(stored.architectures(entries[-1]) - {golden.HERE}))
    if found := list(reasons(root, others)):
        raise RefusedError(found)
    heading = re.search(rf"^## {re.escape(entries[-1].release)}, (.*)$", (root / CHANGELOG).read_text(), re.MULTILINE)
    assert heading is not None, "looked at before"
    return Plan(entries[-1].release, date.fromisoformat(heading[1]), entries, others)


# Making it, in a copy


def make(root: Path, stage: Path, planned: Plan, cache: Path, tell: Callable[[str], None]) -> None:
    """Make the release in *stage*, a folder that does not exist yet. Raises SnapkitError where something fails."""
    tell(f"copying the tree to {stage}")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, stage / name, follow_symlinks=False)
    _set_version(stage, planned.release)
    frozen = freeze(planned.entries[-1], str(planned.date), committed_files())
    (stage / RELEASES).write_bytes(render((*planned.entries[:-1], frozen)))
    tell(f"frozen: {len(frozen.digests)} schemas of release {frozen.release}")

    binaries = {
        architecture: golden_maker.guests(stage, architecture, stage / f"guests/{architecture}")
        for architecture in (golden.HERE, *planned.elsewhere)
    }

    epoch = int(datetime(planned.date.year, planned.date.month, planned.date.day, tzinfo=UTC).timestamp())
    built = wheels.build(stage, stage / "wheels", epoch)
    store = stage / wheels.FOLDER / planned.release
    store.mkdir(parents=True)
    wheel = store / built.name
    shutil.copy2(built, wheel)
    constraints = store / wheels.CONSTRAINTS
    constraints.write_text("\n".join(wheels.pinned(stage)) + "\n")
    tell(f"built: {wheel.name}, {wheel.stat().st_size} bytes")

    python = wheels.environment(wheel, constraints, cache, where=stage / "environment")
    program = [str(python.with_name("snapkit"))]
    golden.run([*program, "schema", "check"], stage.parent)
    tell(f"installed: {golden.run([*program, '--version'], stage.parent).strip()}; its schemas keep the law")

    goldens, when = stage / golden.FOLDER / planned.release, str(planned.date)
    manifest = golden_maker.write(program, goldens, binaries[golden.HERE], release=planned.release, date=when)
    for architecture in planned.elsewhere:
        tell(f"booting a machine of {architecture}")
        folder, guests = stage / f"goldens/{architecture}", stage / f"guests/{architecture}"
        elsewhere.write_goldens(architecture, wheel, guests, folder, release=planned.release, date=when)
        manifest = golden_maker.join(goldens, folder)
    for entry in manifest.goldens:
        where = f", on {entry.host_cpu}" if entry.host_cpu else ""
        tell(f"written and restored: {entry.file}, at {entry.word} {entry.count}{where}")
    _describe(store, planned, wheel, constraints, goldens / golden.MANIFEST)
    for shown in stored.problems(stage):
        raise RefusedError([f"stored: {shown}"])
    words = ["--extend", "--cache", str(cache.resolve()), "--newest", str(stage / "environment")]
    golden.run([sys.executable, "-m", "tools.matrix", *words], stage, bound_s=_MATRIX_S)
    for shown in matrix.problems(stage):
        raise RefusedError([f"matrix: {shown}"])
    tell(f"decided: its row and its column in {decided.FILE}")


def _describe(folder: Path, planned: Plan, wheel: Path, constraints: Path, goldens: Path) -> None:
    import msgspec

    def file(path: Path, name: str | None = None) -> wheels.File:
        return wheels.File(file=name or path.name, sha256=golden.digest(path.read_bytes()))

    manifest = wheels.Manifest(
        format=1,
        release=planned.release,
        released=str(planned.date),
        python=sys.version.split()[0],
        wheel=file(wheel),
        constraints=file(constraints),
        goldens=file(goldens, f"{golden.FOLDER}/{planned.release}/{golden.MANIFEST}"),
    )
    (folder / wheels.MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def install(stage: Path, root: Path, release: str) -> None:
    """Move what was made in *stage* into the checkout at *root*: all of it, or nothing."""
    with ExitStack() as undo:
        for folder in (golden.FOLDER / release, wheels.FOLDER / release):
            made = [path for path in (root / folder, *(root / folder).parents) if not path.exists()]  # innermost first
            for path in made:
                undo.callback(shutil.rmtree, path, ignore_errors=True)
            shutil.copytree(stage / folder, root / folder)
        for name in CHANGED:
            undo.callback((root / name).write_bytes, (root / name).read_bytes())
            (root / name).write_bytes((stage / name).read_bytes())
        undo.pop_all()


def begin(root: Path, release: str) -> None:
    """Begin to work on *release*: a new entry in releases.json, the version, a section in CHANGELOG.md."""
    entries = stored.releases(root)
    last = entries[-1]
    if last.released is None:
        raise RefusedError(
            [f"version: release {last.release} is being worked on and not released yet: release it first"]
        )
    if re.fullmatch(r"\d+\.\d+\.\d+", release) is None or _numbers(release) <= _numbers(last.release):
        raise RefusedError([f"version: {release!r} must be X.Y.Z and above {last.release}"])
    (root / RELEASES).write_bytes(render((*entries, Release(release=release, kinds=last.kinds))))
    _set_version(root, f"{release}.dev0")
    text = (root / CHANGELOG).read_text()
    at = text.index(f"## {last.release}")
    (root / CHANGELOG).write_text(f"{text[:at]}## {release}, not yet released\n\n{text[at:]}")


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def _set_version(root: Path, version: str) -> None:
    (root / VERSION).write_text(f'__version__ = "{version}"\n')


def main(words: Sequence[str] | None = None) -> int:
    """Release, or say why not; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description="Release this checkout.")
    parser.add_argument("--next", metavar="X.Y.Z", help="do not release: begin to work on that version")
    parser.add_argument("--check", action="store_true", help="only say whether it could be released")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/wheels", help="where packages are kept")
    parser.add_argument("--here", action="store_true", help="a trial: without the goldens that other machines write")
    asked = parser.parse_args(words)
    # The copy that the release is made in has no lab of its own.
    os.environ.setdefault("SNAPKIT_LAB_CACHE", str(ROOT / ".cache/lab"))
    try:
        if asked.next:
            begin(ROOT, asked.next)
            print(f"release {asked.next} is being worked on")
            return 0
        planned = plan(ROOT, here=asked.here)
        print(f"release {planned.release} of {planned.date}: nothing is missing")
        if asked.check:
            return 0
        with tempfile.TemporaryDirectory(prefix="snapkit-release-") as folder:
            stage = Path(folder) / "tree"
            make(ROOT, stage, planned, asked.cache, lambda text: print(f"  {text}", flush=True))
            install(stage, ROOT, planned.release)
    except (RefusedError, SnapkitError) as error:
        print("no release, and nothing was changed:", file=sys.stderr)
        for reason in error.reasons if isinstance(error, RefusedError) else [error]:
            print(f"- {reason}", file=sys.stderr)
        return 1
    added = f"{golden.FOLDER}/{planned.release} {wheels.FOLDER}/{planned.release}"
    print(
        f"released {planned.release}. To keep it:\n  git add {' '.join(map(str, CHANGED))} {added}\n  git commit && git tag {planned.release}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
