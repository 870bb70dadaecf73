"""How a machine behaves: the monitor around KVM. Never imports `snapkit.restore`; a Machine satisfies its `Target`.

`machine` owns `vm` (KVM fd, memory, buses, claims, interrupts, doorbells, the lock), the vCPU threads (`vcpu`) and the
`parts.board.Board`, which holds everything else: a `Part` a section, each a thin adapter that puts a chip onto buses
and into the stages of a machine's life. The chips know nothing of stages: `devices` (legacy ones, the generation id),
`pci`, `virtio`. Their host ends (images, TAPs, sockets) are `backends`, opened before there is a VM. `kvm` is the seam
to the kernel, `arch` what differs between architectures: a `Platform` each, which a machine asks its host for.

Who has what. `resource_allocator` is derived: pools come from the address map, each part claims its ranges and numbers
when it is built, from a file exactly those that were saved, and what is saved of it is compared. `interrupt_table` is
derived as well: pins and messages belong to who wired them; a route is in KVM before its irqfd, and a restore loads all
of them by one call. Whatever moves (a BAR, its doorbells) moves as a whole or stays where it was.

PCI. `pci.pci_segment` is the bus by both ways into configuration space; `pci.pci_function` a function's registers and
where its BARs are decoded; `pci.pci_msix` its vectors, which hold a route and an irqfd only while nothing masks them.
What the guest has begun and not finished (a BAR written while decoding is off, a size probe, a pending bit) is state.

virtio. A device (`virtio.device` and the types beside it) has features, queues, a configuration space, and knows no
transport. A transport (`virtio.virtio_pci`, `virtio.virtio_mmio`) has the status machine, the registers and the
doorbells: it activates the device, and the device interrupts through it by queue index. Queues (`virtio.queue`) trust
nothing in guest memory: what is wrong with a ring breaks that device alone, until its driver resets it. Eventfds
are not state: every queue is looked at when the machine goes on.

Threads. Each vCPU is a thread in KVM_RUN, made when the machine is activated. From the first resume on every ioctl on a
vCPU's fd runs on that thread, asked for through its mailbox; before it nothing can be in KVM_RUN, so no ioctl can wait,
and whoever asks for work does it: a restore saves three hops between threads a vCPU, 40 to 100 us each. The event loop
(`loop`) runs in the main thread. One lock per machine is held while a bus handler or the loop touches device state,
never across KVM_RUN, epoll or a blocking file call. Paused means: all vCPUs parked with no exit in flight. Programs set
``sys.setswitchinterval(1e-4)``: beside one busy Python thread an exit costs 2 ms at the interpreter's default, and a
tenth of that so.

Memory. Guest RAM is mapped and owned by address (`memory`), and lent as views only inside a call. Closing goes: vCPU
threads, kvm_run mappings, vCPU fds, VM fd, RAM.

The guest cannot raise: a bad access gets the bus default and is counted. An exception out of a handler is a bug, ends
the run as InternalError, and is told with its cause.

Orders from outside come over a Unix socket (`control`, on `backends.http_server`), on the loop's thread as well: a
client that is slow, silent or broken loses its connection, and the guest never waits for one. A snapshot holds the loop
until the disk has it, the guest only while its memory is read.

Not done: devices that come or go while the machine runs, more than one PCI bus, packed queues. A save holds
the loop while a disk's worker ends what it is at. A terminal stopped by ^S can hold the event loop for one write. Each
pause restarts the PIT's period.
"""
