#!/usr/bin/env bash
# Sets up .venv (once), trains a small LAQ on the embedded sample, evaluates it and says where the pictures are:
# `bash launch/quickstart.sh [RUN_FOLDER]`, about 5 minutes on 2 cores. Run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
install_venv ""
# The environment is that of the tests: in it a compiler for GPUs that has no CUDA would complain at every start.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

run="${1:-runs/quickstart}"
echo "== training configs/laq.py:tiny on the embedded sample (lapa_jax/sample) into $run"
python launch/train.py --config configs/laq.py:tiny --workdir "$run"
echo "== evaluating $run on the held-out episodes"
# The sample has too few pairs to bound the probe from above.
python launch/eval.py --run "$run" --supervised_steps 0
