"""Sections that contradict themselves, whatever the others say."""

import copy

from snapkit.state.pci_function import BarState
from snapkit.state.rate_limiter import TokenBucketState
from snapkit.state.virtio_balloon import StatState
from tests.restore.broken import (
    CLAIMS,
    GENERATION,
    SEGMENT,
    TABLE,
    at,
    broken,
    msix_at,
    patch,
)
from tests.restore.device_machine import States


@broken("none", "serial.reserved-bits: serial-16550/0.ier")
def serial_reserved_bits(states: States) -> None:
    at(states, "serial-16550", "0").ier = 0x80


@broken("none", "serial.rx-room: serial-16550/0.rx")
def serial_fifo_too_full(states: States) -> None:
    at(states, "serial-16550", "0").rx = b"ab"
    at(states, "serial-16550", "0").lsr |= 1


@broken("none", "serial.data-ready: serial-16550/0.lsr")
def serial_data_that_is_not_ready(states: States) -> None:
    at(states, "serial-16550", "0").rx = b"a"


@broken("none", "serial.thre-latch: serial-16550/0.thre_pending")
def serial_transmitter_announced_while_busy(states: States) -> None:
    at(states, "serial-16550", "0").thre_pending = True
    at(states, "serial-16550", "0").lsr = 0


@broken("none", "i8042.ibf: i8042/0.status")
def keyboard_input_waiting(states: States) -> None:
    at(states, "i8042", "0").status |= 2


@broken("none", "i8042.reserved-bits: i8042/0.command_byte")
def keyboard_command_byte(states: States) -> None:
    at(states, "i8042", "0").command_byte = 0x80


@broken("none", "pools.sorted: resource-allocator/0.pools[1].pool")
def pools_out_of_order(states: States) -> None:
    states[CLAIMS].pools[:2] = states[CLAIMS].pools[1::-1]


@broken("none", "pools.known: resource-allocator/0.pools", "pools.limits: resource-allocator/0.pools[1]")
def pool_beyond_its_numbers(states: States) -> None:
    states[CLAIMS].pools[1].length = 4073


@broken("none", "pools.apart: resource-allocator/0.pools[1]", "pools.known: resource-allocator/0.pools")
def pools_over_each_other(states: States) -> None:
    states[CLAIMS].pools[0].length = 20


@broken(
    "pci",
    "claims.pool: resource-allocator/0.claims[23].pool",
    "claims.pool: resource-allocator/0.claims[24].pool",
    "claims.pool: resource-allocator/0.claims[25].pool",
    "claims.pool: resource-allocator/0.claims[26].pool",
    "claims.pool: resource-allocator/0.claims[27].pool",
    "pools.known: resource-allocator/0.pools",
)
def claim_in_no_pool(states: States) -> None:
    del states[CLAIMS].pools[4]


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[27]",
    "claims.inside: resource-allocator/0.claims[27]",
)
def claim_outside_its_pool(states: States) -> None:
    states[CLAIMS].claims[-1].start = 32


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[0]",
    "claims.owner: resource-allocator/0.claims[0].owner",
)
def claim_of_no_section(states: States) -> None:
    states[CLAIMS].claims[0].owner = "vmgenid"


@broken("pci", "claims.sorted: resource-allocator/0.claims[1]")
def claims_out_of_order(states: States) -> None:
    states[CLAIMS].claims[:2] = states[CLAIMS].claims[1::-1]


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[27]",
    "claims.apart: resource-allocator/0.claims[27]",
)
def claims_over_each_other(states: States) -> None:
    states[CLAIMS].claims[-1].start -= 1


@broken("none", "interrupts.lines: interrupt-table/0.lines", "lines.range: interrupt-table/0.lines[0].gsi")
def line_beyond_the_pins(states: States) -> None:
    states[TABLE].lines[-1].gsi = 24


@broken("mmio", "interrupts.lines: interrupt-table/0.lines", "lines.sorted: interrupt-table/0.lines[1].gsi")
def lines_out_of_order(states: States) -> None:
    states[TABLE].lines[:2] = states[TABLE].lines[1::-1]


@broken("none", "interrupts.lines: interrupt-table/0.lines", "lines.owner: interrupt-table/0.lines[0].owner")
def line_of_no_section(states: States) -> None:
    states[TABLE].lines[0].owner = "serial"


@broken(
    "pci",
    "interrupts.routes: interrupt-table/0.routes",
    "interrupts.routes: interrupt-table/0.routes[0]",
    "routes.range: interrupt-table/0.routes[0].gsi",
)
def route_below_the_messages(states: States) -> None:
    states[TABLE].routes[0].gsi = 23


@broken("pci", "routes.sorted: interrupt-table/0.routes[1].gsi")
def routes_out_of_order(states: States) -> None:
    states[TABLE].routes[:2] = states[TABLE].routes[1::-1]


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]", "routes.owner: interrupt-table/0.routes[0].owner")
def route_of_no_section(states: States) -> None:
    states[TABLE].routes[0].owner = "pci-msix"


@broken("pci", "pci.config-address: pci-segment/0.config_address")
def latch_with_undefined_bits(states: States) -> None:
    states[SEGMENT].config_address = 3


@broken("pci", "pci.command: pci-function/root.config[4:6]")
def command_that_cannot_be_written(states: States) -> None:
    patch(states, "root", 5, b"\x80")


@broken("pci", "pci.header: pci-function/root.config[14]")
def a_bridge_by_its_header(states: States) -> None:
    patch(states, "root", 14, b"\x01")


@broken("pci", "pci.vendor: pci-function/root.config[0:2]")
def no_vendor(states: States) -> None:
    patch(states, "root", 0, b"\xff\xff")


@broken("pci", "pci.capabilities: pci-function/root.config[153]")
def capabilities_that_loop(states: States) -> None:
    patch(states, "root", msix_at(states) + 1, bytes([msix_at(states)]))


@broken("pci", "pci.capabilities: pci-function/root.config[153]")
def capabilities_that_leave_the_space(states: States) -> None:
    patch(states, "root", msix_at(states) + 1, b"\x20")


@broken("pci", "pci.capabilities: pci-function/root.config[64]")
def capabilities_over_each_other(states: States) -> None:
    patch(states, "root", 0x34, b"\x44")
    patch(states, "root", 0x44, b"\x05\x40")


@broken(
    "pci",
    "pci.bar-index: pci-function/root.config[20]",
    "pci.bar-width: pci-function/root.bars[0].width",
    "pci.virtio-bar: pci-function/root.bars",
)
def bar_of_48_bits(states: States) -> None:
    at(states, "pci-function").bars[0].width = 48


@broken(
    "pci",
    "msix.place: pci-function/root.config[156]",
    "msix.place: pci-function/root.config[160]",
    "pci.bar-index: pci-function/root.bars[0].index",
    "pci.bar-index: pci-function/root.config[16]",
    "pci.bar-index: pci-function/root.config[20]",
    "pci.virtio-bar: pci-function/root.bars",
)
def bar_beyond_the_registers(states: States) -> None:
    at(states, "pci-function").bars[0].index = 5


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[18]",
    "pci.bar-length: pci-function/root.bars[0].length",
    "pci.virtio-bar: pci-function/root.bars",
)
def bar_of_an_odd_length(states: States) -> None:
    at(states, "pci-function").bars[0].length = 0x7_0000


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[18]",
    "pci.bar-address: pci-function/root.bars[0].address",
    "pci.bars-apart: pci-function/eth0.bars[0].address",
)
def bar_on_an_odd_address(states: States) -> None:
    at(states, "pci-function").bars[0].address += 0x1000


@broken("pci", "pci.bar-type: pci-function/root.config[16]")
def bar_register_of_another_type(states: States) -> None:
    patch(states, "root", 0x10, b"\x00")


@broken("pci", "pci.bar-bits: pci-function/root.config[16]")
def bar_register_with_length_bits(states: States) -> None:
    patch(states, "root", 0x11, b"\x10")


@broken("pci", "pci.bar-index: pci-function/root.config[36]")
def register_of_no_bar(states: States) -> None:
    patch(states, "root", 0x24, b"\x01")


@broken("pci", "pci.bar-overlap: pci-function/root.bars[1].address", "pci.virtio-bar: pci-function/root.bars")
def bars_of_one_function_over_each_other(states: States) -> None:
    at(states, "pci-function").bars.append(
        BarState(index=2, width=64, length=0x8_0000, address=at(states, "pci-function").bars[0].address)
    )
    patch(states, "root", 0x18, b"\x04")


@broken("pci", "msix.reserved-bits: pci-msix/root.entries[1].control")
def vector_control_with_undefined_bits(states: States) -> None:
    at(states, "pci-msix").entries[1].control = 2


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims[2]",
    "interrupts.routes: interrupt-table/0.routes[0]",
    "msix.lengths: pci-msix/root.gsis",
)
def a_gsi_too_few(states: States) -> None:
    at(states, "pci-msix").gsis.pop()


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims[2]",
    "interrupts.routes: interrupt-table/0.routes",
    "interrupts.routes: interrupt-table/0.routes[0]",
    "msix.gsis: pci-msix/root.gsis",
)
def one_gsi_for_two_vectors(states: States) -> None:
    at(states, "pci-msix").gsis[1] = at(states, "pci-msix").gsis[0]


@broken("pci", "virtio-pci.isr: virtio-pci/root.isr_status")
def interrupt_status_of_three_bits(states: States) -> None:
    at(states, "virtio-pci").isr_status = 4


@broken("mmio", "virtio-mmio.isr: virtio-mmio/root.interrupt_status")
def interrupt_status_of_three_bits_mmio(states: States) -> None:
    at(states, "virtio-mmio").interrupt_status = 4


@broken(
    "mmio",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[10]",
    "virtio-mmio.address: virtio-mmio/root.address",
    "virtio-mmio.slot: virtio-mmio/root.address",
)
def registers_off_their_page(states: States) -> None:
    at(states, "virtio-mmio").address += 0x800


@broken("mmio", "virtio-block.queues: virtio-block/root.queues")
def two_request_queues(states: States) -> None:
    at(states, "virtio-block").queues.append(copy.deepcopy(at(states, "virtio-block").queues[0]))


@broken("mmio", "virtio-block.capacity: virtio-block/root.capacity")
def disk_beyond_file_offsets(states: States) -> None:
    at(states, "virtio-block").capacity = (1 << 54) + 1


@broken("mmio", "virtio-block.blk-size: virtio-block/root.blk_size")
def blocks_of_1000_bytes(states: States) -> None:
    at(states, "virtio-block").blk_size = 1000


@broken("mmio", "virtio-block.seg-max: virtio-block/root.seg_max")
def requests_without_data(states: States) -> None:
    at(states, "virtio-block").seg_max = 0


@broken("mmio", "virtio-block.serial: virtio-block/root.serial")
def serial_number_with_a_zero(states: States) -> None:
    at(states, "virtio-block").serial = b"a\0b"


@broken("mmio", "virtio-block.layers: virtio-block/root.host.layers[0].format")
def an_overlay_over_nothing(states: States) -> None:
    at(states, "virtio-block").host.layers[0].format = "overlay"


@broken("mmio", "rate-limiter.bucket: virtio-block/root.limiter.ops.budget")
def bucket_fuller_than_full(states: States) -> None:
    at(states, "virtio-block").limiter.ops = TokenBucketState(size=1, refill_ms=1, budget=2)


@broken("mmio", "rate-limiter.blocked: virtio-block/root.limiter.blocked_ns")
def blocked_without_a_limit(states: States) -> None:
    at(states, "virtio-block").limiter.blocked_ns = 1


@broken("mmio", "net.queues: virtio-net/eth0.queues")
def three_net_queues(states: States) -> None:
    at(states, "virtio-net", "eth0").queues.append(copy.deepcopy(at(states, "virtio-net", "eth0").queues[0]))


@broken("mmio", "net.mac: virtio-net/eth0.mac")
def group_address(states: States) -> None:
    at(states, "virtio-net", "eth0").mac = b"\x01\0\0\0\0\1"


@broken("mmio", "net.mtu: virtio-net/eth0.mtu")
def mtu_that_is_not_offered(states: States) -> None:
    at(states, "virtio-net", "eth0").mtu = 1500


@broken("mmio", "virtio-vsock.queues: virtio-vsock/v0.queues")
def two_vsock_queues(states: States) -> None:
    at(states, "virtio-vsock", "v0").queues.pop()


@broken("mmio", "virtio-vsock.uds: virtio-vsock/v0.host.uds")
def socket_path_with_a_zero(states: States) -> None:
    at(states, "virtio-vsock", "v0").host.uds = "a\0b"


@broken("mmio", "balloon.stats: virtio-balloon/b.stats[0].tag")
def statistic_that_there_is_not(states: States) -> None:
    at(states, "virtio-balloon", "b").stats = [StatState(tag=99, value=1)]


@broken("mmio", "balloon.stats: virtio-balloon/b.stats[1].tag")
def statistics_out_of_order(states: States) -> None:
    at(states, "virtio-balloon", "b").stats = [StatState(tag=1, value=1), StatState(tag=0, value=1)]


@broken("pci", "vmgenid.alignment: vmgenid/0.gpa")
def generation_off_its_alignment(states: States) -> None:
    states[GENERATION].gpa += 4
