"""What an HTTP request is answered with, and by whom: apart from `http`, whose import costs 30 ms."""

from collections.abc import Callable
from typing import NamedTuple


class Reply(NamedTuple):
    """A status, JSON or nothing, and more headers."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Answer = Callable[[str, str, bytes], Reply]
"""Called with method, target and body of each request; must not raise."""
