"""Builds the guests of this folder with the package's own toolchain and runtime, each once.

`.cache/guests` keeps every binary under a digest of what it depends on: its source, the headers here, the runtime, the flags, its
defines and the versions of compiler and linker. A test asks by name and gets a path:

    guest("page_cross", ADDRESS="0xd0000ffeu")

Defines of interest: `page_cross` ADDRESS, STORES_PER_LINE.
"""

import hashlib
import os
import tempfile

import pytest

from snapkit.guests import FOLDER as RUNTIME_FOLDER
from snapkit.guests import build

SOURCE_FOLDER = os.path.dirname(os.path.abspath(__file__))
CACHE_FOLDER = os.path.join(os.path.dirname(os.path.dirname(SOURCE_FOLDER)), ".cache", "guests")
NAMES = tuple(sorted(name.removesuffix(".c") for name in os.listdir(SOURCE_FOLDER) if name.endswith(".c")))


def guest(name: str, **defines: str) -> str:
    """Return the path of the built guest *name*; skips the calling test, saying why, where none can be built."""
    if missing := build.missing_toolchain():
        pytest.skip(missing)
    source = os.path.join(SOURCE_FOLDER, f"{name}.c")
    cached = os.path.join(CACHE_FOLDER, f"{name}-{_key(source, defines)}.elf")
    if not os.path.exists(cached):
        os.makedirs(CACHE_FOLDER, exist_ok=True)
        # Built elsewhere and renamed: tests that run beside each other see a whole file or none.
        with tempfile.TemporaryDirectory(dir=CACHE_FOLDER) as folder:
            output = os.path.join(folder, "guest.elf")
            build.compile_guest(source, output, defines=defines)
            os.replace(output, cached)
    return cached


def _key(source: str, defines: dict[str, str]) -> str:
    digest = hashlib.sha256()
    headers = sorted(name for name in os.listdir(SOURCE_FOLDER) if name.endswith(".h"))
    mine = [source, *(os.path.join(SOURCE_FOLDER, name) for name in headers)]
    for file in (*mine, *(os.path.join(RUNTIME_FOLDER, name) for name in build.RUNTIME)):
        digest.update(bytes.fromhex(build.digest(file)))
    digest.update(repr((build.command("SOURCE", "OUTPUT", defines=defines), build.toolchain())).encode())
    return digest.hexdigest()[:16]
