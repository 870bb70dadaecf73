"""What a sandbox allows, as data: complete, with its reasons, the same for the filter and for `doctor`."""

import ast
import errno
import json
import sys
from pathlib import Path

import pytest

from snapkit import host, host_sandbox
from snapkit.cli import sandbox
from snapkit.cli import sandbox_calls as calls
from snapkit.errors import ConfigError, HostError, IncompatibleHost
from snapkit.host_sandbox import ALLOW, KILL
from snapkit.vmm.kvm import abi, abi_arm, abi_x86
from tests.kvm.commands import finished

ROOT = Path(__file__).parents[2] / "snapkit"
EVERYTHING = {"", calls.SNAPSHOTS, calls.VSOCK}
NOT_LATE = {
    "snapkit.restore.check.remarks": dict.fromkeys(
        ("snapkit.restore.check.its", "snapkit.state.gicv3_redistributor", "snapkit.state.spec.gicv3"),
        "`verify` runs no machine",
    ),
    "snapkit.restore.writer": {"zstandard": "only a writer that is told to compress wants it, and no machine is"},
    "snapkit.restore.image": {"zstandard": "sections are read before a restore claims anything"},
    "snapkit.state.releases": {"hashlib": "of schema files, at a release"},
    "snapkit.host_process": {"resource": "at the start of a run"},
    "snapkit.vmm.machine": {"snapkit.vmm.parts.fresh": "a boot lays itself out before it is over with claiming"},
    "snapkit.vmm.arch.aarch64.platform": {"snapkit.vmm.arch.boot_file": "the kernel is opened by it, before"},
    "snapkit.vmm.arch.x86_64.platform": {"snapkit.vmm.arch.boot_file": "the kernel is opened by it, before"},
    "snapkit.host_sandbox": {"pyseccomp": "by what enters the sandbox"},
}
"""Imports inside functions that no machine in a sandbox comes to, and why."""


def late_imports(path: Path) -> set[str]:
    """Give the modules that a file imports inside its functions."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = {f"{node.module}.{alias.name}" for alias in node.names}
                    modules = {name for name in names if (ROOT.parent / f"{name.replace('.', '/')}.py").exists()}
                    found |= modules or {node.module}
    return found


def library() -> dict[str, Path]:
    files = [
        *ROOT.glob("host*.py"),
        *(path for part in ("state", "restore", "vmm") for path in (ROOT / part).rglob("*.py")),
    ]
    return {str(path.relative_to(ROOT.parent).with_suffix("")).replace("/", "."): path for path in files}


def test_everything_that_the_library_imports_late_is_imported_before_or_never():
    known = set(sandbox.LATE) | {name.rpartition(".")[0] for name in sandbox.LATE}
    missing = {
        f"{module} imports {name}"
        for module, path in library().items()
        for name in late_imports(path)
        if name not in known and name not in NOT_LATE.get(module, {})
    }
    assert missing == set()


def test_nothing_is_excused_that_is_not_imported():
    there = {(module, name) for module, path in library().items() for name in late_imports(path)}
    assert {(module, name) for module, names in NOT_LATE.items() for name in names} - there == set()


def test_every_ioctl_of_kvm_that_there_is_is_allowed_or_left_out_with_a_reason():
    there = {
        one.name for module in (abi, abi_arm, abi_x86) for one in vars(module).values() if isinstance(one, abi.Ioctl)
    }
    assert set(calls.IOCTLS) | set(calls.NOT_AFTERWARDS) == there | set(calls.OTHER_IOCTLS)
    assert not set(calls.IOCTLS) & set(calls.NOT_AFTERWARDS)


@pytest.mark.parametrize(("machine", "absent"), [("x86_64", "KVM_ARM_"), ("aarch64", "KVM_GET_SREGS")])
def test_ioctls_of_another_architecture_are_not_allowed(monkeypatch, machine, absent):
    monkeypatch.setattr(host, "machine_name", lambda: machine)
    numbers = sandbox.ioctl_numbers()
    assert not any(name.startswith(absent) for name in numbers)
    assert set(calls.IOCTLS) > set(numbers) > {"KVM_RUN", "KVM_GET_VCPU_EVENTS", "TCGETS"}


def test_every_entry_has_a_reason():
    assert all(one.why for one in (*calls.ALLOWED, *calls.KILLED, calls.NOT_THERE))
    assert all(calls.IOCTLS.values())
    assert all(one.only for one in calls.ALLOWED if one.conditions), "a condition that nobody is told of"


def test_what_is_allowed_without_condition_is_never_killed():
    free = {name for one in calls.ALLOWED if not one.conditions for name in one.names.split()}
    assert free & {name for one in calls.KILLED for name in one.names.split()} == set()


def test_what_opens_runs_or_connects_is_allowed_only_where_it_was_asked_for():
    plain = {rule.call for rule in sandbox.rules({""}) if rule.action == ALLOW}
    assert plain & {"open", "openat", "openat2", "creat", "socket", "connect", "execve", "unlink", "rename"} == set()
    assert {"openat", "unlink"} <= {rule.call for rule in sandbox.rules({"", calls.SNAPSHOTS})}
    assert {"socket", "connect"} <= {rule.call for rule in sandbox.rules({"", calls.VSOCK})}


def test_ioctls_are_allowed_by_number_only():
    rules = [rule for rule in sandbox.rules(EVERYTHING) if rule.call == "ioctl"]
    assert len(rules) == len(sandbox.ioctl_numbers())
    assert all(rule.conditions[0].argument == 1 and rule.action == ALLOW for rule in rules)
    assert abi.KVM_RUN.number in {rule.conditions[0].equal for rule in rules}


def test_doctor_tells_all_of_it():
    done = finished("doctor", "--json")
    told = json.loads(done.stdout)["sandbox"]
    assert told == sandbox.describe()
    names = {name for row in told["allowed"] for name in row["calls"]}
    assert {rule.call for rule in sandbox.rules(EVERYTHING) if rule.action == ALLOW} == names
    killed = {name for row in told["killed"] for name in row["calls"]}
    assert {rule.call for rule in sandbox.rules(EVERYTHING) if rule.action == KILL} == killed
    assert told["otherwise"] == "EPERM"
    shown = finished("doctor").stdout
    for name in (*names, *killed, *told["ioctls"]):
        assert name in shown


def test_a_library_that_is_missing_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(ConfigError, match=r"pip install 'snapkit\[sandbox\]'.*apt-get install libseccomp2"):
        sandbox.Sandbox(None)
    assert "libseccomp2" in sandbox.describe()["why"]


def test_without_landlock_there_is_a_sandbox_but_no_directory_for_snapshots(monkeypatch, tmp_path):
    monkeypatch.setattr(host_sandbox, "landlock_version", lambda: 0)
    with pytest.raises(IncompatibleHost, match="--snapshot-dir needs Landlock"):
        sandbox.Sandbox(str(tmp_path))
    with pytest.raises(ConfigError, match="in a sandbox without --snapshot-dir"):
        sandbox.Sandbox(None).require_inside("a.snap")


@pytest.mark.parametrize("name", ["a.snap", "sub/a.snap", "./a.snap", "../snapshots/a.snap"])
def test_paths_below_the_directory_are_taken(tmp_path, name):
    folder = tmp_path / "snapshots"
    (folder / "sub").mkdir(parents=True)
    sandbox.Sandbox(str(folder)).require_inside(str(folder / name), None)


@pytest.mark.parametrize("name", ["../a.snap", "../snapshots-of-others/a.snap", "link/a.snap", "/a.snap"])
def test_paths_out_of_the_directory_are_not(tmp_path, name):
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / "link").symlink_to("..")
    with pytest.raises(ConfigError, match=f"its --snapshot-dir is {folder}$"):
        sandbox.Sandbox(str(folder)).require_inside(str(folder / name))


def test_an_error_of_permission_is_told_with_the_sandbox_as_its_cause(tmp_path):
    box = sandbox.Sandbox(str(tmp_path))
    error = ConfigError("no such luck")
    error.__cause__ = HostError("open_fd", errno.EACCES)
    box.explain(error)
    assert error.__notes__ == [f"the machine is in a sandbox: it opens files only below {tmp_path}"]
    other = HostError("open_fd", errno.ENOSPC)
    box.explain(other)
    assert not hasattr(other, "__notes__")
