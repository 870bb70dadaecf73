"""What a machine in a sandbox may still ask of the kernel, each with its reason: data for the filter and for `doctor`.

Calls are named as in syscalls(2). What is listed nowhere fails with EPERM, which libraries that probe for something
take well; what nobody but an intruder asks for ends the process, which the kernel's log names (audit type 1326).

Entering the kernel by another architecture's calls (int 0x80, x32) ends the process as well.
"""

from collections.abc import Mapping
from typing import NamedTuple

from snapkit.host_sandbox import Where

SNAPSHOTS = "with --snapshot-dir"
VSOCK = "with a vsock device"

_PROT_EXEC = 4
_O_TRUNC = 0o1000
_AT_EMPTY_PATH = 0x1000
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x0002_0000 | 0x7E00_0000  # mount, cgroup, uts, ipc, user, pid, net: a thread in a namespace of its own
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
OWN_PID = -1
"""Stands for this process's id in a condition."""


class Calls(NamedTuple):
    """Calls (names with spaces between) that are allowed, or that end the process, and why.

    *only* says in words what *conditions* are; *when* what must have been asked for, nothing for always.
    """

    names: str
    why: str
    only: str = ""
    conditions: tuple[Where, ...] = ()
    when: str = ""


ALLOWED = (
    Calls(
        "read write readv writev pread64 pwrite64 preadv preadv2 pwritev pwritev2 lseek close",
        "what is open is read, written and closed: images, TAPs, sockets, events, the console",
    ),
    Calls("fsync fdatasync fallocate flock", "images are synced, and have holes"),
    Calls("fstat", "an image is looked at when it is saved"),
    Calls("newfstatat", "the same", "of an open file", (Where(3, _AT_EMPTY_PATH, _AT_EMPTY_PATH),)),
    Calls("ioctl", "KVM, TAPs, terminals", "those listed"),
    Calls("epoll_create1 epoll_ctl epoll_wait epoll_pwait poll ppoll", "the event loop"),
    Calls("eventfd2", "doorbells and interrupts of devices, and what wakes the loop"),
    Calls(
        "accept4 getsockname getsockopt recvfrom sendto shutdown",
        "clients of the control socket, and streams of a vsock device",
    ),
    Calls("mmap", "guest RAM, kvm_run, stacks of threads", "without PROT_EXEC", (Where(2, 0, _PROT_EXEC),)),
    Calls("mprotect", "guards of stacks, and the allocator's heaps", "without PROT_EXEC", (Where(2, 0, _PROT_EXEC),)),
    Calls("munmap mremap madvise brk", "memory goes back to the host, from guest and allocator"),
    Calls(
        "clone",
        "vCPUs, workers of disks, hashing",
        "threads of this process, in its namespaces",
        (Where(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW),),
    ),
    Calls("set_robust_list rseq gettid sched_getaffinity sched_yield", "what glibc does for a thread"),
    Calls("futex", "locks"),
    Calls("exit exit_group", "the end of a thread, and of the process"),
    Calls("rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack restart_syscall", "signals that come"),
    Calls("tgkill", "kicks a vCPU out of the guest", "to this process", (Where(0, OWN_PID),)),
    Calls("getpid", "the process says who it is"),
    Calls("clock_gettime gettimeofday", "clocks, where they are no plain memory"),
    Calls("getrandom", "entropy for the guest, and new ids"),
    Calls(
        "openat",
        "snapshots; which of RAM was never touched (/proc/self)",
        "where Landlock allows it, and without O_TRUNC",
        (Where(2, 0, _O_TRUNC),),
        SNAPSHOTS,
    ),
    Calls("getdents64 unlink rename link", "a snapshot appears whole", "where Landlock allows it", (), SNAPSHOTS),
    Calls("unlinkat renameat renameat2 linkat", "the same on aarch64", "where Landlock allows it", (), SNAPSHOTS),
    Calls("ftruncate", "the end of a snapshot", "", (), SNAPSHOTS),
    Calls(
        "newfstatat readlink readlinkat getcwd",
        "where a path leads. It tells of any file that it exists",
        "",
        (),
        SNAPSHOTS,
    ),
    Calls("uname", "a snapshot says which kernel it is from", "", (), SNAPSHOTS),
    Calls(
        "socket",
        "a guest connects to who listens at the device's path",
        "Unix stream sockets",
        (Where(0, _AF_UNIX), Where(1, _SOCK_STREAM, _SOCK_TYPE_MASK)),
        VSOCK,
    ),
    Calls("connect", "the same. It reaches any Unix socket with a path that this user may use", "", (), VSOCK),
)

NOT_THERE = Calls("clone3", "glibc makes threads by clone(2) then, whose flags a filter sees")
"""Fails with ENOSYS."""

KILLED = (
    Calls("execve execveat fork vfork", "another program"),
    Calls("clone", "another process", "not a thread", (Where(0, 0, _CLONE_THREAD),)),
    Calls("ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd kcmp", "into other processes"),
    Calls("bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register", "more of the kernel"),
    Calls("init_module finit_module delete_module kexec_load kexec_file_load reboot iopl ioperm", "into the kernel"),
    Calls("mount umount2 pivot_root chroot setns unshare open_by_handle_at", "out of a container"),
    Calls("open_tree move_mount fsopen fsconfig fsmount mount_setattr mknod mknodat", "out of a container"),
    Calls("setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset", "another user"),
    Calls("add_key request_key keyctl personality modify_ldt swapon swapoff acct settimeofday", "no business of ours"),
)

IOCTLS: Mapping[str, str] = {
    "KVM_CREATE_VM": "the machine",
    "KVM_CHECK_EXTENSION": "what it may have",
    "KVM_GET_VCPU_MMAP_SIZE": "what of a vCPU is shared memory",
    "KVM_GET_SUPPORTED_CPUID": "what a new machine's CPUs can do",
    "KVM_GET_MSR_INDEX_LIST": "what a save has to read",
    "KVM_SET_TSS_ADDR": "a page that KVM needs on some hosts",
    "KVM_SET_IDENTITY_MAP_ADDR": "another",
    "KVM_SET_USER_MEMORY_REGION": "guest RAM",
    "KVM_CREATE_IRQCHIP": "interrupt controllers",
    "KVM_GET_IRQCHIP": "a save",
    "KVM_SET_IRQCHIP": "a restore",
    "KVM_CREATE_PIT2": "the timer",
    "KVM_GET_PIT2": "a save, a pause",
    "KVM_SET_PIT2": "a restore, a resume",
    "KVM_GET_CLOCK": "a save, a pause",
    "KVM_SET_CLOCK": "a restore, a resume",
    "KVM_SET_GSI_ROUTING": "the guest writes an interrupt's address, masks or unmasks a vector",
    "KVM_IRQFD": "the guest unmasks a vector",
    "KVM_IOEVENTFD": "the guest moves a BAR, and doorbells with it",
    "KVM_IRQ_LINE": "an interrupt by its pin",
    "KVM_SIGNAL_MSI": "an interrupt by a message",
    "KVM_CREATE_VCPU": "vCPUs",
    "KVM_RUN": "the guest runs",
    "KVM_SET_SIGNAL_MASK": "what ends KVM_RUN",
    "KVM_GET_REGS": "a save",
    "KVM_SET_REGS": "a boot, a restore",
    "KVM_GET_SREGS": "a save",
    "KVM_SET_SREGS": "a boot, a restore",
    "KVM_GET_XSAVE": "a save",
    "KVM_GET_XSAVE2": "a save",
    "KVM_SET_XSAVE": "a restore",
    "KVM_GET_XCRS": "a save",
    "KVM_SET_XCRS": "a restore",
    "KVM_GET_DEBUGREGS": "a save",
    "KVM_SET_DEBUGREGS": "a restore",
    "KVM_GET_LAPIC": "a save",
    "KVM_SET_LAPIC": "a restore",
    "KVM_GET_MP_STATE": "a save",
    "KVM_SET_MP_STATE": "a boot, a restore",
    "KVM_GET_VCPU_EVENTS": "a save",
    "KVM_SET_VCPU_EVENTS": "a restore",
    "KVM_SET_CPUID2": "a boot, a restore",
    "KVM_GET_MSRS": "a save",
    "KVM_SET_MSRS": "a boot, a restore",
    "KVM_GET_TSC_KHZ": "a boot, a restore, a save",
    "KVM_SET_TSC_KHZ": "a restore from a host with another rate",
    "KVM_GET_DEVICE_ATTR": "a save: interrupt controllers, and how far a vCPU's counter is from the host's",
    "KVM_SET_DEVICE_ATTR": "a boot, a restore, and a save that puts tables into memory; a first resume",
    "KVM_ARM_PREFERRED_TARGET": "a boot: what a vCPU is like",
    "KVM_ARM_VCPU_INIT": "a boot, a restore",
    "KVM_ARM_VCPU_FINALIZE": "a boot, a restore: vectors are as long as they are from then on",
    "KVM_GET_REG_LIST": "a save",
    "KVM_GET_ONE_REG": "a save",
    "KVM_SET_ONE_REG": "a boot, a restore, a first resume",
    "KVM_CREATE_DEVICE": "interrupt controllers",
    "KVM_KVMCLOCK_CTRL": "a resume: the guest's watchdog is told of the pause",
    "TUNSETOFFLOAD": "a driver says which packets it takes",
    "FIONBIO": "a client's socket does not wait",
    "FIOCLEX": "nor is it inherited",
    "TCGETS": "whether an fd is a terminal",
    "TCSETS": "it becomes raw, and as it was before",
    "TIOCGWINSZ": "how wide it is",
}
OTHER_IOCTLS: Mapping[str, int] = {
    "TUNSETOFFLOAD": 0x400454D0,
    "FIONBIO": 0x5421,
    "FIOCLEX": 0x5451,
    "TCGETS": 0x5401,
    "TCSETS": 0x5402,
    "TIOCGWINSZ": 0x5413,
}
"""Numbers of those that are not KVM's: UAPI asm-generic/ioctls.h, linux/if_tun.h."""
NOT_AFTERWARDS: Mapping[str, str] = {
    "KVM_GET_API_VERSION": "asked when /dev/kvm is opened, which is before",
    "KVM_NMI": "nothing asks for it",
}
"""KVM's ioctls that snapkit has and a machine in a sandbox does without."""
