"""What every converter must keep to, of one kind or of whole machines. A new one is covered as soon as it is registered.

Down and up again is the same, byte for byte, or the way down is refused: so nothing is lost in silence. A refusal gives
all reasons at once, each by a path that is there. Converters leave what they are given as it was.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from snapkit.errors import ConfigError, Finding
from snapkit.state import converters
from snapkit.state.codec import checked, encode
from snapkit.state.converters import (
    KindStep,
    Refusal,
    Sections,
    convert_sections,
    downgrade,
    kind_steps,
    machine_downgrade,
    machine_step,
    machine_steps,
    machine_upgrade,
    route,
    upgrade,
)
from snapkit.state.inspect import locate
from snapkit.state.releases import Release, neighbours, releases
from snapkit.state.schema import KINDS, U8, SectionId, State, schema, schema_of, versions_of
from snapkit.state.shape import shape_of
from tests.contract.generate import instances, random_value, strategy
from tests.contract.machines import idle_machine, machines

NEIGHBOURS = neighbours()
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
every_kind = pytest.mark.parametrize("kind", KINDS)
between_neighbours = pytest.mark.parametrize(
    ("older", "newer"), NEIGHBOURS, ids=[f"{older.release}-{newer.release}" for older, newer in NEIGHBOURS]
)


def steps_down(kind: str) -> list[KindStep]:
    return [step for step in kind_steps(kind) if step.to_version < step.from_version]


def up_again(step: KindStep) -> KindStep:
    return next(
        each
        for each in kind_steps(step.kind)
        if (each.from_version, each.to_version) == (step.to_version, step.from_version)
    )


def down(step: KindStep, state: State) -> tuple[State, dict[str, str]]:
    """Carry *state* down; returns what came and the reasons against it by path."""
    reasons: dict[str, str] = {}
    older = checked(step.run(state, lambda path, _value, expected: reasons.update({path: expected})))
    assert schema_of(older) is versions_of(step.kind)[step.to_version]
    return older, reasons


def is_there(state: State, path: str) -> bool:
    """Return whether *path* leads to a value of *state*, or to a byte of one."""
    outer, _, index = path.removesuffix("]").rpartition("[")
    if path.endswith("]"):
        held = locate(state, f".{outer}", where="kind/0").value
        if isinstance(held, bytes):
            return int(index) < len(held)
    return not path or locate(state, f".{path}", where="kind/0").path == f"kind/0.{path}"


def check_way_down(step: KindStep, state: State) -> None:
    """Assert what holds for any state that is carried one version down."""
    before = encode(state)
    older, reasons = down(step, state)
    assert encode(state) == before, "the converter changed what it was given"
    if not reasons:
        assert encode(checked(up_again(step).run(older))) == before, "lost in silence"
    for path, expected in reasons.items():
        assert is_there(state, path), path
        assert expected
    idle = checked(up_again(step).run(older))
    for name in state.__struct_fields__:
        alone = replace(idle, **{name: getattr(state, name)})
        hidden = {path for path in down(step, alone)[1] if path.startswith(name)} - reasons.keys()
        assert not hidden, "one reason hides another"


def check_every(step: KindStep, states: st.SearchStrategy[State]) -> None:
    @some
    @given(states)
    def check(state: State) -> None:
        check_way_down(step, state)

    check()


@every_kind
def test_any_state_goes_down_and_comes_back_or_is_refused_by_every_field(kind: str):
    for step in steps_down(kind):
        states = strategy(shape_of(versions_of(kind)[step.from_version].type))
        check_every(step, states)


@every_kind
def test_any_state_that_came_up_goes_down(kind: str):
    for step in steps_down(kind):
        for older in instances(versions_of(kind)[step.to_version].type, seed=12):
            newer = checked(up_again(step).run(older))
            check_way_down(step, newer)
            assert down(step, newer)[1] == {}


def payloads(sections: Sections) -> dict[SectionId, bytes]:
    return {where: encode(state) for where, state in sections.items()}


def kept(sections: Sections, release: Release) -> Sections:
    """Leave out what *release* does not know and may drop without a word."""
    return {
        where: state for where, state in sections.items() if where.kind in release.kinds or schema_of(state).required
    }


def check_machine_down(sections: Sections, newer: Release, older: Release) -> set[tuple[str, str]]:
    """Assert what holds for any machine that is carried one release down; returns why it cannot be."""
    before = payloads(sections)
    below, findings = carried(sections, newer, older)
    assert payloads(sections) == before, "the converter changed what it was given"
    if below is not None:
        again = convert_sections(below, older.release, newer.release)
        wanted = kept(sections, older)
        assert {where: again.get(where) for where in wanted} == wanted, "lost in silence"
        assert payloads(again) == payloads(wanted)
    for finding in findings:
        (where,) = (where for where in sections if str(where) == finding.component)
        assert is_there(sections[where], finding.path), str(finding)
        assert finding.expected
    return {(finding.component, finding.path) for finding in findings}


def carried(sections: Sections, start: Release, end: Release) -> tuple[Sections | None, tuple[Finding, ...]]:
    """Return what *sections* become, or None with the reasons."""
    try:
        return convert_sections(sections, start.release, end.release), ()
    except Refusal as refusal:
        return None, refusal.findings


@between_neighbours
@some
@given(source=st.data())
def test_any_machine_goes_down_and_comes_back_or_is_refused_by_every_section(
    older: Release, newer: Release, source: Any
):
    sections = source.draw(machines(newer))
    reasons = check_machine_down(sections, newer, older)
    idle = idle_machine(newer)
    for where, state in sections.items():
        alone = check_machine_down({**idle, where: state}, newer, older)
        hidden = {reason for reason in alone if reason[0] == str(where)} - reasons
        assert not hidden, "one reason hides another"


@between_neighbours
@some
@given(st.integers(0, 1 << 32))
def test_a_machine_with_nothing_new_in_use_goes_down(older: Release, newer: Release, seed: int):
    assert check_machine_down(idle_machine(newer, Random(seed)), newer, older) == set()


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.release)
def test_every_kind_that_a_release_lacks_is_refused_by_name_and_dropped_only_if_it_is_optional(release: Release):
    converted: set[str] = set()
    for older, newer, direction in route(release, releases()[-1]):
        assert direction == "upgrade"
        step = machine_step(newer.release, older.release)
        converted |= step.kinds if step else set()
        for kind, version in newer.kinds.items():
            if kind in {*release.kinds, *converted}:
                continue
            schema_ = versions_of(kind)[version]
            where = SectionId(kind, "x")
            sections = {**idle_machine(newer), where: random_value(shape_of(schema_.type), Random(3))}
            if not schema_.required:
                assert where not in convert_sections(sections, newer.release, release.release)
                continue
            with pytest.raises(Refusal) as refused:
                convert_sections(sections, newer.release, release.release)
            assert str(where) in {finding.component for finding in refused.value.findings}


@some
@given(st.integers(0, 1 << 32), st.data())
def test_steps_compose_over_any_release_between(seed: int, source: Any):
    first, middle, last = (source.draw(st.sampled_from(releases())) for _ in range(3))
    sections = idle_machine(first, Random(seed))
    direct = convert_sections(sections, first.release, last.release)
    by_middle = convert_sections(
        convert_sections(sections, first.release, middle.release), middle.release, last.release
    )
    assert payloads(direct) == payloads(by_middle)


def test_a_machine_converter_touches_no_section_but_of_its_kinds():
    for step in machine_steps():
        start = next(each for each in releases() if each.release == step.from_release)
        sections = idle_machine(start, Random(5))
        converted = step.run(*((dict(sections),) if machine_step_goes_up(step) else (dict(sections), lambda *_: None)))
        touched = {
            where.kind
            for where in {*sections, *converted}
            if where not in sections or where not in converted or encode(sections[where]) != encode(converted[where])
        }
        assert touched <= step.kinds


def machine_step_goes_up(step: converters.MachineStep) -> bool:
    return (step.from_release, step.to_release) in {(older.release, newer.release) for older, newer in neighbours()}


# These properties themselves: each kind of slip is found


class Old(State):
    """One field."""

    level: U8 = 0


class New(State):
    """Two more."""

    level: U8 = 0
    colour: U8 = 0
    shape: U8 = 0


def _keeps(new: Any, refuse: Any) -> Old:
    for name in ("colour", "shape"):
        if getattr(new, name):
            refuse(name, getattr(new, name), "0")
    return Old(level=new.level)


def _loses_colour(new: Any, refuse: Any) -> Old:
    if new.shape:
        refuse("shape", new.shape, "0")
    return Old(level=new.level)


def _stops_at_the_first(new: Any, refuse: Any) -> Old:
    for name in ("colour", "shape"):
        if getattr(new, name):
            refuse(name, getattr(new, name), "0")
            break
    return Old(level=new.level)


def _names_no_field(new: Any, refuse: Any) -> Old:
    if new.colour or new.shape:
        refuse("color", 0, "0")
    return Old(level=new.level)


def _changes_its_input(new: Any, refuse: Any) -> Old:
    old = _keeps(new, refuse)
    new.colour = 0
    return old


SLIPS = {
    "lost in silence": _loses_colour,
    "one reason hides another": _stops_at_the_first,
    "no field color": _names_no_field,
    "changed what it was given": _changes_its_input,
}


@pytest.fixture
def lamps() -> Iterator[None]:
    entries = (Release(release="0.1.0", kinds={"lamp": 1}), Release(release="0.2.0", kinds={"lamp": 2}))
    with converters.temporary(*entries, kinds=("lamp",)):
        schema("lamp", version=1)(Old)
        schema("lamp", version=2)(New)
        upgrade("lamp", 1, changes={})(lambda old: New(level=old.level))
        yield


@pytest.mark.usefixtures("lamps")
@pytest.mark.parametrize("slip", [None, *SLIPS])
def test_a_slip_of_a_kind_converter_is_found(slip: str | None):
    downgrade("lamp", 2, changes={})(SLIPS[slip] if slip else _keeps)
    step = kind_steps("lamp")[-1]
    states = [New(level=1), New(colour=1), New(shape=1), New(colour=1, shape=1)]

    def check() -> None:
        for state in states:
            check_way_down(step, state)

    if slip is None:
        check()
    else:
        with pytest.raises((AssertionError, ConfigError), match=slip):
            check()


@pytest.mark.usefixtures("lamps")
@pytest.mark.parametrize("loses", [False, True])
def test_a_slip_of_a_machine_converter_is_found(loses: bool):
    where = SectionId("lamp", "0")
    older, newer = releases()

    def go_down(sections: Sections, refuse: Any) -> Sections:
        state: Any = sections[where]
        if not loses and state.colour:
            refuse(where, "colour", state.colour, "0")
        return {where: Old(level=state.level)}

    machine_upgrade("0.1.0", "0.2.0", kinds=frozenset({"lamp"}), changes={})(
        lambda sections: {name: New(level=state.level) for name, state in sections.items()}
    )
    machine_downgrade("0.2.0", "0.1.0", kinds=frozenset({"lamp"}), changes={})(go_down)
    assert machine_step("0.2.0", "0.1.0") is not None
    assert check_machine_down({where: New(level=1)}, newer, older) == set()
    if loses:
        with pytest.raises(AssertionError, match="lost in silence"):
            check_machine_down({where: New(colour=1)}, newer, older)
    else:
        assert check_machine_down({where: New(colour=1)}, newer, older) == {("lamp/0", "colour")}
