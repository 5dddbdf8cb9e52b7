# Four images of one service: api (no torch), worker, inference, and inference-vllm.
#
#   docker build --target api -t luthier/api:0.1.0 .
#   docker build --target worker -t luthier/worker:0.1.0 .
#
# They run as uid 10001 with a read-only root; /var/lib/luthier (data) and /tmp are to be writable:
#
#   docker run --read-only --tmpfs /tmp -p 8321:8321 luthier/api:0.1.0
#
# The digest is the multi-platform index of that tag; `docker buildx imagetools inspect` shows a newer one.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-trixie@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.32.0

# The environment is made in /opt/luthier by the image's own pip, which stays behind here.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_PYTHON=/opt/luthier/bin/python
WORKDIR /src
RUN python -m venv --without-pip /opt/luthier
COPY pyproject.toml constraints.txt ./
# What each role needs, to the byte (`make lock`): layers that change when it does, not with the code.
COPY k8s/locks locks

FROM build AS wheel
COPY README.md LICENSE ./
COPY api api
COPY jobs jobs
COPY engine engine
COPY adapters adapters
COPY storage storage
COPY cli cli
RUN pip wheel --no-deps --wheel-dir /dist .

FROM build AS build-api
RUN pip install --only-binary :all: --require-hashes --requirement locks/api.txt
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl

# torch is PyPI's, for CUDA. For CPUs alone give pip's index of PyTorch's CPU builds, whose hashes are
# not those of the lock; all else is checked:
#   docker build --target worker --build-arg TORCH_INDEX_URL=... .
FROM build AS build-torch
ARG TORCH_INDEX_URL=
RUN if [ -z "${TORCH_INDEX_URL}" ]; then lock=worker; else lock=worker-without-torch; pip install --only-binary :all: --index-url "${TORCH_INDEX_URL}" "$(grep '^torch==' constraints.txt)"; fi \
    && pip install --only-binary :all: --require-hashes --requirement "locks/${lock}.txt"
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl

# What all roles run in: no pip, no compiler, a user of its own.
FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Luthier" \
      org.opencontainers.image.description="A self-hosted fine-tuning service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
RUN python -m pip uninstall --yes pip setuptools wheel \
    && rm -rf /usr/local/lib/python3.11/ensurepip \
    && groupadd --gid 10001 luthier \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/luthier --shell /usr/sbin/nologin luthier \
    && install --directory --owner 10001 --group 10001 /var/lib/luthier
ENV PATH=/opt/luthier/bin:$PATH \
    HOME=/var/lib/luthier \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LUTHIER_DATA_DIR=/var/lib/luthier \
    LUTHIER_HOST=0.0.0.0 \
    LUTHIER_INFERENCE_HOST=0.0.0.0 \
    LUTHIER_METRICS_HOST=0.0.0.0 \
    LUTHIER_LOG_FORMAT=json \
    LUTHIER_BASE_MODELS='{"luthier-tiny": "/opt/luthier/models/luthier-tiny"}'
COPY --chmod=755 examples/models/luthier-tiny /opt/luthier/models/luthier-tiny
WORKDIR /var/lib/luthier
VOLUME /var/lib/luthier
STOPSIGNAL SIGTERM
USER 10001:10001
ENTRYPOINT ["luthier"]

FROM runtime AS api
COPY --from=build-api /opt/luthier /opt/luthier
EXPOSE 8321 8323
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8321/healthz', timeout=4)"]
CMD ["api"]

FROM runtime AS worker
COPY --from=build-torch /opt/luthier /opt/luthier
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8323
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8323/metrics', timeout=4)"]
CMD ["worker"]

FROM worker AS inference
EXPOSE 8322 8323
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8322/health', timeout=4)"]
CMD ["inference"]

# vLLM with Luthier's plugin beside it: the plugin's own dependencies, no version of vLLM's changed.
FROM ${VLLM_IMAGE} AS inference-vllm
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY --from=wheel /dist /dist
RUN python3 -m pip install /dist/*.whl \
    && rm -rf /dist \
    && groupadd --gid 10001 luthier \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/luthier --shell /usr/sbin/nologin luthier \
    && install --directory --owner 10001 --group 10001 /var/lib/luthier
ENV HOME=/var/lib/luthier \
    PYTHONDONTWRITEBYTECODE=1 \
    LUTHIER_DATA_DIR=/var/lib/luthier \
    VLLM_PLUGINS=luthier \
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 \
    VLLM_NO_USAGE_STATS=1
WORKDIR /var/lib/luthier
VOLUME /var/lib/luthier
STOPSIGNAL SIGTERM
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vllm", "serve"]
