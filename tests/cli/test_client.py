"""The client's side of a control socket, against servers that are played: what it sends, and what ends it."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from snapkit.cli import snapkit
from snapkit.cli.client import Answer, Client
from snapkit.errors import ConfigError, HostError

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


class Played:
    """A server for one client: it takes a request, sends *text* and closes."""

    def __init__(self, path: str, text: bytes) -> None:
        self.path, self._text = path, text
        self.request = b""
        self._server = socket.socket(socket.AF_UNIX)
        self._server.settimeout(30)
        self._server.bind(path)
        self._server.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with self._server, self._server.accept()[0] as client:
            client.settimeout(30)
            while b"\r\n\r\n" not in self.request:
                self.request += client.recv(65536)
            client.sendall(self._text)

    @property
    def body(self) -> object:
        return json.loads(self.request.split(b"\r\n\r\n", 1)[1] or b"null")


@contextmanager
def played(folder: Path, text: bytes) -> Iterator[Played]:
    server = Played(str(folder / "s.sock"), text)
    yield server
    server.thread.join(30)
    assert not server.thread.is_alive()


def answer(status: int, content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(snapkit, words, standalone_mode=False, catch_exceptions=False)
    return done.return_value, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "line", "body"),
    [
        (["pause"], b"PATCH /vm HTTP/1.1", {"state": "Paused"}),
        (["resume"], b"PATCH /vm HTTP/1.1", {"state": "Resumed"}),
        (["stop"], b"PUT /snapkit/stop HTTP/1.1", None),
        (["snapshot", "/a/b"], b"PUT /snapshot/create HTTP/1.1", {"snapshot_type": "Full", "snapshot_path": "/a/b"}),
        (
            ["snapshot", "x/../b", "--memory-file", "c"],
            b"PUT /snapshot/create HTTP/1.1",
            {
                "snapshot_type": "Full",
                "snapshot_path": os.path.join(os.getcwd(), "b"),
                "mem_file_path": os.path.join(os.getcwd(), "c"),
            },
        ),
    ],
)
def test_every_verb_sends_what_it_should_and_is_done_at_204(tmp_path, words, line, body):
    with played(tmp_path, NO_CONTENT) as server:
        code, out, err = run(words[0], server.path, *words[1:])
    assert (code, err) == (0, "")
    assert out
    assert server.request.startswith(line)
    assert server.body == body


def test_status_shows_what_it_got(tmp_path):
    content = {"state": "running", "unclaimed": {"port": 3}, "parent_snapshot": None}
    with played(tmp_path, answer(200, content)) as server:
        code, out, _ = run("status", server.path)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [["state", "running"], ["unclaimed.port", "3"]]


def test_status_as_json_is_all_of_it(tmp_path):
    content = {"state": "running", "parent_snapshot": None}
    with played(tmp_path, answer(200, content)) as server:
        assert json.loads(run("status", server.path, "--json")[1]) == content


@pytest.mark.parametrize(
    ("status", "content", "code", "told"),
    [
        (400, {"fault_message": "no", "exit_code": 6}, 6, "no"),
        (400, {"fault_message": "a stranger's", "exit_code": "six"}, 2, "a stranger's"),
        (400, {"fault_message": "Firecracker's"}, 2, "Firecracker's"),
        (500, {}, 70, "HTTP status 500"),
        (404, [1], 2, "HTTP status 404"),
    ],
)
@pytest.mark.parametrize("verb", ["pause", "resume", "stop", "status"])
def test_an_error_is_told_on_stderr_and_gives_the_exit_code(tmp_path, verb, status, content, code, told):
    with played(tmp_path, answer(status, content)) as server:
        assert run(verb, server.path, "--json") == (code, "", f"snapkit: {told}\n")


@pytest.mark.parametrize(
    "text",
    [b"", b"HTTP/1.1 2", b"\0\0\0\0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"x" * 100_000],
)
def test_a_server_that_ends_or_speaks_something_else_is_a_host_error(tmp_path, text):
    with played(tmp_path, text) as server, Client(server.path) as client, pytest.raises(HostError, match=r"s\.sock"):
        client.ask("GET", "/")


def test_an_answer_that_comes_in_bytes_is_put_together(tmp_path):
    with played(tmp_path, answer(200, {"a": "ü" * 1000})) as server, Client(server.path) as client:
        assert client.ask("GET", "/") == Answer(200, {"a": "ü" * 1000}, {})


@pytest.mark.parametrize("kind", ["missing", "file", "folder", "stale", "datagram", "under a file", "too long", "nul"])
def test_where_no_machine_is_that_is_said(tmp_path, kind):
    path = str(tmp_path / "s")
    made = None
    if kind == "file":
        Path(path).touch()
    elif kind == "folder":
        os.mkdir(path)
    elif kind in {"stale", "datagram"}:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if kind == "stale" else socket.SOCK_DGRAM)
        made.bind(path)
    elif kind == "under a file":
        Path(path).touch()
        path += "/s"
    elif kind == "too long":
        path += "x" * 200
    elif kind == "nul":
        path += "\0"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="control socket"):
        Client(path)
    assert len(os.listdir("/proc/self/fd")) == before
    if made is not None:
        made.close()
