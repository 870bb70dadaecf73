"""Golden snapshots: written by a release's own wheel from a live machine, stored for ever, never regenerated.

``tests/golden/<release>/`` holds ``<architecture>-<transport>-<device set>.snap.zst`` files and one ``manifest.json``
that describes them. They are stored packed, hence the second suffix: a 2 MiB machine is 2 MiB in every clone and 3 KiB
packed. `unpack` gives back the very bytes that the release wrote, checked against the manifest, and keeps them in a cache.

A golden's guest prints lines that begin with a word and a number, one higher each time. The manifest says which number
was the last before the snapshot and how much of the next line was out already, so a restored machine must go on to the
byte.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from snapkit.errors import ConfigError

FOLDER = Path("tests/golden")
MANIFEST = "manifest.json"
SUFFIX = ".snap.zst"
KEPT = "it was written by that release and cannot be made again: take it back from the repository (git checkout)"
_WRITE_S = 120
_GO_ON = 3


class Recipe(msgspec.Struct, frozen=True):
    """How a golden is made: a guest of `tests.guests` and the machine around it."""

    devices: str
    guest: str
    vcpus: int
    word: str
    """First word of the lines that it prints, a number follows."""
    snapshot_when: str

    @property
    def name(self) -> str:
        return f"x86-64-none-{self.devices}"


RECIPES = (
    Recipe("base", "counter", 1, "count", "count 7"),
    Recipe("smp", "smp", 2, "smp", "cpus 2 counts"),
)


class Golden(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
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
    for golden in manifest.goldens:
        path = folder / golden.file
        if not path.is_file():
            yield f"{path} is missing; {KEPT}"
        elif digest(path.read_bytes()) != golden.packed_sha256:
            yield f"{path} is edited; {KEPT}"
    listed = {golden.file for golden in manifest.goldens} | {MANIFEST}
    for path in sorted(folder.iterdir()):
        if path.name not in listed:
            yield f"{path} is in no manifest; remove it"


def unpack(folder: Path, golden: Golden, cache: Path) -> Path:
    """Return the path of the golden's snapshot file, unpacked into *cache* and checked.

    Raises ConfigError that says what to do when the stored file is missing or is not what the manifest says.
    """
    import zstandard

    packed_path = folder / golden.file
    try:
        packed = packed_path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{packed_path} is missing; {KEPT}") from error
    if digest(packed) != golden.packed_sha256:
        raise ConfigError(f"{packed_path} is edited; {KEPT}")
    path = cache / f"{golden.name}-{golden.sha256[:16]}.snap"
    if not path.exists() or digest(path.read_bytes()) != golden.sha256:
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=golden.length)
        if digest(content) != golden.sha256:
            raise ConfigError(f"{packed_path} holds something else than its manifest says; {KEPT}")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    return path


def write(snapkit: Sequence[str], folder: Path, guests: Mapping[str, Path], *, release: str, date: str) -> Manifest:
    """Write every golden of `RECIPES` into *folder* with the command *snapkit*, each restored once, and the manifest.

    *guests* are the binaries by name. Raises ConfigError with what the command said when it failed.
    """
    import zstandard

    folder.mkdir(parents=True)
    goldens = []
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        for recipe in RECIPES:
            elf = guests[recipe.guest]
            snap, serial = scratch / f"{recipe.name}.snap", scratch / f"{recipe.name}.out"
            machine = ["--memory", "2M", "--vcpus", str(recipe.vcpus), "--cpu", "baseline"]
            until = ["--snapshot-when", recipe.snapshot_when, "--snapshot-to", str(snap), "--then", "stop"]
            bound = ["--timeout", str(_WRITE_S)]
            run([*snapkit, "boot", elf, *machine, "--serial", f"file:{serial}", *until, *bound], scratch)
            lines = serial.read_text().split("\n")
            content = snap.read_bytes()
            packed = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(content)
            golden = Golden(
                file=f"{recipe.name}{SUFFIX}",
                architecture="x86-64",
                transport="none",
                devices=recipe.devices,
                vcpus=recipe.vcpus,
                memory=2 << 20,
                cpu="baseline",
                guest=recipe.guest,
                guest_sha256=digest(elf.read_bytes()),
                word=recipe.word,
                count=int(lines[-2].split()[1]) if len(lines) > 1 else 0,
                partial_line=lines[-1],
                length=len(content),
                sha256=digest(content),
                packed_sha256=digest(packed),
            )
            run([*snapkit, "verify", snap], scratch)
            restore(snapkit, snap, golden)
            (folder / golden.file).write_bytes(packed)
            goldens.append(golden)
        about = msgspec.json.decode(run([*snapkit, "inspect", snap, "--json"], scratch))
    manifest = Manifest(
        format=1,
        release=release,
        written=date,
        producer=about["preamble"]["producer"],
        host_kernel=about["preamble"]["host_kernel"],
        goldens=goldens,
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def restore(snapkit: Sequence[str], path: Path, golden: Golden) -> list[str]:
    """Restore a golden with the command *snapkit* and return the whole lines that its guest goes on with.

    Raises ConfigError when it does not go on, or not with the next line.
    """
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        serial = scratch / "out"
        until = ["--exit-when", go_on_text(golden), "--timeout", str(_WRITE_S)]
        run([*snapkit, "restore", path, "--serial", f"file:{serial}", *until], scratch)
        return golden.went_on(serial.read_text())


def go_on_text(golden: Golden) -> str:
    """Return the text that a restored golden prints before long, and cannot have printed before."""
    return f"{golden.word} {golden.count + _GO_ON}"


def digest(content: bytes) -> str:
    """Return the SHA-256 of *content*, as ``sha256sum`` gives it."""
    return sha256(content).hexdigest()


def run(words: Sequence[str | Path], cwd: Path) -> str:
    """Run a command outside of any checkout; returns its stdout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        words, cwd=cwd, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        command = " ".join(map(str, words))
        raise ConfigError(f"{command} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
