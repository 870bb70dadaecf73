"""Where a story of guests is told: an outer machine of one architecture, and what its guests boot from.

The fixture `stage` gives each architecture's in turn, so a test that takes it is told on all of them; what differs between
them is data of `tests.lab.architecture`, or of the test itself, by `architecture`.
"""

from dataclasses import dataclass

from tests.lab.architecture import Architecture
from tests.lab.guest import GuestFiles
from tests.lab.kernels import Kernel
from tests.lab.outer import Outer


@dataclass(frozen=True, eq=False)
class Stage:
    """One architecture's machine and files."""

    outer: Outer
    kernels: tuple[Kernel, Kernel]
    """The outer machine's and the guest's."""

    files: GuestFiles

    @property
    def architecture(self) -> Architecture:
        """Of the machine and of the guests in it."""
        return self.outer.architecture
