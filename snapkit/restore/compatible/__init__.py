"""Can a host run a machine? Pure: judged from the machine's sections and the host's facts, this host's or another's.

The facts are what ``snapkit doctor --json`` prints (`snapkit.state.host_facts`). Each rule is a small named function
with its reason, like those of `check`: `machine` has those of every architecture, `x86_64` and `aarch64` those of their
own, each imported for a machine of its. `every_rule` lists them all, `forcible` the names that ``--force`` takes. All
findings at once; a rule whose fact is not known finds nothing.

A name stays what it is. `overridden` says what becomes of a machine that is run all the same: where KVM would refuse what
the file says, that is taken out of it. What would still fail, or could not be told from a damaged machine, cannot be
forced.

What a host's facts do not say is KVM's to refuse when it is loaded: a value that it does not take in an MSR (which is
named), vector state that was saved beyond what the guest may use, the rate of a counter that was not asked for.
"""

from collections.abc import Collection
from importlib import import_module

from snapkit.errors import ConfigError, Finding
from snapkit.restore.check.sections import Index, Sections
from snapkit.restore.compatible import machine
from snapkit.restore.compatible.rule import Rule
from snapkit.state.host_facts import HostFacts
from snapkit.state.machine import EM_AARCH64, EM_X86_64, MachineState

COMMON: tuple[Rule, ...] = (
    Rule("architecture", machine.architecture),
    Rule("kvm", machine.kvm),
    Rule("capabilities", machine.capabilities),
    Rule("page-size", machine.page_size),
    Rule("vcpus", machine.vcpus),
    Rule("memory", machine.memory, forcible=True),
    Rule("routes", machine.routes),
    Rule("devices", machine.devices),
)
_MODULES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}


def rules_of(architecture: int) -> tuple[Rule, ...]:
    """Return the rules by which a machine of *architecture*, an ELF machine number, is judged."""
    if architecture not in _MODULES:
        return COMMON  # one of which finds it
    own: tuple[Rule, ...] = import_module(f"{__name__}.{_MODULES[architecture]}").RULES
    return COMMON + own


def every_rule() -> tuple[Rule, ...]:
    """Return the rules of every architecture, each once."""
    return tuple(dict.fromkeys(rule for architecture in _MODULES for rule in rules_of(architecture)))


def forcible() -> tuple[str, ...]:
    """Return the names that ``--force`` takes."""
    return tuple(rule.name for rule in every_rule() if rule.forcible)


def compatible(sections: Sections, facts: HostFacts) -> list[Finding]:
    """Return every reason why the host of *facts* cannot run the machine of *sections*; empty when it can."""
    index = Index(sections)
    return [finding for rule in _rules(index) for finding in rule.judge(index, facts)]


def overridden(sections: Sections, facts: HostFacts, names: Collection[str]) -> list[Finding]:
    """Return what *names* leave of what `compatible` finds, and make the machine one that can be run in spite of the rest.

    Changes the States in *sections* once nothing is left, where something was found. Raises ConfigError for a name that
    no rule has, or that cannot be overridden.
    """
    require_forcible(names)
    index = Index(sections)
    found = [(rule, finding) for rule in _rules(index) for finding in rule.judge(index, facts)]
    left = [finding for rule, finding in found if rule.name not in names]
    for rule in dict.fromkeys(rule for rule, _ in found) if not left else ():
        if rule.apply is not None:
            rule.apply(index, facts)
    return left


def require_forcible(names: Collection[str]) -> None:
    """Raise ConfigError for one of *names* that cannot be forced, saying why."""
    if not names:
        return
    can = forcible()
    for name in names:
        if name in can:
            continue
        known = any(rule.name == name for rule in every_rule())
        why = "cannot be overridden: the machine would not run" if known else "is no finding's name"
        raise ConfigError(f"--force {name}: {name} {why}; these can: {', '.join(can)}")


def advice(findings: Collection[Finding]) -> str:
    """Say which of *findings* can be overridden by name, and which cannot."""
    names = list(dict.fromkeys(finding.rule.removeprefix("host.") for finding in findings))
    every = forcible()
    can = [f"--force {name}" for name in names if name in every]
    cannot = [name for name in names if name not in every]
    parts = [f"overridden by {' '.join(can)}"] if can else []
    parts += [f"nothing overrides {', '.join(cannot)}"] if cannot else []
    return "; ".join(parts)


def _rules(index: Index) -> tuple[Rule, ...]:
    whole = index.get("machine", "0", MachineState)
    return () if whole is None else rules_of(whole.architecture)  # `check` has refused such a file
