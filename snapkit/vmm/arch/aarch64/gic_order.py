"""The orders in which KVM wants each part of a GICv3 written: tables of edges with reasons.

Names are those of the registers, LEVEL_INFO and the tables of the ITS being what KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO and
KVM_DEV_ARM_ITS_RESTORE_TABLES write. What stands between the parts is in `snapkit.restore.orders`.
Sources: Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic-its.rst; arch/arm64/kvm/vgic of Linux.
"""

from snapkit.order import Edge, Order

_OLDER = "only a revision older than this KVM's can show it: vgic_mmio_uaccess_write_v3_misc()"
_LATCH = "latches are kept whatever an interrupt is configured as: vgic_v3_uaccess_write_pending()"
_LEVEL = "levels are kept whatever an interrupt is configured as: vgic_write_irq_line_level_info()"

DISTRIBUTOR = Order(
    "the order of loading the distributor",
    (
        "IIDR",
        "CTLR",
        "STATUSR",
        "IGROUPR",
        "ICFGR",
        "IPRIORITYR",
        "IROUTER",
        "ISENABLER",
        "ISPENDR",
        "ISACTIVER",
        "LEVEL_INFO",
    ),
    (
        Edge("IIDR", "CTLR", "the revision says how registers behave", either=_OLDER),
        Edge("ICFGR", "ISPENDR", "a latched interrupt is another thing for a level than for an edge", either=_LATCH),
        Edge("ICFGR", "LEVEL_INFO", "the level of a line makes pending what is configured as level", either=_LEVEL),
        Edge(
            "IROUTER",
            "ISPENDR",
            "a pending interrupt is queued for the CPU that it is routed to",
            either="it is moved when the CPU that it was queued for next enters the guest: vgic_prune_ap_list()",
        ),
    ),
)

REDISTRIBUTOR = Order(
    "the order of loading a redistributor",
    (
        "STATUSR",
        "WAKER",
        "PROPBASER",
        "PENDBASER",
        "GICR_CTLR",
        "IGROUPR0",
        "ICFGR",
        "IPRIORITYR",
        "ICENABLER0",
        "ISENABLER0",
        "ISPENDR0",
        "ISACTIVER0",
        "LEVEL_INFO",
    ),
    (
        Edge("PROPBASER", "GICR_CTLR", "once LPIs are enabled the address of their configuration is fixed"),
        Edge("PENDBASER", "GICR_CTLR", "once LPIs are enabled the address of their pending table is fixed"),
        Edge("ICENABLER0", "ISENABLER0", "SGIs are enabled from reset on, and what is not set again stays so"),
        Edge("ICFGR", "ISPENDR0", "a latched interrupt is another thing for a level than for an edge", either=_LATCH),
        Edge("ICFGR", "LEVEL_INFO", "the level of a line makes pending what is configured as level", either=_LEVEL),
    ),
)

CPU_INTERFACE = Order(
    "the order of loading a CPU interface",
    (
        "ICC_SRE_EL1",
        "ICC_CTLR_EL1",
        "ICC_PMR_EL1",
        "ICC_BPR0_EL1",
        "ICC_BPR1_EL1",
        "ICC_AP0Rn_EL1",
        "ICC_AP1Rn_EL1",
        "ICC_IGRPEN0_EL1",
        "ICC_IGRPEN1_EL1",
    ),
    (
        Edge(
            "ICC_SRE_EL1",
            "ICC_CTLR_EL1",
            "it says whether there are system registers at all",
            either="a GICv3 of KVM's has them from its making on: vgic_v3_enable()",
        ),
        Edge(
            "ICC_AP1Rn_EL1",
            "ICC_IGRPEN1_EL1",
            "a group is enabled once all else of it is there",
            either="interrupts are signalled when a CPU enters the guest: kvm_vgic_flush_hwstate()",
        ),
    ),
)

ITS = Order(
    "the order of loading the ITS",
    ("IIDR", "CBASER", "CREADR", "CWRITER", "BASER", "TABLES", "CTLR"),
    (
        Edge(
            "IIDR",
            "TABLES",
            "the revision says how the tables are laid out",
            either="there is one layout so far: its_table_abi_versions",
        ),
        Edge("CBASER", "CREADR", "writing the queue's address sets both of its ends to 0, and commands are done again"),
        Edge(
            "CREADR",
            "CWRITER",
            "between the two there are commands",
            either="an ITS that is not enabled takes none, and both are there before it is",
        ),
        Edge("BASER", "TABLES", "tables are read from where these registers say"),
        Edge(
            "TABLES",
            "CTLR",
            "an ITS that is enabled takes commands and messages by the mappings that it has",
            either="KVM takes commands when they are written, so that none wait; and nothing sends messages yet",
        ),
        Edge("CWRITER", "CTLR", "enabling takes what is in the queue, up to where it is said to end"),
    ),
)
