"""How a machine's sections become running parts, and who calls them when.

A `Part` (`part`) is one section built: a thin adapter that puts a device, a transport, a PCI function or a table onto the
buses and into the stages of a machine's life. `board` holds all of them and calls their hooks in order; `MODULES` names,
by kind, the module that builds it, which is imported when a machine first has one: start-up costs what is used.
What the host lends (an image, a TAP, a socket) is a `HostEnd`, opened in the stage *claim* before there is a VM.

`fresh` makes the sections of a machine that was just switched on: from there on a boot and a restore build parts in the
same way, and a device cannot tell the difference.

Chips themselves live in `vmm.devices`, `vmm.pci`, `vmm.virtio` and know nothing of stages; host ends are `vmm.backends`.
"""
