"""What is done on a machine of another architecture: goldens are written and the matrix's rows are run there.

Such a machine is the lab's (`tests.lab`): emulated by QEMU, with nested virtualisation and so a `/dev/kvm`. Its processor is
a fixed model and never `max`, since what a guest of aarch64 sees of its processor is the host's: a golden fits machines of
the model that it was written on. The lab has no pip, so programs run from their unpacked wheels on the lab's own packages.

Each function boots a machine, has one job done, and ends it.
"""

import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copy2, copytree
from typing import TYPE_CHECKING

import msgspec

from snapkit.errors import ConfigError
from tools import golden
from tools.decided import Result

if TYPE_CHECKING:
    from tests.lab.outer import Outer

CPU_MODELS: Mapping[str, str] = {"x86-64": "max,+svm", "aarch64": "neoverse-n1"}
"""By architecture, the processor that is emulated. Goldens of x86-64 fit any, those of aarch64 no other."""
_JOB_S = 1800.0


def missing(architecture: str) -> str:
    """Return why there can be no machine of *architecture*; empty when there can."""
    from tests.lab import packages
    from tests.lab.architecture import ARCHITECTURES
    from tests.lab.kernels import kernel

    this = ARCHITECTURES[architecture.replace("-", "_")]
    if lacking := packages.missing_tools(this):
        return f"the lab lacks {', '.join(lacking)}; tests/lab/install.sh installs what Debian has of it"
    try:
        kernel(this, this.outer_kernel)
    except packages.LabMissingError as error:
        return f"the lab lacks {error}"
    return ""


@contextmanager
def machine(architecture: str) -> Iterator["Outer"]:
    """Boot a machine of *architecture*. Raises ConfigError naming what there is not."""
    if why := missing(architecture):
        raise ConfigError(f"no machine of {architecture}: {why}")
    from tests.lab.architecture import ARCHITECTURES
    from tests.lab.outer import LabError, Outer

    try:
        with Outer(ARCHITECTURES[architecture.replace("-", "_")], cpu=CPU_MODELS[architecture]) as outer:
            yield outer
    except LabError as error:
        raise ConfigError(f"the lab's machine of {architecture}: {error}") from error


def write_goldens(
    architecture: str, program: Path, guests: Path, folder: Path, *, release: str, date: str
) -> golden.Manifest:
    """Have the *program*, a wheel or the checkout, write goldens of *architecture* into *folder*, which is made.

    *guests* is the folder of the guests' binaries. Raises ConfigError with what was said when it fails.
    """
    with machine(architecture) as outer:
        write_goldens_in(outer, program, guests, folder, release=release, date=date)
    return golden.read_manifest(folder)


def write_goldens_in(outer: "Outer", program: Path, guests: Path, folder: Path, *, release: str, date: str) -> None:
    """Do it in a machine that is there."""
    with tempfile.TemporaryDirectory(dir=outer.share) as place:
        here = Path(place)
        copytree(guests, here / "guests", copy_function=copy2)
        if program.is_file():
            with zipfile.ZipFile(program) as archive:
                archive.extractall(here / "program")
        tree = here / "program" if program.is_file() else program
        architecture = outer.architecture.name.replace("_", "-")
        words = [outer.python, "-m", "tools.golden_maker", str(here / "goldens"), "--program", str(tree)]
        words += ["--guests", str(here / "guests"), "--release", release, "--date", date]
        done = outer.run([*words, "--cpu-model", CPU_MODELS[architecture]], timeout=_JOB_S)
        if done.code:
            raise ConfigError(f"no goldens of {architecture}: {done}")
        copytree(here / "goldens", folder)


def matrix(architecture: str, cells: Sequence[str]) -> list[Result]:
    """Run *cells*, `ROW CHECK` each, of the matrix of this checkout. Raises ConfigError when it does not run."""
    with machine(architecture) as outer:
        return matrix_in(outer, cells)


def matrix_in(outer: "Outer", cells: Sequence[str]) -> list[Result]:
    """Run them in a machine that is there."""
    only = [word for cell in cells for word in ("--only", cell)]
    done = outer.run([outer.python, "-m", "tools.matrix", "--json", "--bare", *only], timeout=_JOB_S)
    try:
        shown = msgspec.json.decode(done.stdout)
    except msgspec.DecodeError as error:
        raise ConfigError(f"the matrix does not run in the lab: {done}") from error
    return [
        Result(each["row"], each["check"], each["state"], tuple(each["reasons"]), each["decided"], each["took_s"])
        for each in shown["checks"]
    ]
