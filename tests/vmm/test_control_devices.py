"""Devices over the control socket: what GET shows of each, what PATCH changes on a running machine, what is refused."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import HostError
from snapkit.state.schema import SectionId
from snapkit.units import MIB
from snapkit.vmm.backends.reply import Reply
from tests.vmm.test_control import Rig as Bare
from tests.vmm.virtio.paper import guarded_memory
from tests.vmm.virtio.whole import DISK_SECTORS, Whole

RAM = [(0, 4 * MIB)]
DISK = SectionId("virtio-block", "block")


class Rig(Bare):
    """The API over the real board of a machine of paper."""

    def __init__(self, whole: Whole, folder: Path) -> None:
        super().__init__()
        self.whole, self.folder = whole, folder
        board: Any = whole.board
        self.machine.board = board

    def told(self, target: str, body: Any) -> tuple[int, str]:
        """What a refused PATCH says: exit code and message."""
        status, code, message = self.fault("PATCH", target, body)
        assert status == 400, message
        return code, message

    def image(self, name: str, sectors: int) -> str:
        path = self.folder / name
        path.write_bytes(bytes(sectors * 512))
        return str(path)


def locked(path: str) -> bool:
    """Whether somebody has the file locked for writing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.fixture(params=["pci", "mmio"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with guarded_memory(RAM) as memory:
        whole = Whole(memory, request.param, str(tmp_path))
        try:
            yield Rig(whole, tmp_path)
        finally:
            whole.close()


# GET


def test_a_drive_is_shown(rig):
    path = str(rig.folder / "disk.img")
    assert rig.get("/drives/block") == {
        "drive_id": "block",
        "path_on_host": path,
        "is_root_device": False,
        "is_read_only": False,
        "layers": [path],
        "capacity": DISK_SECTORS * 512,
        "rate_limiter": {},
        "io_errors": 0,
        "last_error": None,
    }


def test_a_card_is_shown(rig):
    assert rig.get("/network-interfaces/net") == {
        "iface_id": "net",
        "host_dev_name": "paper0",
        "guest_mac": "02:00:00:00:00:01",
        "mtu": 1500,
        "rx_rate_limiter": {},
        "tx_rate_limiter": {},
    }


def test_the_socket_device_is_shown(rig):
    assert rig.get("/vsock") == {"guest_cid": 3, "uds_path": str(rig.folder / "v.sock")}


def test_the_entropy_device_is_shown(rig):
    assert rig.get("/entropy") == {}


def test_the_balloon_and_its_statistics_are_shown(rig):
    told = rig.get("/balloon")
    assert (told["amount_mib"], told["deflate_on_oom"], told["stats_polling_interval_s"]) == (0, True, 0)
    assert told["discarded_pages"] == told["kept_pages"] == 0
    assert rig.get("/balloon/statistics") == told["statistics"]
    assert told["statistics"] == {"target_pages": 0, "actual_pages": 0, "target_mib": 0, "actual_mib": 0}


def test_the_whole_configuration_has_every_device(rig):
    whole = rig.get("/vm/config")
    assert whole["drives"] == [rig.get("/drives/block")]
    assert whole["network-interfaces"] == [rig.get("/network-interfaces/net")]
    for single in ("balloon", "entropy", "vsock"):
        assert whole[single] == rig.get(f"/{single}")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/drives/gone", "there is no 'gone' among drives, only ['block']"),
        ("/drives", "/drives wants an id: /drives/ID"),
        ("/drives/", "/drives wants an id"),
        ("/network-interfaces/block", "there is no 'block' among network-interfaces, only ['net']"),
        ("/drives/block/nothing", "there is no GET /drives/block/nothing"),
        ("/drives/block/capacity/x", "there is no GET"),
        ("/drives/block/path_on_host/disk", "there is no GET"),
        ("/drives/block/layers/0", "there is no GET"),
        ("/balloon/hinting", "there is no GET /balloon/hinting"),
    ],
)
def test_what_there_is_not_is_told_by_name(rig, target, said):
    status, code, message = rig.fault("GET", target)
    assert (status, code) == (400, 2)
    assert said in message


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "OPTIONS"])
def test_devices_are_not_made_or_taken_away_at_run_time(rig, method):
    assert rig.fault(method, "/drives/block", {})[2] == f"there is no {method} /drives/block"


def test_a_machine_without_devices_says_so():
    bare = Bare()
    assert bare.fault("GET", "/balloon")[2] == "the machine has no balloon"
    assert bare.fault("PATCH", "/drives/root", {})[2] == "there is no 'root' among drives, only none"


# PATCH


def test_a_drive_gets_another_image_and_lets_go_of_the_first(rig):
    first, second = str(rig.folder / "disk.img"), rig.image("second.img", 512)
    assert locked(first)
    assert rig.ask("PATCH", "/drives/block", {"drive_id": "block", "path_on_host": second}) == Reply(204)
    told = rig.get("/drives/block")
    assert (told["path_on_host"], told["layers"], told["capacity"]) == (second, [second], 512 * 512)
    assert (locked(first), locked(second)) == (False, True)
    assert rig.whole.board.hosts[DISK].describe().layers[0].path == second
    rig.whole.board.pause()
    rig.whole.board.prepare_save()
    state: Any = rig.whole.board.parts[DISK].save()
    assert (state.capacity, state.host.layers[0].path) == (512, second)


def test_a_drive_takes_its_own_image_again_as_it_is_now_under_any_name(rig):
    first, link = str(rig.folder / "disk.img"), str(rig.folder / "link.img")
    os.symlink(first, link)
    for path, sectors in ((first, 512), (link, 64)):
        os.truncate(first, sectors * 512 + 100)
        before = sorted(os.listdir("/proc/self/fd"))
        assert rig.ask("PATCH", "/drives/block", {"path_on_host": path}) == Reply(204)
        assert sorted(os.listdir("/proc/self/fd")) == before
        told = rig.get("/drives/block")
        assert (told["path_on_host"], told["capacity"]) == (path, sectors * 512)
        assert locked(first)
    rig.whole.board.pause()
    rig.whole.board.prepare_save()
    state: Any = rig.whole.board.parts[DISK].save()
    assert (state.capacity, state.host.layers[0].path, state.host.layers[0].length) == (64, link, 64 * 512 + 100)


def test_a_drives_own_image_that_became_too_short_changes_nothing(rig):
    before = rig.get("/drives/block")
    os.truncate(before["path_on_host"], 511)
    code, message = rig.told("/drives/block", {"path_on_host": before["path_on_host"]})
    assert (code, "511 bytes" in message) == (2, True)
    assert rig.get("/drives/block") == before
    assert locked(before["path_on_host"])


@pytest.mark.parametrize("name", ["/nowhere/x.img", "", ".", "with\0zero", "\ud800"])
def test_an_image_that_cannot_be_opened_changes_nothing(rig, name):
    before = rig.get("/drives/block")
    body = json.dumps({"path_on_host": name}).encode()
    assert rig.told("/drives/block", body)[0] == 2
    assert rig.get("/drives/block") == before
    assert locked(before["path_on_host"])


def test_an_image_in_use_is_refused_with_its_holder(rig):
    taken = rig.image("taken.img", 8)
    with open(taken, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert "is in use by this process" in rig.told("/drives/block", {"path_on_host": taken})[1]
    assert rig.ask("PATCH", "/drives/block", {"path_on_host": taken}).status == 204


@pytest.mark.parametrize("at", range(12))
def test_an_exchange_that_fails_at_any_system_call_leaves_the_old_image_in_use(rig, at):
    first, second = str(rig.folder / "disk.img"), rig.image("second.img", 512)
    calls: list[str] = []

    def spoil(call: str, _arguments: tuple[object, ...]) -> None:
        calls.append(call)
        if len(calls) == at + 1:
            raise OSError(5, "injected")

    before = sorted(os.listdir("/proc/self/fd"))
    with host.inject(spoil):
        reply = rig.ask("PATCH", "/drives/block", {"path_on_host": second})
    done = reply.status == 204
    assert done or b"EIO" in reply.body or b"nput/output" in reply.body, reply
    assert (locked(first), locked(second)) == (not done, done), calls
    assert rig.get("/drives/block")["path_on_host"] == (second if done else first)
    if not done:
        assert sorted(os.listdir("/proc/self/fd")) == before
    rig.whole.board.pause()
    rig.whole.board.prepare_save()  # whatever it was, the machine can be saved
    state: Any = rig.whole.board.parts[DISK].save()
    assert state.host.layers[0].path == (second if done else first)


def test_rate_limits_of_a_drive_change_and_go(rig):
    limit = {"size": 1 << 20, "one_time_burst": 5, "refill_time": 100}
    assert rig.ask("PATCH", "/drives/block", {"rate_limiter": {"bandwidth": limit}}) == Reply(204)
    assert rig.get("/drives/block/rate_limiter") == {"bandwidth": limit}
    assert rig.ask("PATCH", "/drives/block/rate_limiter", {"ops": {"size": 9, "refill_time": 1}}) == Reply(204)
    assert set(rig.get("/drives/block/rate_limiter")) == {"bandwidth", "ops"}
    none = {"size": 0, "refill_time": 0}
    assert rig.ask("PATCH", "/drives/block", {"rate_limiter": {"bandwidth": none, "ops": none}}) == Reply(204)
    assert rig.get("/drives/block/rate_limiter") == {}


def test_rate_limits_of_a_card_change_each_way(rig):
    limit = {"size": 100, "one_time_burst": 0, "refill_time": 50}
    body = {"iface_id": "net", "rx_rate_limiter": {"ops": limit}}
    assert rig.ask("PATCH", "/network-interfaces/net", body) == Reply(204)
    told = rig.get("/network-interfaces/net")
    assert (told["rx_rate_limiter"], told["tx_rate_limiter"]) == ({"ops": limit}, {})


def test_the_balloon_gets_another_target_and_another_interval(rig):
    assert rig.ask("PATCH", "/balloon", {"amount_mib": 2}) == Reply(204)
    assert rig.ask("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 7}) == Reply(204)
    told = rig.get("/balloon")
    assert (told["amount_mib"], told["stats_polling_interval_s"]) == (2, 7)
    assert told["statistics"]["target_pages"] == 512
    device: Any = rig.whole.device("virtio-balloon")
    assert device.config_space()[:4] == (512).to_bytes(4, "little")
    code, message = rig.told("/balloon", {"amount_mib": 5})
    assert (code, message) == (2, "the balloon's target is 1280 pages, must be 0 to 1024")


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/drives/block", b""),
        ("/drives/block", b"{"),
        ("/drives/block", b"[]"),
        ("/drives/block", b"\xff"),
        ("/drives/block", b"[" * 50_000),
        ("/drives/block", {"path": "x"}),
        ("/drives/block", {"path_on_host": 5}),
        ("/drives/block", {"rate_limiter": {"bandwidth": {"size": -1, "refill_time": 1}}}),
        ("/drives/block", {"rate_limiter": {"bandwidth": {"size": 1 << 63, "refill_time": 1}}}),
        ("/drives/block", {"rate_limiter": {"bandwidth": {"size": 1, "refill_time": 1 << 32}}}),
        ("/drives/block", {"rate_limiter": {"bandwidth": {"size": 1}}}),
        ("/drives/block", {"rate_limiter": {"iops": {"size": 1, "refill_time": 1}}}),
        ("/drives/block/rate_limiter", b'{}},"path_on_host":"x","x":{'),
        ("/drives/block/rate_limiter", b"[" * 50_000),
        ("/drives/block/rate_limiter", b"\xff\xfe"),
        ('/drives/block/"}', b"{}"),
        ("/network-interfaces/net", {"guest_mac": "02:00:00:00:00:02"}),
        ("/network-interfaces/net", {"tx_rate_limiter": []}),
        ("/balloon", {"amount_mib": -1}),
        ("/balloon", {"amount_mib": 1.5}),
        ("/balloon", {"amount_mib": "1"}),
        ("/balloon", {"deflate_on_oom": False}),
        ("/balloon/statistics", {"stats_polling_interval_s": 65536}),
        ("/balloon/statistics", {}),
        ("/balloon/statistics", b'{"stats_polling_interval_s":1},"amount_mib":1'),
    ],
)
def test_a_body_of_the_wrong_shape_changes_nothing(rig, target, body):
    before = rig.get("/vm/config")
    code, message = rig.told(target, body)
    assert code == 2
    assert "the body is not what was expected" in message
    assert rig.get("/vm/config") == before


@pytest.mark.parametrize(
    ("target", "body"),
    [("/drives/block", {"drive_id": "other"}), ("/network-interfaces/net", {"iface_id": "other"})],
)
def test_a_body_about_another_device_than_the_path_is_refused(rig, target, body):
    assert rig.told(target, body)[1].startswith("the body is about 'other', the path about ")


@pytest.mark.parametrize("target", ["/entropy", "/vsock"])
def test_what_cannot_change_says_so(rig, target):
    assert "has nothing that can be changed" in rig.told(target, {})[1]


def test_a_machine_that_ends_takes_no_patch_but_shows_its_devices(rig):
    assert rig.ask("PUT", "/snapkit/stop").status == 204
    assert rig.told("/balloon", {"amount_mib": 1})[0] == 6
    assert rig.get("/balloon")["amount_mib"] == 0


def test_a_drive_that_cannot_be_described_is_a_fault_of_the_host_and_told_as_one(rig):
    second = rig.image("second.img", 8)

    def no_flock(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "flock":
            raise OSError(5, "injected")

    with host.inject(no_flock):
        code, message = rig.told("/drives/block", {"path_on_host": second})
    assert code == HostError.exit_code
    assert "flock" in message
