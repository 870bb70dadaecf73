#!/bin/sh
# Make the virtual environment $2 with the interpreter $1 and install the checkout into it, for development.
set -eu
python=$1 venv=$2

if [ ! -x "$venv/bin/python" ]; then
    if ! "$python" -m venv "$venv" 2>/dev/null; then
        # Debian splits venv off its python3
        rm -rf "$venv"
        if [ "$(id -u)" -ne 0 ]; then
            echo "$python cannot make virtual environments (as root: apt-get install python3-venv)" >&2
            exit 1
        fi
        apt-get -q update >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends python3-venv >/dev/null
        "$python" -m venv "$venv"
    fi
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
