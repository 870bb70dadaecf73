"""Platform devices: the chip only. What is outside a chip, its pins and its wire, is a protocol in `pins`.

A device offers `read(offset, length)` and `write(offset, length, value)`, total over whatever a guest does: an access
that the chip does not have reads as all ones, is dropped when written, and is counted in `faults`. Everything a guest
can see is the device's State; what else it holds is glue that a restore supplies anew. No device sees KVM, a file
descriptor or a clock. Every method is called with the machine's lock held.
"""
