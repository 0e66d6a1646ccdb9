# nrd_trt on NVIDIA's TensorRT container: builds, checks and times bundles; checkpoints need the extra `torch`.
# NOT BUILT by the project so far: it was written on a machine without Docker or a GPU, from the container's notes.
#   docker build -t nrd-trt .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" nrd-trt nrd-trt doctor
# The tag decides the TensorRT version, and a plan runs on the version that built it:
# https://docs.nvidia.com/deeplearning/frameworks/support-matrix/
ARG BASE=nvcr.io/nvidia/tensorrt:25.10-py3
# A tag can be moved; sha256:… of `docker buildx imagetools inspect` holds the image to what was tried.
ARG BASE_DIGEST=
FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}

# "torch," before the others to read checkpoints too; the image grows by gigabytes.
ARG EXTRAS=gpu,nvdec,plot

WORKDIR /opt/nrd_trt
COPY setup.cfg setup.py pyproject.toml README.md LICENSE NOTICE ./
COPY nrd_trt nrd_trt
COPY calibration calibration
COPY plugins plugins

# The environment sees the container's tensorrt; pip must not put another one beside it, so the extra `trt` is left out.
# It takes the container's pip too: one of its own would need ensurepip, which Ubuntu has in another package.
RUN python3 -m venv --system-site-packages --without-pip /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir ".[${EXTRAS}]"

# Any user that --user names has a home for caches.
RUN useradd --home-dir /home/nrd nrd && install --directory --mode=1777 /home/nrd /work

# The last one is the GPU's video decoder.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENV HOME=/home/nrd PATH=/opt/venv/bin:${PATH}
WORKDIR /work
USER nrd
# No ENTRYPOINT: the container's own is kept, which prepares CUDA for an older driver and then runs the command.
CMD ["nrd-trt", "doctor"]
