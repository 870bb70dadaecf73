"""One client's HTTP/1.1 (RFC 9112), without I/O: bytes in, requests answered, bytes out, all of it bounded.

h11 does the framing and bounds heads; this bounds bodies, answers one request at a time (what a client sends ahead
waits until it has taken its answer), and turns whatever is not HTTP into one last answer.
"""

import json

import h11

from snapkit.vmm.backends.reply import Answer, Reply

HEAD_MAX = 8 << 10
BODY_MAX = 50 << 10  # what Firecracker takes unless told otherwise
_TOO_LARGE = 413
_REASONS = {200: "OK", 204: "No Content", 400: "Bad Request", 413: "Content Too Large", 500: "Internal Server Error"}


class Conversation:
    """One connection. Write `pending` to the client, then call `go_on`; once `over`, close it when that is written."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self.pending = bytearray()
        self.over = False
        self.answered = 0

    def receive(self, payload: bytes) -> None:
        """Take what the client sent; nothing means that it sends no more. Only when nothing is pending."""
        self._http.receive_data(payload)
        self.go_on()

    def go_on(self) -> None:
        """Look at what came and was not looked at yet, up to the next request that can be answered."""
        try:
            if not self.over and self._http.our_state is h11.DONE:
                self._http.start_next_cycle()
            while not self.over and not self.pending and self._step():
                pass
        except h11.ProtocolError as error:
            hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 500
            self._refuse(hint, f"this is no HTTP request: {error}")

    @property
    def waiting(self) -> bool:
        """Whether there may be a request that the client sent ahead of its turn."""
        return not self.over and bool(self._http.trailing_data[0])

    def _step(self) -> bool:
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._send(h11.InformationalResponse(status_code=100, headers=[]))
            return False
        match event:
            case h11.Request():
                self._request = event
                self._body.clear()
                if any(name == b"content-length" and int(value) > BODY_MAX for name, value in event.headers):
                    self._refuse(_TOO_LARGE, f"the body is longer than {BODY_MAX} bytes")
            case h11.Data():
                self._body += event.data
                if len(self._body) > BODY_MAX:
                    self._refuse(_TOO_LARGE, f"the body is longer than {BODY_MAX} bytes")
            case h11.EndOfMessage():
                self._reply()
            case _:  # the connection was closed, or what follows is none of HTTP's business
                self.over = True
        return True

    def _reply(self) -> None:
        request = self._request
        if request is None:
            return
        reply = self._answer(request.method.decode(), request.target.decode(), bytes(self._body))
        self._body.clear()
        self._respond(reply)
        self.answered += 1
        if self._http.our_state is not h11.DONE:
            self.over = True

    def _refuse(self, status: int, message: str) -> None:
        """Say what is wrong, if anything can be said yet, and have the connection closed."""
        if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = json.dumps({"fault_message": message, "exit_code": 2}).encode()
            self._respond(Reply(status, body, (("connection", "close"),)))
        self.over = True

    def _respond(self, reply: Reply) -> None:
        headers = [("server", "snapkit"), *reply.headers]
        if reply.body:
            headers += [("content-type", "application/json"), ("content-length", str(len(reply.body)))]
        elif reply.status != 204:
            headers.append(("content-length", "0"))
        self._send(h11.Response(status_code=reply.status, reason=_REASONS.get(reply.status, ""), headers=headers))
        if reply.body and not (self._request is not None and self._request.method == b"HEAD"):
            self._send(h11.Data(data=reply.body))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> None:
        self.pending += self._http.send(event) or b""
