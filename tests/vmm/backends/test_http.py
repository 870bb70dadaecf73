"""One client's HTTP, without sockets: framing, order, bounds, and that no bytes whatsoever are an exception."""

import json
import random

import pytest

from snapkit.vmm.backends.http import BODY_MAX, HEAD_MAX, Conversation
from snapkit.vmm.backends.reply import Reply

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
PUT = b'PUT /b HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n{"a": 1}'
CHUNKED = b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


class Asked:
    """Answers that remember what was asked."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self._reply = reply or Reply(200, b'{"ok": true}')

    def __call__(self, method: str, target: str, body: bytes) -> Reply:
        self.requests.append((method, target, body))
        return self._reply


def taken(talk: Conversation) -> bytes:
    """What is pending, as a client takes it, until no more comes."""
    got = b""
    while talk.pending:
        got += bytes(talk.pending)
        talk.pending.clear()
        talk.go_on()
    return got


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture
def asked():
    return Asked()


def test_a_request_is_answered_with_its_json(asked):
    talk = Conversation(asked)
    talk.receive(GET)
    answer = taken(talk)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: application/json\r\n" in answer
    assert answer.endswith(b'\r\n\r\n{"ok": true}')
    assert asked.requests == [("GET", "/a", b"")]
    assert not talk.over


@pytest.mark.parametrize(("text", "body"), [(PUT, b'{"a": 1}'), (CHUNKED, b"abcde")])
def test_a_body_is_put_together_however_it_is_cut(asked, text, body):
    for cut in range(1, len(text)):
        talk = Conversation(asked)
        talk.receive(text[:cut])
        assert not talk.pending
        talk.receive(text[cut:])
        assert status_of(taken(talk)) == 200
        assert asked.requests.pop()[2] == body


def test_an_answer_without_a_body_has_no_length():
    talk = Conversation(Asked(Reply(204)))
    talk.receive(PUT)
    assert taken(talk) == b"HTTP/1.1 204 No Content\r\nserver: snapkit\r\n\r\n"


def test_requests_sent_ahead_wait_until_the_answer_before_is_taken(asked):
    talk = Conversation(asked)
    talk.receive(GET * 3)
    assert len(asked.requests) == 1
    assert talk.waiting
    talk.pending.clear()
    talk.go_on()
    assert len(asked.requests) == 2
    assert taken(talk).count(b"200 OK") == 2
    assert len(asked.requests) == 3
    assert not talk.waiting


def test_a_client_that_asks_to_continue_is_told_to(asked):
    talk = Conversation(asked)
    talk.receive(b"PUT /b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert taken(talk).startswith(b"HTTP/1.1 100")
    talk.receive(b"{}")
    assert status_of(taken(talk)) == 200
    assert asked.requests == [("PUT", "/b", b"{}")]


@pytest.mark.parametrize("head", [b"Connection: close\r\n", b""])
def test_the_connection_ends_when_the_client_wants_that_or_speaks_http_1_0(asked, head):
    talk = Conversation(asked)
    talk.receive(b"GET / HTTP/1.0\r\n\r\n" if not head else b"GET / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
    assert status_of(taken(talk)) == 200
    assert talk.over


def test_the_answer_to_head_has_no_body(asked):
    talk = Conversation(asked)
    talk.receive(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert taken(talk).endswith(b"content-length: 12\r\n\r\n")


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /" + b"a" * (HEAD_MAX + 1),
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * HEAD_MAX + b"\r\n",
    ],
)
def test_what_is_no_http_is_refused_once_and_the_connection_ends(asked, text):
    talk = Conversation(asked)
    for at in range(0, len(text), 4096):
        if not talk.over:
            talk.receive(text[at : at + 4096])
    answer = taken(talk)
    assert 400 <= status_of(answer) < 600
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["fault_message"].startswith("this is no HTTP request: ")
    assert talk.over
    assert asked.requests == []


@pytest.mark.parametrize(
    "text",
    [
        f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_MAX + 1}\r\n\r\n".encode(),
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n"
        + (b"x" * 4096 + b"\r\n1000\r\n") * (BODY_MAX // 4096 + 1),
    ],
    ids=["announced", "absurd", "chunks"],
)
def test_a_body_that_is_too_long_is_refused_before_it_is_kept(asked, text):
    talk = Conversation(asked)
    talk.receive(text)
    assert status_of(taken(talk)) == 413
    assert talk.over
    assert asked.requests == []


def test_the_longest_body_is_taken(asked):
    talk = Conversation(asked)
    talk.receive(f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_MAX}\r\n\r\n".encode() + b"x" * BODY_MAX)
    assert status_of(taken(talk)) == 200
    assert len(asked.requests[0][2]) == BODY_MAX


@pytest.mark.parametrize("cut", [1, 20, len(PUT) - 1])
def test_a_client_that_ends_half_way_is_over_and_was_not_obeyed(asked, cut):
    talk = Conversation(asked)
    talk.receive(PUT[:cut])
    talk.receive(b"")
    taken(talk)
    assert talk.over
    assert asked.requests == []


def test_no_bytes_raise_or_pile_up(asked):
    rng = random.Random(5)
    words = [
        GET,
        PUT,
        CHUNKED,
        b"\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1",
        b"Content-Length: ",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    ended = 0
    for _ in range(3000):
        text = bytearray(b"".join(rng.choices(words, k=rng.randrange(1, 5))))
        for _ in range(rng.randrange(4)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        talk = Conversation(asked)
        while text and not talk.over:
            cut = rng.randrange(1, len(text) + 1)
            talk.receive(bytes(text[:cut]))
            del text[:cut]
            assert len(talk.pending) < 1024
            taken(talk)
        if not talk.over:
            talk.receive(b"")
            taken(talk)
        ended += talk.over
    assert ended == 3000
    assert len(asked.requests) > 500
