"""What makes a release of snapkit and keeps it: nothing here is part of the wheel.

`release` is the command (``make release``); `golden` knows the stored snapshot files below ``tests/golden``, `wheels` the
stored programs below ``tests/compat/releases``, and `stored` checks that nothing of either is missing or edited. `matrix`
gives each file to each program (a `column`), compares with what was `decided`, and `matrix_view` shows it; `equal` saves,
restores and saves. The
tests of ``tests/compat`` use the same modules, so what a release writes and what the tests expect cannot drift apart.

A release is whole or not there: everything is made in a copy of the tree and moved into the checkout as the last step.
Goldens and wheels are never made again: a file written by the program of that day cannot be written by today's.
"""
