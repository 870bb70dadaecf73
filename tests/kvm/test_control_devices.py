"""Devices of a running machine over its control socket, while a real guest uses them."""

import os
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import ConfigError, IncompatibleHost
from snapkit.units import MIB
from snapkit.vmm.backends.disk import DiskOptions, open_disk
from snapkit.vmm.parts.fresh import Asked
from tests.guests.build import guest
from tests.guests.device_lines import device_sums
from tests.kvm.harness import Rig, booted, restored
from tests.kvm.test_control import ask, driven, snapshot

MEMORY = 4 * MIB


def devices(folder: Path) -> tuple[Asked, ...]:
    with open(folder / "first.img", "wb") as file:
        file.truncate(MIB)
    return (
        Asked("virtio-block", "root", {"path": str(folder / "first.img")}),
        Asked("virtio-rng", "rng"),
        Asked("virtio-balloon", "balloon"),
        Asked("virtio-vsock", "v0", {"cid": "3", "uds": str(folder / "v.sock")}),
    )


def rounds(rig: Rig, more: int = 2) -> None:
    """Wait for *more* rounds of the guest."""
    rig.tape.wait_for("sum ", rig.tape.text.count("sum ") + more)


def right(text: str) -> None:
    assert "failed" not in text, text
    found = re.findall(r"(io \d+ sum [0-9a-f]+) ", text)
    assert found == list(islice(device_sums(), len(found)))


def get(sock: str, target: str) -> dict[str, Any]:
    answer = ask(sock, "GET", target)
    assert answer.status == 200
    found: dict[str, Any] = answer.content
    return found


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return str(tmp_path / "c.sock")


def test_a_disk_moves_to_a_copy_under_its_guest_and_the_first_image_is_let_go(tmp_path, sock, transport):
    first, second = str(tmp_path / "first.img"), str(tmp_path / "second.img")
    with (
        booted(guest("devices"), memory=MEMORY, devices=devices(tmp_path), transport=transport) as rig,
        driven(rig.run(), sock),
    ):
        rounds(rig)
        assert ask(sock, "PATCH", "/vm", {"state": "Paused"}).status == 204
        shutil.copyfile(first, second)
        assert ask(sock, "PATCH", "/drives/root", {"drive_id": "root", "path_on_host": second}).status == 204
        assert ask(sock, "PATCH", "/vm", {"state": "Resumed"}).status == 204
        before = os.stat(first).st_mtime_ns
        rounds(rig, 3)
        assert get(sock, "/drives/root")["path_on_host"] == second
        with open(first, "rb") as old, open(second, "rb") as new:
            assert old.read() != new.read()
        assert os.stat(first).st_mtime_ns == before
        assert snapshot(sock, tmp_path / "m.snap").status == 204
        rounds(rig, 2)
        right(rig.tape.text)
    with pytest.raises(IncompatibleHost, match=r"disk root is not as it was saved"), restored(str(tmp_path / "m.snap")):
        pass  # the guest went on writing to second.img behind the snapshot


def test_a_disk_takes_its_own_image_again_under_its_guest_and_keeps_the_lock(tmp_path, sock, transport):
    first = str(tmp_path / "first.img")
    with (
        booted(guest("devices"), memory=MEMORY, devices=devices(tmp_path), transport=transport) as rig,
        driven(rig.run(), sock),
    ):
        rounds(rig)
        assert ask(sock, "PATCH", "/drives/root", {"drive_id": "root", "path_on_host": first}).status == 204
        rounds(rig)
        os.truncate(first, 2 * MIB)
        assert ask(sock, "PATCH", "/drives/root", {"path_on_host": first}).status == 204
        told = get(sock, "/drives/root")
        assert (told["path_on_host"], told["capacity"]) == (first, 2 * MIB)
        with pytest.raises(ConfigError, match="is in use by this process"):
            open_disk(DiskOptions("other", first))
        rounds(rig, 3)
        assert ask(sock, "PATCH", "/vm", {"state": "Paused"}).status == 204
        assert snapshot(sock, tmp_path / "m.snap").status == 204
        before = rig.tape.text
    with restored(str(tmp_path / "m.snap")) as again:
        again.run()
        again.serve_until(f"io {before.count('sum ') + 3} ")
        right(before + again.tape.text)


def test_a_snapshot_names_the_image_that_the_disk_has_now(tmp_path, sock):
    second = str(tmp_path / "second.img")
    with (
        booted(guest("devices"), memory=MEMORY, devices=devices(tmp_path), transport="pci") as rig,
        driven(rig.run(), sock),
    ):
        rounds(rig)
        assert ask(sock, "PATCH", "/vm", {"state": "Paused"}).status == 204
        shutil.copyfile(tmp_path / "first.img", second)
        assert ask(sock, "PATCH", "/drives/root", {"path_on_host": second}).status == 204
        assert snapshot(sock, tmp_path / "m.snap").status == 204
        before = rig.tape.text
    os.unlink(tmp_path / "first.img")
    with restored(str(tmp_path / "m.snap")) as again:
        again.run()
        again.serve_until(f"io {before.count('sum ') + 3} ")
        right(before + again.tape.text)


def test_rate_limits_change_while_requests_come(tmp_path, sock, transport):
    with (
        booted(guest("devices"), memory=MEMORY, devices=devices(tmp_path), transport=transport) as rig,
        driven(rig.run(), sock),
    ):
        rounds(rig)
        limit = {"size": 1, "refill_time": 50}
        assert ask(sock, "PATCH", "/drives/root", {"rate_limiter": {"ops": limit}}).status == 204
        rounds(rig)
        assert get(sock, "/drives/root/rate_limiter")["ops"]["size"] == 1
        standstill = {"size": 1, "refill_time": 3_600_000}
        assert ask(sock, "PATCH", "/drives/root/rate_limiter", {"ops": standstill}).status == 204
        assert snapshot(sock, tmp_path / "m.snap").status == 204  # with a request that the limiter holds back
        none = {"size": 0, "refill_time": 0}
        assert ask(sock, "PATCH", "/drives/root/rate_limiter", {"ops": none}).status == 204
        rounds(rig, 3)
        assert get(sock, "/drives/root/rate_limiter") == {}
        right(rig.tape.text)


def test_the_balloons_target_reaches_a_running_guest(tmp_path, sock, transport):
    with (
        booted(guest("devices"), memory=MEMORY, devices=devices(tmp_path), transport=transport) as rig,
        driven(rig.run(), sock),
    ):
        rounds(rig)
        assert ask(sock, "PATCH", "/balloon", {"amount_mib": 3}).status == 204
        told = get(sock, "/balloon")
        assert told["amount_mib"] == 3
        discarded = told["discarded_pages"]
        rounds(rig, 3)
        assert get(sock, "/balloon")["discarded_pages"] > discarded  # a page a round, whatever its target
        answer = ask(sock, "PATCH", "/balloon", {"amount_mib": 5})
        assert answer.status == 400
        right(rig.tape.text)


def test_status_counts_the_faults_of_every_device(tmp_path, sock, transport):
    with (
        booted(guest("devices"), memory=MEMORY, devices=devices(tmp_path), transport=transport) as rig,
        driven(rig.run(), sock),
    ):
        rounds(rig)
        faults = get(sock, "/snapkit/status")["faults"]
        carriers = (
            {"virtio-pci/root", "pci-msix/root", "pci-function/root"} if transport == "pci" else {"virtio-mmio/root"}
        )
        assert carriers | {"virtio-block/root", "virtio-rng/rng", "virtio-balloon/balloon"} <= set(faults)
        assert set(faults.values()) == {0}
