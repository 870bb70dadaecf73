"""Talk to a machine's control socket: one request, its answer, the exit code that goes with it."""

import errno
import json
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import click

from snapkit import host, host_sockets
from snapkit.errors import ConfigError, HostError, InternalError

_READ_LEN = 65536
_NOBODY = {
    errno.ENOENT: "there is no such socket",
    errno.ENOTDIR: "there is no such socket",
    errno.ECONNREFUSED: "nobody serves it; its machine has ended, or it is no socket",
    errno.EACCES: "permission denied",
    errno.EPROTOTYPE: "it is not a stream socket",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the machine answered: *content* is the JSON body, *snapshot* what a header says was written."""

    status: int
    content: dict[str, Any]
    snapshot: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0, or the code of the error."""
        if self.status < 300:
            return 0
        code = self.content.get("exit_code")
        if isinstance(code, int):
            return code
        return ConfigError.exit_code if self.status < 500 else InternalError.exit_code


class Client:
    """A connection to a control socket, for one request."""

    def __init__(self, path: str) -> None:
        """Connect. Raises ConfigError when no machine is there."""
        self._path = path
        if len(os.fsencode(path)) > host_sockets.UNIX_PATH_MAX or "\0" in path:
            raise ConfigError(f"control socket {path!r}: no Unix socket can have this path")
        self._fd = host_sockets.unix_socket(blocking=True)
        try:
            host_sockets.connect_unix(self._fd, path)
        except HostError as error:
            host.close(self._fd)
            if error.errno in _NOBODY:
                raise ConfigError(f"control socket {path}: {_NOBODY[error.errno]}") from error
            raise

    def ask(self, method: str, target: str, body: dict[str, Any] | None = None) -> Answer:
        """Send a request and wait for its answer. Raises HostError when the machine ends instead."""
        import h11

        payload = b"" if body is None else json.dumps(body).encode()
        http = h11.Connection(h11.CLIENT)
        headers = [("host", "localhost"), ("accept", "application/json"), ("content-length", str(len(payload)))]
        sent = http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        sent += (http.send(h11.Data(data=payload)) or b"") + (http.send(h11.EndOfMessage()) or b"")
        while sent:
            sent = sent[host.write(self._fd, sent) :]
        response, content = None, bytearray()
        try:
            while True:
                event = http.next_event()
                match event:
                    case h11.NEED_DATA:
                        http.receive_data(host.read(self._fd, _READ_LEN) or b"")
                    case h11.Response():
                        response = event
                    case h11.Data():
                        content += event.data
                    case _ if isinstance(event, h11.ConnectionClosed):
                        raise HostError("read", errno.ECONNRESET, f"{self._path}: the machine ended without an answer")
                    case h11.EndOfMessage():
                        break
        except h11.RemoteProtocolError as error:
            raise HostError("read", errno.ECONNRESET, f"{self._path}: {error}") from error
        if response is None:
            raise HostError("read", errno.ECONNRESET, f"{self._path}: no answer")
        return Answer(
            response.status_code,
            _object(bytes(content)),
            _object(dict(response.headers).get(b"snapkit-snapshot", b"")),
        )

    def wait_end(self) -> None:
        """Wait until the machine is gone, and this connection with it."""
        try:
            while host.read(self._fd, _READ_LEN):
                pass
        except HostError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        host.close(self._fd)


def order(
    path: str, method: str, target: str, body: dict[str, Any] | None = None, *, until_end: bool = False
) -> Answer:
    """Ask once; an error is told on stderr, its exit code is in the answer."""
    with Client(path) as client:
        answer = client.ask(method, target, body)
        if until_end and not answer.exit_code:
            client.wait_end()
    if answer.exit_code:
        click.echo(f"snapkit: {answer.content.get('fault_message', f'HTTP status {answer.status}')}", err=True)
    return answer


def tell(text: str, data: dict[str, Any], *, as_json: bool) -> None:
    """Print a result for a person, or as JSON."""
    click.echo(json.dumps(data) if as_json else text)


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
