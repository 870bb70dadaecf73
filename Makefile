# Everything a developer runs. `make demo` and `make test` do their own set-up on a fresh Debian machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# What is missing is skipped and named, unless it is required: SNAPKIT_REQUIRE=kvm,lab
export SNAPKIT_REQUIRE ?=

.PHONY: matrix matrix-extend release demo test test-all test-rest lint setup schemas bench soak clean

demo: $(VENV)/stamp  ## boot, snapshot and restore a tiny guest; in the lab's machine where there is no /dev/kvm
	@$(BIN)/python tests/lab/demo.py

test: setup lint  ## everything but the long lab scenarios; at most 12 minutes on 2 cores
	$(PYTEST) -m "not soak and not bench and not lab" --numprocesses auto --maxprocesses 4 --dist loadfile
	$(call lab,smoke)

test-rest: setup matrix  ## what test-all adds to test
	$(call lab,lab and not smoke and not soak)

# Exit code 75: the emulated host died, not a test (tests/lab/outer.py, OuterDiedError). Said aloud; a new one goes on with
# the test that was running (--stepwise), so each try gets further.
lab = stepwise=--stepwise-reset; for try in 1 2 3 4; do \
	$(PYTEST) -m "$(1)" $$stepwise tests/lab && break; code=$$?; stepwise=--stepwise; \
	[ $$code -eq 75 ] && [ $$try -lt 4 ] || exit $$code; \
	echo "=== the lab's outer machine died: going on with a new one, after try $$try of 4"; done

test-all: test test-rest

lint: $(VENV)/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snapkit schema check

schemas: $(VENV)/stamp  ## write schemas/ anew from the States
	$(BIN)/snapkit schema generate

matrix: $(VENV)/stamp  ## every stored snapshot under every release; at most 6 minutes on 2 cores
	$(BIN)/snapkit matrix

matrix-extend: $(VENV)/stamp  ## decide by running what is new in the matrix, for people to review
	$(BIN)/python -m tools.matrix --extend

release: lint  ## freeze what is worked on: schemas, goldens, wheel; or say what is missing
	$(BIN)/python -m tools.release

bench: setup  ## ratios against a floor or a peer measured in the same run
	$(PYTEST) -m bench -s tests/bench

soak: setup  ## what is too long for every run
	$(PYTEST) -m soak
	SNAPKIT_LAB_SANDBOX=1 $(PYTEST) -m "lab and not soak" tests/lab/test_linux.py tests/lab/test_devices.py

setup: $(VENV)/stamp  ## the virtual environment, and as root the Debian packages of the lab
	@{ sh tests/lab/install.sh && $(BIN)/python -m tests.lab.packages; } || test -z "$(findstring lab,$(SNAPKIT_REQUIRE))"

$(VENV)/stamp: pyproject.toml tests/venv.sh
	sh tests/venv.sh $(PYTHON) $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist
