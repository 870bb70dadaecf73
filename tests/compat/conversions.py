"""What every converter makes of stored machines: recorded once, when it is written, and the same for ever after.

    python -m tests.compat.conversions      records the converters that have no record yet

A converter of released versions is a promise like a golden: a stored file means what it meant. The properties of
``tests/contract`` hold for many wrong converters; so beside them each has a record, ``conversions/<step>.json``: examples,
each a golden with one value changed or one section left out, with the digest of what comes of it and all that is refused.
"""

import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from snapkit.errors import ConfigError, ImageError
from snapkit.restore.image import Image
from snapkit.state.codec import checked, encode, from_data, to_data
from snapkit.state.converters import (
    KindStep,
    MachineStep,
    Sections,
    convert_sections,
    kind_steps,
    machine_steps,
)
from snapkit.state.releases import find_release, main_line, neighbours, releases
from snapkit.state.schema import KINDS, SectionId, State, schema_of
from snapkit.state.shape import Bool, Bytes, Choice, Int, Items, Maybe, Shape, Text, shape_of
from tests.contract.places import replaced, sites, spelled
from tools import golden, stored

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/compat/conversions"
CACHE = ROOT / ".cache/golden"
KEPT = (
    "a converter of a released step never changes: take it back from the repository (git checkout); one that was never "
    "released may, remove its record and run `python -m tests.compat.conversions`"
)
Step = KindStep | MachineStep
_LISTED = 6


class Example(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One conversion: which golden, what is changed in it, and what comes of it."""

    golden: str
    section: str = ""
    path: list[str | int] | None = None
    """The value at this path of *section* is replaced by *value*; None: the section is left out, if one is named."""
    value: Any = None
    gives: str = ""
    """Digest of what comes of it: sections of the step's kinds, and which others there are."""
    refuses: list[str] = []
    """Where each reason against it is, or the digest of all where they are many; the words may be corrected."""


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All examples of one step."""

    format: int
    examples: list[Example]


def steps() -> dict[str, Step]:
    """Return every converter by the name of its record."""
    found: dict[str, Step] = {
        f"{step.kind}-{step.from_version}-to-{step.to_version}": step for kind in KINDS for step in kind_steps(kind)
    }
    return found | {f"{step.from_release}-to-{step.to_release}": step for step in machine_steps()}


def problems(*, folder: Path = FOLDER, only: Callable[[Step], bool] = lambda _step: True) -> Iterator[str]:
    """Say, with what to do, which converter is gone, has no record, or does not do what its record says."""
    known = steps()
    for path in sorted(folder.glob("*.json")):
        if path.stem not in known:
            yield f"the converter that {path} records is gone; {KEPT}"
    for name, step in known.items():
        if not only(step):
            continue
        path = folder / f"{name}.json"
        if not path.is_file():
            yield (
                f"the converter {name} has no record in {path}; take it back from the repository (git checkout), or, if "
                "the converter is new, run `python -m tests.compat.conversions`"
            )
            continue
        for number, example in enumerate(recorded(path)):
            told = difference(step, example)
            if told:
                yield f"the converter {name} changed, by examples[{number}] of {path}: {told}; {KEPT}"
                break


def recorded(path: Path) -> list[Example]:
    """Return the examples of one record; raises ConfigError that says what to do when it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record).examples
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is edited ({error}); {KEPT}") from error


def difference(step: Step, example: Example) -> str:
    """Say how *step* does something else than *example* has; nothing where it does not."""
    try:
        gives, refuses = outcome(step, given(step, example))
    except Exception as error:  # whatever an edited converter may raise
        return f"{type(error).__name__}: {error}"
    if refuses != example.refuses:
        return f"refuses {refuses}, was {example.refuses}"
    return "" if gives == example.gives else "gives other values"


def outcome(step: Step, sections: Sections) -> tuple[str, list[str]]:
    """Run *step*; returns the digest of what it gives (empty: the file is refused) and every reason against it."""
    reasons: list[str] = []

    def refuse(where: object, path: str, *_value_and_expected: object) -> None:
        reasons.append(_place(str(where), path))

    try:
        if isinstance(step, KindStep):
            (where,) = sections
            down = (lambda *told: refuse(where, *told),) if step.to_version < step.from_version else ()
            converted = {where: step.run(sections[where], *down)}
        else:
            converted = step.run(dict(sections), *(() if goes_up(step) else (refuse,)))
        mine = {step.kind} if isinstance(step, KindStep) else step.kinds
        content = b"".join(
            f"{where} {schema_of(state).version} ".encode() + (encode(checked(state)) if where.kind in mine else b"")
            for where, state in sorted(converted.items(), key=lambda item: item[0])
        )
    except ImageError as error:
        return "", [_place(finding.component, finding.path) for finding in error.findings]
    return _digest(content), reasons if len(reasons) <= _LISTED else [_digest("\n".join(reasons).encode())]


def _place(component: str, path: str) -> str:
    return f"{component}.{path}".rstrip(".")


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


def goes_up(step: MachineStep) -> bool:
    return (step.from_release, step.to_release) in {(older.release, newer.release) for older, newer in neighbours()}


def given(step: Step, example: Example) -> Sections:
    """Return the sections that *step* is given in *example*."""
    sections = dict(_stored(step, example.golden))
    if not example.section:
        return sections
    where = SectionId(*example.section.split("/"))
    state = sections.pop(where)
    if example.path is not None:
        changed = replaced(to_data(state), tuple(example.path), example.value)
        sections[where] = from_data(schema_of(state), changed, where=str(where))
    return sections


_read: dict[tuple[str, str], Sections] = {}


def _stored(step: Step, name: str) -> Sections:
    """Return what *step* works on of the golden *name* (release/file): converted to where the step begins."""
    where_from = name if isinstance(step, MachineStep) else f"{name} {step.kind} {step.from_version}"
    key = (where_from, step.from_release if isinstance(step, MachineStep) else "")
    if key not in _read:
        release, _, entry = name.partition("/")
        if isinstance(step, MachineStep):
            _read[key] = convert_sections(stored_sections(release, entry), release, step.from_release)
        else:
            kind, _, instance = entry.partition(":")[2].partition("/")
            file = entry.partition(":")[0]
            writes = next(each for each in releases() if each.kinds.get(step.kind) == step.from_version)
            sections = convert_sections(stored_sections(release, file), release, writes.release)
            where = SectionId(kind, instance)
            _read[key] = {where: sections[where]}
    return _read[key]


def stored_sections(release: str, name: str) -> Sections:
    key = (release, name)
    if key not in _read:
        folder = ROOT / golden.FOLDER / release
        (about,) = (each for each in golden.read_manifest(folder).goldens if each.name == name)
        with Image.open(golden.unpack(folder, about, CACHE)) as image:
            _read[key] = image.sections().states
    return _read[key]


# Recording


def examples(step: Step) -> Iterator[Example]:
    """Give what is tried: each golden that leads to where *step* begins, whole and with each kind of place changed once."""
    basic = set(main_line(releases())[0].kinds) - {"serial-16550"}
    seen: set[str] = set()
    for name in _goldens_for(step):
        yield Example(golden=name)
        for where, state in _stored(step, name).items():
            if where.kind in basic and not (isinstance(step, KindStep) or where.kind in step.kinds):
                continue
            if isinstance(step, MachineStep):
                yield Example(golden=name, section=str(where))
            for path, number, value in changes(state):
                place = "".join(letter for letter in f"{where.kind} {spelled(path)}" if not letter.isdigit())
                about = (
                    old.partition("/")[0]
                    if isinstance(old := found_at(to_data(state), path), str) and "/" in old
                    else ""
                )
                if (tried := f"{place} {number} {about}") not in seen:
                    seen.add(tried)
                    yield Example(golden=name, section=str(where), path=list(path), value=value)


def found_at(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        data = data[part]
    return data


def changes(state: State) -> Iterator[tuple[tuple[str | int, ...], int, Any]]:
    """Give places of *state*, each with other values that are valid there, numbered, in JSON's terms."""
    data = to_data(state)
    for path, shape, value in sites(shape_of(type(state)), data):
        for number, other in enumerate(_others(shape, value)):
            if path and other != value:
                yield path, number, other


def _others(shape: Shape, value: Any) -> Iterator[Any]:
    match shape:
        case Int(minimum=low, maximum=high):
            yield from (each for each in (value + 1, value ^ 1, value ^ 0x10, high, low) if low <= each <= high)
        case Bool():
            yield not value
        case Bytes(min_len=low, max_len=high):
            raw = msgspec.convert(value, bytes)
            for at in (0, 4, 16, 19, 20, 24, len(raw) - 1):
                if 0 <= at < len(raw):
                    yield msgspec.to_builtins(raw[:at] + bytes([raw[at] ^ 0x11]) + raw[at + 1 :])
            if low < len(raw):
                yield msgspec.to_builtins(raw[:-1])
            if len(raw) < high:
                yield msgspec.to_builtins(raw + b"\1")
        case Text(max_len=high):
            yield ("x" + value)[:high]
            yield (value + "x" * high)[:high]
            yield value.replace("pci-", "p")
        case Choice(words=words):
            yield from words
        case Items(min_len=low, max_len=high):
            if low < len(value):
                yield value[:-1]
                yield value[1:]
            if value and len(value) < high:
                yield [*value, value[-1]]
            yield list(reversed(value))
        case Maybe(inner=inner):
            yield None
            yield from _others(inner, value) if value is not None else ()
        case _:
            pass


def _goldens_for(step: Step) -> Iterator[str]:
    """Give the goldens that can be brought to where *step* begins: of that release if there are, else of one before."""
    if isinstance(step, KindStep):
        writes = [each for each in releases() if each.kinds.get(step.kind) == step.from_version]
        start = writes[0]
    else:
        found = find_release(step.from_release)
        assert found is not None
        start = found
    before = [start.release, *(older.release for older, newer in neighbours() if newer.release == start.release)]
    own = [(release, entry) for release, entry in stored.goldens(ROOT) if release == start.release]
    near = own or [(release, entry) for release, entry in stored.goldens(ROOT) if release in before]
    for release, entry in near:
        name = f"{release}/{entry.name}"
        if isinstance(step, MachineStep):
            yield name
            continue
        sections = convert_sections(stored_sections(release, entry.name), release, start.release)
        yield from (f"{name}:{where}" for where in sections if where.kind == step.kind)


def record(name: str, step: Step) -> None:
    """Write the record of *step*: of many examples those that show something new."""
    kept: list[Example] = []
    usual: dict[str, tuple[str, list[str]]] = {}
    for example in examples(step):
        try:
            example.gives, example.refuses = outcome(step, given(step, example))
        except (ConfigError, ImageError):  # not a machine that can be given to it
            continue
        shown = usual.setdefault(example.golden, (example.gives, example.refuses))
        if not example.section or (example.gives, example.refuses) != shown:
            kept.append(example)
    FOLDER.mkdir(exist_ok=True)
    lines = b",\n".join(msgspec.json.encode(example) for example in kept)
    (FOLDER / f"{name}.json").write_bytes(b'{"format":1,"examples":[\n' + lines + b"\n]}\n")


if __name__ == "__main__":
    for each, converter in steps().items():
        if not (FOLDER / f"{each}.json").is_file():
            record(each, converter)
            print(f"recorded {each}")
    told = list(problems())
    print(*told, sep="\n")
    sys.exit(1 if told else 0)
