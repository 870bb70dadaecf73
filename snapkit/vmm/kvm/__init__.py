"""KVM behind a narrow seam: one object per fd, ioctl numbers beside their structures, nothing that decides.

`system` is /dev/kvm, `vm` a VM's fd, `vcpu` a vCPU's fd with its kvm_run page; `abi` and `abi_x86` hold numbers and
layouts. A second hypervisor would offer the same three classes. Every call but KVM_RUN goes through `snapkit.host`,
where it is counted and can be made to fail.
"""
