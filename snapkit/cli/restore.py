"""``snapkit restore``."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from snapkit.cli.devices import asked_overrides, override_options
from snapkit.cli.keys import key_option, read_key, read_small_file
from snapkit.cli.session import Session, session_options
from snapkit.errors import ConfigError, IncompatibleHost

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from snapkit.cli.timeline import TimelineReport
    from snapkit.restore.restore import Prepared
    from snapkit.vmm.arch.x86_64.clock import ClockPolicy


@click.command(short_help="run a snapshot")
@click.argument("file")
@click.option("--paused", is_flag=True, help="Rebuild the machine but do not let it run.")
@click.option("--dry-run", is_flag=True, help="Read, check and plan only; print the steps. Needs no KVM.")
@click.option("--host", metavar="FACTS.json", help="With --dry-run: judge by another host's `doctor --json`.")
@click.option(
    "--clock",
    type=click.Choice(["continue", "realtime"]),
    default="continue",
    show_default=True,
    help="The guest's clocks go on where they were saved, or further by the wall time since.",
)
@click.option("--timeline", is_flag=True, help="Show what each step took, and page faults a second later.")
@click.option("--verify-memory", is_flag=True, help="Copy memory and check it, instead of mapping the file.")
@override_options
@key_option
@session_options
def restore(
    file: str,
    paused: bool,
    dry_run: bool,
    host: str | None,
    clock: "ClockPolicy",
    timeline: bool,
    verify_memory: bool,
    key_file: str | None,
    **asked: Any,
) -> int:
    """Restore the snapshot FILE and run it until it ends.

    The file is mapped copy-on-write and never written: one file serves any number of machines at once. It must not
    be changed in place meanwhile (replacing it by another file is fine).

    \b
    Examples:
      snapkit restore vm.snap
      snapkit restore vm.snap --dry-run --host facts.json
      snapkit restore vm.snap --timeline --exit-when "tick 500" --timeout 10
      snapkit restore vm.snap --disk id=root,overlay=/var/tmp --net id=eth0,tap=tap7
      snapkit restore vm.snap --control vm.sock --sandbox --snapshot-dir /srv/snapshots
    """
    from snapkit.restore.pipeline import Step
    from snapkit.restore.restore import prepare
    from snapkit.vmm.arch.x86_64.platform import ARCHITECTURE
    from snapkit.vmm.machine import Machine

    if host is not None and not dry_run:
        raise ConfigError("--host judges by another host's facts, so it goes with --dry-run")
    key, overrides = read_key(key_file), asked_overrides(asked)
    session = Session(**asked, key=key)
    with (
        _reporting(session if timeline and not dry_run else None) as report,
        prepare(file, key=key, paused=paused, architecture=None if host else ARCHITECTURE) as prepared,
    ):
        for dropped in prepared.dropped:
            click.echo(f"snapkit: not restored: {dropped}", err=True)
        overrides.require_known(prepared.sections)
        if host is not None:
            _judge(prepared, host)
        if dry_run:
            _show_steps(prepared, as_json=asked["as_json"])
            return 0
        session.parent_id = prepared.image.preamble.snapshot_id

        copied = verify_memory or key is not None
        if session.sandbox:
            kinds = {section.kind for section in prepared.sections}
            enter: Step[Any] = Step(
                "claim", "enter the sandbox", lambda _: session.seal(kinds, copies=copied), lambda _: None
            )
            prepared.add(enter)

        def build(loop: Any, console: Any) -> Machine:
            machine = Machine(loop, console, verify_memory=copied, overrides=overrides.values, clock=clock)
            if report is not None:
                report.watch(machine, loop)
            try:
                prepared.run(machine)
            except BaseException:
                machine.close()
                raise
            finally:
                if report is not None:
                    report.show(prepared.timeline)
            prepared.close()
            return machine

        return session.run(build)


def _reporting(session: Session | None) -> "AbstractContextManager[TimelineReport | None]":
    if session is None:
        return nullcontext()
    from snapkit.cli.timeline import TimelineReport

    return TimelineReport(session)


def _judge(prepared: "Prepared", path: str) -> None:
    """Raise IncompatibleHost with every reason why the host whose facts are in the file *path* cannot run this."""
    from snapkit.restore.compatible import compatible, read_facts

    findings = compatible(prepared.sections, read_facts(read_small_file(path, "facts"), where=path))
    if findings:
        raise IncompatibleHost(f"the host of {path} cannot run {prepared.image.path}", findings=findings)


def _show_steps(prepared: "Prepared", *, as_json: bool) -> None:
    if as_json:
        import json

        steps = [{"stage": step.stage, "step": step.name, "reasons": list(step.reasons)} for step in prepared.steps]
        click.echo(json.dumps({"steps": steps}))
        return
    for step in prepared.steps:
        click.echo(f"{step.stage:<9} {step.name}")
