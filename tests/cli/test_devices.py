"""Device options: every form that there is, everything that is refused, and what a command exits with for it."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from snapkit import guests
from snapkit.cli import snapkit
from snapkit.cli.devices import FLAGS, OPTIONS, asked_devices, asked_overrides
from snapkit.errors import ConfigError
from snapkit.state.releases import current_release
from snapkit.state.schema import SectionId
from snapkit.state.spec.x86 import Cr4
from snapkit.state.virtio_block import DiskHostState, LayerState
from snapkit.vmm.arch.x86_64 import cpuid
from snapkit.vmm.parts import block, limits, net, vsock
from snapkit.vmm.parts.fresh import Asked, fresh_sections, require_distinct
from snapkit.vmm.virtio.rate_limiter import BucketConfig
from tests.grounds import X86_64
from tests.kvm.commands import finished
from tests.kvm.harness import need_kvm
from tests.restore.device_machine import RAM_LEN, Image, device_states, fresh_machine
from tests.restore.machines import ram, save

DEMO = guests.path("demo.elf")
NOTHING: dict[str, Any] = {"disk": (), "net": (), "vsock": (), "rng": False, "balloon": False, "transport": None}
NO_OVERRIDES: dict[str, Any] = {"disk": (), "net": (), "vsock": (), "accept_changed": ()}
LIMITS = "bandwidth=1M,bandwidth-burst=2M,ops=100,ops-burst=1K"


def asked(**said: Any) -> list[Asked]:
    return list(asked_devices({**NOTHING, **said})[0])


def overrides(**said: Any) -> dict[str, dict[str, Any]]:
    return asked_overrides({**NO_OVERRIDES, **said}).values


# A boot's options


@pytest.mark.parametrize(
    ("option", "text", "kind", "values"),
    [
        ("disk", "id=root,path=p", "virtio-block", {"path": "p"}),
        ("disk", "path=p,id=root", "virtio-block", {"path": "p"}),
        ("disk", "id=root,path=p,readonly", "virtio-block", {"path": "p", "readonly": True}),
        ("disk", "id=root,path=p,overlay=.", "virtio-block", {"path": "p", "overlay": "."}),
        ("disk", "id=root,path=p,serial=S 1", "virtio-block", {"path": "p", "serial": "S 1"}),
        ("disk", "id=root,path=a=b", "virtio-block", {"path": "a=b"}),
        ("net", "id=eth0,tap=t", "virtio-net", {"tap": "t"}),
        ("net", "id=eth0,tap=t,mac=02:00:00:00:00:01", "virtio-net", {"tap": "t", "mac": "02:00:00:00:00:01"}),
        ("net", "id=eth0,tap=t,mtu=1400", "virtio-net", {"tap": "t", "mtu": "1400"}),
        ("net", "id=e,tap=t,rx-bandwidth=1M,tx-ops=5", "virtio-net", {"tap": "t", "rx-bandwidth": "1M", "tx-ops": "5"}),
        ("vsock", "id=v0,cid=3,uds=u", "virtio-vsock", {"cid": "3", "uds": "u"}),
    ],
)
def test_each_form_is_taken_apart(option, text, kind, values):
    [device] = asked(**{option: (text,)})
    assert device.kind == kind
    assert device.values == values


def test_devices_come_in_a_fixed_order_each_with_its_id():
    devices = asked(
        rng=True,
        balloon=True,
        vsock=("id=v0,cid=3,uds=u",),
        net=("id=n1,tap=t", "id=n0,tap=u"),
        disk=("id=d1,path=p", "id=d0,path=q"),
    )
    assert [device.id for device in devices] == ["d1", "d0", "n1", "n0", "v0", "rng", "balloon"]


def test_rate_limits_of_a_disk_are_read():
    [device] = asked(disk=(f"id=root,path=p,{LIMITS}",))
    found = limits.limits(device.values)
    assert found.bandwidth == BucketConfig(size=1 << 20, refill_time=1000, one_time_burst=2 << 20)
    assert found.ops == BucketConfig(size=100, refill_time=1000, one_time_burst=1024)


@pytest.mark.parametrize("way", ["rx", "tx"])
def test_rate_limits_of_a_card_are_read_each_way(way):
    text = ",".join(f"{way}-{limit}" for limit in LIMITS.split(","))
    [device] = asked(net=(f"id=eth0,tap=t,{text}",))
    other = {"rx": "tx", "tx": "rx"}[way]
    assert limits.limits(device.values, f"{way}-").ops == BucketConfig(100, 1000, 1024)
    assert limits.limits(device.values, f"{other}-").ops is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bandwidth-burst": "1"}, "bandwidth-burst goes with bandwidth, which is not said"),
        ({"bandwidth": "0"}, "bandwidth is 0, must be what may pass in a second"),
        ({"ops": "many"}, "ops is 'many', must be a number"),
        ({"ops": "-1"}, "ops is '-1', must be a number"),
        ({"ops": "1", "ops-burst": "x"}, "ops-burst is 'x', must be a number"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        limits.limits(values)


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 64, 10**19])
def test_a_limit_beyond_what_a_snapshot_holds_is_refused(size):
    for values in ({"bandwidth": str(size)}, {"bandwidth": "1", "bandwidth-burst": str(size)}):
        with pytest.raises(ConfigError, match=r"bandwidth(-burst)? is \d+, must be at most"):
            limits.limits(values)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"disk": ("path=p",)}, r"--disk path=p does not say id="),
        ({"disk": ("id=root",)}, r"--disk id=root does not say path="),
        ({"net": ("id=eth0",)}, r"--net id=eth0 does not say tap="),
        ({"vsock": ("id=v0,uds=u",)}, r"does not say cid="),
        ({"vsock": ("id=v0,cid=3",)}, r"does not say uds="),
        ({"disk": ("id=root,path=p,size=4",)}, r"'size=4' is none of id=, path=, overlay=, serial=.*readonly"),
        ({"disk": ("id=root,path=p,cache",)}, r"'cache' is none of"),
        ({"disk": ("id=root,path=p,readonly=yes",)}, r"'readonly=yes' is none of"),
        ({"disk": ("id=root,path",)}, r"'path' is none of"),
        ({"disk": ("",)}, r"'' is none of"),
        ({"disk": ("id=root,path=p,",)}, r"'' is none of"),
        ({"disk": ("id=root,path=p,=x",)}, r"'=x' is none of"),
        ({"disk": ("id=root,path=p,path=q",)}, r"path is said twice"),
        ({"disk": ("id=root,path=p,readonly,readonly",)}, r"readonly is said twice"),
        ({"disk": ("id=root,path=",)}, r"path is empty"),
        ({"disk": ("id=,path=p",)}, r"id is empty"),
        ({"disk": ("id=Root,path=p",)}, r"id is 'Root', must be 1 to 32 of a-z 0-9 _ -"),
        ({"disk": ("id=-a,path=p",)}, r"id is '-a'"),
        ({"disk": ("id=a/b,path=p",)}, r"id is 'a/b'"),
        ({"disk": ("id=a\n,path=p",)}, r"id is 'a\\n'"),
        ({"disk": (f"id={'a' * 33},path=p",)}, r"must be 1 to 32"),
        ({"transport": "isa"}, r"transport is 'isa', must be pci or mmio"),
        ({"transport": ""}, r"transport is '', must be pci or mmio"),
    ],
)
def test_what_is_missing_unknown_or_said_twice_is_refused_by_name(said, complaint):
    with pytest.raises(ConfigError, match=complaint):
        asked(**said)


def test_the_longest_id_is_taken():
    assert asked(disk=(f"id={'a' * 32},path=p",))[0].id == "a" * 32


@pytest.mark.parametrize("transport", [None, "pci", "mmio"])
def test_the_transport_is_taken_with_and_without_devices(transport):
    assert asked_devices({**NOTHING, "transport": transport})[1] == transport


@pytest.mark.parametrize(
    "devices",
    [
        {"disk": ("id=a,path=p", "id=a,path=q")},
        {"disk": ("id=a,path=p",), "net": ("id=a,tap=t",)},
        {"disk": ("id=rng,path=p",), "rng": True},
        {"disk": ("id=host-bridge,path=p",)},
    ],
)
def test_an_id_that_is_taken_is_refused(devices):
    with pytest.raises(ConfigError, match=r"two devices have the id '[a-z-]+'"):
        require_distinct(asked(**devices))


# What the parts make of the values


class Tap:
    offloads = 0


CARD = SectionId("virtio-net", "eth0")


@pytest.mark.parametrize(
    "mac",
    ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "zz:0:0:0:0:1", "02-00"],
)
def test_a_mac_that_is_no_stations_is_refused(mac):
    end: Any = Tap()
    with pytest.raises(ConfigError, match=r"--net id=eth0: mac is '.*', must be one station's address"):
        net.fresh(CARD, {"tap": "t", "mac": mac}, end)


@pytest.mark.parametrize("mtu", ["67", "65536", "-1", "", "9k", "٦٨٠", "1500.0", "1" * 5000])
def test_an_mtu_out_of_bounds_is_refused(mtu):
    end: Any = Tap()
    with pytest.raises(ConfigError, match=r"--net id=eth0: mtu is '.*', must be 68 to 65535"):
        net.fresh(CARD, {"tap": "t", "mtu": mtu}, end)


def test_a_card_without_a_mac_gets_a_local_one_of_its_own():
    end: Any = Tap()
    first, second = (net.fresh(CARD, {"tap": "t"}, end).mac for _ in range(2))
    assert first != second
    assert first[0] & 3 == 2  # locally administered, one station: IEEE 802


@pytest.mark.parametrize("cid", ["", "x", "-3", "2", "0", "4294967295", str(1 << 64), "٣", "1" * 5000])
def test_a_cid_that_no_guest_may_have_is_refused(cid):
    end: Any = None
    with pytest.raises(ConfigError, match=r"cid is "):
        vsock.fresh(SectionId("virtio-vsock", "v0"), {"cid": cid, "uds": "u"}, end)


def test_more_devices_than_there_are_slots_or_lines_are_refused_by_what_ran_out():
    image: Any = Image()
    state = block.fresh(SectionId("virtio-block", "d"), {}, image)
    many = [(Asked("virtio-block", f"d{number}"), state) for number in range(32)]
    with pytest.raises(ConfigError, match="pci-slot"):
        fresh_sections(many, "pci", X86_64, bytes(16))
    with pytest.raises(ConfigError, match="gsi-legacy"):
        fresh_sections(many, "mmio", X86_64, bytes(16))
    assert len(fresh_sections(many[:31], "pci", X86_64, bytes(16)).sections) == 4 + 3 + 31 * 4
    assert len(fresh_sections(many[:18], "mmio", X86_64, bytes(16)).mmio_slots) == 18


# A restore's overrides


@pytest.mark.parametrize(
    ("option", "text", "values"),
    [
        ("disk", "id=root", {"root": {}}),
        ("disk", "id=root,path=q", {"root": {"path": "q"}}),
        ("disk", "id=root,overlay=/tmp", {"root": {"overlay": "/tmp"}}),
        ("disk", "id=root,readonly", {"root": {"readonly": True}}),
        ("net", "id=eth0,tap=tap7", {"eth0": {"tap": "tap7"}}),
        ("vsock", "id=v0,uds=w", {"v0": {"uds": "w"}}),
        ("accept_changed", "root", {"root": {"accept_changed": True}}),
    ],
)
def test_each_override_is_taken_apart(option, text, values):
    assert overrides(**{option: (text,)}) == values


def test_overrides_of_one_disk_come_together():
    assert overrides(disk=("id=root,path=q",), accept_changed=("root",)) == {
        "root": {"path": "q", "accept_changed": True}
    }


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"disk": ("path=q",)}, r"--disk path=q does not say id="),
        ({"disk": ("id=root,serial=x",)}, r"'serial=x' is none of id=, path=, overlay=, readonly"),
        ({"disk": ("id=root,bandwidth=1M",)}, r"'bandwidth=1M' is none of"),
        ({"net": ("id=eth0,mac=02:00:00:00:00:01",)}, r"'mac=.*' is none of id=, tap="),
        ({"vsock": ("id=v0,cid=4",)}, r"'cid=4' is none of id=, uds="),
        ({"disk": ("id=root", "id=root,readonly")}, r"root is named twice"),
        ({"disk": ("id=a",), "net": ("id=a",)}, r"a is named twice"),
        ({"disk": ("id=root,path=p,path=q",)}, r"path is said twice"),
        ({"disk": ("id=UP",)}, r"id is 'UP'"),
    ],
)
def test_overrides_that_make_no_sense_are_refused_by_name(said, complaint):
    with pytest.raises(ConfigError, match=complaint):
        overrides(**said)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"disk": ("id=gone,readonly",)}, r"--disk gone: the file has no such device, only \['virtio-block/root'\]"),
        ({"disk": ("id=eth0,readonly",)}, r"--disk eth0: the file has no such device"),
        ({"net": ("id=root,tap=t",)}, r"--net root: the file has no such device, only \['virtio-net/eth0'\]"),
        ({"vsock": ("id=rng,uds=u",)}, r"--vsock rng"),
        ({"accept_changed": ("gone",)}, r"--accept-changed gone"),
        ({"accept_changed": ("eth0",)}, r"--accept-changed eth0: .* only \['virtio-block/root'\]"),
    ],
)
def test_an_override_for_a_device_that_the_file_has_not_is_refused(said, complaint):
    found = asked_overrides({**NO_OVERRIDES, **said})
    with pytest.raises(ConfigError, match=complaint):
        found.require_known(fresh_machine("pci"))


def test_overrides_for_what_the_file_has_are_taken():
    said = {"disk": ("id=root",), "net": ("id=eth0",), "vsock": ("id=v0",), "accept_changed": ("root",)}
    asked_overrides({**NO_OVERRIDES, **said}).require_known(fresh_machine("mmio"))


# The commands


def packed(text: str) -> str:
    """Without spaces: a help text is broken at hyphens too."""
    return "".join(text.split())


def help_of(command: str) -> str:
    done = CliRunner().invoke(snapkit, [command, "--help"])
    assert done.exit_code == 0
    return packed(done.output)


def test_help_of_boot_shows_every_key_that_must_be_said_and_every_flag():
    text = help_of("boot")
    for name, option in OPTIONS.items():
        assert packed(f"--{name} SPEC {option.help}") in text
        for key in (*option.needed, *option.flags):
            assert re.search(rf"\b{key}\b", option.help), (name, key)
    for name, (_kind, _id, said) in FLAGS.items():
        assert packed(f"--{name} {said}") in text
    assert "--transportpci|mmio" in text


def test_help_of_restore_shows_every_override():
    text = help_of("restore")
    for name, option in OPTIONS.items():
        keys = "".join(f"[,{key}=...]" for key in option.overrides) + "".join(
            f"[,{key}]" for key in option.override_flags
        )
        assert packed(f"--{name} SPEC Another host end for a saved device: id=ID{keys}.") in text
    assert "--accept-changedID" in text
    assert "--transport" not in text


def boot(*words: str) -> tuple[int, str]:
    done = finished("boot", DEMO, "--memory", "4M", "--timeout", "5", *words)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_boot_with_an_image_that_is_missing_exits_with_2_and_leaves_nothing(tmp_path):
    path, uds = str(tmp_path / "gone.img"), str(tmp_path / "v.sock")
    code, told = boot("--vsock", f"id=v0,cid=3,uds={uds}", "--disk", f"id=root,path={path}")
    assert (code, os.listdir(tmp_path)) == (2, [])
    assert f"disk root: {path}: no such file or directory" in told


def test_a_boot_whose_last_device_is_refused_leaves_no_overlay_and_no_socket(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    code, told = boot(
        "--disk", f"id=root,path={image},overlay={tmp_path}", "--vsock", f"id=v0,cid=2,uds={tmp_path}/v.sock"
    )
    assert (code, os.listdir(tmp_path)) == (2, ["disk.img"])
    assert "cid" in told


@pytest.mark.parametrize(
    "words", [("--disk", "id=root"), ("--transport", "isa"), ("--rng", "--disk", "id=rng,path=x"), ("--net", "tap=t")]
)
def test_a_boot_with_options_that_make_no_sense_exits_with_2(words):
    assert boot(*words)[0] == 2


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A snapshot of a machine with all devices that any processor can run, whose image is not there."""
    states = fresh_machine("mmio")
    cpu = states[SectionId("vcpu-x86-64", "0")]
    cpu.cpuid, cpu.xcrs = cpuid.with_topology(cpuid.baseline(), 0, 1), []
    cpu.sregs.cr4 &= ~Cr4.OSXSAVE
    states[SectionId("machine", "0")].cpu_profile = "baseline"
    for name in [name for name in states if name.instance == "eth0"]:
        del states[name]  # a TAP is another test's
    fresh = fresh_sections(
        [pair for pair in device_states() if pair[0].kind != "virtio-net"], "mmio", X86_64, bytes(16)
    )
    states |= fresh.sections
    path = str(tmp_path / "root.img")
    layer = LayerState(path=path, format="raw", length=1 << 20, mtime_ns=1, inode=2)
    states[SectionId("virtio-block", "root")].host = DiskHostState(layers=[layer], readonly=False)
    states[SectionId("virtio-vsock", "v0")].host.uds = str(tmp_path / "v.sock")
    facts = {"cpu": "baseline", "vcpus": 1}
    save(tmp_path / "m.snap", ram(RAM_LEN), sections=states, facts=facts, release=current_release().release)
    return tmp_path / "m.snap"


def restore(*words: str) -> tuple[int, str]:
    done = finished("restore", *words)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_restore_whose_image_is_missing_exits_with_4_by_name_and_leaves_nothing(saved):
    need_kvm()
    code, told = restore(str(saved))
    assert code == 4
    assert "disk root is not as it was saved" in told
    assert "virtio-block/root.host.layers[0].path" in told
    assert os.listdir(saved.parent) == ["m.snap"]


def test_a_restore_whose_image_is_another_exits_with_4_and_says_what_differs(saved):
    need_kvm()
    (saved.parent / "root.img").write_bytes(bytes(1 << 20))
    code, told = restore(str(saved))
    assert code == 4
    for name in ("mtime_ns", "inode"):
        assert f"host.layers[0].{name}" in told
    assert sorted(os.listdir(saved.parent)) == ["m.snap", "root.img"]


def test_a_restore_onto_an_image_of_another_length_exits_with_4(saved):
    need_kvm()
    (saved.parent / "other.img").write_bytes(bytes(512))
    code, told = restore(str(saved), "--disk", f"id=root,path={saved.parent}/other.img")
    assert code == 4
    assert "virtio-block/root.capacity is 1" in told


def test_a_dry_run_opens_nothing_and_names_what_would_be(saved):
    done = finished("restore", str(saved), "--dry-run")
    assert done.returncode == 0
    assert "claim     open what virtio-block/root has of the host" in done.stdout
    assert os.listdir(saved.parent) == ["m.snap"]


@pytest.mark.parametrize(
    "words", [("--disk", "id=gone,readonly"), ("--accept-changed", "v0"), ("--net", "id=root,tap=t"), ("--disk", "id=")]
)
def test_a_restore_with_an_override_for_nothing_exits_with_2(saved, words):
    code, told = restore(str(saved), *words)
    assert code == 2, told
