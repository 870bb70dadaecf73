"""``snapkit boot``."""

from typing import Any

import click

from snapkit import host_process
from snapkit.cli.devices import asked_devices, device_options
from snapkit.cli.keys import key_option, read_key
from snapkit.cli.session import SIGNALS, Session, session_options
from snapkit.errors import ConfigError
from snapkit.units import parse_len


@click.command(short_help="boot a kernel")
@click.argument("kernel")
@click.option("--initrd", metavar="F", help="Initial ramdisk.")
@click.option("--cmdline", default="", metavar="S", help="Kernel command line.")
@click.option("--memory", default="256M", show_default=True, metavar="LEN", help="Guest RAM.")
@click.option("--vcpus", default=2, show_default=True, metavar="N", help="1 to 8 CPUs.")
@click.option("--cpu", default="host", show_default=True, metavar="host|baseline", help="What CPUID says.")
@click.option("--reboot", is_flag=True, help="Boot again when the guest asks for a reset, instead of exiting with 8.")
@device_options
@key_option
@session_options
def boot(
    kernel: str,
    initrd: str | None,
    cmdline: str,
    memory: str,
    vcpus: int,
    cpu: str,
    reboot: bool,
    key_file: str | None,
    **asked: Any,
) -> int:
    """Boot KERNEL (a bzImage, an ELF vmlinux, or an ELF file with a PVH entry) and run it until it ends.

    \b
    Exit code: 0 powered off, or what was waited for came; 7 triple fault; 8 reboot; 124 time-out; 130 interrupted.

    \b
    Examples:
      snapkit boot vmlinuz --initrd initrd.img --cmdline "console=ttyS0"
      snapkit boot vmlinuz --snapshot-when "login:" --snapshot-to vm.snap
      snapkit boot vmlinux --memory 4G --vcpus 8 --exit-when ready --timeout 60
      snapkit boot vmlinuz --cmdline "console=ttyS0 root=/dev/vda" --disk id=root,path=root.img --rng
      snapkit boot vmlinuz --disk id=root,path=base.img,overlay=. --net id=eth0,tap=tap0 --transport mmio
    """
    from snapkit.vmm.machine import BootConfig, Machine
    from snapkit.vmm.run_state import Reason

    if reboot and asked["sandbox"]:
        raise ConfigError("--reboot opens everything anew, which --sandbox is there to prevent: choose one")
    devices, transport = asked_devices(asked)
    config = BootConfig(
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        memory=parse_len(memory, what="memory"),
        vcpus=vcpus,
        cpu=cpu,
        devices=devices,
        transport=transport,
    )

    def build(loop: Any, console: Any) -> Machine:
        kinds = [asked.kind for asked in config.devices]
        machine = Machine.boot(config, loop, console, claimed=lambda: session.seal(kinds, boots=True))
        try:
            machine.resume()
        except BaseException:
            machine.close()
            raise
        return machine

    key = read_key(key_file)
    session = Session(**asked, key=key)
    between: list[int] = []
    with host_process.on_signals(tuple(SIGNALS), between.append):  # for the moment between two runs
        while True:
            code = session.run(build)
            if not (reboot and session.ended is Reason.RESET):
                return code
            if between:
                return SIGNALS[between[0]].exit_code
            session = Session(**asked, key=key, deadline_ns=session.deadline_ns)
