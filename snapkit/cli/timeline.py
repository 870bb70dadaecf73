"""What ``restore --timeline`` tells: each step, each stage, and memory when the guest runs and a second later."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from snapkit import host
from snapkit.restore.observe import Observation, Observer
from snapkit.restore.pipeline import Timeline

if TYPE_CHECKING:
    from snapkit.cli.session import Session
    from snapkit.vmm.loop import Loop
    from snapkit.vmm.machine import Machine

LATER_NS = 1_000_000_000


class TimelineReport(Observer):
    """An `Observer` that tells what it and a `Timeline` saw. A machine that ends before a look was due has no row."""

    def __init__(self, session: "Session") -> None:
        super().__init__()
        self._session = session

    def watch(self, machine: "Machine", loop: "Loop") -> None:
        """Look when *machine* first runs the guest, and a second later."""

        def look(when: str) -> None:
            if machine.stop_info is None:
                self._tell(self.look(when, machine.memory_spans()))

        def resumed() -> None:
            # posted: what it takes must not count as the restore's
            loop.post(partial(look, "resume"))
            loop.call_at(host.monotonic_ns() + LATER_NS, partial(look, "a second later"))

        machine.on_first_resume = resumed

    def show(self, timeline: Timeline) -> None:
        """Tell every step and every stage."""
        stages = [stage._asdict() for stage in timeline.stages()]
        if self._session.as_json:
            self._session.report |= {"timeline": timeline.rows(), "stages": stages, "observed": []}
            return
        click.echo(f"{'stage':<9} {'at us':>8} {'took us':>8} {'calls':>5}  step", err=True)
        for row in timeline.rows():
            _line(row["stage"], row["start_us"], row["us"], row["calls"], row["step"])
        click.echo(f"{'stage':<9} {'steps':>8} {'took us':>8} {'calls':>5}", err=True)
        for stage in stages:
            _line(stage["stage"], stage["steps"], stage["us"], stage["calls"])
        click.echo(f"total {timeline.total_ns() / 1e6:.2f} ms", err=True)

    def _tell(self, row: Observation) -> None:
        if self._session.as_json:
            self._session.report["observed"].append(row._asdict())
            return
        click.echo(
            f"snapkit: {row.when} (at {row.at_us} us): {row.minor_faults} minor and {row.major_faults} major faults, "
            f"{row.resident_pages} of {row.ram_pages} pages of RAM resident, {row.own_pages} of them its own",
            err=True,
        )


def _line(stage: Any, first: Any, us: Any, calls: Any, step: Any = "") -> None:
    click.echo(f"{stage:<9} {first:>8} {us:>8} {calls:>5}  {step}".rstrip(), err=True)
