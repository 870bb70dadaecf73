"""Fixtures of the lab: one outer machine for the whole run, and the files that its guests boot from."""

import os
from collections.abc import Iterator

import pytest

from tests.lab import guest, packages
from tests.lab.architecture import AARCH64, ARCHITECTURES, X86_64, Architecture
from tests.lab.kernels import Kernel, kernel
from tests.lab.outer import Outer, OuterDiedError
from tests.lab.root import root
from tests.lab.stage import Stage

OUTER_DIED = 75
"""Exit code of a run whose outer machine died: `make` says so and runs the lab again, at most twice."""

ITEM_S = 2400
"""For a test that sets no bound of its own. The bounds that count are those of jobs, which say what was seen when they run out:
1800 s for the longest (`tools.elsewhere`), 240 s for a machine to boot, 120 s for it to answer. The 300 s of other tests are
shorter, and end the whole run with `os._exit`, machines and all."""
HERE = os.path.dirname(os.path.abspath(__file__))

_died = pytest.StashKey[str]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE + os.sep) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(ITEM_S))


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo[object]) -> None:
    """Note that the outer machine died, and stop: every later test would fail for the same reason."""
    if call.excinfo is not None and isinstance(call.excinfo.value, OuterDiedError):
        node.config.stash.setdefault(_died, str(call.excinfo.value))
        node.session.shouldstop = "the outer machine died"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell a dead outer machine apart from a failed test."""
    if _died in session.config.stash:
        print(f"\nthe outer machine died: {session.config.stash[_died]}")
        session.exitstatus = OUTER_DIED


def _lacking(reason: str) -> None:
    """Skip, naming what is missing, or fail where the lab is required."""
    text = f"the lab lacks {reason}; tests/lab/install.sh installs what Debian has of it"
    if "lab" in os.environ.get("SNAPKIT_REQUIRE", "").split(","):
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _kernels(architecture: Architecture) -> tuple[Kernel, Kernel]:
    if lacking := packages.missing_tools(architecture):
        _lacking(", ".join(lacking))
    try:
        if not architecture.is_host:
            root(architecture)
        return kernel(architecture, architecture.outer_kernel), kernel(architecture, architecture.guest_kernel)
    except packages.LabMissingError as error:
        _lacking(str(error))
        raise


def _guest_files(outer: Outer, cloud: Kernel) -> guest.GuestFiles:
    initrd = outer.share / "guest.cpio.gz"
    initrd.write_bytes(guest.initramfs(outer.architecture, cloud))
    return guest.GuestFiles(cloud.packed, cloud.plain, initrd)


@pytest.fixture(scope="session")
def kernels() -> tuple[Kernel, Kernel]:
    """Give the outer machine's kernel and the guest's."""
    return _kernels(X86_64)


@pytest.fixture(scope="session")
def outer(request: pytest.FixtureRequest) -> Iterator[Outer]:
    """Boot the outer machine once; every test of the run shares it."""
    request.getfixturevalue("kernels")
    with Outer() as machine:
        yield machine


@pytest.fixture(scope="session")
def guest_files(outer: Outer, kernels: tuple[Kernel, Kernel]) -> guest.GuestFiles:
    """Give the guest's kernel in both forms and its root."""
    return _guest_files(outer, kernels[1])


@pytest.fixture(scope="session")
def kernels_aarch64() -> tuple[Kernel, Kernel]:
    """Give the aarch64 outer machine's kernel and the guest's."""
    return _kernels(AARCH64)


@pytest.fixture(scope="session")
def outer_aarch64(request: pytest.FixtureRequest) -> Iterator[Outer]:
    """Boot the aarch64 outer machine once; every test of the run shares it."""
    request.getfixturevalue("kernels_aarch64")
    with Outer(AARCH64) as machine:
        yield machine


@pytest.fixture(scope="session")
def guest_files_aarch64(outer_aarch64: Outer, kernels_aarch64: tuple[Kernel, Kernel]) -> guest.GuestFiles:
    """Give the aarch64 guest's kernel in both forms and its root."""
    return _guest_files(outer_aarch64, kernels_aarch64[1])


@pytest.fixture(scope="session", params=ARCHITECTURES)
def stage(request: pytest.FixtureRequest) -> Stage:
    """Give the outer machine of each architecture, with its guests' files."""
    suffix = "" if ARCHITECTURES[request.param] is X86_64 else f"_{request.param}"
    return Stage(*(request.getfixturevalue(name + suffix) for name in ("outer", "kernels", "guest_files")))
