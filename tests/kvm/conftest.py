"""Floor 3: real `/dev/kvm`, real interrupts, guests of a few hundred lines built from `tests/guests`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapkit.vmm.parts.fresh import Transport
from tests.kvm.harness import Census, need_kvm
from tests.kvm.virtio_bench import CONTENT, TRANSPORTS, Bench, bench_of, disk

HERE = os.path.dirname(os.path.abspath(__file__))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE + os.sep):
            item.add_marker(pytest.mark.kvm)


@pytest.fixture(autouse=True)
def _kvm() -> None:
    need_kvm()


@pytest.fixture(autouse=True)
def _switch_interval() -> Iterator[None]:
    """Run as the command line does: an exit beside a busy thread must not wait 5 ms for the interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's folder without the test in its name: a Unix socket's path has at most 107 bytes (unix(7))."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Census:
    """What this process holds; ask it again later."""
    return Census(monkeypatch, str(tmp_path))


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    found: Transport = request.param
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image of CONTENT."""
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def block(transport: Transport, tmp_path: Path, image: Path) -> Iterator[Bench]:
    """A machine with the disk *image*."""
    with bench_of(transport, tmp_path, disk(image)) as bench:
        yield bench
