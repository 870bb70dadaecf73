"""How a machine becomes bytes and back. Never imports `snapkit.vmm`: it declares what it needs of a machine (`target`).

    open -> verify -> decode -> upgrade -> check -> plan -> claim -> rebuild -> wire -> load -> activate -> run

| stage | does | may touch |
|---|---|---|
| open, verify | preamble, manifest, digests, chunk table | the file, read-only |
| decode, upgrade | sections to States, States to the current release | nothing |
| check | every invariant across components, all findings at once (`check`) | nothing |
| plan | the ordered steps (`plan`), and what this host lacks (`compatible`) | nothing but to ask KVM what it can do |
| claim | images, TAPs, sockets opened, locked, compared with what was saved; the hypervisor opened | host, reversible |
| rebuild | VM, memory map, chips, vCPUs, tables; all devices constructed, inert, with their claims | KVM objects |
| wire | doorbells; all interrupt routes by one call, then what fires them; claims compared | KVM objects |
| load | registers and chips, in the order that the architecture wants | KVM objects |
| activate | pins driven, host ends watched, threads made, a new generation id | KVM objects, host, reversible |
| run | clocks started, every queue looked at, vCPUs leave pause | the world |

Everything from *claim* on is a `Step` with its undo, run by one small engine (`pipeline`): a restore that fails leaves
no fd, thread, mapping, lock or file. What the operator says of a device's host end instead of what was saved goes to
the target, not through here: a plan is the same wherever it is carried out. The order of stages, of construction and of
loading is data, tables of edges with a reason each (`orders`), as that inside of a vCPU is (`vmm.arch`): a table that
contradicts itself cannot be imported, and what comes of swapping an edge is shown on KVM by tests. Nothing is opened by
path after *claim*, but the files of a snapshot, so that who runs the plan may put a step of its own there
(`Prepared.add`) and shut the process off from the rest of the host.

Checks are small functions, one module a concern (`check`): identity (which sections there are, whose they are), memory,
claims, pci, interrupts with their chips, queues, vcpus, clock, its; and what each section must hold in itself, by the module
of its kind. ``snapkit verify --explain`` lists them all with their reasons. They hold everything that rebuilding relies
on, and what KVM was found to refuse or to change, so that a file which passes cannot fail there for its own sake; and
nothing that a guest may bring about, so that whatever it does to its devices or writes into its rings, its snapshot is
good: a device that is served nonsense asks for a reset. `verify` remarks upon rings in memory that do not fit their
devices, and refuses nothing for it. One thing in memory is KVM's, the tables of an ITS: what it would refuse there is
refused before anything is done. They are looked at as they will be mapped, so that no chunk is digested for them.

The file itself is `image` (read), `writer` (write), `pages` (its memory), over `preamble`, `manifest` and `chunks`, one
module per part of the layout; `atomic` and `orphans` see to what a killed writer leaves. All of it but memory is the
`front`: one that the process read before is compared byte by byte instead of parsed and digested, and `known` is then what
was found out about it. So a file that is restored again and again is looked through once, and a changed one as if it were new.

`convert` and `edit` make a snapshot of a snapshot: other sections, checked as a restore checks them, over the same memory
(`rewrite`, `carry`). The new file is another snapshot, with the old one as its parent. `diff` compares two.

What a file may cost before it is refused is bounded by what it holds: a manifest of 1 MiB, sections of 16 MiB together
once decompressed, and a chunk table for at most 1 TiB of RAM, 24 MiB. `verify` and a restore that copies memory read
all of memory, as long as the file says that it is.

A host is asked once in a process what its KVM can do (`Target.facts`), and a file is judged by that before anything is
opened for it. To skip the question for files that were written here would not be sound: a file says which kernel wrote
it, not which processor or module parameters, and KVM_SET_CPUID2 takes features that are not there. So what is saved is
the repetition: the answer, and the verdict on a file that is restored again.

Not done: values of MSRs, which KVM judges one by one when they are loaded (it names the one that it refuses), and
whether the two PICs agree on their cascade; `compatible` does not compare those that say what a processor is
(IA32_ARCH_CAPABILITIES). Images, TAPs and sockets are looked at in *claim*, not by a dry run. Features that a device
offers are not compared with what this release knows of. Diff snapshots.
"""
