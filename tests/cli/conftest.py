"""Commands in processes of their own; most need no KVM."""

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's folder without the test in its name: a Unix socket's path has at most 107 bytes (unix(7))."""
    return tmp_path_factory.mktemp("t")
