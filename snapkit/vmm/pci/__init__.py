"""PCI: one segment with one bus of 32 slots, each with at most one function, and MSI-X.

What lives here is what every PCI function has, whatever it does: configuration space (`pci_function`), how it is reached
(`pci_segment`: ECAM and the ports 0xCF8 and 0xCFC), interrupts (`pci_msix`), and how a new configuration space is built
(`layout`). What never does: the registers behind a BAR, which are a `BarTarget` (virtio's transport is one), and KVM.

Who tells whom. A guest's access reaches the segment, which finds the function. The function owns the BARs: it moves
them between ranges that it claims of the resource allocator, on the memory bus, and tells the target, whose doorbells
follow. A capability's registers are the function's bytes as well; who implements the capability says which bits a guest
may write and is told when it did. MSI-X does so for its control word, and reads its size and place from there too: each
fact is in one State only.

- A guest access of any width, at any offset, does something or reads all ones; it never raises. What could not be done
  is counted in `faults`.
- Restore is inert: constructing claims, `attach` puts a BAR on the bus without telling the target, vectors are enabled by
  `wire`, all of a machine in one batch.
- The host bridge is a function without BARs in slot 0; all other slots are claimed in the pool ``pci-slot``.

Prior art: OpenVMM (a function's registers as declarations), Firecracker and Cloud Hypervisor (one segment, BAR relocation
inside the VM), whose faults in restoring half-moved BARs and masked vectors are what the tests here are named for.

Not done: INTx, I/O BARs, ROMs, bridges, several functions in a slot, hot plug, power management, PCI Express capability and
extended configuration space (which reads all ones). Two functions cannot swap their addresses with decoding off: each
keeps its claim until its own move is done.
"""
