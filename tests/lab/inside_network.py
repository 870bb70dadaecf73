"""Runs inside the outer machine: the host's end of what a guest talks to over network and vsock.

Orders come as lines on stdin, answers go to stdout, one line each, `ID OK TEXT` or `ID ERROR TEXT`:

| order | does |
|---|---|
| `ID tcp PORT` | echoes on every TCP connection to PORT, until this program ends |
| `ID unix PATH` | the same on a Unix socket: the end of guest connections in Firecracker's convention |
| `ID vsock PORT` | the same on an AF_VSOCK port: the end of guest connections with vhost |
| `ID call-unix PATH PORT TEXT` | connects to the guest's PORT by Firecracker's convention, sends TEXT, gives the line that returns |
| `ID call-vsock CID PORT TEXT` | the same by AF_VSOCK |
| `ID sink PORT SECONDS` | gives bytes a second that come in on the next connection to PORT, after its first second |
| `ID source PORT SECONDS` | the same for bytes that leave: what the guest has taken is known by what TCP has acknowledged |

Only the standard library, one thread each: everything is some thirty times slower here.
"""

import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable

CALL_S = 60
WARM_S = 1.0  # of a stream, not counted
BLOCK = 1 << 18
SIOCOUTQ = termios.TIOCOUTQ  # bytes sent and not yet acknowledged

_answering = threading.Lock()


def main() -> None:
    """Take orders until stdin ends."""
    for line in sys.stdin:
        threading.Thread(target=_obey, args=(line.split(),), daemon=True).start()


def _obey(words: list[str]) -> None:
    name, verb, *rest = words
    try:
        text = _VERBS[verb](*rest)
    except (OSError, EOFError) as error:
        _answer(f"{name} ERROR {error!r}")
    else:
        _answer(f"{name} OK {text}")


def _answer(line: str) -> None:
    with _answering:
        print(line, flush=True)


def _listen(listener: socket.socket) -> str:
    listener.listen()
    threading.Thread(target=_echo_all, args=(listener,), daemon=True).start()
    return "listening"


def _echo_all(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while part := connection.recv(BLOCK):
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)


def _tcp_listener(port: str) -> socket.socket:
    # Bound to no address: the guest's side of the machine changes its TAP under the connections.
    return socket.create_server(("", int(port)), reuse_port=True)


def _tcp(port: str) -> str:
    return _listen(_tcp_listener(port))


def _unix(path: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    return _listen(listener)


def _vsock(port: str) -> str:
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, int(port)))
    return _listen(listener)


def _call_unix(path: str, port: str, text: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CALL_S)
        connection.connect(path)
        connection.sendall(f"CONNECT {port}\n".encode())
        answer = _line(connection)
        if not answer.startswith("OK "):
            raise EOFError(answer)
        return _exchange(connection, text)


def _call_vsock(cid: str, port: str, text: str) -> str:
    with socket.socket(socket.AF_VSOCK) as connection:
        connection.settimeout(CALL_S)
        connection.connect((int(cid), int(port)))
        return _exchange(connection, text)


def _exchange(connection: socket.socket, text: str) -> str:
    connection.sendall(text.encode() + b"\n")
    return _line(connection)


def _line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        if not (part := connection.recv(1)):
            raise EOFError(f"hung up after {line!r}")
        line += part
    return line.decode().strip()


def _sink(port: str, seconds: str) -> str:
    block = bytearray(BLOCK)
    with _tcp_listener(port) as listener:
        connection, _ = listener.accept()
    with connection:

        def take() -> int:
            count: int = connection.recv_into(block)
            if count:
                return count
            raise EOFError("the guest hung up")

        return _rate(float(seconds), take)


def _source(port: str, seconds: str) -> str:
    block = bytes(BLOCK)
    with _tcp_listener(port) as listener:
        connection, _ = listener.accept()
    queued = 0
    with connection:

        def send() -> int:
            nonlocal queued
            sent, before = connection.send(block), queued
            (queued,) = struct.unpack("i", fcntl.ioctl(connection, SIOCOUTQ, bytes(4)))
            return int(sent - queued + before)

        return _rate(float(seconds), send)


def _rate(seconds: float, step: Callable[[], int]) -> str:
    begin = start = time.monotonic()
    total, warm = 0, False
    while (now := time.monotonic()) - start < seconds or not warm:
        if not warm and now - begin > WARM_S:
            warm, start, total = True, now, 0
        total += step()
    return f"{total / (now - start):.0f}"


_VERBS: dict[str, Callable[..., str]] = {
    "tcp": _tcp,
    "unix": _unix,
    "vsock": _vsock,
    "call-unix": _call_unix,
    "call-vsock": _call_vsock,
    "sink": _sink,
    "source": _source,
}

if __name__ == "__main__":
    main()
