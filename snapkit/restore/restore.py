"""The pipeline from a file to a running machine."""

from collections.abc import Mapping
from typing import Self

import msgspec

from snapkit.errors import Finding, ImageError, IncompatibleHost, StateViolation
from snapkit.restore.check import check, check_labels
from snapkit.restore.image import Image
from snapkit.restore.pipeline import Step, Timeline, run_steps
from snapkit.restore.plan import Steps, plan
from snapkit.restore.preamble import ARCHITECTURES
from snapkit.restore.source import naming
from snapkit.restore.target import Target
from snapkit.state.codec import HandingOver
from snapkit.state.converters import upgrade_sections
from snapkit.state.schema import SectionId, State


class Prepared(msgspec.Struct):
    """A file that was read, checked and planned, and nothing more. It is open until `close`."""

    image: Image
    sections: Mapping[SectionId, State]
    steps: Steps
    dropped: list[str]
    timeline: Timeline
    used: bool = False
    """It was run: its sections are a machine's own now."""

    def run(self, target: Target) -> None:
        """Do the steps to *target*, once: it takes the sections over, and changes them.

        A failure undoes all of the steps; the file stays the caller's to close.
        """
        if self.used:
            raise StateViolation("restore", actual="restored before", required="fresh", way_out="prepare it again")
        self.used = True
        with HandingOver(self.sections.values()):
            run_steps(self.steps, target, self.timeline)

    def add(self, step: Step[Target]) -> None:
        """Have *step* done as the last of its stage."""
        same = [place for place, planned in enumerate(self.steps) if planned.stage == step.stage]
        self.steps.insert(same[-1] + 1 if same else len(self.steps), step)

    def close(self) -> None:
        """Close the file; what a machine mapped of it stays."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(path: str, *, key: bytes | None = None, paused: bool = False, architecture: int | None = None) -> Prepared:
    """Open, verify, decode, upgrade, check and plan the snapshot at *path*, touching nothing but the file.

    *architecture* is the ELF machine number of the host that it is to run on; None when it is only looked at.

    Raises ConfigError when it is missing, ImageError with all findings when it is wrong, IncompatibleHost when it is of
    another architecture.
    """
    timeline = Timeline()
    with timeline.span("open", "preamble, manifest, chunk table and their digests"):
        image = Image.open(path, key=key)
    try:
        if architecture is not None and architecture != image.preamble.architecture:
            raise _other_architecture(path, image.preamble.architecture, architecture)
        with timeline.span("decode", "sections"):
            states, dropped = image.sections()
        with timeline.span("upgrade", f"from {image.preamble.release}"), naming(path):
            sections: Mapping[SectionId, State] = upgrade_sections(states, image.preamble.release)
        with timeline.span("check", "invariants across components"):
            findings = [*check(sections, image.memory), *check_labels(sections, image.preamble, image.manifest)]
        if findings:
            raise ImageError(f"{path} does not hold a machine that could have been saved", findings=findings)
        with timeline.span("plan", "steps"):
            steps = plan(sections, image.memory, paused=paused)
    except BaseException:
        image.close()
        raise
    return Prepared(image, sections, steps, dropped, timeline)


def _other_architecture(path: str, found: int, wanted: int) -> IncompatibleHost:
    names = [ARCHITECTURES.get(number, f"ELF machine {number}") for number in (found, wanted)]
    finding = Finding(
        "preamble", "architecture", f"{found} ({names[0]})", f"{wanted} ({names[1]})", "host.architecture"
    )
    return IncompatibleHost(f"{path} is of a machine that this host cannot run", findings=[finding])
