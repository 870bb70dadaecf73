"""Golden snapshots: written by a release's own wheel from a live machine, stored for ever, never regenerated.

``tests/golden/<release>/`` holds ``<architecture>-<transport>-<device set>.snap.zst`` files and one ``manifest.json``
that describes them. They are stored packed, hence the second suffix: a 2 MiB machine is 2 MiB in every clone and 3 KiB
packed. `unpack` gives back the very bytes that the release wrote, checked against the manifest, and keeps them in a cache.
`tools.golden_maker` makes them.

Where a golden has devices, a restore gives them other host ends (`host_ends`): a fresh copy of each disk as it was when the
machine was saved, which is stored beside it, a socket in a folder of the restore's own, a TAP in a network namespace of its
own (`tools.tap`).

A golden's guest prints lines that begin with a word and a number, one higher each time. The manifest says which number
was the last before the snapshot and how much of the next line was out already, so a restored machine must go on to the
byte.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from snapkit.errors import ConfigError
from tools import tap

FOLDER = Path("tests/golden")
MANIFEST = "manifest.json"
SUFFIX = ".snap.zst"
KEPT = "it was written by that release and cannot be made again: take it back from the repository (git checkout)"
HERE = platform.machine().replace("_", "-")
"""This machine's architecture, as goldens say it."""
RUN_S = 120
_GO_ON = 3
TAP = "tap0"


class Disk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A disk of a golden, as it was when the machine was saved."""

    id: str
    file: str
    length: int
    sha256: str
    packed_sha256: str


class Golden(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of the manifest."""

    file: str
    architecture: str
    transport: str
    devices: str
    vcpus: int
    memory: int
    cpu: str
    guest: str
    guest_sha256: str
    """Of the guest's ELF file."""
    word: str
    count: int
    """The last whole line before the snapshot began with `word` and this number."""
    partial_line: str
    """What was out of the line after it."""
    length: int
    sha256: str
    """Of the snapshot file."""
    packed_sha256: str
    """Of the stored file."""
    disks: list[Disk] = []
    nets: list[str] = []
    """Ids of the devices that want a TAP."""
    vsocks: list[str] = []
    """Ids of the devices that want a socket."""
    host_cpu: str = ""
    """The processor model that was emulated for the machine that wrote it; empty: none was."""
    host_kernel: str = ""
    """That machine's; empty: the manifest's."""

    @property
    def name(self) -> str:
        return self.file.removesuffix(SUFFIX)

    def went_on(self, output: str) -> list[str]:
        """Return the whole lines of a restored machine's *output*; raises ConfigError where the first is not the next."""
        *lines, _cut = (self.partial_line + output).split("\n")
        for number, line in enumerate(lines, self.count + 1):
            if re.match(rf"{self.word} {number}\b", line) is None:
                raise ConfigError(f"golden {self.name}: went on with {line!r}, due was {self.word} {number}")
        return lines


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``manifest.json`` of a release's goldens."""

    format: int
    release: str
    written: str
    producer: str
    host_kernel: str
    goldens: list[Golden]


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in *folder*. Raises ConfigError that says what to do when it is not there or is none."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder / MANIFEST} is missing; {KEPT}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{folder / MANIFEST} is edited ({error}); {KEPT}") from error


def problems(folder: Path) -> Iterator[str]:
    """Say what is missing, edited or too much in a release's folder of goldens."""
    try:
        manifest = read_manifest(folder)
    except ConfigError as error:
        yield str(error)
        return
    listed = {MANIFEST: ""}
    for golden in manifest.goldens:
        listed |= {golden.file: golden.packed_sha256, **{disk.file: disk.packed_sha256 for disk in golden.disks}}
    for name, wanted in listed.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing; {KEPT}"
        elif wanted and digest(path.read_bytes()) != wanted:
            yield f"{path} is edited; {KEPT}"
    for path in sorted(folder.iterdir()):
        if path.name not in listed:
            yield f"{path} is in no manifest; remove it"


def unpack(folder: Path, golden: Golden, cache: Path) -> Path:
    """Return the path of the golden's snapshot file, unpacked into *cache* and checked.

    Raises ConfigError that says what to do when the stored file is missing or is not what the manifest says.
    """
    content = _unpacked(folder, golden)
    path = cache / f"{golden.name}-{golden.sha256[:16]}.snap"
    if not path.exists() or digest(path.read_bytes()) != golden.sha256:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    return path


def _unpacked(folder: Path, stored: Golden | Disk) -> bytes:
    import zstandard

    path = folder / stored.file
    try:
        packed = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; {KEPT}") from error
    if digest(packed) != stored.packed_sha256:
        raise ConfigError(f"{path} is edited; {KEPT}")
    content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=stored.length)
    if digest(content) != stored.sha256:
        raise ConfigError(f"{path} holds something else than its manifest says; {KEPT}")
    return content


def host_ends(folder: Path, golden: Golden, into: Path, sockets: Path | None = None) -> dict[str, dict[str, str]]:
    """Make what a restore of *golden* has of the host, and return it as overrides: by device id, what is other.

    Disks are unpacked into *into*, for one restore: it writes them. Sockets will be in *sockets*, the same by default. The
    TAPs are only named: the restore has to be where `tools.tap` is.
    """
    ends = {}
    for disk in golden.disks:
        path = into / f"{golden.name}.{disk.id}.img"
        path.write_bytes(_unpacked(folder, disk))
        ends[disk.id] = {"path": str(path)}
    ends |= {ident: {"tap": TAP} for ident in golden.nets}
    ends |= {ident: {"uds": str((sockets or into) / f"{ident}.sock")} for ident in golden.vsocks}
    return ends


def restore_words(
    snapkit: Sequence[str], path: Path, golden: Golden, ends: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the command that restores the file at *path* with the command *snapkit* and these host ends."""
    words = [*snapkit, "restore", str(path), *end_words(golden, ends)]
    return among_taps(words) if golden.nets else words


def end_words(golden: Golden, ends: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the options of `restore` that ask for these host ends."""
    words = []
    named = [("--disk", [disk.id for disk in golden.disks]), ("--net", golden.nets), ("--vsock", golden.vsocks)]
    for option, ids in named:
        for ident in ids:
            words += [option, ",".join([f"id={ident}", *(f"{key}={value}" for key, value in ends[ident].items())])]
    return words


def among_taps(words: list[str]) -> list[str]:
    """Return the command that runs *words* where the TAPs of `host_ends` are."""
    return [sys.executable, str(Path(tap.__file__).resolve()), TAP, "--", *words]


def restore(snapkit: Sequence[str], path: Path, golden: Golden, folder: Path) -> list[str]:
    """Restore a golden with the command *snapkit* and return the whole lines that its guest goes on with.

    *path* is the unpacked file, *folder* where the golden is stored. Raises ConfigError when it does not go on, or not with
    the next line.
    """
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        serial = scratch / "out"
        words = restore_words(snapkit, path, golden, host_ends(folder, golden, scratch))
        run(
            [*words, "--serial", f"file:{serial}", "--exit-when", go_on_text(golden), "--timeout", str(RUN_S)],
            scratch,
        )
        return golden.went_on(serial.read_text())


def go_on_text(golden: Golden) -> str:
    """Return the text that a restored golden prints before long, and cannot have printed before."""
    return f"{golden.word} {golden.count + _GO_ON}"


def digest(content: bytes) -> str:
    """Return the SHA-256 of *content*, as ``sha256sum`` gives it."""
    return sha256(content).hexdigest()


def run(words: Sequence[str | Path], cwd: Path, *, bound_s: int = 600) -> str:
    """Run a command outside of any checkout; returns its stdout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=bound_s,
        check=False,
    )
    if done.returncode:
        command = " ".join(map(str, words))
        raise ConfigError(f"{command} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
