"""The guest's root and the readers of its output. These need no machine."""

import pytest

from tests.lab import guest
from tests.lab.cpio import Initramfs


def _console(cpu: int, last: int, work: int = guest.WORK) -> list[str]:
    total, printed = 0, []
    for n in range(1, last + 1):
        total = guest.advance(total, n, work)
        printed.append(f"W{cpu} {n} {total} {n / 10:.2f}")
    return printed


def test_an_archive_is_the_same_bytes_for_the_same_contents_in_any_order() -> None:
    first, second = Initramfs(), Initramfs()
    first.file("a/b", b"1")
    first.link("c", "a")
    second.link("c", "a")
    second.file("a/b", b"1")
    assert first.pack() == second.pack()


def test_whole_count_has_no_fault() -> None:
    console = "\r\n".join(["INIT 1.00", "MARK", *_console(0, guest.COUNT), *_console(1, guest.COUNT), ""])
    found = guest.count_lines(console)
    assert sorted(found) == [0, 1]
    assert [guest.count_faults(found[cpu]) for cpu in found] == [[], []]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda lines: lines[:3] + lines[4:], "line 5 where 4 was due"),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], "line 4 where 5 was due"),
        (lambda lines: lines[:-1], "ended after line 9, wanted 10"),
        (lambda lines: [*lines[:5], lines[5].replace("0.60", "0.10"), *lines[6:]], "uptime went back"),
        (lambda lines: [*lines[:5], "W0 6 1 0.60", *lines[6:]], "line 6 carries 1"),
    ],
    ids=["lost", "repeated", "cut short", "time went back", "work lost"],
)
def test_a_fault_in_the_count_is_named(edit, words: str) -> None:
    lines = edit(_console(0, 10))
    found = guest.count_lines("\n".join([*lines, ""]))
    assert any(words in fault for fault in guest.count_faults(found[0], last=10))


def test_a_line_cut_off_by_a_snapshot_is_not_counted() -> None:
    lines = _console(0, 3)
    assert [entry.n for entry in guest.count_lines("\n".join(lines))[0]] == [1, 2]


def test_lines_continued_in_another_console_are_judged_from_their_first_number() -> None:
    found = guest.count_lines("\n".join([*_console(1, 10)[4:], ""]))
    assert guest.count_faults(found[1], first=5, last=10) == []


def test_the_kernels_log_after_the_mark_comes_without_times() -> None:
    console = (
        "DMESG-BEGIN\r\n[    0.1] early\r\n[    2.00] snapkit-mark\r\n[   12.34] late\r\nDMESG-END\r\nUPTIME 4.00\r\n"
    )
    assert guest.kernel_log_after_mark(console) == ["late"]
    assert guest.value(console, "UPTIME") == "4.00"


def test_interrupt_lines_are_read_by_number_and_names_with_each_cpus_count() -> None:
    text = "           CPU0       CPU1\r\n 24:         10          2   PCI-MSI 16384-edge      virtio0-config\r\nERR:          0\r\n"
    assert guest.interrupts(text) == {"24 PCI-MSI 16384-edge virtio0-config": [10, 2], "ERR": [0]}
