"""Runs of mutants: so many of one seed, each judged, all counted.

Mutant *number* of *seed* is made the same way each time, but for what differs in the machines of this host. The file of
one that something is held against is kept in the folder of the run, and ``current`` there names the last one begun.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

import pytest

from tests.kvm.harness import Census
from tests.mutants.altered import reason_for
from tests.mutants.changes import mutate
from tests.mutants.draft import Draft
from tests.mutants.judge import Judge, Verdict
from tests.mutants.specimen import Specimen
from tests.mutants.sweep import Step, sweep, swept
from tools import tap

CENSUS_EVERY = 100
SWEEP = 1_000_000
TAP = "tap0"


@dataclass
class Tally:
    """What came of a run: how many ended where, and everything that is to be told."""

    stages: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    mutations: Counter[str] = field(default_factory=Counter)
    late: list[str] = field(default_factory=list)
    altered: Counter[str] = field(default_factory=Counter)
    unequal: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    grown_len: int = 0
    took_s: float = 0.0

    @property
    def count(self) -> int:
        return self.stages.total()

    def add(self, number: int, draft: Draft, verdict: Verdict, took_s: float) -> bool:
        """Count one mutant; False when something is held against it."""
        faults = len(self.complaints) + len(self.unequal)
        self.stages[verdict.stage] += 1
        if verdict.ending:
            self.endings[verdict.ending] += 1
        self.mutations.update(told.partition(":")[0] for told in draft.told)
        self.slowest_s = max(self.slowest_s, took_s)
        said = f"mutant {number} of {draft.specimen.name} ({'; '.join(draft.told)})"
        if verdict.late:
            self.late.append(f"{said}: {verdict.stage}, {verdict.text()}")
        for found in verdict.unequal:
            reason = reason_for(found, draft.told)
            if reason:
                self.altered[reason] += 1
            else:
                self.unequal.append(f"{said}: {found}")
        self.complaints += [f"{said}: {found}" for found in verdict.complaints]
        return faults == len(self.complaints) + len(self.unequal)


class Maker:
    """Makes the mutants of one seed out of some machines."""

    def __init__(self, seed: int, machines: list[Specimen]) -> None:
        self._seed, self._machines = seed, machines
        # those with devices are made more of, as they have more to be changed
        self._weights = [1 if machine.transport == "none" else 4 for machine in machines]

    @cached_property
    def swept(self) -> list[Step]:
        """The sweep: mutants from SWEEP on, whatever the seed."""
        return sweep(self._machines)

    def make(self, number: int) -> tuple[Draft, Random]:
        """Make one, and what goes on where its randomness ended."""
        rng = Random(f"{self._seed} {number}")
        if number >= SWEEP:
            return swept(self.swept[number - SWEEP], self._machines, rng), rng
        draft = Draft(rng.choices(self._machines, self._weights)[0], rng)
        mutate(draft, rng)
        return draft, rng


Machines = Callable[[Path], list[Specimen]]
"""Makes or reads the machines of a run, with a folder for what they have of the host."""


def run(
    seed: int,
    numbers: Iterable[int],
    folder: Path,
    machines: Machines,
    *,
    kvm: bool,
    taps: bool = True,
    seconds: float | None = None,
    least: int = 0,
) -> Tally:
    """Judge mutants of *machines*, which are of one architecture, in *folder*; ends early after *seconds*, if that is given.

    They count from when the machines are there, and end nothing before *least* are judged: on a slow host, proportions of
    fewer would be chance. On a thread of their own, with *kvm* among TAPs of their own unless there are to be no *taps*.
    """
    with ThreadPoolExecutor(1) as thread:
        if kvm and taps:
            thread.submit(tap.enter, [TAP]).result()
        return thread.submit(_run, seed, numbers, folder, machines, kvm, seconds, least).result()


def _run(
    seed: int,
    numbers: Iterable[int],
    folder: Path,
    machines: Machines,
    kvm: bool,
    seconds: float | None,
    least: int,
) -> Tally:
    tally, started, resident = Tally(), time.monotonic(), 0
    maker = Maker(seed, made := machines(folder))
    path, current = folder / "mutant.snap", folder / "current"
    interval = sys.getswitchinterval()
    with (
        pytest.MonkeyPatch.context() as patch,
        Judge(folder, kvm=kvm, architecture=made[0].architecture).at_work() as judge,
    ):
        sys.setswitchinterval(1e-4)  # as the command line does
        _warm_up(judge, max(made, key=lambda one: len(one.forge.sections)), folder, kvm=kvm)
        end = time.monotonic() + seconds if seconds is not None else math.inf
        census = Census(patch, str(folder))
        for number in numbers:
            draft, rng = maker.make(number)
            draft.write(path)
            current.write_text(f"mutant {number} of seed {seed}: {draft.told}")
            before = time.monotonic()
            try:
                ends = draft.specimen.ends(folder) if kvm else {}
                verdict = judge.judge(path, ends, verify_memory=rng.random() < 0.3)
            except BaseException as error:
                error.add_note(current.read_text())
                raise
            if not tally.add(number, draft, verdict, time.monotonic() - before):
                path.rename(folder / f"{number}.snap")
            if tally.count % CENSUS_EVERY == 0:
                census.check(current.read_text())
                resident = resident or _resident_len()
            if time.monotonic() > end and tally.count >= least:
                break
        census.check("the last")
        tally.grown_len = _resident_len() - resident if resident else 0
        sys.setswitchinterval(interval)
    tally.took_s = time.monotonic() - started
    return tally


def _warm_up(judge: Judge, machine: Specimen, folder: Path, *, kvm: bool) -> None:
    """Judge *machine* itself, for nothing: what is imported and made once is not in the time of the first mutant."""
    path = Draft(machine, Random(0)).write(folder / "good.snap")
    judge.judge(path, machine.ends(folder) if kvm else {})
    path.unlink()


def _resident_len() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
