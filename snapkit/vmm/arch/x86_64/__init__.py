"""The x86-64 machine: where things lie, how its first vCPU starts, what its firmware tables say.

`layout` is the address map; `clock` starts the clocks of a restored guest; `acpi` (with `aml`) builds the tables;
`boot` puts a kernel, its initial ramdisk and command line into guest memory and returns the `entry.BootEntry` that
the boot vCPU starts from. `bzimage`, `elf` and `pvh` know one format each. Booting
touches no KVM: memory is anything with ``read``, ``write`` and ``ram``.

What a guest sees of time (`clock`, `vcpu`, `irqchip`):

| clock | pause and resume | restore, continue | restore, realtime |
|---|---|---|---|
| kvm-clock | goes on with the host's | from the value saved | further by the wall time since the save |
| TSC | goes on with the host's | from the value saved, CPUs in step | further by as much, CPUs in step |
| wall clock | right: Linux counts it by these | behind by the time spent in the file | right |
| TSC deadline | may pass: interrupt at the resume | as far away as it was | at once if it has passed by now |
| local APIC's timer | may run out: interrupt at the resume | from the count saved | from the count saved |
| PIT | stands still, then a whole period | as after a pause | as after a pause |

Nothing goes back, under either policy: where the host's wall clock lies before the save, realtime is continue. A
machine that waits, restored but not yet resumed, loses no time, and realtime takes the wall time of its first resume;
saved meanwhile, it is the same again to the last count. Each CPU's watchdog is told through kvm-clock that it was
stopped (KVM_KVMCLOCK_CTRL), after a restore as after each pause, so that Linux reports no lockup. A one-shot timer of
the local APIC that had run out, and a deadline that had passed, raise their interrupt at the first resume, perhaps once
more: whether it was taken cannot be told, and one too many is harmless where one too few is not. A host that cannot
move a TSC (measured: KVM-PVM) gives every guest its own, and what counts by it is off.

Prior art: the Linux boot protocol (Documentation/arch/x86/boot.rst), Xen's PVH start info, and the small monitors'
habit of entering the kernel directly in long mode.
"""
