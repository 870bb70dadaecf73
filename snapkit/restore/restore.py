"""The pipeline from a file to a running machine."""

from collections.abc import Collection, Mapping
from typing import Protocol, Self

import msgspec

from snapkit.errors import Finding, ImageError, IncompatibleHost, StateViolation
from snapkit.restore import known
from snapkit.restore.check import check, check_labels
from snapkit.restore.compatible import advice, compatible, overridden
from snapkit.restore.image import Image
from snapkit.restore.pipeline import Step, Timeline, run_steps
from snapkit.restore.plan import Steps, plan
from snapkit.restore.preamble import ARCHITECTURES
from snapkit.restore.source import naming
from snapkit.restore.target import Target
from snapkit.state.codec import HandingOver
from snapkit.state.converters import upgrade_sections
from snapkit.state.host_facts import HostFacts
from snapkit.state.schema import SectionId, State


class Asked(Protocol):
    """Who knows a host's facts."""

    def __call__(self, *, rate: bool) -> HostFacts: ...


class Prepared(msgspec.Struct):
    """A file that was read, checked and planned, and nothing more. It is open until `close`."""

    image: Image
    sections: Mapping[SectionId, State]
    steps: Steps
    dropped: list[str]
    timeline: Timeline
    used: bool = False
    """It was run: its sections are a machine's own now."""
    judged: bool = False
    """A host was found to be able to run it."""

    def judge(self, ask: Asked, *, force: Collection[str] = (), where: str = "this host") -> None:
        """Hold the machine against a host's facts, before anything is done to that host.

        *ask* gives the facts; the rate of the counter, which costs a VM, is asked for once something is found, so that
        all is told at once, or forced. *force* names the findings that are overridden: the machine is changed where KVM
        would refuse it. *where* names the host in the error.

        Raises IncompatibleHost with every finding that is left, ConfigError for a name that cannot be forced.
        """
        findings: list[Finding] = []
        with self.timeline.span("plan", "what this host lacks"):
            facts = ask(rate=False)
            if force or (not known.fits(self.image, facts) and compatible(self.sections, facts)):
                findings = overridden(self.sections, ask(rate=True), force)
            elif not self.judged:  # no sections that a forced verdict has changed
                known.remember_fit(self.image, facts)
        if findings:
            raise IncompatibleHost(f"{where} cannot run {self.image.path}; {advice(findings)}", findings=findings)
        self.judged = True

    def run(self, target: Target) -> None:
        """Do the steps to *target*, once: it takes the sections over, and changes them.

        It is judged by the target's host first, unless it was judged before. A failure undoes all of the steps; the
        file stays the caller's to close.
        """
        if self.used:
            raise StateViolation("restore", actual="restored before", required="fresh", way_out="prepare it again")
        if not self.judged:
            self.judge(target.facts)
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
        release = image.preamble.release
        with timeline.span("decode", "sections"):
            recalled = known.recall(image)
            states, dropped = recalled or image.sections()
        with timeline.span("upgrade", f"from {release}"), naming(path):
            newest = recalled and known.is_newest(image)
            sections: Mapping[SectionId, State] = states if newest else upgrade_sections(states, release)
        with timeline.span("check", "invariants across components"):
            findings = check(sections, image.memory) if recalled is None else []
            if recalled is None and not findings:
                known.remember(image, dropped)
            findings += check_labels(sections, image.preamble, image.manifest)
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
