"""What has been decided about every check of the matrix, and what came out beside it:
``tests/compat/matrix.json``, written by a tool, read by people.

    {"0.2.0/x86-64-none-base": {"0.1.0": "runs", ...}, "0.2.0/x86-64-pci-all": {"0.1.0": ["vmgenid/0 must be ...", ...]}}

A list holds the reasons of a refusal. Rows and checks are in the order of the matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from snapkit.errors import ConfigError
from snapkit.restore.preamble import ARCHITECTURES
from tools.golden import HERE, KEPT

FILE = Path("tests/compat/matrix.json")
TREE = "tree"
"""The column of the working tree."""

Outcome = str | list[str]
"""``"runs"``, or why it is refused."""


class Decided:
    """By row and check, what has to come out."""

    def __init__(self, rows: dict[str, dict[str, Outcome]]) -> None:
        self.rows = rows

    @classmethod
    def read(cls, root: Path) -> "Decided":
        """Read it from the checkout at *root*. Raises ConfigError that says what to do where it cannot be read."""
        try:
            return cls(msgspec.json.decode((root / FILE).read_bytes(), type=dict[str, dict[str, Outcome]]))
        except FileNotFoundError as error:
            raise ConfigError(f"{root / FILE} is missing; take it back from the repository (git checkout)") from error
        except msgspec.DecodeError as error:
            raise ConfigError(f"{root / FILE} cannot be read ({error}); {KEPT}") from error

    def get(self, row: str, check: str) -> Outcome | None:
        """Return what was decided; None for nothing."""
        return self.rows.get(row, {}).get(check)

    def put(self, row: str, check: str, outcome: Outcome) -> None:
        """Decide it."""
        self.rows.setdefault(row, {})[check] = outcome

    def names(self) -> Iterator[tuple[str, str]]:
        """Give every row and check that was decided."""
        return ((row, check) for row, checks in self.rows.items() for check in checks)

    def write(self, root: Path, order: Sequence[tuple[str, str]]) -> None:
        """Write it into the checkout at *root*, rows and checks in this *order*, others behind."""
        at = {name: number for number, name in enumerate(order)}
        names = sorted(self.names(), key=lambda name: at.get(name, len(at)))
        ordered: dict[str, dict[str, Outcome]] = {}
        for row, check in names:
            ordered.setdefault(row, {})[check] = self.rows[row][check]
        self.rows = ordered
        (root / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n")


State = Literal["runs", "planned", "refused", "failed"]
"""Planned: decoded, checked and planned, which is all that could be done on this machine."""


@dataclass(frozen=True)
class Result:
    """What one check of one row gave, beside what was decided (None: nothing)."""

    row: str
    check: str
    state: State
    reasons: tuple[str, ...]
    """Why it is refused, what failed, or what this machine lacks."""
    decided: Outcome | None
    took_s: float = 0

    @property
    def architecture(self) -> str:
        """Return the architecture that the row's name begins with; empty where it names none."""
        golden = self.row.partition("/")[2]
        return next((each for each in ARCHITECTURES.values() if golden.startswith(f"{each}-")), "")

    @property
    def outcome(self) -> Outcome | None:
        """What this would decide; None when nothing."""
        if self.state == "refused":
            return list(self.reasons)
        return "runs" if self.state == "runs" else None

    @property
    def good(self) -> bool:
        """Whether it is what was decided, as far as this machine can tell."""
        return self.decided == ("runs" if self.state == "planned" else self.outcome) and self.decided is not None


@dataclass(frozen=True)
class Seen:
    """A run of the matrix, or of a part of it."""

    columns: list[str]
    results: list[Result]
    missing: list[str]
    """What is not decided, or decided but not there; each with what to do."""
    took_s: float

    @property
    def failed(self) -> list[Result]:
        """Those that were decided otherwise."""
        return [each for each in self.results if each.decided is not None and not each.good]

    @property
    def planned(self) -> list[Result]:
        """Those that could not run on this machine."""
        return [each for each in self.results if each.state == "planned"]

    @property
    def lacking(self) -> list[Result]:
        """Of those, the ones that a machine of this architecture runs when it lacks nothing; the others run in the lab."""
        return [each for each in self.planned if each.architecture in {HERE, ""}]
