"""The pipeline from a file to a running machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from snapkit.errors import ImageError
from snapkit.restore.check import check
from snapkit.restore.image import Image
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.plan import Steps, plan
from snapkit.restore.target import Target
from snapkit.state.converters import upgrade_sections
from snapkit.state.schema import SectionId, State


@dataclass(slots=True)
class Prepared:
    """A file that was read, checked and planned, and nothing more. It is open until `close`."""

    image: Image
    sections: Mapping[SectionId, State]
    steps: Steps
    dropped: list[str]
    timeline: Timeline

    def run(self, target: Target) -> None:
        """Do the steps to *target*. A failure undoes all of them; the file stays the caller's to close."""
        run_steps(self.steps, target, self.timeline)

    def close(self) -> None:
        """Close the file; what a machine mapped of it stays."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(path: str, *, key: bytes | None = None, paused: bool = False) -> Prepared:
    """Open, verify, decode, upgrade, check and plan the snapshot at *path*, touching nothing but the file.

    Raises ConfigError when it is missing, ImageError with all findings when it is wrong.
    """
    timeline = Timeline()
    with timeline.span("open", "preamble, manifest, chunk table and their digests"):
        image = Image.open(path, key=key)
    try:
        with timeline.span("decode", "sections"):
            states, dropped = image.sections()
        with timeline.span("upgrade", f"from {image.preamble.release}"):
            sections: Mapping[SectionId, State] = upgrade_sections(states, image.preamble.release)
        with timeline.span("check", "invariants across components"):
            findings = check(sections, image.memory)
        if findings:
            raise ImageError(f"{path} does not hold a machine that could have been saved", findings=findings)
        with timeline.span("plan", "steps"):
            steps = plan(sections, image.memory, paused=paused)
    except BaseException:
        image.close()
        raise
    return Prepared(image, sections, steps, dropped, timeline)
