"""Debian's own programs for a guest's root: fetched with apt, unpacked without being installed, and only what runs is kept.

A program's libraries come from the packages named here. Those of fio alone would bring a hundred packages more (Ceph,
Gluster, RDMA, ICU) for engines that no test uses: a library that none of the packages holds becomes a *stub*, a shared
object of its name with the symbols and versions that the programs want. Its functions return 0, which says "there is
none" where programs do call them (lspci asks libkmod and libudev). The programs themselves are Debian's bytes.

What is kept lies in one folder of the lab's cache, laid out as in the guest; how it gets and stays there is as with
everything in the cache (`tests.lab.packages`). Documents: the System V ABI (dynamic linking), the Linux Standard Base's symbol versioning.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import StringTableSection, SymbolTableSection

from tests.lab import packages
from tests.lab.architecture import Architecture
from tests.lab.cpio import Initramfs
from tests.lab.packages import UNPACK_S, Apt, LabMissingError, cache_locked, run_tool

# Where the 64-bit time_t transition renamed a package, both names.
PACKAGES = (
    ("e2fsprogs",),
    ("fio",),
    ("pciutils",),
    ("socat",),
    ("libaio1t64", "libaio1"),
    ("libblkid1",),
    ("libc6",),
    ("libcom-err2",),
    ("libext2fs2t64", "libext2fs2"),
    ("libnuma1",),
    ("libpci3",),
    ("libuuid1",),
    ("zlib1g",),
)
PROGRAMS = ("e2fsck", "fio", "lspci", "mke2fs", "socat")

_FOLDERS = ("usr/bin", "bin", "usr/sbin", "sbin")
_FORM = 2  # raise when what a cached folder holds changes


@dataclass
class _Stub:
    """What the programs want of a library that is not there: symbols by version; "" for those without one."""

    wanted: dict[str, set[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)  # of those that are variables

    def want(self, version: str, symbol: str, length: int) -> None:
        self.wanted.setdefault(version, set()).add(symbol)
        if length:
            self.lengths[symbol] = length


@dataclass(frozen=True)
class _Linked:
    """What the dynamic linker reads of one file."""

    needed: tuple[str, ...]
    undefined: tuple[tuple[str, str, str, int], ...]
    """Library ("" when not said), version ("" when none), symbol, length of a variable that is copied (0: function)."""
    defined: frozenset[str]


def folder(architecture: Architecture) -> Path:
    """Give the folder that holds the programs and their libraries, from the cache or freshly made.

    Raises `LabMissingError` when there is none in the cache and apt gives no packages.
    """
    apt, prefix = Apt(architecture), f"tools-{architecture.debian}"
    with cache_locked() as cache:
        candidates = apt.candidates(PACKAGES)
        cached = packages.newest(prefix, _FORM)
        if cached and candidates in (None, cached[1]["packages"]):
            return cached[0]
        try:
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
                return _make(architecture, apt, Path(name))
        except LabMissingError:
            if cached:
                return cached[0]
            raise


def add(archive: Initramfs, architecture: Architecture) -> None:
    """Add programs and libraries to a guest's root."""
    root = folder(architecture)
    for path in packages.contents(root):
        archive.file(str(path.relative_to(root)), path.read_bytes(), executable=True)


def _make(architecture: Architecture, apt: Apt, work: Path) -> Path:
    versions = _download(apt, work)
    tree, kept = work / "tree", work / "kept"
    for package in work.glob("*.deb"):
        run_tool(["dpkg-deb", "-x", str(package), str(tree)], timeout=UNPACK_S)
    stubs = _keep(architecture, tree, kept)
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    return packages.keep(kept, f"tools-{architecture.debian}", digest, _FORM, packages=versions, stubs=sorted(stubs))


def _download(apt: Apt, work: Path) -> dict[str, str]:
    for _ in apt.states():
        if found := apt.candidates(PACKAGES):
            with contextlib.suppress(LabMissingError):
                apt.download(found, work)
                return found
    wanted = ", ".join(choice[-1] for choice in PACKAGES)
    raise LabMissingError(f"the Debian packages {wanted} (apt offers not all of them for download)")


def _keep(architecture: Architecture, tree: Path, kept: Path) -> dict[str, _Stub]:
    """Copy the programs and what they need into *kept*, and make stubs of the rest; give the stubs."""
    libraries = {path.name: path for path in _libraries(architecture, tree)}
    home = f"lib/{architecture.triplet}"
    loader = Path(architecture.loader)
    stubs: dict[str, _Stub] = {}
    todo = [next(tree / folder / name for folder in _FOLDERS if (tree / folder / name).is_file()) for name in PROGRAMS]
    done: dict[str, _Linked] = {}
    for path in todo:  # grows
        if path.name in done:
            continue
        done[path.name] = linked = _read(path, architecture.copy_relocation)
        place = loader.parent if path.name == loader.name else home if path.name in libraries else "bin"
        _install(path.read_bytes(), kept / place / path.name)
        for name in linked.needed:
            if name in libraries:
                todo.append(libraries[name])
            else:
                stubs.setdefault(name, _Stub())
    _install(libraries[loader.name].read_bytes(), kept / loader)
    for linked in done.values():
        here = [name for name in linked.needed if name in stubs]
        elsewhere: set[str] = set().union(*(done[name].defined for name in linked.needed if name in done))
        for library, version, symbol, length in linked.undefined:
            if library in stubs:
                stubs[library].want(version, symbol, length)
            elif not library and here and symbol not in elsewhere:
                stubs[here[0]].want("", symbol, length)  # which of them does not matter to the linker
    for name, stub in stubs.items():
        _compile(architecture.compiler, name, stub, kept / home / name)
    return stubs


def _libraries(architecture: Architecture, tree: Path) -> Iterator[Path]:
    for parent in ("lib", "usr/lib"):
        yield from (tree / parent / architecture.triplet).glob("*.so*")


def _install(content: bytes, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


def _read(path: Path, copy_relocation: int) -> _Linked:
    with path.open("rb") as file:
        elf = ELFFile(file)
        sections = list(elf.iter_sections())
        needed = []
        for section in sections:
            if isinstance(section, DynamicSection):
                strings = elf.get_section(section["sh_link"])
                assert isinstance(strings, StringTableSection), path
                needed += [strings.get_string(tag["d_val"]) for tag in section.iter_tags("DT_NEEDED")]
        versions: dict[int, tuple[str, str]] = {}
        for section in sections:
            if isinstance(section, GNUVerNeedSection):
                for library, auxiliaries in section.iter_versions():
                    for auxiliary in auxiliaries:
                        versions[auxiliary["vna_other"]] = (str(library.name), str(auxiliary.name))
        numbers = next((section for section in sections if isinstance(section, GNUVerSymSection)), None)
        copied = {
            relocation["r_info_sym"]
            for section in sections
            if isinstance(section, RelocationSection)
            for relocation in section.iter_relocations()
            if relocation["r_info_type"] == copy_relocation
        }
        undefined, defined = [], set()
        table = elf.get_section_by_name(".dynsym")
        assert isinstance(table, SymbolTableSection), path
        for index, symbol in enumerate(table.iter_symbols()):
            here = symbol["st_shndx"] != "SHN_UNDEF" and index not in copied
            if here:
                defined.add(symbol.name)
            elif symbol.name and symbol["st_info"]["bind"] == "STB_GLOBAL":
                number = numbers.get_symbol(index)["ndx"] if numbers else 0
                library_name, version = versions.get(number, ("", ""))
                length = symbol["st_size"] if index in copied else 0
                undefined.append((library_name, version, symbol.name, length))
        return _Linked(tuple(needed), tuple(undefined), frozenset(defined))


def _compile(compiler: str, name: str, stub: _Stub, place: Path) -> None:
    symbols = sorted(set().union(*stub.wanted.values()))
    source = "".join(
        f"char {symbol}[{stub.lengths[symbol]}];\n"
        if symbol in stub.lengths
        else f"long {symbol}(void) {{ return 0; }}\n"
        for symbol in symbols
    )
    script = "".join(
        f"{version} {{ global: {' '.join(f'{symbol};' for symbol in sorted(stub.wanted[version]))} }};\n"
        for version in sorted(stub.wanted)
        if version
    )
    with tempfile.TemporaryDirectory() as work:
        code, versions = Path(work) / "stub.c", Path(work) / "stub.map"
        code.write_text(source)
        versions.write_text(script)
        options = ["-shared", "-nostdlib", "-fPIC", "-Os", "-fno-builtin", "-w", f"-Wl,-soname,{name}"]
        if script:
            options.append(f"-Wl,--version-script={versions}")
        place.parent.mkdir(parents=True, exist_ok=True)
        run_tool([compiler, *options, "-o", str(place), str(code)], timeout=60)
