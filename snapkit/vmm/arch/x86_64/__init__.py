"""The x86-64 machine: where things lie, how its first vCPU starts, what its firmware tables say.

`layout` is the address map; `acpi` (with `aml`) builds the tables; `boot` puts a kernel, its initial ramdisk and
command line into guest memory and returns the `entry.BootEntry` that the boot vCPU starts from. `bzimage`, `elf` and
`pvh` know one format each, `boot_file` reads files. Nothing here touches KVM: memory is anything with ``read``,
``write`` and ``ram``.

Prior art: the Linux boot protocol (Documentation/arch/x86/boot.rst), Xen's PVH start info, and the small monitors'
habit of entering the kernel directly in long mode.
"""
