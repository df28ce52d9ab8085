# Opsin in a container. A key is required: the server refuses to listen beyond its own machine without one.
#
#   docker build -t opsin .
#   docker run --rm -p 8000:8000 -e OPSIN_API_KEY=choose-one opsin                        the embedded model
#   docker run ... -v /models:/models:ro opsin /models/Qwen2-VL-2B-Instruct               yours; options follow
#   docker run ... -v opsin-data:/data opsin                                              what lasts, under a name
#   docker stop -t 45 ...                          running answers get 30 s (--drain-timeout) to finish
#
# For NVIDIA GPUs (the wheels of torch bring the CUDA libraries, the host brings the driver):
#
#   docker build -t opsin:cuda \
#     --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#     --build-arg PACKAGES="python3-venv python3-dev gcc" \
#     --build-arg TORCH_INDEX= .
#   docker run --gpus all --shm-size 1g ... opsin:cuda
#
# BASE is any Debian or Ubuntu with Python >= 3.11, in the image or among PACKAGES. Triton compiles its launcher at run
# time, when a kernel first runs: on CUDA the final image keeps gcc and Python's headers. On a CPU there is no compiler.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG PACKAGES=""
ARG BUILD_PACKAGES="gcc libc6-dev"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/sh", "-eu", "-c"]
# Unquoted and unpinned on purpose: a list, of whatever release BASE is. A C compiler makes the kernels of a CPU.
# hadolint ignore=DL3008,SC2086
RUN apt-get update && apt-get install -y --no-install-recommends $BUILD_PACKAGES $PACKAGES \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/opsin
WORKDIR /src
COPY constraints.txt ./
RUN /opt/opsin/bin/python -m pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY plugins plugins
COPY server server
COPY clients clients
COPY deploy/wheel_kernels.py deploy/
RUN /opt/opsin/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist . \
    && /opt/opsin/bin/python -m pip install --no-cache-dir -c constraints.txt /dist/*.whl \
    && /opt/opsin/bin/python -m pip check

FROM ${BASE}
ARG PACKAGES=""
LABEL org.opencontainers.image.title="Opsin" org.opencontainers.image.licenses="Apache-2.0"
SHELL ["/bin/sh", "-eu", "-c"]
# hadolint ignore=DL3008,SC2086
RUN if [ -n "$PACKAGES" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/opsin /opt/opsin
# Written are /data, which lasts (the data directory is /data/opsin), and /tmp: the engine's socket, and kernels that
# Triton compiled (a tmpfs there needs "exec").
RUN install -d -m 0700 -o 10001 -g 10001 /data
ENV PATH=/opt/opsin/bin:$PATH \
    XDG_DATA_HOME=/data \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    TRITON_CACHE_DIR=/tmp/triton
USER 10001:10001
VOLUME /data
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["opsin", "serve", "--host", "0.0.0.0"]
