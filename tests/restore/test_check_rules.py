"""Every rule of `check`, broken in one place of a good machine, gives the findings that it must and no other."""

from importlib import import_module
from pkgutil import iter_modules

import pytest

from snapkit.restore.check import explained, invariants_of
from snapkit.state.spec.address_map import MAPS
from tests.contract.generate import instances
from tests.restore import broken
from tests.restore.broken import CASES, KINDS_OF_MACHINE, Case, findings, good, said
from tests.restore.device_machine import States

for module in iter_modules(broken.__path__, f"{broken.__name__}."):
    import_module(module.name)


def name(case: Case) -> str:
    return f"{case.change.__module__.rpartition('.')[2]}-{case.change.__name__}-{case.on}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_one_thing_wrong_gives_its_findings_and_no_other(case):
    states = good(case.on)
    case.change(states)
    found = findings(states)
    assert said(found) == case.expected, "\n".join(f"{one} ({one.rule})" for one in found)
    for one in found:
        assert one.component, one
        assert one.value, one
        assert one.expected, one
    assert len(set(found)) == len(found)


def test_no_two_cases_have_one_name():
    names = [name(case) for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_every_rule_has_a_case_and_every_case_a_rule():
    # test_check.py and test_check_its.py: they are about more of a file than its sections
    elsewhere = {"labels", "its.ram", "its.collections", "its.devices", "its.events", "its.lpis"}
    rules = {rule.name for rule in explained() if rule.about != "remarks"} - elsewhere
    assert {one.partition(":")[0] for case in CASES for one in case.expected} == rules


def test_every_rule_is_explained_once_by_a_sentence():
    rules = explained()
    assert sorted({rule.name for rule in rules}) == sorted(rule.name for rule in rules)
    for rule in rules:
        assert rule.about, rule
        assert rule.reason.endswith("."), rule
        assert rule.reason[0].isupper(), rule


@pytest.mark.parametrize("architecture", MAPS)
def test_every_invariant_is_listed_once(architecture):
    listed = invariants_of(architecture)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("on", KINDS_OF_MACHINE)
def test_the_machines_that_are_broken_have_nothing_wrong(on):
    assert findings(good(on)) == []


@pytest.mark.parametrize("on", KINDS_OF_MACHINE)
def test_everything_wrong_is_told_at_once_and_nothing_raises(on):
    states, expected = good(on), set()
    for case in CASES:
        if case.on == on and removes_nothing(case):
            try:
                case.change(states)
            except (KeyError, IndexError, ValueError):
                continue  # an earlier change took away what this one is about
            expected |= {one.partition(":")[0] for one in case.expected}
    found = {one.rule for one in findings(states)}
    assert len(found) > len(expected) // 2, expected - found


def removes_nothing(case: Case) -> bool:
    states: States = good(case.on)
    sections = set(states)
    case.change(states)
    return sections <= set(states)


@pytest.mark.parametrize("on", KINDS_OF_MACHINE)
def test_no_value_of_any_section_makes_a_check_raise(on):
    whole = good(on)
    for section, state in whole.items():
        for other in instances(type(state), count=12):
            found = findings({**whole, section: other})
            assert all(isinstance(text, str) for one in found for text in one)
