"""How a machine behaves: the monitor around KVM. Never imports `snapkit.restore`; a Machine satisfies its `Target`.

`machine` owns `vm` (KVM fd, memory, buses, the lock), the vCPU threads (`vcpu`) and the devices (`devices`, chips only;
their host ends are `backends`). `kvm` is the seam to the kernel, `arch` what differs between architectures.

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

Orders from outside come over a Unix socket (`control`, on `backends.http_server`), on the loop's thread as well: a client
that is slow, silent or broken loses its connection, and the guest never waits for one. A snapshot holds the loop until
the disk has it, the guest only while its memory is read.

Not done: PCI, virtio, aarch64. The local APIC's timer starts when it is loaded, not when a machine restored as paused is
first resumed. A terminal stopped by ^S can hold the event loop for one write. Each pause restarts the PIT's period.
"""
