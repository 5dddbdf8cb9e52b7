# Short targets; `make help` says what each does. CI calls `make check` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env check format test demo serve bench bench-memory methods-table clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

env: $(READY)  ## make the environment in .venv

# torch first and by its exact version, so that pip takes the build this machine offers for it.
$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once; a few minutes without a word are normal."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,qlora,dev]'
	@touch $(READY)

check: $(READY)  ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

format: $(READY)  ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## every test, with real servers that it starts itself
	$(BIN)/pytest $(ARGS)

demo: $(READY)  ## fine-tune the model that ships, and compare it with its base
	$(BIN)/luthier demo $(ARGS)

serve: $(READY)  ## the whole service on this machine, until Ctrl-C
	$(BIN)/luthier serve $(ARGS)

bench: $(READY)  ## how long a client waits, measured on this machine
	$(BIN)/python -m benchmarks.latency

bench-memory: $(READY)  ## PPO's peak memory against SFT's, on a base of 135M
	$(BIN)/python -m benchmarks.ppo_memory

methods-table: $(READY)  ## every method with every PEFT kind, measured, into docs/methods.md
	$(BIN)/python -m benchmarks.methods $(ARGS)

clean:  ## remove the environment and what the service stored
	rm -rf $(VENV) .luthier
