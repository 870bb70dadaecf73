"""``python -m snapkit``."""

from snapkit.cli import main

main()
