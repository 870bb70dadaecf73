"""Plans of generated machines: every edge is respected, nothing acts before all is there, and the same gives the same."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from snapkit import host
from snapkit.cli.restore import restore
from snapkit.order import Order
from snapkit.restore import orders
from snapkit.restore.pipeline import Step
from snapkit.restore.plan import MACHINE, MEMORY, plan
from snapkit.restore.target import Target
from snapkit.state.releases import current_release
from snapkit.state.schema import SectionId, State
from tests.order_tables import places
from tests.restore.device_machine import RAM_LEN, busy_machine
from tests.restore.machines import ram, save, sections

Sections = dict[SectionId, State]
TRANSPORTS = ("virtio-pci", "virtio-mmio")
SINGLE = [kind for kind in orders.REBUILD.names if not kind.startswith(("virtio-", "pci-", "vcpu-"))]
NEWER = "a-kind-of-a-later-release"
STATE: Any = object()  # a plan looks into nothing but the machine and its memory


class Recorder:
    """A target that writes down what is done to it: (what, which section)."""

    def __init__(self) -> None:
        self.done: list[tuple[str, SectionId | None]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.done.append(
            (name, next((argument for argument in arguments if isinstance(argument, SectionId)), None))
        )


@st.composite
def machines(draw: st.DrawFn) -> Sections:
    """Sections of any machine, in any order: kinds, CPUs, devices on both transports, bare functions."""
    names = {SectionId(kind, "0") for kind in draw(st.sets(st.sampled_from(SINGLE)))} - {MACHINE, MEMORY}
    names |= {SectionId("vcpu-x86-64", str(number)) for number in range(draw(st.integers(1, 8)))}
    kinds = [*orders.CLAIM.names, "virtio-rng", "virtio-balloon"]
    for number, kind in enumerate(draw(st.lists(st.sampled_from(kinds), max_size=10))):
        names.add(SectionId(kind, f"d{number}"))
        transport = draw(st.sampled_from(TRANSPORTS))
        names.add(SectionId(transport, f"d{number}"))
        if transport == "virtio-pci":
            names |= {SectionId("pci-function", f"d{number}"), SectionId("pci-msix", f"d{number}")}
    names |= draw(st.sets(st.sampled_from([SectionId("pci-segment", "0"), SectionId(NEWER, "0")])))
    fixed = sections()
    shuffled = draw(st.permutations([*sorted(names), *fixed]))
    return {name: fixed.get(name, STATE) for name in shuffled}


def steps_of(made: Sections, **options: Any) -> list[Step[Target]]:
    pages: Any = None
    return plan(made, pages, **options)


def carried_out(made: Sections) -> list[tuple[str, SectionId | None]]:
    recorder = Recorder()
    target: Any = recorder
    for step in steps_of(made):
        step.do(target)
    return recorder.done


@given(machines())
def test_every_stage_begins_when_the_one_before_it_is_over(made):
    stages = [step.stage for step in steps_of(made)]
    assert sorted(stages, key=["claim", "rebuild", "wire", "load", "activate", "run"].index) == stages
    first = stages.index("activate")
    assert not {"claim", "rebuild", "wire", "load"} & set(stages[first:])


@given(machines())
def test_every_section_is_built_once_and_loaded_or_claimed_where_that_is_to_be_done(made):
    done = carried_out(made)

    def of(what: str) -> list[SectionId]:
        return [section for name, section in done if name == what and section is not None]

    assert sorted(of("construct")) == sorted(set(made) - {MACHINE, MEMORY})
    assert sorted(of("claim")) == sorted(name for name in made if name.kind in orders.CLAIM.names)
    assert sorted(of("load")) == sorted(name for name in made if name.kind in orders.LOAD.names)
    others = [name for name, _section in done if name not in {"construct", "claim", "load"}]
    assert others == ["open_hypervisor", "create_vm", "map_memory", "wire", "activate", "resume"]


@given(machines())
def test_each_edge_is_respected(made):
    done = carried_out(made)
    whole = {"create_vm": MACHINE, "map_memory": MEMORY}
    made_of = [(name, whole.get(name, section)) for name, section in done]
    built = [section.kind for name, section in made_of if section and name in {*whole, "construct"}]
    loaded = [section.kind for name, section in done if name == "load" and section]
    for order, found in ((orders.REBUILD, built), (orders.LOAD, loaded)):
        respects(order, found)
    if NEWER in built:
        assert built[-1] == NEWER


def respects(order: Order, found: list[str]) -> None:
    place = places(order)
    listed = [place[kind] for kind in found if kind in place]
    assert listed == sorted(listed)
    for edge in order.edges:
        if edge.before in found and edge.after in found:
            last = len(found) - 1 - found[::-1].index(edge.before)
            assert last < found.index(edge.after), edge


@given(machines())
def test_the_same_sections_give_the_same_plan_with_those_of_one_kind_by_their_numbers(made):
    first, second = ([(step.stage, step.name, tuple(step.reasons)) for step in steps_of(made)] for _ in range(2))
    assert first == second
    done = carried_out(made)
    for kind in {name.kind for name in made} - {"machine", "memory-layout"}:
        assert [section for name, section in done if name == "construct" and section and section.kind == kind] == [
            *sorted(name for name in made if name.kind == kind and name.instance.isdecimal()),
            *(name for name in made if name.kind == kind and not name.instance.isdecimal()),
        ]


@given(machines())
def test_every_step_but_the_last_can_be_undone_and_a_paused_plan_is_one_without_it(made):
    steps, paused = steps_of(made), steps_of(made, paused=True)
    assert all(step.undo for step in steps[:-1])
    assert steps[-1].undo is None
    assert [step.name for step in paused] == [step.name for step in steps[:-1]]


# A dry run


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_dry_run_shows_every_step_and_opens_nothing_but_the_file(tmp_path, transport, as_json):
    path = str(tmp_path / "m.snap")
    made = busy_machine(transport)
    save(path, ram(RAM_LEN), sections=made, release=current_release().release, facts={"vcpus": 1, "cpu": "host"})
    opened: list[str] = []
    calls: set[str] = set()

    def watch(call: str, arguments: tuple[object, ...]) -> None:
        calls.add(call)
        opened.extend(word for word in arguments if isinstance(word, str))

    with host.inject(watch):
        done = CliRunner().invoke(restore, [path, "--dry-run", *(["--json"] if as_json else [])], standalone_mode=False)
    assert done.exception is None, done.exception
    assert path in opened or "m.snap" in opened
    assert set(opened) <= {path, str(tmp_path), "m.snap"}, opened
    assert not calls & {"ioctl", "mmap", "eventfd", "start_thread"}, calls
    steps = steps_of(made)
    if as_json:
        expected = [{"stage": step.stage, "step": step.name, "reasons": list(step.reasons)} for step in steps]
        assert json.loads(done.output) == {"steps": expected}
        assert any("the edges that it holds" in reason for step in expected for reason in step["reasons"])
    else:
        assert [line.split(maxsplit=1) for line in done.output.splitlines()] == [[s.stage, s.name] for s in steps]
