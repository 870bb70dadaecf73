"""Mutants under every verb that reads files: each is told of, or refused by a typed error with its exit code.

A seeded slice of each architecture, on any host.
"""

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from snapkit.errors import SnapkitError
from snapkit.state.machine import EM_AARCH64, EM_X86_64
from tests.mutants.draft import Draft
from tests.mutants.judge import RESTORED, Judge
from tests.mutants.run import Maker
from tests.mutants.stock import stock

SEED, COUNT = 7, 60
MOST_S = 5.0
"""Where a machine is that slow, the slice ends early."""
VERBS: tuple[tuple[tuple[str, ...], frozenset[int]], ...] = (
    (("verify", "{}"), frozenset({0, 3})),
    (("inspect", "{}"), frozenset({0, 3})),
    (("inspect", "{}", "--json"), frozenset({0, 3})),
    (("inspect", "{}", "gicv3-its/0", "--tables"), frozenset({0, 2, 3})),
    (("inspect", "{}", "gicv3-its/0", "--tables", "--json"), frozenset({0, 2, 3})),
    (("diff", "{}", "{good}"), frozenset({0, 1, 3})),
    (("convert", "{}", "--check", "--to", "0.4.0"), frozenset({0, 2, 3})),
)
"""What is run, and which exit codes it may have: a path that is not there is 2, as is what a release has not."""


def code_of(words: tuple[str, ...]) -> int | str:
    """Return what a command line of *words* exits with; what went wrong, if that is no typed error."""
    command: Any = getattr(import_module(f"snapkit.cli.{words[0]}"), words[0])
    result = CliRunner().invoke(command, words[1:], standalone_mode=False)
    error = result.exception
    if error is None:
        return result.return_value or 0
    return error.exit_code if isinstance(error, SnapkitError) else f"{type(error).__name__}: {error}"


def faults(mutant: Path, good: Path) -> Iterator[str]:
    """Say which verbs do with *mutant* what they must not."""
    for words, codes in VERBS:
        code = code_of(tuple(word.format(mutant, good=good) for word in words))
        if code not in codes:
            yield f"{' '.join(words)}: {code}"


@pytest.mark.parametrize("architecture", [EM_X86_64, EM_AARCH64], ids=["x86-64", "aarch64"])
def test_every_verb_tells_of_a_mutant_or_refuses_it(tmp_path, architecture):
    machines = stock(architecture)
    maker, path, found = Maker(SEED, machines), tmp_path / "mutant.snap", []
    end = time.monotonic() + MOST_S
    goods = {machine.name: Draft(machine, maker.make(0)[1]).write(tmp_path / machine.name) for machine in machines}
    for number in range(COUNT):
        draft, _rng = maker.make(number)
        draft.write(path)
        found += [f"mutant {number} ({draft.told}): {one}" for one in faults(path, goods[draft.specimen.name])]
        if time.monotonic() > end:
            break
    assert not found, "\n".join(found)


@pytest.mark.parametrize("architecture", [EM_X86_64, EM_AARCH64], ids=["x86-64", "aarch64"])
def test_what_verify_calls_sound_is_planned(tmp_path, architecture):
    maker, path = Maker(SEED, stock(architecture)), tmp_path / "mutant.snap"
    end = time.monotonic() + MOST_S
    with Judge(tmp_path, kvm=False, architecture=architecture).at_work() as judge:
        for number in range(COUNT):
            draft, _rng = maker.make(number)
            sound = code_of(("verify", str(draft.write(path)))) == 0
            verdict = judge.judge(path, {})
            assert not sound or verdict.stage == RESTORED, (number, draft.told, verdict.text())
            if time.monotonic() > end:
                break
