"""virtio, modern only: VIRTIO 1.3. Device types, the two transports that carry them, and the queues between.

| module | what |
|---|---|
| `queue` | a split virtqueue, the device's side: everything checked, nothing raised but `QueueBroken` |
| `device` | `VirtioDevice`, the base of the device types; knows nothing of what carries it |
| `transport` | what both transports share: status machine, queue registers, doorbells |
| `virtio_pci`, `pci_layout` | registers behind a PCI function's BAR, MSI-X; where they are, and a new device's PCI side |
| `virtio_mmio` | registers in memory, one level-triggered line |
| `virtio_<type>` | one device type each; its State is `snapkit.state.virtio_<type>` |

Who owns what. The *device* has features and queues, and is served; the *transport* has status, selectors and vectors,
and decides when the device is activated and reset. A device reaches its driver through the `Interrupt` that the
transport bound, always by queue index. Neither knows KVM: doorbells are asked for through `Doorbells`, interrupts go
through MSI-X or a pin, guest memory is `GuestMemory`. Host ends are `vmm.backends`, never imported here.

A doorbell's way: the guest's store signals an eventfd in KVM (or comes as an exit, which signals the same one), the loop
takes it and calls `VirtioDevice.kick` under the machine's lock, the type's `serve` pops, does, pushes, and interrupts
if the driver wants to know. Eventfd signals are no state: every active queue is kicked at each resume.

A driver that breaks the rules of its rings breaks its device (DEVICE_NEEDS_RESET) and nothing else, until it resets it.

Prior art: the same split of device and transport as in crosvm, Cloud Hypervisor and Firecracker, whose BAR layout it is.

Not done: packed rings, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_IN_ORDER, shared memory regions, administration virtqueues.
VIRTIO_F_RING_RESET is implemented and offered by no type. Memory ordering is argued for x86-64 (`queue`); on a weaker
architecture the loads of a ring need barriers that are not there yet.
"""
