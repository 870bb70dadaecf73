"""The house keeps its shape: who may import whom, who may make system calls, where things lie, how long a module is.

The layers, lowest first: leaves (bits, units, errors, host, version), state, restore and vmm side by side, cli. A module
imports from its own layer and from below, never from beside or above; `snapkit` itself only names what it offers. Every
import statement counts, those inside functions too.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "snapkit"

SEAM = ("host", "host_io", "host_memory", "host_net", "host_process", "host_sandbox", "host_sockets")
LEAVES = ("bits", "units", "errors", *SEAM, "order", "version")
BELOW: Mapping[str, tuple[str, ...]] = {
    "state": ("state", "bits", "units", "errors", "version"),  # not host: state is pure
    "guests": ("guests", *LEAVES),
    "restore": ("restore", "state", *LEAVES),
    "vmm": ("vmm", "state", *LEAVES),
    "cli": ("cli", "restore", "vmm", "state", "guests", *LEAVES),
    "__main__": ("cli",),
    **dict.fromkeys(LEAVES, LEAVES),
}
SYSTEM = frozenset({"fcntl", "ctypes", "mmap", "termios", "select", "signal"})
MAY_CALL_THE_SYSTEM = ("snapkit.host", "snapkit.vmm.kvm")
HEAVY = frozenset({"numpy", "zstandard", "elftools", "fdt"})
NO_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "manager"})
LONGEST = 450


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


def imported(tree: ast.AST, known: Mapping[str, object]) -> Iterator[str]:
    """Give every module that *tree* imports anywhere, a submodule rather than its package where it names one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            yield from (f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names)


def at_the_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """Give the statements that run when the module is imported, those under ``if`` included unless for the type checker."""
    for node in tree.body:
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node


def layer(module: str) -> str:
    return module.split(".")[1]


def arrows() -> dict[str, set[str]]:
    """Return what every module imports of snapkit; `snapkit` itself aside."""
    return {
        module: {name for name in imported(parsed(module), modules()) if name.startswith("snapkit.")}
        for module in modules()
        if module != "snapkit"
    }


def against_the_direction(graph: Mapping[str, set[str]]) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in sorted(names)
        if layer(name) not in BELOW.get(layer(module), ())
    ]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of imports, or nothing."""
    done: set[str] = set()

    def follow(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for name in sorted(graph.get(module, ())):
            if found := follow(name, [*trail, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := follow(module, []))), [])


def test_imports_go_down_only():
    assert against_the_direction(arrows()) == []


def test_imports_make_no_circle():
    assert circle(arrows()) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("snapkit.restore.plan", "snapkit.vmm.machine"),
        ("snapkit.vmm.machine", "snapkit.restore.image"),
        ("snapkit.state.pit", "snapkit.restore.image"),
        ("snapkit.state.pit", "snapkit.host"),
        ("snapkit.errors", "snapkit.state.schema"),
        ("snapkit.vmm.machine", "snapkit.cli.boot"),
        ("snapkit.newcomer.thing", "snapkit.errors"),
    ],
)
def test_arrow_against_the_direction_would_be_seen(module, name):
    assert against_the_direction({module: {name}}) == [f"{module} imports {name}"]


def test_circle_would_be_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_import_inside_a_function_or_of_a_submodule_would_be_seen():
    tree = ast.parse("def late():\n    from snapkit.vmm import machine, Vm\n    import snapkit.host\n")
    assert set(imported(tree, {"snapkit.vmm.machine": 0})) == {"snapkit.vmm.machine", "snapkit.vmm", "snapkit.host"}


def test_only_the_seam_imports_what_makes_system_calls():
    callers = [
        f"{module} imports {name}"
        for module in modules()
        if not module.startswith(MAY_CALL_THE_SYSTEM)
        for name in imported(parsed(module), {})
        if name.partition(".")[0] in SYSTEM
    ]
    assert callers == []


def test_heavy_libraries_are_imported_inside_functions():
    found = [
        f"{module} imports {name}"
        for module in modules()
        for node in at_the_top(parsed(module))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imported(node, {})
        if name.partition(".")[0] in HEAVY or (name.partition(".")[0] == "click" and layer(module) != "cli")
    ]
    assert found == []


def test_importing_snapkit_brings_in_none_of_its_parts():
    top = [name for node in at_the_top(parsed("snapkit")) for name in imported(node, modules()) if "snapkit" in name]
    assert top == ["snapkit.version"]


def kind_of(device: Path) -> str | None:
    """Return the kind that a device module declares (``kind: ClassVar[str] = "pit"`` in a class), or None."""
    for node in ast.walk(ast.parse(device.read_text())):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                match field:
                    case ast.AnnAssign(target=ast.Name(id="kind"), value=ast.Constant(value=str(kind))):
                        return kind
    return None


def test_device_lies_in_its_four_places():
    devices = {
        path: kind
        for folder in ("vmm", "vmm/devices", "vmm/pci", "vmm/virtio")
        for path in (PACKAGE / folder).glob("*.py")
        if (kind := kind_of(path)) is not None
    }
    assert devices, "no device declares its kind"
    for path, kind in devices.items():
        stem, folder = path.stem, path.parent.relative_to(PACKAGE)
        assert kind.replace("-", "_") == stem
        assert (PACKAGE / f"state/{stem}.py").exists()
        assert (ROOT / f"schemas/{kind}/1.json").exists()
        assert (ROOT / "tests" / folder / f"test_{stem}.py").exists()


def test_every_kind_lies_in_the_module_of_its_stem():
    from snapkit.state.schema import KINDS

    for kind, stem in KINDS.items():
        assert stem == kind.replace("-", "_")
        assert (PACKAGE / f"state/{stem}.py").exists()


def test_no_module_is_named_for_nothing_in_particular():
    everything = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in everything if path.stem in NO_NAMES] == []


def test_modules_are_short_enough_to_read():
    too_long = [
        f"{name}: {lines} lines"
        for path in modules().values()
        if "snapkit/state/spec/" not in (name := str(path.relative_to(ROOT)))
        and (lines := len(path.read_text().splitlines())) > LONGEST
    ]
    assert too_long == []


def test_every_module_says_what_it_is_for():
    silent = [
        module
        for module in modules()
        if not ast.get_docstring(parsed(module))
        and modules()[module].read_text().strip()
        and layer(f"{module}.") != "version"
    ]
    assert silent == []
