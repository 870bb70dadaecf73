"""How a State of one version becomes one of the next, and back: kind converters, machine converters, and their chain.

A *kind converter* is a pure function inside one kind, one version up (`@upgrade`) or down (`@downgrade`). A *machine
converter* (`@machine_upgrade`, `@machine_downgrade`) is a pure function between two neighbouring releases that maps the
whole set of sections, for a step that splits, merges, adds or renames kinds or moves a field between them; it names the
kinds it takes care of, and those need no kind converter for that step.

One step between neighbouring releases, in either direction: the machine converter first, and so it sees the whole set as
its release wrote it; then the kind converters, for every section that is not yet at the version wanted. A kind that the
older release does not have is refused, unless it is optional: then it is left out. Between releases of two lines the way
is up to where the lines meet, and down from there. Steps compose; every state is checked
after every converter, so that one step's output is as trustworthy as a decoded section.

A downgrade that would lose something in use says so through `refuse` and *returns a State all the same* (with the value
that fits): the chain goes on collecting, and `Refusal` carries every reason of every step at once. One that loses only a
default is silent.

Every converter carries *changes*: for each field path that its step changed, what changed and why (below a kind:
``channels[].mode``; below a machine: ``pit.channels[].mode``). `snapkit schema show KIND --history` prints them, and
`snapkit schema check` refuses a version whose changed fields no converter names.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeVar

from snapkit.errors import ConfigError, Finding, ImageError, InternalError, SnapkitError
from snapkit.state import releases as _releases
from snapkit.state import schema as _schema
from snapkit.state.codec import checked
from snapkit.state.releases import Release, find_release, main_line, neighbours, release_named, releases
from snapkit.state.schema import SectionId, State, schema_of, versions_of

Sections = dict[SectionId, State]
Refuse = Callable[[str, object, str], None]
"""``refuse(path, value, expected)``: the field at *path* is *value*, and only *expected* can be held."""
MachineRefuse = Callable[[SectionId, str, object, str], None]
"""The same with the section named first."""
Direction = Literal["upgrade", "downgrade"]
F = TypeVar("F", bound=Callable[..., Any])


class Refusal(ConfigError):
    """The older release cannot hold this machine; `findings` lists every reason."""


class KindStep(NamedTuple):
    """A registered kind converter: *from_version* to *to_version* of *kind*, with what changed by field path."""

    kind: str
    from_version: int
    to_version: int
    changes: Mapping[str, str]
    run: Callable[..., State]


class MachineStep(NamedTuple):
    """A registered machine converter between neighbouring releases; *kinds* are those it takes care of."""

    from_release: str
    to_release: str
    kinds: frozenset[str]
    changes: Mapping[str, str]
    run: Callable[..., Sections]


_MAIN_LINE, _OTHER_LINE = "machine_converters", "preview_converters"
"""The modules that declare machine converters. That of the line that joins costs 3 ms: it is imported when it is needed."""
_kind_steps: dict[tuple[str, int, int], KindStep] = {}
_machine_steps: dict[tuple[str, str], MachineStep] = {}


def _add_kind_step(kind: str, start: int, end: int, changes: Mapping[str, str]) -> Callable[[F], F]:
    def add(function: F) -> F:
        if (kind, start, end) in _kind_steps:
            raise InternalError(f"the converter of {kind} from version {start} to {end} is declared twice")
        _kind_steps[kind, start, end] = KindStep(kind, start, end, dict(changes), function)
        return function

    return add


def upgrade(kind: str, from_version: int, *, changes: Mapping[str, str]) -> Callable[[F], F]:
    """Register ``function(old) -> new``, from *from_version* of *kind* to the next."""
    return _add_kind_step(kind, from_version, from_version + 1, changes)


def downgrade(kind: str, from_version: int, *, changes: Mapping[str, str]) -> Callable[[F], F]:
    """Register ``function(new, refuse) -> old``, from *from_version* of *kind* to the one before."""
    return _add_kind_step(kind, from_version, from_version - 1, changes)


def _add_machine_step(start: str, end: str, kinds: frozenset[str], changes: Mapping[str, str]) -> Callable[[F], F]:
    def add(function: F) -> F:
        if (start, end) in _machine_steps:
            raise InternalError(f"the machine converter from release {start} to {end} is declared twice")
        _machine_steps[start, end] = MachineStep(start, end, kinds, dict(changes), function)
        return function

    return add


def machine_upgrade(
    from_release: str, to_release: str, *, kinds: frozenset[str], changes: Mapping[str, str]
) -> Callable[[F], F]:
    """Register ``function(sections) -> sections``, from a release to its next neighbour.

    The function gets a dict of its own, every section as *from_release* writes it, and gives the sections of *kinds* as
    *to_release* writes them; it may leave all others alone.
    """
    return _add_machine_step(from_release, to_release, kinds, changes)


def machine_downgrade(
    from_release: str, to_release: str, *, kinds: frozenset[str], changes: Mapping[str, str]
) -> Callable[[F], F]:
    """Register ``function(sections, refuse) -> sections``, from a release to its neighbour before."""
    return _add_machine_step(from_release, to_release, kinds, changes)


def kind_steps(kind: str) -> tuple[KindStep, ...]:
    """List the converters of *kind*: every upgrade in order, then every downgrade from the newest."""
    versions_of(kind)  # its module registers them
    mine = [step for step in _kind_steps.values() if step.kind == kind]
    up = sorted((step for step in mine if step.to_version > step.from_version), key=lambda step: step.from_version)
    down = sorted((step for step in mine if step.to_version < step.from_version), key=lambda step: -step.from_version)
    return (*up, *down)


def machine_steps() -> tuple[MachineStep, ...]:
    """List every machine converter."""
    _load_machine_steps(_MAIN_LINE, _OTHER_LINE)
    return tuple(_machine_steps.values())


def machine_step(from_release: str, to_release: str) -> MachineStep | None:
    """Return the machine converter between two neighbouring releases, or None where there is none."""
    main = {each.release for each in main_line(releases())}
    _load_machine_steps(_MAIN_LINE if {from_release, to_release} <= main else _OTHER_LINE)
    return _machine_steps.get((from_release, to_release))


def _load_machine_steps(*names: str) -> None:
    for name in names:
        import_module(f"snapkit.state.{name}")


def upgrade_sections(sections: Sections, release_from: str) -> Sections:
    """Bring *sections*, written by release *release_from*, to what the current release writes.

    Raises ImageError when no such release is known (a newer one wrote the file, perhaps), when a section is not at the
    version that *release_from* writes, or when a value cannot be carried over.
    """
    start = find_release(release_from)
    if start is None:
        raise ImageError(f"written by release {release_from!r}, the newest known here is {releases()[-1].release}")
    return _convert(sections, start, releases()[-1])


def convert_sections(sections: Sections, release_from: str, release_to: str) -> Sections:
    """Carry *sections* from one release to another, up or down, through every release between.

    Raises Refusal with all reasons when the target cannot hold them, ConfigError when there is no such target, and
    ImageError like `upgrade_sections`.
    """
    start, end = find_release(release_from), release_named(release_to)
    if start is None:
        raise ImageError(f"written by release {release_from!r}, the newest known here is {releases()[-1].release}")
    return _convert(sections, start, end)


def _convert(sections: Sections, start: Release, end: Release) -> Sections:
    _require_release(sections, start)
    reasons: list[Finding] = []
    converted = dict(sections)
    for before, after, direction in route(start, end):
        converted = _step(converted, before, after, direction, reasons)
    if reasons:
        raise Refusal(f"release {end.release} cannot hold this machine", findings=reasons)
    return converted


def route(start: Release, end: Release) -> list[tuple[Release, Release, Direction]]:
    """Return the steps from *start* to *end*: up to the first release that both lead to, then down."""
    steps = {before.release: (before, after) for before, after in neighbours()}

    def upwards(name: str) -> list[tuple[Release, Release]]:
        way = []
        while name in steps:
            way.append(steps[name])
            name = steps[name][1].release
        return way

    up, down = upwards(start.release), upwards(end.release)
    while up and down and up[-1] == down[-1]:  # what both would go
        del up[-1], down[-1]
    return [
        *((before, after, "upgrade") for before, after in up),
        *((after, before, "downgrade") for before, after in reversed(down)),
    ]


def _require_release(sections: Sections, release: Release) -> None:
    """Refuse sections that are not what *release* writes: nobody knows how to read them."""
    findings = []
    for where, state in sections.items():
        schema, wanted = schema_of(state), release.kinds.get(where.kind)
        if schema.kind != where.kind:
            findings.append(Finding(str(where), "", f"a state of {schema.kind}", f"one of {where.kind}"))
        elif wanted is None:
            findings.append(Finding(str(where), "", "there", f"absent: release {release.release} has no such kind"))
        elif schema.version != wanted:
            expected = f"{wanted}, which is what release {release.release} writes"
            findings.append(Finding(str(where), "version", str(schema.version), expected))
    if findings:
        raise ImageError(f"the sections are not those of release {release.release}", findings=findings)


def _step(sections: Sections, start: Release, end: Release, direction: Direction, reasons: list[Finding]) -> Sections:
    """Carry *sections* between two neighbouring releases, collecting in *reasons* what the older one cannot hold."""
    machine = machine_step(start.release, end.release)
    if machine is not None:
        what = f"the machine converter from release {start.release} to {end.release}"
        converted = _run_machine_step(machine, sections, direction, reasons, what)
    else:
        converted = sections
    result: Sections = {}
    for where, state in converted.items():
        wanted = end.kinds.get(where.kind)
        if wanted is None:
            if direction == "upgrade":
                raise InternalError(f"release {end.release} has no kind {where.kind} and no converter removes {where}")
            if schema_of(state).required:
                reasons.append(Finding(str(where), "", "there", f"absent: release {end.release} has no such kind"))
            continue
        result[where] = _to_version(where, state, wanted, reasons)
    return result


def _run_machine_step(
    step: MachineStep, sections: Sections, direction: Direction, reasons: list[Finding], what: str
) -> Sections:
    def refuse(where: SectionId, path: str, value: object, expected: str) -> None:
        reasons.append(Finding(str(where), path, _shown(value), expected))

    arguments = (dict(sections),) if direction == "upgrade" else (dict(sections), refuse)
    try:
        converted = step.run(*arguments)
    except SnapkitError as error:
        error.add_note(f"in {what}")
        raise
    except Exception as error:
        raise InternalError(f"{what} failed: {type(error).__name__}: {error}") from error
    return {where: checked(state, where=str(where)) for where, state in converted.items()}


def _to_version(where: SectionId, state: State, wanted: int, reasons: list[Finding]) -> State:
    """Carry one section to version *wanted* of its kind by its kind converters."""

    def refuse(path: str, value: object, expected: str) -> None:
        reasons.append(Finding(str(where), path, _shown(value), expected))

    version = schema_of(state).version
    while version != wanted:
        following = version + 1 if version < wanted else version - 1
        what = f"the converter of {where.kind} from version {version} to {following}"
        versions_of(where.kind)
        step = _kind_steps.get((where.kind, version, following))
        if step is None:
            raise InternalError(f"{what} is missing")
        try:
            converted = step.run(state) if following > version else step.run(state, refuse)
        except SnapkitError as error:
            error.add_note(f"in {what}")
            raise
        except Exception as error:
            raise InternalError(f"{what} failed on {where}: {type(error).__name__}: {error}") from error
        if schema_of(converted) is not versions_of(where.kind).get(following):
            raise InternalError(f"{what} gave a {type(converted).__name__}")
        try:
            state = checked(converted, where=str(where))
        except ImageError as error:
            error.add_note(f"in {what}")
            raise
        version = following
    return state


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value > 9:
        return f"{value} ({value:#x})"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def temporary(*entries: Release, kinds: tuple[str, ...] = ()) -> Iterator[None]:
    """Let there be only *kinds* (not yet declared), the releases *entries*, and no converter, for a test."""
    machine_steps()  # now, or they would be lost with the temporary tables
    tables: tuple[dict[Any, Any], ...] = (_kind_steps, _machine_steps)
    kept = [dict(table) for table in tables]
    with _schema.temporary(*kinds), _releases.temporary(*entries):
        for table in tables:
            table.clear()
        try:
            yield
        finally:
            for table, content in zip(tables, kept, strict=True):
                table.clear()
                table.update(content)
