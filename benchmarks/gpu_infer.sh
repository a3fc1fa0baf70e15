#!/usr/bin/env bash
# Measures prediction at the paper's size on the GPU of this machine: see gpu_infer.py. Ends within ten minutes.
# PYTHON chooses the interpreter; the package need not be installed, what it needs must be.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
exec timeout --signal=INT 600 "$python" benchmarks/gpu_infer.py "$@"
