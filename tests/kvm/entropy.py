"""A driver of the entropy device over PCI, in the guest's instructions: the smallest that moves data both ways.

VIRTIO 1.3, sections 2.7 (split virtqueues), 3.1.1 (initialization), 4.1.4.3 (common configuration), 5.4 (entropy device).
"""

from tests.kvm.poker import FREE_RAM, Poker

DRIVER_FEATURE_SELECT, DRIVER_FEATURE, CONFIG_MSIX_VECTOR, DEVICE_STATUS = 0x08, 0x0C, 0x10, 0x14
QUEUE_SELECT, QUEUE_SIZE, QUEUE_MSIX_VECTOR, QUEUE_ENABLE = 0x16, 0x18, 0x1A, 0x1C
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30
NOTIFY = 0x6000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
NO_VECTOR = 0xFFFF
SIZE = 8
DESC_F_WRITE = 2


class Entropy:
    """The device behind *bar*, with its rings and its buffer from *ram* on; `bar` may be set when it was moved."""

    def __init__(self, guest: Poker, bar: int, *, ram: int = FREE_RAM, msix_vector: int = NO_VECTOR) -> None:
        self.guest, self.bar = guest, bar
        self.desc, self.avail, self.used, self.buffer = ram, ram + 0x400, ram + 0x800, ram + 0xC00
        self._asked = 0
        for status in (0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
            guest.write8(bar + DEVICE_STATUS, status)
        guest.write32(bar + DRIVER_FEATURE_SELECT, 1)
        guest.write32(bar + DRIVER_FEATURE, 1)  # VIRTIO_F_VERSION_1
        guest.write8(bar + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        guest.write16(bar + QUEUE_SELECT, 0)
        guest.write16(bar + QUEUE_SIZE, SIZE)
        guest.write16(bar + QUEUE_MSIX_VECTOR, msix_vector)
        guest.write64(bar + QUEUE_DESC, self.desc)
        guest.write64(bar + QUEUE_DRIVER, self.avail)
        guest.write64(bar + QUEUE_DEVICE, self.used)
        guest.write16(bar + QUEUE_ENABLE, 1)
        guest.write8(bar + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def offer(self, length: int = 16) -> None:
        """Put a cleared buffer into the available ring, without telling the device."""
        guest, slot = self.guest, self._asked % SIZE
        guest.write_bytes(self.buffer, bytes(length))
        guest.write64(self.desc, self.buffer)
        guest.write32(self.desc + 8, length)
        guest.write32(self.desc + 12, DESC_F_WRITE)
        guest.write16(self.avail + 4 + 2 * slot, 0)
        self._asked += 1
        guest.write16(self.avail + 2, self._asked)

    def ring(self, bar: int | None = None) -> None:
        """Ring the doorbell, at *bar* if that is not where it is."""
        self.guest.write16((self.bar if bar is None else bar) + NOTIFY, 0)

    def done(self) -> int:
        """How many buffers the device has used."""
        return self.guest.read16(self.used + 2)

    def wait(self) -> bytes:
        """Wait until all that was offered is used; returns what the last buffer holds."""
        for _ in range(1000):  # each turn is a round trip to the guest, beside which the loop serves the doorbell
            if self.done() == self._asked:
                length = self.guest.read32(self.used + 4 + 8 * ((self._asked - 1) % SIZE) + 4)
                return self.guest.read_bytes(self.buffer, length)
        raise AssertionError(f"the device used {self.done()} buffers of {self._asked}")

    def draw(self, length: int = 16) -> bytes:
        """Ask for random bytes and wait for them."""
        self.offer(length)
        self.ring()
        return self.wait()
