#!/usr/bin/env bash
# From mp4 files to latent actions that mean something: `bash launch/quickstart.sh [FOLDER]`, 3 minutes on 2 cores
# after the installation. Sets up .venv (once), writes 800 short videos of a robot that pushes blocks, converts them, trains
# a small tokenizer on them without their actions, and measures on held-out videos how much of the true action its codes
# say. Run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
install_venv ""
# The environment is that of the tests: in it a compiler for GPUs that has no CUDA would complain at every start.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

folder="${1:-runs/quickstart}"
say() { echo "== $((SECONDS / 60)) min $((SECONDS % 60)) s: $*"; }

SECONDS=0
say "the embedded videos -> $folder/videos"
[ -d "$folder/videos" ] || python tools/sample_videos.py "$folder/videos"
say "videos -> step shards, $folder/data"
python tools/convert.py "$folder/videos" "$folder/data" --format video --size 64
say "a tokenizer learns latent actions from pairs of frames 0.6 s apart; it sees no actions -> $folder/laq"
python launch/train.py --config configs/laq_conv.py:small+recommended --workdir "$folder/laq" --config.data.path="$folder/data" \
    --config.data.gap_frames=6 --config.train.steps=160 --config.train.eval_every=160 --config.train.save_every=160
say "how much of the true actions its codes say, on held-out videos"
# The reference, the same encoder trained on the true actions, takes longer than all of this: leave out the option.
python launch/eval.py --run "$folder/laq" --reference_steps 0
python - "$folder/laq/eval/metrics.json" <<'SUMMARY'
import json
import sys

with open(sys.argv[1]) as file:
    metrics = json.load(file)["metrics"]
after, before = metrics["action_probe_r2"], metrics["action_probe_r2_untrained"]
print(f"R² of the true action from the codes, on held-out videos: {after:.2f} (before training: {before:.2f})")
SUMMARY
say "done. See what the codes do: $folder/laq/eval/report.html"
echo "Your own videos next: 'python tools/convert.py YOUR_VIDEOS DATA --format video --size 64', then the training command"
echo "of this script with --config.data.path=DATA; docs/tutorials/stage1_laq.md says how to choose the gap."
