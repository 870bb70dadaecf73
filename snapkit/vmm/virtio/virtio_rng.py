"""The entropy device: random bytes of the host for whoever asks. VIRTIO 1.3, section 5.4.

The driver makes writable buffers available and gets each back with at least one random byte in it. A buffer is filled up
to FILL_LEN bytes, and a kick draws no more than that altogether: the rest is served by later turns, so that a guest
which asks without end takes no more than its turn. There is no state beyond the queue, and nothing is ever in flight.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

from snapkit.state.codec import adopted
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio_rng import VirtioRngState, invariants
from snapkit.units import KIB
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.device import VirtioDevice, fresh_queues
from snapkit.vmm.virtio.queue import Chain, scatter, writable_len

FILL_LEN = 64 * KIB


class RngArgs(NamedTuple):
    """Host things of an entropy device; *urandom* gives so many random bytes."""

    memory: GuestMemory
    urandom: Callable[[int], bytes]


class VirtioRng(VirtioDevice[VirtioRngState]):
    """One entropy device. Every method needs the machine's lock."""

    kind: ClassVar[str] = "virtio-rng"
    type_id: ClassVar[int] = spec.TYPE_ENTROPY
    queue_sizes: ClassVar[tuple[int, ...]] = (256,)

    def __init__(self, state: VirtioRngState, *, args: RngArgs) -> None:
        super().__init__(state, memory=args.memory)
        self._urandom = args.urandom

    @classmethod
    def restore(cls, state: VirtioRngState, args: RngArgs) -> Self:
        """Construct the device that *state* describes. Raises ImageError naming the field that is wrong."""
        return cls(adopted(state, invariants), args=args)

    def serve(self, index: int) -> None:
        """Fill what the driver made available."""
        queue, budget = self.queues[index], FILL_LEN

        def fill(chain: Chain) -> bool:
            nonlocal budget
            written = scatter(chain.writable, self._urandom(min(writable_len(chain), budget)))
            queue.push(chain.head, written)
            budget -= written
            if not budget:
                self.again(index)
            return bool(budget)

        self.serve_each(index, fill)


def fresh_state() -> VirtioRngState:
    """Return the state of a new machine's entropy device."""
    return VirtioRngState(offered=spec.BASE_FEATURES, queues=fresh_queues(VirtioRng.queue_sizes))
