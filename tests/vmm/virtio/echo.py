"""A virtio device for tests of what carries devices: it writes back what it reads. Its State is that of virtio-rng."""

from snapkit.state.spec.virtio import BASE_FEATURES
from snapkit.state.virtio_rng import VirtioRngState
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.device import VirtioDevice, fresh_queues
from snapkit.vmm.virtio.queue import Chain, gather, readable_len, scatter

EXTRA = 1 << 40
"""VIRTIO_F_RING_RESET, which the echo device offers besides what all do."""


class Echo(VirtioDevice[VirtioRngState]):
    """Two queues; eight bytes of configuration, of which the guest may write the first."""

    kind = "virtio-rng"
    type_id = 4
    queue_sizes = (16, 8)

    def __init__(self, state: VirtioRngState, *, memory: GuestMemory) -> None:
        super().__init__(state, memory=memory)
        self.space = bytearray(b"\1\2\3\4\5\6\7\x08")
        self.told: list[str] = []

    def config_space(self) -> bytes:
        return bytes(self.space)

    def write_config(self, offset: int, length: int, value: int) -> None:
        if (offset, length) == (0, 1):
            self.space[0] = value & 0xFF
        else:
            super().write_config(offset, length, value)

    def serve(self, index: int) -> None:
        queue = self.queues[index]

        def echo(chain: Chain) -> bool:
            queue.push(chain.head, scatter(chain.writable, gather(chain.readable, readable_len(chain))))
            return True

        self.serve_each(index, echo)

    def _activated(self) -> None:
        self.told.append("activated")

    def _stopped(self, index: int) -> None:
        self.told.append(f"stopped {index}")

    def _reset(self) -> None:
        self.told.append("reset")


def echo_state() -> VirtioRngState:
    return VirtioRngState(offered=BASE_FEATURES | EXTRA, queues=fresh_queues(Echo.queue_sizes))
