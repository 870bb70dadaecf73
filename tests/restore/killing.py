"""A process that forks writers of a snapshot over an existing file, kills each, and looks at what is there.

`python -m tests.restore.killing FOLDER moments|calls whole|separate SEED KILLS` prints what it saw as JSON; anything that
must not be ends it with an AssertionError. A writer is killed at a random moment of its endless writing (*moments*), or
right before its first, second, ... system call (*calls*), leftovers of the last one lying there.
"""

import json
import os
import random
import select
import signal
import struct
import sys
import time
from collections import Counter
from typing import NamedTuple

from snapkit import host
from snapkit.restore.image import Image
from snapkit.restore.writer import memory_name
from tests.restore.machines import MIB, save, sections

LENGTH = 4 * MIB
PLACES = (0, MIB, 2 * MIB + 4096, LENGTH - 4096)
MARK = struct.Struct("<QQ")
CALLS_MAX = 200


class Generation(NamedTuple):
    """Which writing of which writer; its marks are all over the memory that it writes."""

    writer: int
    number: int

    @property
    def snapshot_id(self) -> bytes:
        return MARK.pack(self.writer, self.number)


class Killing:
    """A folder with a snapshot in it, and what became of it."""

    def __init__(self, folder: str, *, separate: bool) -> None:
        self.folder, self._separate = folder, separate
        self.path = os.path.join(folder, "guest.snap")
        self._content = bytearray(random.Random(1).randbytes(MIB) + bytes(MIB) + random.Random(2).randbytes(2 * MIB))
        self.complete: set[bytes] = set()
        self.seen: Counter[str] = Counter()

    def write(self, generation: Generation) -> None:
        for place in PLACES:
            MARK.pack_into(self._content, place, *generation)
        beside = memory_name(self.path, generation.snapshot_id) if self._separate else None
        save(self.path, memoryview(self._content), snapshot_id=generation.snapshot_id, memory_path=beside)

    def read(self) -> Generation:
        """Return which generation the file is, having checked every byte of it."""
        with Image.open(self.path) as image:
            assert image.sections().states == sections(LENGTH)
            assert image.verify() == []
            marks = {image.memory.read(place, MARK.size) for place in PLACES}
            assert len(marks) == 1, "half of one writing and half of another"
            generation = Generation(*MARK.unpack(marks.pop()))
            assert image.preamble.snapshot_id == generation.snapshot_id
        self.complete.add(generation.snapshot_id)
        return generation

    def look(self, before: Generation, after: set[Generation]) -> None:
        """Check that the file is *before* or one of *after*, and note what else lies there."""
        found = self.read()
        assert found == before or found in after, (before, found)
        self.seen["new" if found in after else "old"] += 1
        self.seen["temporary files"] += any(name.endswith(".tmp") for name in os.listdir(self.folder))
        self.seen["orphans"] += bool(self.orphans())

    def orphans(self) -> set[str]:
        """Return memory files that belong to no snapshot that ever was."""
        known = {os.path.basename(memory_name(self.path, one)) for one in self.complete}
        return {name for name in os.listdir(self.folder) if name.endswith(".mem")} - known

    def write_and_see_it_clean(self, generation: Generation) -> None:
        """Write once more: nothing may be left that is not a whole snapshot's."""
        self.write(generation)
        assert self.read() == generation
        assert not self.orphans()
        assert {name for name in os.listdir(self.folder) if not name.endswith(".mem")} == {"guest.snap"}
        for name in os.listdir(self.folder):  # of snapshots that were replaced; nobody's here
            if name.endswith(".mem") and name != os.path.basename(memory_name(self.path, generation.snapshot_id)):
                os.unlink(os.path.join(self.folder, name))

    def at_moments(self, seed: int, kills: int) -> None:
        seeded = random.Random(seed)
        current = Generation(0, 0)
        started = time.monotonic()
        self.write_and_see_it_clean(current)
        self.write_and_see_it_clean(Generation(0, 1))
        current, once_s = Generation(0, 1), (time.monotonic() - started) / 2
        for writer in range(1, kills + 1):
            reader, told = os.pipe()
            pid = os.fork()
            if not pid:
                self._write_for_ever(writer, told)
            os.close(told)
            assert os.read(reader, 1)
            select.select([], [], [], seeded.uniform(0, 2 * once_s))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            finished = 0
            while done := os.read(reader, 4096):
                finished += len(done)
            os.close(reader)
            # what was reported is done; the next may be, or may be reported too late
            self._know(writer, finished)
            before = current if not finished else Generation(writer, finished - 1)
            self.look(before, {Generation(writer, finished)})
            current = self.read()
            if seeded.random() < 0.5:  # else the next writer finds what this one left
                current, started = Generation(writer, 1 << 32), time.monotonic()
                self.write_and_see_it_clean(current)
                # disks get slower, and some write must come to its end
                once_s = max(once_s, time.monotonic() - started)
        self.write_and_see_it_clean(Generation(kills + 1, 0))

    def _know(self, writer: int, finished: int) -> None:
        self.complete |= {Generation(writer, number).snapshot_id for number in range(finished)}
        self.seen["finished"] += finished

    def _write_for_ever(self, writer: int, told: int) -> None:
        number = 0
        os.write(told, b".")
        while True:
            self.write(Generation(writer, number))
            os.write(told, b".")
            number += 1

    def at_calls(self) -> None:
        current = Generation(0, 0)
        self.write_and_see_it_clean(current)
        for at in range(CALLS_MAX):
            pid = os.fork()
            if not pid:
                self._write_until_call(at)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            assert code in {0, -signal.SIGKILL}, code
            self.look(current, {Generation(1 + at, 0)})
            current = self.read()
            self.seen["kills"] += code != 0
            if not code:
                break
        else:
            raise AssertionError(f"a write makes more than {CALLS_MAX} calls")
        self.write_and_see_it_clean(Generation(1 << 32, 0))

    def _write_until_call(self, at: int) -> None:
        calls = 0

        def die(_call: str, _arguments: tuple[object, ...]) -> None:
            nonlocal calls
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1

        try:
            with host.inject(die):
                self.write(Generation(1 + at, 0))
            os._exit(0)
        finally:
            os._exit(1)


def main(folder: str, how: str, where: str, seed: str, kills: str) -> None:
    killing = Killing(folder, separate=where == "separate")
    if how == "moments":
        killing.at_moments(int(seed), int(kills))
    else:
        killing.at_calls()
    print(json.dumps(killing.seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
