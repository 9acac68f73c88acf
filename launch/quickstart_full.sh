#!/usr/bin/env bash
# The whole way from videos to a robot policy that drives, in 15 minutes of CPU time after the installation:
# `bash launch/quickstart_full.sh [FOLDER]` makes step shards of mp4 files, learns latent actions from them and labels every
# step, trains a vision-language model to predict the labels and then, with 50 demonstrations, a robot's actions, serves
# that policy, lets a client ask it what to do, and drives seven tasks in simulation. Run again, it goes on where it
# stopped.
#
# The data are metaworld_mt10_videos and metaworld_mt10 in ../shared/data (or SHARED=DIR): ten tasks of Meta-World, 200
# videos, 50 demonstrations and 150 held out. Where they are absent, as many videos and demonstrations, and 30 held out,
# are recorded in the simulator; where that cannot run either, the embedded sample is both, and nothing drives. SHORT=1
# takes a few steps of the smallest model of every kind: that shows that it runs, and teaches nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh
# Where there is no simulator to be had, all but the end works.
install_venv "[serve,metaworld]" || install_venv "[serve]"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

folder="${1:-runs/quickstart_full}"
shared="${SHARED:-../shared/data}"
short="${SHORT:-}"

SECONDS=0
say() { echo "== $((SECONDS / 60)) min $((SECONDS % 60)) s: $*"; }

# train CONFIG RUN [--config.key=value ...]
train() {
    local config="$1" run="$2"
    shift 2
    if [ -n "$short" ]; then
        config="${config/:small/:test}"
        config="${config/:tiny/:test}"
        set -- "$@" --config.train.steps=2 --config.train.eval_every=2 --config.train.save_every=2 \
            --config.train.batch_size=8 --config.train.eval_batch_size=16 --config.data.eval_examples=16
    fi
    python launch/train.py --config "configs/$config" --workdir "$folder/$run" "$@"
}

evaluate() { python launch/eval.py --run "$folder/$1" --reference_steps 0 --pairs "$([ -n "$short" ] && echo 16 || echo 1024)"; }

# Says why Meta-World cannot run or draw here, if so.
simulates() {
    python - <<'CHECK'
import sys

from lapa_jax.core.errors import UserError
from lapa_jax.sim.env import make

try:
    env = make("metaworld", size=16)
    env.reset(0)
    env.observe()
except UserError as error:
    sys.exit(f"no simulation: {error}")
CHECK
}

mt10=(reach-v3 push-v3 pick-place-v3 door-open-v3 drawer-open-v3 drawer-close-v3 button-press-topdown-v3 peg-insert-side-v3
    window-open-v3 window-close-v3)
videos="$folder/videos" demos="$folder/demos"
# Not mirrored: Meta-World's arm stands at one side, and mirrored pairs would take codes of their own.
tokenizer=(laq_conv.py:small+recommended laq --config.data.path="$videos" --config.data.val_path="$demos"
    --config.data.gap_frames=8 --config.data.augment=None)
if [ -d "$shared/metaworld_mt10_videos" ] && [ -d "$shared/metaworld_mt10" ]; then
    say "videos without actions: $shared/metaworld_mt10_videos -> step shards $videos"
    python tools/convert.py "$shared/metaworld_mt10_videos" "$videos" --format video --size 64
    say "demonstrations: $shared/metaworld_mt10 -> step shards $demos, 50 to learn from and 150 held out"
    python tools/convert.py "$shared/metaworld_mt10" "$demos" --format video --size 64 --val_fraction 0.744
elif simulates; then
    record() { python tools/record_sim.py --env metaworld --size 64 "${mt10[@]/#/--task=}" "$@"; }
    say "$shared has no metaworld_mt10_videos and metaworld_mt10. The simulator's expert records as many -> $videos, $demos"
    record --out "$videos" --episodes $([ -n "$short" ] && echo 10 || echo 200) --seed 1 --columns none --val_fraction 0.1
    record --out "$demos" --episodes $([ -n "$short" ] && echo 20 || echo 80) --seed 2 --val_fraction 0.375
else
    videos=sample demos=sample
    say "no recordings of Meta-World in $shared: the embedded sample serves as videos and as demonstrations"
    tokenizer=(laq_conv.py:tiny+recommended laq)
fi

say "stage 1: latent actions of pairs of frames -> $folder/laq"
train "${tokenizer[@]}"
evaluate laq
say "every step gets its latent action -> $folder/labels"
python launch/label.py --run "$folder/laq" --data "$videos" --out "$folder/labels"
say "stage 2: a vision-language model predicts them -> $folder/vla"
train vla_latent.py:tiny vla --config.train.steps=1000 --config.data.path="$videos" --config.data.labels="$folder/labels"
evaluate vla
say "stage 3: it learns the robot's actions -> $folder/act"
train vla_action.py:tiny+chunk act --config.train.steps=600 --config.data.path="$demos" --config.init_from.="$folder/vla"
evaluate act

say "a server for the policy -> $folder/serve.log"
# emptied here: what an earlier server said there must not be taken for this one's word
: >"$folder/serve.log"
python launch/serve.py --run "$folder/act" --port 0 --batch 1 >>"$folder/serve.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until grep -qs "^ready" "$folder/serve.log"; do
    kill -0 "$server" 2>/dev/null || { cat "$folder/serve.log" >&2; exit 1; }
    sleep 0.2
done
answer="$(python - "$(sed -n 's/^listening on \([^,]*\),.*/\1/p' "$folder/serve.log")" "$demos" <<'CLIENT'
import sys

from lapa_jax.data.shards.step_shards import StepShards, dataset_folder
from lapa_jax.serve.client import Client

address, demos = sys.argv[1:]
shards = StepShards(dataset_folder(demos), "val")
first = shards.episodes[0].start
with Client(address, timeout=60) as policy:
    action = policy.act(shards.image(first), shards.text(first))
    print(f"asked to \"{shards.text(first)}\" it answers {action.tolist()} after {policy.timing['round_trip_ms']:.0f} ms")
CLIENT
)"
kill "$server"
wait "$server" || true

# The seven tasks of MT10 in which nothing has to be carried or pushed freely over the table.
tasks=(reach-v3 button-press-topdown-v3 door-open-v3 drawer-close-v3 drawer-open-v3 window-close-v3 window-open-v3) each=3
if [ -n "$short" ]; then
    tasks=(reach-v3) each=1
fi
drives="$folder/drives"
if [ "$videos" = sample ]; then
    say "it does not drive: the embedded sample is of another robot than the simulator's"
elif ! simulates; then
    say "it does not drive. Run this again when that is mended"
else
    say "it drives: ${#tasks[@]} tasks of Meta-World, $each episodes each -> $drives"
    python launch/eval.py --run "$folder/act" --env metaworld --execute 4 --out "$drives" "${tasks[@]/#/--task=}" \
        --episodes $((${#tasks[@]} * each)) --num_envs "${#tasks[@]}" --videos "${#tasks[@]}"
    python - "$drives/metrics.json" <<'RATES'
import json
import sys

with open(sys.argv[1]) as file:
    rates = {name: rates["overall"] for name, rates in json.load(file)["policies"].items()}
words = {"expert": "the scripted expert", "repeat": "the expert's first action repeated", "random": "random actions"}
for name, rate in rates.items():
    print(f"{rate['successes']:4d} of {rate['episodes']} episodes are solved by {words.get(name, 'the policy')}")
RATES
    say "an episode of each task, side by side: $drives/episodes.webp; all of it: $drives/report.html"
fi
say "reports with pictures: $folder/laq/eval/report.html, $folder/vla/eval/report.html, $folder/act/eval/report.html"
say "the policy is $folder/act; $answer"
