"""KVM behind a narrow seam: one object per fd, ioctl numbers beside their structures, nothing that decides.

`system` is /dev/kvm, `vm` a VM's fd, `vcpu` a vCPU's fd with its kvm_run page, as far as architectures agree; `_x86` and
`_arm` modules have what is their own. `device` is what arm64 makes interrupt controllers of. `abi`, `abi_x86` and `abi_arm`
hold numbers and layouts. A second hypervisor would offer the same classes. Every call but KVM_RUN goes through
`snapkit.host`, where it is counted and can be made to fail.
"""
