"""Fixtures of the lab: one outer machine for the whole run, and the files that its guests boot from."""

import os
from collections.abc import Iterator

import pytest

from tests.lab import guest, packages
from tests.lab.outer import Outer, OuterDiedError

OUTER_DIED = 75
"""Exit code of a run whose outer machine died: `make` says so and runs the lab again, at most twice."""

_died = pytest.StashKey[str]()


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


@pytest.fixture(scope="session")
def kernels() -> tuple[packages.Kernel, packages.Kernel]:
    """Give the outer machine's kernel and the guest's."""
    if lacking := packages.missing_tools():
        _lacking(", ".join(lacking))
    try:
        return packages.kernel(packages.GENERIC), packages.kernel(packages.CLOUD)
    except packages.LabMissingError as error:
        _lacking(str(error))
        raise


@pytest.fixture(scope="session")
def outer(request: pytest.FixtureRequest) -> Iterator[Outer]:
    """Boot the outer machine once; every test of the run shares it."""
    request.getfixturevalue("kernels")
    with Outer() as machine:
        yield machine


@pytest.fixture(scope="session")
def guest_files(outer: Outer, kernels: tuple[packages.Kernel, packages.Kernel]) -> guest.GuestFiles:
    """Give the guest's kernel in both forms and its root."""
    cloud = kernels[1]
    initrd = outer.share / "guest.cpio.gz"
    initrd.write_bytes(guest.initramfs())
    return guest.GuestFiles(cloud.bzimage, cloud.vmlinux, initrd)
