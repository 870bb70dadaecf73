"""What is around a chip on a test bench: a pin and a wire that keep what they are given."""


class Pin:
    """Records what is driven."""

    def __init__(self, *, edge):
        self.edge = edge
        self.driven: list[bool] = []

    def set_level(self, level):
        self.driven.append(level)

    @property
    def level(self):
        return self.driven[-1] if self.driven else False


class Wire:
    """Keeps what is sent, and is full when told."""

    def __init__(self):
        self.sent = b""
        self.full = False

    def write(self, payload):
        self.sent += payload
