"""The event loop: order, fairness, what may be asked from where."""

import os
import threading

import pytest

from snapkit import host
from snapkit.errors import HostError
from snapkit.vmm.loop import Loop


@pytest.fixture
def loop():
    with Loop() as made:
        yield made


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_what_other_threads_post_runs_on_the_loop_in_order(loop):
    seen: list[tuple[int, int]] = []
    main = threading.get_ident()

    def work() -> None:
        for number in range(1000):
            loop.post(lambda number=number: seen.append((number, threading.get_ident())))
        loop.post(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run()
    thread.join()
    assert seen == [(number, main) for number in range(1000)]


def test_an_fd_is_served_while_callbacks_keep_posting_each_other(loop, pipe):
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        assert turns < 10_000, "the fd was never looked at"
        loop.post(again)

    loop.watch(pipe[0], host.EPOLLIN, lambda _events: loop.stop())
    os.write(pipe[1], b"x")
    loop.post(again)
    loop.run()


def test_what_was_posted_before_a_stop_waits_for_the_next_run(loop):
    seen: list[str] = []

    def note(name: str) -> None:
        seen.append(name)
        loop.stop()

    loop.post(lambda: note("first"))
    loop.post(lambda: note("second"))
    loop.run()
    assert seen == ["first"]
    loop.run()
    assert seen == ["first", "second"]


def test_deadlines_come_in_their_order_and_not_early(loop):
    start = host.monotonic_ns()
    seen: list[tuple[str, bool]] = []

    def note(name: str, due_ns: int) -> None:
        loop.call_at(due_ns, lambda: seen.append((name, host.monotonic_ns() >= due_ns)))

    note("late", start + 30_000_000)
    note("past", start - 1)
    note("soon", start + 10_000_000)
    note("soon too", start + 10_000_000)
    loop.call_at(start + 40_000_000, loop.stop)
    loop.run()
    assert seen == [("past", True), ("soon", True), ("soon too", True), ("late", True)]


def test_an_unwatched_fd_is_not_served_even_if_its_event_is_at_hand(loop, pipe):
    other = os.pipe()
    served: list[int] = []

    def serve(which: int, rest: int) -> None:
        served.append(which)
        loop.unwatch(rest)
        loop.post(loop.stop)

    loop.watch(pipe[0], host.EPOLLIN, lambda _events: serve(pipe[0], other[0]))
    loop.watch(other[0], host.EPOLLIN, lambda _events: serve(other[0], pipe[0]))
    os.write(pipe[1], b"x")
    os.write(other[1], b"x")
    loop.run()
    for fd in other:
        os.close(fd)
    assert len(set(served)) == 1


def test_watching_again_changes_events_and_callback(loop, pipe):
    loop.watch(pipe[1], host.EPOLLIN, lambda _events: pytest.fail("the first callback is gone"))
    loop.watch(pipe[1], host.EPOLLOUT, lambda _events: loop.stop())
    loop.run()
    loop.unwatch(pipe[1])
    loop.unwatch(pipe[1])


def test_a_regular_file_cannot_be_watched_and_a_closed_fd_is_an_error(loop, tmp_path, pipe):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert loop.watch(fd, host.EPOLLIN, lambda _events: None) is False
    os.close(fd)
    with pytest.raises(HostError, match="EBADF"):
        loop.watch(fd, host.EPOLLIN, lambda _events: None)
    assert loop.watch(pipe[0], host.EPOLLIN, lambda _events: None) is True


def test_an_error_out_of_a_callback_comes_out_of_run_and_the_loop_can_go_on(loop):
    def fail() -> None:
        raise ValueError("from the callback")

    loop.post(fail)
    loop.post(loop.stop)
    with pytest.raises(ValueError, match="from the callback"):
        loop.run()
    loop.post(loop.stop)
    loop.run()
