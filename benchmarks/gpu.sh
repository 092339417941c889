#!/usr/bin/env bash
# Everything that is to be known of one accelerator, in one command and under eight minutes: see benchmarks/gpu/__main__.py.
#
#     benchmarks/gpu.sh [--out DIR] [--preset-scale tiny] [--peer DIR] [--parts a,b] [--seconds N]
#
# PYTHON names the interpreter (default: python3). The package need not be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
