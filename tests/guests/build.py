"""Builds the guests of this folder with the package's own toolchains and runtimes, each once.

Those of x86-64 are here; those of aarch64 are in the folder of that name, and `PORTABLE` are for all.

`.cache/guests` keeps every binary under a digest of what it depends on: its source, the headers here, the runtime, the flags, its
defines and the versions of compiler and linker. A test asks by name and gets a path:

    guest("page_cross", ADDRESS="0xd0000ffeu")
    guest("lpi", target=build.AARCH64)

Defines of interest: `page_cross` ADDRESS, STORES_PER_LINE.
"""

import hashlib
import os
import tempfile

import pytest

from snapkit.guests import FOLDER as RUNTIME_FOLDER
from snapkit.guests import build
from snapkit.guests.build import AARCH64, X86_64, Target

SOURCE_FOLDER = os.path.dirname(os.path.abspath(__file__))
CACHE_FOLDER = os.path.join(os.path.dirname(os.path.dirname(SOURCE_FOLDER)), ".cache", "guests")
PORTABLE = ("counter", "devices", "poweroff", "reboot")


def _names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(name.removesuffix(".c") for name in os.listdir(folder) if name.endswith(".c")))


NAMES = {
    X86_64: _names(SOURCE_FOLDER),
    AARCH64: (*PORTABLE, *_names(os.path.join(SOURCE_FOLDER, AARCH64.name))),
}


def guest(name: str, *, target: Target = X86_64, **defines: str) -> str:
    """Return the path of the built guest *name*; skips the calling test, saying why, where none can be built."""
    if missing := build.missing_toolchain(target):
        pytest.skip(missing)
    folder = SOURCE_FOLDER if target is X86_64 or name in PORTABLE else os.path.join(SOURCE_FOLDER, target.name)
    source = os.path.join(folder, f"{name}.c")
    cached = os.path.join(CACHE_FOLDER, f"{name}-{_key(source, target, defines)}.elf")
    if not os.path.exists(cached):
        os.makedirs(CACHE_FOLDER, exist_ok=True)
        # Built elsewhere and renamed: tests that run beside each other see a whole file or none.
        with tempfile.TemporaryDirectory(dir=CACHE_FOLDER) as folder:
            output = os.path.join(folder, "guest.elf")
            build.compile_guest(source, output, target=target, defines=defines)
            os.replace(output, cached)
    return cached


def _key(source: str, target: Target, defines: dict[str, str]) -> str:
    digest = hashlib.sha256()
    folders = {SOURCE_FOLDER, os.path.join(SOURCE_FOLDER, AARCH64.name)}  # a guest may include any header of these
    headers = sorted(
        os.path.join(folder, name) for folder in folders for name in os.listdir(folder) if name.endswith(".h")
    )
    runtime = (os.path.join(RUNTIME_FOLDER, name) for name in target.sources)
    for file in (source, *headers, *runtime):
        digest.update(bytes.fromhex(build.digest(file)))
    words = build.command("SOURCE", "OUTPUT", target=target, defines=defines)
    digest.update(repr((words, build.toolchain(target))).encode())
    return digest.hexdigest()[:16]
