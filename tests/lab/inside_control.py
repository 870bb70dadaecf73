"""Runs inside the outer machine: one request to a control socket, or some to QEMU's, without starting more than Python.

    inside_control.py http SOCK METHOD PATH [BODY]     prints the answer's body; exits 1 unless its status is 2xx
    inside_control.py qmp SOCK COMMAND...              each COMMAND is JSON, or `saved` or `running`, which wait for that

Only the standard library, and little of it: everything is some thirty times slower here.
"""

import json
import socket
import sys
import time
from typing import IO, Any

PATIENCE_S = 300


def main(kind: str, path: str, *words: str) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(path)
        return _http(connection, *words) if kind == "http" else _qmp(connection, *words)


def _http(connection: socket.socket, method: str, path: str, body: str = "") -> int:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n"
    connection.sendall((head + body).encode())
    blob = b""
    while b"\r\n\r\n" not in blob:
        blob += _more(connection)
    top, _, rest = blob.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = int(fields.get("content-length", 0))
    while len(rest) < length:
        rest += _more(connection)
    print(rest.decode())
    status = int(lines[0].split()[1])
    if not 200 <= status < 300:
        print(lines[0], file=sys.stderr)
        return 1
    return 0


def _qmp(connection: socket.socket, *commands: str) -> int:
    file = connection.makefile("rw")
    for command in ('{"execute": "qmp_capabilities"}', *commands):
        answer = _until(file, command) if command in _WAITS else _ask(file, json.loads(command))
        print(json.dumps(answer))
        if "error" in answer:
            return 1
    return 0


_WAITS = {"saved": ("query-migrate", {"completed"}), "running": ("query-status", {"running"})}


def _until(file: IO[str], state: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    query, wanted = _WAITS[state]
    while time.monotonic() < deadline:
        answer = _ask(file, {"execute": query})
        status = answer.get("return", {}).get("status")
        if status in wanted:
            return answer
        if status in {"failed", "cancelled"} or "error" in answer:
            return {"error": answer}
        time.sleep(0.1)
    return {"error": f"{query} never gives {wanted}"}


def _ask(file: IO[str], command: dict[str, Any]) -> dict[str, Any]:
    file.write(json.dumps(command) + "\n")
    file.flush()
    while line := file.readline():
        answer: dict[str, Any] = json.loads(line)
        if "return" in answer or "error" in answer:
            return answer
    return {"error": "QEMU hung up"}


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise EOFError("hung up")
    return part


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
