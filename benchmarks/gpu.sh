#!/bin/sh
# One GPU of 80 GB or more, measured in at most ten minutes: benchmarks/gpu.sh [--out FOLDER]
#
# Each part writes its JSON when it ends, so a run that is cut off keeps what it has measured. Where
# there is no .venv, PYTHON names an interpreter that has torch, numpy, scipy, pillow, pydantic,
# pyyaml, safetensors and cryptography. `--device cpu --quick` runs every part at toy size.
set -eu
cd "$(dirname "$0")/.."
if test -z "${PYTHON:-}"; then
  PYTHON=python3
  test ! -x .venv/bin/python || PYTHON=.venv/bin/python
fi
export PYTHONUNBUFFERED=1
exec "$PYTHON" -m benchmarks.gpu "$@"
