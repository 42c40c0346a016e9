# medcap with its recipes and optional packages, for a CPU or for CUDA; see docs/docker.md.
#   docker build -t medcap:cpu .
#   docker build -t medcap:cuda --build-arg DEVICE=cuda .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# cpu: torch without CUDA from PyTorch's index; cuda: PyPI's torch, which brings the CUDA libraries it needs
ARG DEVICE=cpu
ARG UID=1000
RUN useradd --create-home --uid ${UID} medcap && mkdir /home/medcap/work /home/medcap/.cache \
    && chown medcap /home/medcap/work /home/medcap/.cache

WORKDIR /opt/medcap
COPY . .
# The local version +cpu satisfies the pin torch==X of constraints.txt.
RUN case "${DEVICE}" in \
      cpu) index="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
      cuda) index="" ;; \
      *) echo "DEVICE is ${DEVICE}; allowed are cpu and cuda" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir ${index} -c constraints.txt ".[bertscore,demo,dicom,onnx,tune,vlm]"

USER medcap
WORKDIR /home/medcap/work
ENTRYPOINT ["medcap"]
CMD ["--help"]
