"""Can a host run a machine? Pure: judged from the machine's sections and the host's facts, this host's or another's.

The facts are what ``snapkit doctor --json`` prints (`snapkit.state.host_facts`). Each rule is a small named function
with its reason, like those of `check`: `machine` has those of every architecture, `x86_64` those of its own. `RULES`
lists them with the names that ``--force`` takes. All findings at once; a rule whose fact is not known finds nothing.

A name stays what it is. `overridden` says what becomes of a machine that is run all the same: where KVM would refuse what
the file says, that is taken out of it. What would still fail, or could not be told from a damaged machine, cannot be
forced.

What a host's facts do not say is KVM's to refuse when it is loaded: a value that it does not take in an MSR (which is
named), vector state that was saved beyond what the guest may use, the rate of a counter that was not asked for.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from snapkit.errors import ConfigError, Finding
from snapkit.restore.check.sections import Findings, Index, Sections
from snapkit.restore.compatible import machine, x86_64
from snapkit.state.host_facts import HostFacts
from snapkit.state.machine import EM_X86_64, MachineState


class Rule(NamedTuple):
    """One rule: its permanent *name*, what it finds, and what makes a forced machine one that KVM takes."""

    name: str
    judge: Callable[[Index, HostFacts], Findings]
    forcible: bool = False
    apply: Callable[[Index, HostFacts], None] | None = None


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
X86_64: tuple[Rule, ...] = (
    Rule("cpu-vendor", x86_64.cpu_vendor, forcible=True),
    Rule("cpuid", x86_64.cpuid, forcible=True),
    Rule("xsave", x86_64.xsave),
    Rule("msrs", x86_64.msrs, forcible=True, apply=x86_64.drop_msrs),
    Rule("physical-bits", x86_64.physical_bits, forcible=True),
    Rule("clock", x86_64.clock, forcible=True),
    Rule("tsc", x86_64.tsc, forcible=True, apply=x86_64.use_host_rate),
)
RULES = COMMON + X86_64
FORCIBLE = tuple(rule.name for rule in RULES if rule.forcible)


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
    for name in names:
        if name in FORCIBLE:
            continue
        known = any(rule.name == name for rule in RULES)
        why = "cannot be overridden: the machine would not run" if known else "is no finding's name"
        raise ConfigError(f"--force {name}: {name} {why}; these can: {', '.join(FORCIBLE)}")


def advice(findings: Collection[Finding]) -> str:
    """Say which of *findings* can be overridden by name, and which cannot."""
    names = list(dict.fromkeys(finding.rule.removeprefix("host.") for finding in findings))
    can = [f"--force {name}" for name in names if name in FORCIBLE]
    cannot = [name for name in names if name not in FORCIBLE]
    parts = [f"overridden by {' '.join(can)}"] if can else []
    parts += [f"nothing overrides {', '.join(cannot)}"] if cannot else []
    return "; ".join(parts)


def _rules(index: Index) -> tuple[Rule, ...]:
    whole = index.get("machine", "0", MachineState)
    if whole is None:
        return ()  # `check` has refused such a file
    return RULES if whole.architecture == EM_X86_64 else COMMON
