"""How a kind changed from version to version, and what is different between two releases: answers in data.

What changed comes from the schema files (`changes.compare`), why from the converters, which name every field that they
see to. Nothing is converted here.
"""

from dataclasses import dataclass
from typing import Literal

from snapkit.state.changes import Change, compare, names
from snapkit.state.converters import kind_steps, machine_steps
from snapkit.state.describe import committed
from snapkit.state.releases import Release, find_release
from snapkit.state.schema import KINDS, versions_of


@dataclass(frozen=True, slots=True)
class Reason:
    """What one converter says of *path*: *what* changed there by the schema files, if anything did, and *why*."""

    path: str
    what: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """One converter, by what it goes *from* and *to*: versions of the kind, or releases."""

    start: str
    end: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class KindChange:
    """What is different about one kind between two releases; a version is None where the release has no such kind."""

    kind: str
    how: Literal["added", "removed", "changed"]
    old_version: int | None
    new_version: int | None
    fields: tuple[Change, ...]


def history_of(kind: str) -> tuple[HistoryStep, ...]:
    """Return every step that touches *kind*: its converters up, then down, then those of whole machines."""
    steps = []
    for step in kind_steps(kind):
        changes = compare_versions(kind, step.from_version, step.to_version)
        reasons = tuple(Reason(path, _named(changes, path), why) for path, why in step.changes.items())
        steps.append(HistoryStep(f"version {step.from_version}", f"version {step.to_version}", reasons))
    for machine in machine_steps():
        if kind in machine.kinds:
            before, after = find_release(machine.from_release), find_release(machine.to_release)
            old, new = (each.kinds.get(kind) if each else None for each in (before, after))
            changes = compare_versions(kind, old, new)
            whole = _comes_or_goes(old, new)
            told = tuple(
                Reason(path, _named(changes, path.partition(".")[2]) if "." in path else whole, why)
                for path, why in machine.changes.items()
                if path.partition(".")[0] == kind
            )
            steps.append(HistoryStep(f"release {machine.from_release}", f"release {machine.to_release}", told))
    return tuple(steps)


def compare_releases(older: Release, newer: Release) -> tuple[KindChange, ...]:
    """Return every kind that *newer* writes otherwise than *older*, in the order of the kinds."""
    found = []
    for kind in KINDS:
        old, new = older.kinds.get(kind), newer.kinds.get(kind)
        if old != new:
            how: Literal["added", "removed", "changed"] = (
                "added" if old is None else "removed" if new is None else "changed"
            )
            found.append(KindChange(kind, how, old, new, compare_versions(kind, old, new)))
    return tuple(found)


def compare_versions(kind: str, old: int | None, new: int | None) -> tuple[Change, ...]:
    """Return what the schema files of two versions of *kind* say differently; nothing where a version is None."""
    if old is None or new is None:
        return ()
    versions = versions_of(kind)
    return compare(committed(versions[old]), committed(versions[new]))


def _named(changes: tuple[Change, ...], path: str) -> tuple[str, ...]:
    return tuple(change.said for change in changes if change.path and names({path}, change))


def _comes_or_goes(old: int | None, new: int | None) -> tuple[str, ...]:
    if (old is None) == (new is None):
        return ()
    return (f"the kind begins, with version {new}",) if old is None else (f"the kind ends, with version {old}",)
