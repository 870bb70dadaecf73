"""``snapkit demo``: the whole product in a minute, each step a command that the reader can run as well."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

import click

from snapkit.errors import IncompatibleHost, InternalError
from snapkit.units import format_len

SNAPSHOT_AT, CLONES_UNTIL = "tick 60", "tick 200"
CLONES = 3
_STEP_TIMEOUT_S = 300
_SHOWN = {
    "x86_64": ("vcpu-x86-64/0.sregs.cr0", "serial-16550/0"),
    "aarch64": ("gicv3-cpu-interface/0", "serial-pl011/0"),
}
"""What of a file is worth a look, by the host's architecture."""


@click.command(short_help="boot a tiny guest, snapshot it mid-work, restore it three times at once")
@click.option("--json", "as_json", is_flag=True, help="What was done and measured, as JSON.")
@click.option("--keep", metavar="DIR", help="Keep the snapshot in DIR.")
def demo(as_json: bool, keep: str | None) -> int:
    """Boot a tiny guest on KVM, snapshot it mid-work, end it, and bring it back three times at once from one file.

    \b
    Examples:
      snapkit demo
      snapkit demo --keep .
    """
    from snapkit import guests
    from snapkit.vmm.facts import collect

    facts = collect()
    if not facts.kvm.usable:
        raise IncompatibleHost(f"the demo needs KVM: {facts.kvm.why}; `make demo` runs it in the lab's machine")
    with ExitStack() as stack:
        folder = keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="snapkit-demo-"))
        snapshot = os.path.join(folder, "demo.snap")
        made = _Demo(guests.path("demo.elf"), snapshot, _SHOWN[facts.architecture], quiet=as_json)
        report = made.run(kept=bool(keep))
    if as_json:
        click.echo(json.dumps(report))
    return 0


class _Demo:
    """The demo's steps, told as they happen."""

    def __init__(self, kernel: str, snapshot: str, shown: tuple[str, str], *, quiet: bool) -> None:
        self._kernel, self._snapshot, self._shown, self._quiet = kernel, snapshot, shown, quiet
        self._runs = 0

    def run(self, *, kept: bool) -> dict[str, Any]:
        from snapkit.guests.expected import demo_lines

        self._say(f"1. Boot a guest of {format_len(os.stat(self._kernel).st_size)} and snapshot it when it says "
                  f"{SNAPSHOT_AT!r}. Its process ends.")  # fmt: skip
        boot = ["boot", self._kernel, "--memory", "2M", "--vcpus", "1"]
        booted = self._wait(self._start([*boot, "--snapshot-when", SNAPSHOT_AT, "--snapshot-to", self._snapshot]))
        before = booted["text"]
        self._show(before)

        self._say(f"2. Restore the file {CLONES} times at once. Each clone goes on from the same byte of its output.")
        restore = ["restore", self._snapshot, "--exit-when", CLONES_UNTIL, "--timeline"]
        running = [self._start(restore) for _ in range(CLONES)]
        clones = [self._wait(each) for each in running]
        for number, clone in enumerate(clones, 1):
            self._say(f"   clone {number}")
            self._show(clone["text"])
        expected = demo_lines()
        whole = [before + clone["text"] for clone in clones]
        wanted = [next(expected) for _ in range(int(CLONES_UNTIL.split()[1]) // 10)]
        for text in whole:
            lines = [line for line in text.splitlines() if line.startswith("tick")]
            if lines[:-1] != wanted[: len(lines) - 1] or len(lines) != len(wanted):
                raise InternalError("a clone's output is not the continuation of what the first process printed")
        self._say(f"   no line lost, none repeated, in {CLONES} of {CLONES}")

        self._say("3. Look into the file. Nothing of the guest, KVM or the monitor is needed for that.")
        for words in (["inspect", self._snapshot], ["inspect", self._snapshot, self._shown[0]]):
            self._command(words)
            self._show(self._output(words))
        status = os.stat(self._snapshot)
        totals = [clone["timeline"][-1] for clone in clones]
        slowest = max(row["start_us"] + row["us"] for row in totals)
        self._say(
            f"4. The file is {format_len(status.st_size)}, {format_len(status.st_blocks * 512)} of it on the disk; the "
            f"snapshot took {booted['snapshot']['ms']} ms, a restore at most {slowest / 1000:.1f} ms from open to run:"
        )
        for row in clones[0]["timeline"]:
            self._say(f"     {row['stage']:<9} {row['us'] / 1000:7.2f} ms  {row['step']}")
        if kept:
            self._say("Try next:")
            for words in (
                ["restore", self._snapshot],
                ["verify", self._snapshot],
                ["inspect", self._snapshot, self._shown[1]],
                ["restore", self._snapshot, "--dry-run"],
            ):
                self._command(words)
        else:
            self._say("Try next: snapkit demo --keep .   then: snapkit restore demo.snap")
        return {
            "file": status.st_size,
            "on_disk": status.st_blocks * 512,
            "snapshot_ms": booted["snapshot"]["ms"],
            "clones": [clone["timeline"] for clone in clones],
        }

    def _start(self, words: list[str]) -> tuple[subprocess.Popen[bytes], str]:
        """Start a run; its serial output goes to a file, so that stdout is the report alone."""
        self._command(words)
        self._runs += 1
        serial = f"{self._snapshot}.{self._runs}.txt"
        command = [sys.executable, "-m", "snapkit", *words, "--json", "--serial", f"file:{serial}"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return process, serial

    def _wait(self, run: tuple[subprocess.Popen[bytes], str]) -> dict[str, Any]:
        """Wait for a run; what it reported, with its serial output as ``text``."""
        process, serial = run
        try:
            out, err = process.communicate(timeout=_STEP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise InternalError(f"a step of the demo took longer than {_STEP_TIMEOUT_S} s") from None
        if process.returncode:
            raise InternalError(f"a step of the demo failed with exit code {process.returncode}: {err.decode()}")
        with open(serial, encoding="ascii") as console:
            text = console.read()
        os.unlink(serial)
        return dict(json.loads(out)) | {"text": text}

    def _output(self, words: list[str]) -> str:
        return subprocess.run(
            [sys.executable, "-m", "snapkit", *words], check=True, capture_output=True
        ).stdout.decode()

    def _command(self, words: list[str]) -> None:
        short = [os.path.basename(word) if os.path.isabs(word) else word for word in words]
        self._say("   $ snapkit " + shlex.join(short))

    def _show(self, text: str) -> None:
        for line in text.splitlines():
            self._say(f"     {line}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            click.echo(text)
