"""The names of the tests are the same whenever and wherever they are collected.

`make test` shares the tests among processes, and a process that collects one by another name ends the whole run: the
order of a set in a name, or the second of a clock, ends one run in many.
"""

import os
import subprocess
import sys


def test_another_process_collects_the_same_tests_in_the_same_order_under_the_same_names(request):
    here = [item.nodeid for item in request.session.items]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *request.config.args],
        cwd=request.config.invocation_params.dir,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    wanted = set(here)
    assert [line for line in run.stdout.splitlines() if line in wanted] == here
