"""Build the tiny guests, and compare the committed demo guests with what their sources give.

    python -m snapkit.guests.build                    rebuild every demo.elf and its BUILD.json
    python -m snapkit.guests.build --check x86_64     rebuild elsewhere and compare; nothing is written

Each architecture is a `Target`: a compiler, its flags, and a folder here with the runtime, the binary and its record. The
binary is a function of the sources, the flags and the versions of compiler and linker: no build id, no paths, no debugging
information. BUILD.json records all of them, so a binary that is older than its sources is found without any compiler, and
a rebuild is compared only where the recorded compiler is.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from snapkit.errors import ConfigError, SnapkitError
from snapkit.guests import FOLDER

SHARED = ("demo.c", "text.h")
RUNTIME = ("start.S", "rt.h", "guest.lds")
BINARY = "demo.elf"
RECORD = "BUILD.json"

_FLAGS = (
    "-Os", "-std=gnu11",
    "-Wall", "-Wextra", "-Werror",
    "-ffreestanding", "-fno-builtin", "-nostdlib", "-static",
    "-fno-pic", "-fno-pie", "-no-pie",
    "-fno-stack-protector",  # it wants a C library
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",  # no floating point
    "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=16",
    "-Wl,--no-warn-rwx-segments",  # one segment is all that a machine without paging can tell apart
    "-s",
)  # fmt: skip


class Target(NamedTuple):
    """An architecture that guests are built for: *name* is as uname(2) has it, and that of its folder here."""

    name: str
    compiler: str
    linker: str
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The path of its runtime and its demo guest."""
        return os.path.join(FOLDER, self.name)

    @property
    def sources(self) -> tuple[str, ...]:
        """What its demo guest is made of, by paths from this package's folder."""
        return (*SHARED, *(f"{self.name}/{name}" for name in RUNTIME))


X86_64 = Target(
    "x86_64",
    "gcc",
    "ld",
    # i386 code: -fcf-protection would want newer instructions.
    ("-m32", "-march=i386", "-mpreferred-stack-boundary=2", "-fcf-protection=none", *_FLAGS),
)
AARCH64 = Target(
    "aarch64",
    "aarch64-linux-gnu-gcc",
    "aarch64-linux-gnu-ld",
    # No exclusive accesses out of line, which are a library's; no pointer authentication.
    ("-march=armv8-a", "-mstrict-align", "-mno-outline-atomics", "-mbranch-protection=none", *_FLAGS),
)
TARGETS = {target.name: target for target in (X86_64, AARCH64)}


def compile_guest(
    source: str, output: str, *, target: Target = X86_64, defines: Mapping[str, str] | None = None
) -> None:
    """Compile the C file *source* with the runtime of *target* into the guest *output*.

    Raises ConfigError with what the compiler said when it does not compile or when there is no compiler.
    """
    _run(command(os.path.abspath(source), os.path.abspath(output), target=target, defines=defines))


def command(
    source: str, output: str, *, target: Target = X86_64, defines: Mapping[str, str] | None = None
) -> list[str]:
    """Return the compiler's command line; it is run in this folder, whose headers and *target*'s it finds."""
    names = [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    runtime = [f"-I{target.name}", "-I.", f"-Wl,-T,{target.name}/guest.lds", f"{target.name}/start.S"]
    return [target.compiler, *target.flags, *names, *runtime, source, "-o", output]


@cache
def toolchain(target: Target = X86_64) -> tuple[str, str]:
    """Return the version lines of compiler and linker. Raises ConfigError when either is missing."""
    compiler, linker = ([name, "--version"] for name in (target.compiler, target.linker))
    return _run(compiler).splitlines()[0], _run(linker).splitlines()[0]


@cache
def missing_toolchain(target: Target = X86_64) -> str:
    """Return why no guest can be built here, as a reason for a skip; empty when it can."""
    try:
        toolchain(target)
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "empty.c")
            with open(source, "w", encoding="ascii") as file:
                file.write('#include "rt.h"\nvoid guest_main(void) {}\n')
            compile_guest(source, os.path.join(folder, "empty.elf"), target=target)
    except ConfigError as error:
        return f"{target.compiler} with {target.linker} cannot build a guest here: {str(error).splitlines()[0]}"
    return ""


def recorded(target: Target = X86_64) -> dict[str, object]:
    """Read *target*'s BUILD.json. Raises ConfigError when it is missing or is no record."""
    where = os.path.join(target.folder, RECORD)
    try:
        with open(where, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} is no build record: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where} is no build record: it holds a {type(record).__name__}")
    return record


def stale_files(*targets: Target) -> list[str]:
    """Return the names of binaries and sources whose content is not the recorded one; needs no compiler."""
    stale: dict[str, None] = {}
    for target in targets or TARGETS.values():
        record, binary = recorded(target), f"{target.name}/{BINARY}"
        known = record.get("sources")
        wanted = dict(known) if isinstance(known, dict) else {}
        wanted[binary] = record.get("sha256")
        names = (binary, *target.sources)
        stale |= dict.fromkeys(name for name in names if digest(os.path.join(FOLDER, name)) != wanted.get(name))
    return list(stale)


def comparable(target: Target = X86_64) -> str:
    """Return why a rebuild here need not give the recorded bytes; empty when it must."""
    if missing := missing_toolchain(target):
        return missing
    record = recorded(target)
    wanted = (record.get("compiler"), record.get("linker"))
    if toolchain(target) != wanted:
        return f"built with {wanted[0]} and {wanted[1]}, here are {' and '.join(toolchain(target))}"
    return ""


def check(target: Target = X86_64) -> list[str]:
    """Rebuild beside the committed binary and return every difference as a sentence; none means it is what it says.

    Raises ConfigError when the recorded compiler is not here.
    """
    if reason := comparable(target):
        raise ConfigError(reason)
    wrong = [f"{name} is not what {target.name}/{RECORD} records" for name in stale_files(target)]
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = os.path.join(folder, BINARY)
        compile_guest(os.path.join(FOLDER, "demo.c"), rebuilt, target=target)
        if _content(rebuilt) != _content(os.path.join(target.folder, BINARY)):
            wrong.append(f"{target.name}/{BINARY} is not what its sources give with the recorded compiler")
    return wrong


def build(target: Target = X86_64) -> None:
    """Build *target*'s demo.elf from its sources and write BUILD.json beside it."""
    compiler, linker = toolchain(target)
    binary = os.path.join(target.folder, BINARY)
    with tempfile.TemporaryDirectory(dir=target.folder) as folder:
        rebuilt = os.path.join(folder, BINARY)
        compile_guest(os.path.join(FOLDER, "demo.c"), rebuilt, target=target)
        os.chmod(rebuilt, 0o644)  # data for the loader, no program of the host's
        os.replace(rebuilt, binary)
    record = {
        "binary": BINARY,
        "bytes": os.path.getsize(binary),
        "sha256": digest(binary),
        "compiler": compiler,
        "linker": linker,
        "command": command("demo.c", f"{target.name}/{BINARY}", target=target),
        "sources": {name: digest(os.path.join(FOLDER, name)) for name in target.sources},
    }
    with open(os.path.join(target.folder, RECORD), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.write("\n")


def digest(where: str) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(_content(where)).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, or with ``--check`` compare: 0 the same, 1 different, 2 not comparable here."""
    parser = argparse.ArgumentParser(prog="python -m snapkit.guests.build", description="build the demo guests")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare, write nothing")
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="architectures; all when none is named")
    wanted = parser.parse_args(arguments)
    differences = []
    try:
        for target in [TARGETS[name] for name in wanted.target or TARGETS]:
            if wanted.check:
                differences += check(target)
                continue
            build(target)
            record = recorded(target)
            print(f"{target.name}/{BINARY}: {record['bytes']} bytes, sha256 {record['sha256']}")
    except SnapkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for difference in differences:
        print(difference)
    return 1 if differences else 0


def _content(where: str) -> bytes:
    with open(where, "rb") as file:
        return file.read()


def _run(words: list[str]) -> str:
    # The C locale keeps version lines and messages the same everywhere; the folder keeps paths out of the binary.
    try:
        done = subprocess.run(
            words,
            cwd=FOLDER,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{words[0]} does not run: {error}") from error
    if done.returncode:
        raise ConfigError(f"{words[0]} exits with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
