"""How a machine becomes bytes and back. Never imports `snapkit.vmm`: it declares what it needs of a machine (`target`).

    open -> verify -> decode -> upgrade -> check -> plan -> claim -> rebuild -> wire -> load -> activate -> run

| stage | does | may touch |
|---|---|---|
| open, verify | preamble, manifest, digests, chunk table | the file, read-only |
| decode, upgrade | sections to States, States to the current release | nothing |
| check | every invariant across components, all findings at once (`check`) | nothing |
| plan | the ordered steps (`plan`) | nothing |
| claim | host resources are opened | host, reversible |
| rebuild | VM, memory map, chips, vCPUs, all devices constructed, inert | KVM objects |
| wire | doorbells and interrupt routes | KVM objects |
| load | registers and chips, in the order that the architecture wants | KVM objects |
| activate | pins driven, console connected | KVM objects, host, reversible |
| run | clocks started, vCPUs leave pause | the world |

Everything from *claim* on is a `Step` with its undo, run by one small engine (`pipeline`): a restore that fails leaves
no fd, thread or mapping. The file itself is `image` (read), `writer` (write), `pages` (its memory), over `preamble`,
`manifest` and `chunks`, one module per part of the layout; `atomic` and `orphans` see to what a killed writer leaves.

What a file may cost before it is refused is bounded by what it holds: a manifest of 1 MiB, sections of 16 MiB together
once decompressed, and a chunk table for at most 1 TiB of RAM, 24 MiB. `verify` and a restore that copies memory read
all of memory, as long as the file says that it is.

Not done: host resources beside the console (there are no such devices yet), the findings of `compatible` beyond
architecture, vCPU count and TSC rate.
"""
