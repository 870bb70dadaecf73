"""Floor 6: what things cost, as ratios to a floor or a peer measured in the same run. Nothing here fails for being slow."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.figures import Figures
from tests.bench.machines import Snapshots

HERE = os.path.dirname(os.path.abspath(__file__))
RESULT = Path(HERE).parents[1] / "build" / "bench.json"
KVM = "/dev/kvm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE + os.sep):
            item.add_marker(pytest.mark.bench)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(autouse=True)
def _kvm() -> None:
    if not os.access(KVM, os.R_OK | os.W_OK):
        pytest.skip(f"{KVM} is missing or may not be opened")


@pytest.fixture(autouse=True)
def _switch_interval() -> Iterator[None]:
    """Run as the command line does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Where figures go: printed as they come, and into build/bench.json at the end."""
    collected = Figures()
    yield collected
    collected.write(RESULT)


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    """Snapshots of the kinds that are measured, each made when first asked for."""
    return Snapshots(tmp_path_factory.mktemp("snapshots"))
