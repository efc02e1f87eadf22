# syntax=docker/dockerfile:1
# The orchestrator and its workers in one image, so that the driver and every worker run the same
# code. Build it in the root of the repository: docker build -f infra/images/sweep.Dockerfile .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# The build of torch: `cpu`, or a CUDA's, such as `cu130`. EXTRAS are the package's own: `data` is what
# tasks learn from, `cluster,data,gpu` adds the kernels of fla-core.
ARG TORCH=cpu
ARG EXTRAS=cluster,data

# gcc: Triton compiles the launchers of its kernels. wget: KubeRay's probes. rsync, ssh: Ray's
# cluster launcher. Debian keeps one version of each, so there is none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash sweep

WORKDIR /opt/sweep
COPY infra/constraints.txt constraints.txt
# In a layer of its own, for it is large and seldom changes. The version is the constraints'.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url "https://download.pytorch.org/whl/${TORCH}" torch
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator orchestrator
COPY workloads workloads
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
COPY sweeps /sweeps

# Token mode is the image's own: a Ray without a token does not start. The NVIDIA variables show
# the GPUs to a container whose runtime has them.
ENV HOME=/home/sweep \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Where results go: a volume made here belongs to the user.
RUN install --directory --owner sweep --group sweep /data
USER 1000:1000
WORKDIR /home/sweep
CMD ["python", "-m", "orchestrator", "--help"]
