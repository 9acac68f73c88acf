#!/usr/bin/env bash
# Sets up .venv (once) and runs the tests on the CPU: `bash launch/test.sh [pytest arguments]`. Leaves no files in the tree
# beside those that git ignores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
install_venv "[sim]"

export JAX_PLATFORMS=cpu
export PYTHONDONTWRITEBYTECODE=1
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export HYPOTHESIS_STORAGE_DIRECTORY="$scratch/hypothesis" MPLCONFIGDIR="$scratch/matplotlib"
python -m pytest --basetemp "$scratch/pytest" "$@"
