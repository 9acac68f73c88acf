#!/usr/bin/env bash
# Sets up .venv (once) and runs the tests on the CPU: `bash launch/test.sh [pytest arguments]`. Leaves no files in the tree
# beside those that git ignores. One worker a core, eight at most; `-n 0` is one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
install_venv "[test,sim,metaworld,plan,plan-tpu,serve,docs]"

export JAX_PLATFORMS=cpu
export PYTHONDONTWRITEBYTECODE=1
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export HYPOTHESIS_STORAGE_DIRECTORY="$scratch/hypothesis" MPLCONFIGDIR="$scratch/matplotlib"
# A worker takes whole files, whose tests share fixtures, in the order that tests/conftest.py gives.
python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --basetemp "$scratch/pytest" "$@"
