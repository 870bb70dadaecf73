"""A name for a listening socket: whose it may be, what it may replace, when it goes."""

import os
import socket
import stat
from pathlib import Path

import pytest

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.vmm.backends.unix_listener import UnixListener


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s.sock")


def stale(path: str) -> None:
    """A socket file whose process has gone."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()


def reaches(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_use_it_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        listener = UnixListener(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    listener.close()


def test_it_listens_as_soon_as_it_has_its_name_and_the_folder_holds_nothing_else(path, tmp_path):
    listener = UnixListener(path)
    assert reaches(path)
    assert os.listdir(tmp_path) == ["s.sock"]
    listener.close()
    assert os.listdir(tmp_path) == []


def test_a_stale_socket_is_replaced(path, tmp_path):
    stale(path)
    assert not reaches(path)
    listener = UnixListener(path)
    assert reaches(path)
    assert os.listdir(tmp_path) == ["s.sock"]
    listener.close()


def test_a_live_socket_is_refused_and_stays_alive(path, tmp_path):
    first = UnixListener(path)
    with pytest.raises(ConfigError, match="served by another process"):
        UnixListener(path)
    assert reaches(path)
    assert os.listdir(tmp_path) == ["s.sock"]
    first.close()


def test_one_whose_backlog_is_full_is_alive(path):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen(0)
        client.connect(path)
        with pytest.raises(ConfigError, match="served by another process"):
            UnixListener(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_no_socket_is_refused_and_left_alone(path, tmp_path, kind):
    other = str(tmp_path / "other")
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "folder":
        os.mkdir(path)
    else:
        if kind == "link":
            stale(other)
        os.symlink(other, path)
    before = os.lstat(path)
    with pytest.raises(ConfigError, match="exists and is no socket"):
        UnixListener(path)
    assert os.lstat(path).st_ino == before.st_ino


@pytest.mark.parametrize("name", ["missing/s.sock", "a\0b", "", "x" * 200, "d" * 90 + "/s", "file/s.sock"])
def test_a_path_that_cannot_be_is_a_config_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        UnixListener(f"{tmp_path}/{name}")
    assert os.listdir(tmp_path) == ["file"]


def test_closing_leaves_a_socket_that_took_the_name_meanwhile(path):
    first = UnixListener(path)
    os.unlink(path)
    second = UnixListener(path)
    first.close()
    assert reaches(path)
    second.close()
    assert not os.path.lexists(path)


def test_closing_twice_or_after_the_name_has_gone_is_fine(path):
    listener = UnixListener(path)
    os.unlink(path)
    listener.close()
    listener.close()
    assert listener.fd == -1


def test_two_that_find_the_same_stale_socket_do_not_remove_each_others(path, monkeypatch):
    stale(path)
    real = host.rename
    others: list[UnixListener] = []

    def rename(source: str, target: str) -> None:
        monkeypatch.setattr(host, "rename", real)
        others.append(UnixListener(path))  # just now another one is faster
        real(source, target)

    monkeypatch.setattr(host, "rename", rename)
    with pytest.raises(ConfigError, match="taken by another process just now"):
        UnixListener(path)
    assert reaches(path)
    others[0].close()
    assert os.listdir(os.path.dirname(path)) == []


def test_a_failure_at_any_system_call_leaves_nothing_behind(path, tmp_path):
    fds = len(os.listdir("/proc/self/fd"))
    for at in range(40):
        stale(path)
        calls: list[str] = []

        def spoil(call: str, _arguments: tuple[object, ...], calls: list[str] = calls, at: int = at) -> None:
            calls.append(call)
            if len(calls) == at + 1:
                raise OSError(5, "injected")

        listener, told = None, ""
        with host.inject(spoil):
            try:
                listener = UnixListener(path)
            except (HostError, ConfigError) as error:
                told = str(error)
        if listener is not None:
            listener.close()
        else:
            assert "EIO" in told or "served by another" in told, told  # not knowing whether it lives counts as alive
        names = [name for name in os.listdir(tmp_path) if name != "s.sock"]
        assert not names or calls[at] == "unlink", (calls[at], names)  # what cannot be unlinked stays
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)
        assert len(os.listdir("/proc/self/fd")) == fds, calls[at]
        if len(calls) <= at:
            break
    assert len(calls) == at > 8
