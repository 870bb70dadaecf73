"""What KVM takes and gives back otherwise: values that no processor or chip has, so that no save could have held them.

Each entry is a place and why it may come back as another value. What is altered anywhere else is a fault.
"""

import re
from collections.abc import Sequence

_VCPU = r"vcpu-x86-64/\d+\."
_SEGMENT = _VCPU + r"sregs\.(cs|ds|es|fs|gs|ss|tr|ldt)\."
_GIC = r"gicv3-(?:re)?distributor/\d+\."
_GICR = r"gicv3-redistributor/\d+\."
_ATTRIBUTES = r"(INNER_CACHE|OUTER_CACHE|SHAREABILITY|PTZ)"

PLACES: Sequence[tuple[str, str]] = (
    # Not base, limit and selector, nor what a descriptor has beyond this: those are given back as they were loaded.
    (
        _SEGMENT + r"(present|unusable):",
        "segments: VMX keeps the one, SVM the other, and each is what the other is not",
    ),
    (_SEGMENT + r"(?<!ldt\.)type:", "segments: VMX and SVM have what is loaded accessed, SVM has TR busy"),
    (_SEGMENT + r"g:", "segments: SVM takes G from the limit, above 0xFFFFF"),
    (_VCPU + r"sregs\.ss\.db:", "segments: SVM has no size of an SS that is unusable"),
    (_VCPU + r"xcrs", "XCRS: XCR0 is there even where the list lacks it"),
    (_VCPU + r"xsave", "XSAVE: reserved bits of MXCSR, components that are in their initial state"),
    (_VCPU + r"events\.", "VCPU_EVENTS: flags are bits, fields without their flag are not looked at"),
    (_VCPU + r"lapic", "LAPIC: reserved bits, registers that are computed, edges that the IOAPIC held"),
    (r"irqchip-x86/0\.pic_master\.irr", "PIC: the slave drives line 2 of the master"),
    (r"irqchip-x86/0\.ioapic\.(irr|redirtbl)", "IOAPIC: edges that it holds are sent when it is loaded; 24 pins"),
    (
        r"gicv3-distributor/0\.(ctlr(?!\.ENABLE_GRP1)|statusr|iidr)",
        "GICD: fixed bits, and registers that KVM's GIC has not",
    ),
    (
        _GICR + r"(ctlr(?!\.ENABLE_LPIS)|statusr|waker|iidr|typer(?!\.(LAST|PROCESSOR|AFFINITY|PLPIS)))",
        "GICR: fixed bits, and registers that KVM's GIC has not",
    ),
    (_GICR + r"(propbaser|pendbaser)\." + _ATTRIBUTES, "GICR: attributes of memory that KVM has no others of"),
    (_GIC + r"icfgr", "ICFGR: SGIs are edges, and of two bits the lower one is none"),
    (_GIC + r"ipriorityr", "IPRIORITYR: five bits of a priority"),
    (_GIC + r"line_level", "LEVEL_INFO: what is configured as an edge has no level, and a timer makes its own"),
    (r"gicv3-its/0\.ctlr(?!\.ENABLED)", "GITS_CTLR: fixed bits"),
    (r"gicv3-its/0\.(cbaser|baser\[[01]\])\." + _ATTRIBUTES, "GITS: attributes of memory that KVM has no others of"),
    (
        r"gicv3-cpu-interface/\d+\.icc_(ctlr|bpr[01]|pmr)_el1",
        "ICC: fixed bits, the least binary point, five bits of a priority",
    ),
)
CAUSES: Sequence[tuple[str, str]] = (("smi_latched_init", "VCPU_EVENTS: a latched INIT resets the processor"),)


def reason_for(finding: str, told: Sequence[str]) -> str:
    """Return why the place that *finding* is about may differ, after what was done to the machine; empty: it may not."""
    for pattern, reason in PLACES:
        if re.match(pattern, finding):
            return reason
    for word, reason in CAUSES:
        if any(word in text for text in told):
            return reason
    return ""
