"""The aarch64 machine: where things lie, how its first vCPU starts, what its device tree says.

`layout` is the address map; `fdt` describes the machine as a device tree; `boot` puts a kernel, its initial ramdisk and
that tree into guest memory and returns the `boot.BootEntry` that the boot vCPU starts from. `image` knows the kernel
format of arm64 Linux; tiny guests are plain ELF. Booting touches no KVM: memory is anything with ``read``, ``write``
and ``ram``.

`vcpu`, `gic` and `its` are what lives in KVM, each with its order in `vcpu_order` and `gic_order`; `registers` moves a
controller's registers both ways; `clock` sets the counter going; `facts` is what a host tells of itself.

What a guest sees of time (`clock`, `vcpu`, `gic`):

| clock | pause and resume | restore, continue | restore, realtime |
|---|---|---|---|
| counter (CNTVCT_EL0) | goes on with the host's | from the value saved | further by the wall time since the save |
| timers | may pass: interrupt at the resume | as far away as they were | at once where they have passed by now |
| PL031 | right: it is the host's | right | right |

The counter is one for all CPUs, and its rate the host's: a machine goes on only where CNTFRQ_EL0 is the same. A machine
that waits, restored but not yet resumed, loses no time; saved meanwhile, it is the same again to the last count.

Not offered: a PMU, nested virtualisation, 32-bit kernels, stolen time (PVTIME), GICv2.

Prior art: the Linux boot protocol (Documentation/arch/arm64/booting.rst), the bindings beside it
(Documentation/devicetree/bindings), and the small monitors' habit of needing no firmware.
"""
