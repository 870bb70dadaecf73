"""Build the tiny guests, and compare the committed demo guest with what its sources give.

    python -m snapkit.guests.build           rebuild demo.elf and BUILD.json
    python -m snapkit.guests.build --check   rebuild elsewhere and compare; nothing is written

The binary is a function of the sources, the flags and the versions of compiler and linker: no build id, no paths, no
debugging information. BUILD.json records all of them, so a binary that is older than its sources is found without any
compiler, and a rebuild is compared only where the recorded compiler is.
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

from snapkit.errors import ConfigError, SnapkitError
from snapkit.guests import FOLDER

COMPILER = "gcc"
LINKER = "ld"
RUNTIME = ("start.S", "rt.h", "guest.lds")
SOURCES = ("demo.c", *RUNTIME)
BINARY = "demo.elf"
RECORD = "BUILD.json"

FLAGS = (
    "-m32", "-march=i386", "-Os", "-std=gnu11",
    "-Wall", "-Wextra", "-Werror",
    "-ffreestanding", "-fno-builtin", "-nostdlib", "-static",
    "-fno-pic", "-fno-pie", "-no-pie",
    "-fno-stack-protector", "-fcf-protection=none",  # both want a C library or newer instructions
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",  # neither x87 nor SSE
    "-mpreferred-stack-boundary=2",
    "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=16",
    "-Wl,--no-warn-rwx-segments",  # one segment is all that a machine without paging can tell apart
    "-s",
)  # fmt: skip


def compile_guest(source: str, output: str, *, defines: Mapping[str, str] | None = None) -> None:
    """Compile the C file *source* with the runtime into the guest *output*.

    Raises ConfigError with what the compiler said when it does not compile or when there is no compiler.
    """
    _run(command(os.path.abspath(source), os.path.abspath(output), defines=defines))


def command(source: str, output: str, *, defines: Mapping[str, str] | None = None) -> list[str]:
    """Return the compiler's command line; it is run in this folder, which is also searched for rt.h."""
    names = [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    return [COMPILER, *FLAGS, *names, "-I.", "-Wl,-T,guest.lds", "start.S", source, "-o", output]


@cache
def toolchain() -> tuple[str, str]:
    """Return the version lines of compiler and linker. Raises ConfigError when either is missing."""
    return _run([COMPILER, "--version"]).splitlines()[0], _run([LINKER, "--version"]).splitlines()[0]


@cache
def missing_toolchain() -> str:
    """Return why no guest can be built here, as a reason for a skip; empty when it can."""
    try:
        toolchain()
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "empty.c")
            with open(source, "w", encoding="ascii") as file:
                file.write('#include "rt.h"\nvoid guest_main(const struct hvm_start_info *info) { (void)info; }\n')
            compile_guest(source, os.path.join(folder, "empty.elf"))
    except ConfigError as error:
        return f"gcc -m32 with ld cannot build a guest here: {str(error).splitlines()[0]}"
    return ""


def recorded() -> dict[str, object]:
    """Read BUILD.json. Raises ConfigError when it is missing or is no record."""
    where = os.path.join(FOLDER, RECORD)
    try:
        with open(where, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} is no build record: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where} is no build record: it holds a {type(record).__name__}")
    return record


def stale_files() -> list[str]:
    """Return the names of the binary and sources whose content is not the recorded one; needs no compiler."""
    record = recorded()
    known = record.get("sources")
    wanted = dict(known) if isinstance(known, dict) else {}
    wanted[BINARY] = record.get("sha256")
    return [name for name in (BINARY, *SOURCES) if digest(os.path.join(FOLDER, name)) != wanted.get(name)]


def comparable() -> str:
    """Return why a rebuild here need not give the recorded bytes; empty when it must."""
    if missing := missing_toolchain():
        return missing
    record = recorded()
    wanted = (record.get("compiler"), record.get("linker"))
    if toolchain() != wanted:
        return f"built with {wanted[0]} and {wanted[1]}, here are {' and '.join(toolchain())}"
    return ""


def check() -> list[str]:
    """Rebuild beside the committed binary and return every difference as a sentence; none means it is what it says.

    Raises ConfigError when the recorded compiler is not here.
    """
    if reason := comparable():
        raise ConfigError(reason)
    wrong = [f"{name} is not what {RECORD} records" for name in stale_files()]
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = os.path.join(folder, BINARY)
        compile_guest(os.path.join(FOLDER, "demo.c"), rebuilt)
        if _content(rebuilt) != _content(os.path.join(FOLDER, BINARY)):
            wrong.append(f"{BINARY} is not what its sources give with the recorded compiler")
    return wrong


def build() -> None:
    """Build demo.elf from its sources and write BUILD.json beside it."""
    compiler, linker = toolchain()
    binary = os.path.join(FOLDER, BINARY)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        rebuilt = os.path.join(folder, BINARY)
        compile_guest(os.path.join(FOLDER, "demo.c"), rebuilt)
        os.chmod(rebuilt, 0o644)  # data for the loader, no program of the host's
        os.replace(rebuilt, binary)
    record = {
        "binary": BINARY,
        "bytes": os.path.getsize(binary),
        "sha256": digest(binary),
        "compiler": compiler,
        "linker": linker,
        "command": command("demo.c", BINARY),
        "sources": {name: digest(os.path.join(FOLDER, name)) for name in SOURCES},
    }
    with open(os.path.join(FOLDER, RECORD), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.write("\n")


def digest(where: str) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(_content(where)).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, or with ``--check`` compare: 0 the same, 1 different, 2 not comparable here."""
    parser = argparse.ArgumentParser(prog="python -m snapkit.guests.build", description="build the demo guest")
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare, write nothing")
    wanted = parser.parse_args(arguments)
    try:
        if not wanted.check:
            build()
            print(f"{BINARY}: {recorded()['bytes']} bytes, sha256 {recorded()['sha256']}")
            return 0
        differences = check()
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
