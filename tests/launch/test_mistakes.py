"""Typical mistakes, made on purpose: each ends in one line that names the thing, the value and the remedy, at once and
before anything is written."""

import importlib.metadata
import importlib.util
import pathlib
import resource
import socket
import subprocess
import sys
import time
import types

import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import startup, trackers
from lapa_jax.core.errors import run_main
from lapa_jax.core.files import read_json, write_json
from tests.commands import error_of
from tests.inference import small_run

MISTAKES = """
train => --config is required, configs/laq.py:tiny for example
train --config configs/lqa.py => configs/lqa.py does not exist; did you mean 'laq'?
train --config configs/laq.py:tinny => laq has no variant 'tinny'; it has & tiny
train --config configs/laq.py:tiny+small => variants tiny and small of laq exclude each other; give one
train --config configs/laq.py:test --config.train.stepz=3 => no key 'train.stepz'; did you mean 'steps'?
train --config configs/laq.py:test --config.train.steps=many => 'many' is str; give a int
train --config configs/laq.py:test --config.train.steps => overrides look like --config.train.steps=100
train --config configs/laq.py:test --workdr runs/x => there is no option --workdr; did you mean '--workdir'?
train --config configs/laq.py:test --config.data.path=nowhere => data folder nowhere does not exist; & tools/convert.py
train --config configs/laq.py => config.data.path is not set: give a folder of step shards
train --config configs/laq.py:test --config.data.path=empty => empty holds no step shards & tools/convert.py
train --config configs/laq.py:test --config.data.camera=wrist => has no camera 'wrist' (data.camera); known: image
train --config configs/laq.py:test --config.data.split_val=test => no steps in split 'test' & 'val': 99
train --config configs/laq.py:test --config.data.samples=pears => 'pears' is no kind of sample; did you mean 'pairs'?
train --config configs/laq.py:test --config.data.image_size=-3 => data.image_size is -3; give pixels, 1 or more
train --config configs/laq.py:test --config.data.augment={"flipp":0.5} => no field 'flipp'; did you mean 'flip'?
train --config configs/laq.py:test --config.data.gap_seconds=1.0 => has no effect & gap_frames is 3 and wins; set it to
train --config configs/laq.py:test --config.train.steps=0 => config.train.steps is 0; it must be at least 1
train --config configs/laq.py:test --config.train.batch_size=0 => config.train.batch_size is 0; it must be at least 1
train --config configs/laq.py:test --config.train.eval_every=0 => config.train.eval_every is 0; it must be at least 1
train --config configs/laq.py:test --config.train.batch_size=7 => batch_size 7 does not divide & the next that does is
train --config configs/laq.py:test --config.train.trackers=("tensorbord",) => did you mean 'tensorboard'?
train --config configs/laq.py:test --config.train.trackers=("wandb",) => not installed: pip install 'lapa_jax[wandb]'
train --config configs/laq.py:test --config.train.trackers=wandb => config.train.trackers & give a tuple
train --config configs/laq.py:test --config.train.profile=5 => config.train.profile is 5; give (step, steps)
train --config configs/laq.py:test --config.train.on_spike=ignore => on_spike is 'ignore'; known: rollback, stop
train --config configs/laq.py:test --config.train.best_metric=psnr_gain => under val/; give val/psnr_gain
train --config configs/laq.py:test --config.train.best_metric=val/swapgap => did you mean 'val/swap_gap'?
train --config configs/laq.py:test --config.train.keep_last=0 => config.train.keep_last is 0; it must be at least 1
train --config configs/laq.py:test --config.train.keep_best=-1 => config.train.keep_best is -1; it must be at least 0
train --config configs/laq.py:test --config.seed=-1 => config.seed is -1; it must be at least 0
train --config configs/laq.py:test --config.data.workers=-1 => config.data.workers is -1; it must be at least 0
train --config configs/laq.py:test --config.data.prefetch=-1 => config.data.prefetch is -1; it must be at least 0
train --config configs/laq.py:test --config.data.eval_examples=0 => config.data.eval_examples is 0; it must be at least
train --config configs/laq.py:test --config.optim.learning_rate=-1e-4 => config.optim.learning_rate is -0.0001; it must
train --config configs/laq.py:test --config.optim.clip_norm=0.0 => clip_norm is 0.0; give more than 0, or None
train --config configs/laq.py:test --config.train.profile=(0,2) => config.train.profile is (0, 2); give (step, steps)
train --config configs/laq.py:test --config.train.best_mode=maximum => best_mode is 'maximum'; did you mean 'max'?
train --config configs/laq.py:test --config.mesh.data=3 --config.mesh.fsdp=5 => does not cover 8 devices; set one axis
train --config configs/laq.py:test --config.loss.motoin=1.0 => no key 'loss.motoin'; did you mean 'motion'?
train --config configs/laq.py:test --config.optim.schedule=cosin => schedule is 'cosin'; did you mean 'cosine'?
train --config configs/laq.py:test --config.optim.groups=(("no",{}),) => matches no expression & end them with
train --config configs/laq.py:test --config.model.name=tokenizers.lac => did you mean 'tokenizers.laq'?
train --config configs/laq.py:test --config.model.quantizer=vqq => quantizer is 'vqq'; did you mean 'vq'?
train --config configs/laq.py:test --config.model.patch_size=7 => patch_size 7 does not divide & a patch_size among 1, 2
train --config configs/vla_latent.py:test --config.data.text_tokenizer.name=bytez => 'bytez' & the name 'bytes' needs no
train --config configs/vla_latent.py:test --config.data.text_tokenizer.name=full => folder full holds no tokenizer; it
train --config configs/vla_latent.py:test --config.data.text_tokenizer.name=./gone => folder ./gone does not exist
train --config configs/vla_latent.py:test --config.init_from.siglip=gone => init_from.siglip: gone does not exist; give
train --config configs/vla_action.py:test --config.init_from=laq => is a group; set one of & --config.init_from.=
train --config configs/vla_latent.py:test --config.data.labels=empty => empty holds no step shards
train --config configs/laq.py:test --mesh 8x4 => --mesh and --device go together and with --dry_run
train --config configs/laq.py:test --dry_run --mesh 8x4 --device H100-95GB => H100-95GB & did you mean 'H100-94GB'?
train --config configs/laq.py:test --dry_run --mesh eight --device H100-94GB => 'eight' is no mesh; give hosts x GPUs
train --config configs/laq.py:test --dry_run --mesh 0x4 --device H100-94GB => '0x4' is no mesh; give hosts x GPUs
train --config configs/laq.py:test --dry_run --mesh 4x4 --device TPU-v9 => TPU-v9 is not known; did you mean 'TPU-v6e'?
train --config configs/laq.py:test --config_file site.yaml => --config_file site.yaml does not exist; did you mean
train --config configs/laq.py:test --config_file wrong.yaml => wrong.yaml: config has no key 'train.stepz'; did you mean
train --config configs/laq.py:test --workdir full => full is not empty and holds no run; choose another --workdir
train --config configs/laq.py:test --workdir file => file cannot be written & is no folder
train --config configs/laq.py:test --workdir laq => laq holds a run with another config & choose another --workdir
convert => required: SOURCE, OUT; --help lists
convert nowhere out => input nowhere does not exist; give
convert empty out => empty holds nothing that is recognised as rlds, & give its format with --format
convert file out => file holds nothing that is recognised as
convert videos out --format mp5 => --format mp5 is not known; known: arrays
convert videos out --size small => --size is a number or 'native', got 'small'
convert videos out --sizee 64 => there is no option --sizee; did you mean '--size'?
convert videos out --fps 0 => --fps must be positive or 'native', got 0.0
convert videos out --quality 101 => --quality is 1 to 100, got 101
convert videos out --share 3/2 => --share 3/2: give I/N
convert videos out --white 0 => --white is 255 to 65535, got 0
convert videos out --resize cut => --resize cut is not one of squash, center_crop, lapa
convert videos out --filter stil => no rule 'stil'; did you mean 'still'?
convert videos out --val_fraction 2 => --val_fraction lies in [0, 1), got 2.0
convert videos out --workers -1 => --workers is 0 or more, got -1
convert videos out --captions nowhere.json => cannot read captions file nowhere.json
convert videos full => output full is not empty (it holds notes.txt); choose
convert videos videos => input and output are the same folder, videos; choose another
label --run laq => required: --data, --out
label --run nowhere --data sample --out labels => nowhere does not exist; give a run folder
label --run empty --data sample --out labels => empty is no run folder: it has no config.json; give
label --run policy --data sample --out labels => policy holds a stage-3 policy, & give a run of a tokenizer
label --run laq --data videos --out labels => videos holds no step shards & make them with tools/convert.py
label --run laq --data sample --out full => full is not empty and holds no labelling; name a new folder
label --run laq --data sample --out sample => --out sample is the data folder itself; name another
label --run laq --data sample --out labels --share 2 => --share 2: give I/N
label --run laq --data sample --out labels --batch_size 0 => --batch_size 0 must be at least 1
label --run laq --data sample --out labels --format csv => --format csv is unknown; known: full, hdf5, npz, sidecar
label --run laq --data sample --out labels --split test => sample has no split 'test'; known: train, val
label --run laq --data sample --out labels --step 7 => no checkpoint of step 7; it has [1, 2]
eval => give --run
eval --run nowhere => nowhere does not exist; give a run folder
eval --run empty => empty is no run folder: it has no config.json; give
eval --run imported => imported names no data of its own, as imported weights do: give --data FOLDER
eval --run laq --pairs 1 => --pairs 1 are too few to measure by; give 2 or more
eval --run laq --data nowhere => data folder nowhere does not exist; give
eval --run laq --data videos => videos holds no step shards & tools/convert.py
eval --run laq --require swap_gap => not of the form METRIC>=NUMBER & spec-laq
eval --run laq --require swap_gap>=much => 'much' is no number to compare with
eval --run laq --require val/swap_gap>=0.15 => val/ is where training logs it; give swap_gap>=0.15
eval --run laq --require swap_gap==0.15 => 'swap_gap==0.15' is not of the form METRIC>=NUMBER
eval --run laq --split test => has no split 'test'; known: train, val
eval --run laq --out file => file cannot be written & is no folder
eval --run laq --require spec-lag => did you mean 'spec-laq'?
eval --run laq --labels labels => --labels labels are latent actions, which laq does not predict; leave it out
eval --run laq --projection tsne => --projection tsne & which laq has not; leave it out
eval --run laq --step newest => --step newest is no step; give a number
eval --run laq --step 99 => no checkpoint of step 99; it has [1, 2]
eval --run laq --execute 4 => --execute is for policies that act in an environment; give --env
eval --run laq --reference_steps -1 => --reference_steps -1 must be 0 (off) or more
eval --env pushtable --run policy => no environment 'pushtable'; did you mean 'push_table'?
eval --env push_table --run laq => laq holds a tokenizer of frame pairs, & policies of stage 3
eval --env push_table --policy expert => --policy expert has no run folder to write to; give --out
eval --env push_table --policy oracl --out out => no policy 'oracl'; did you mean 'oracle'?
eval --env push_table --run policy --execute 4 --ensemble 0.1 => give one of them
eval --env push_table --run policy --data sample => --data is for recorded steps; leave it out with --env
eval --env mine.py --policy random --out out => file mine.py does not exist
serve => required: --run
serve --run policy --port PORT => cannot listen on 127.0.0.1: & in use & choose another --port
serve --run policy --port 99999 => --port 99999 is no port; give 1 to 65535
serve --run laq => laq holds a tokenizer of frame pairs, & serve a run of configs/vla_action.py
serve --run latent => latent holds a stage-2 policy, & train it on actions
serve --run policy --token_file nowhere => --token_file nowhere does not exist; give a file with the token in it
serve --run policy --token_file full => --token_file full is no file; give a file with the token in it
serve --run policy --batch 0 => --batch 0 must be 1 or more
serve --run policy --wait_ms -1 => --wait_ms -1.0 must be 0 or more, in milliseconds
serve --run policy --rate 0 => --rate 0.0 must be more than 0, in requests a second
serve --run policy --host nowhere.invalid => cannot listen on nowhere.invalid:8000
serve --run policy --rename camera => --rename camera is not KEY=NAME
serve --run policy --message_mb 0 => --message_mb 0.0 is no size of messages; give MiB
explore => required: --run
explore --run nowhere => nowhere does not exist; give a run folder
explore --run empty => empty is no run folder: it has no config.json; give
explore --run tokens => tokens holds a tokenizer of actions, for which there is no page; give
explore --run laq --port PORT => cannot listen on 127.0.0.1: & in use & choose another --port
explore --run laq --port 99999 => --port 99999 is no port; give 1 to 65535
explore --run laq --data nowhere => data folder nowhere does not exist; give
explore --run laq --data videos => videos holds no step shards & tools/convert.py
explore --run laq --split test => has no split 'test'; known: train, val
explore --run laq --dataset bridge => --dataset bridge is nothing to laq, a tokenizer of frame pairs; leave
explore --run latent --tokenizer nowhere => nowhere does not exist; give a run folder
explore --run policy --pairs 5 => --pairs 5 is nothing to policy, a stage-3 policy; leave
explore --run imported => imported names no data of its own, as imported weights do: give --data FOLDER
explore --run laq --pairs 0 => --pairs 0 must be 1 or more
explore --run laq --tokenizer laq => --tokenizer laq is nothing to laq, a tokenizer of frame pairs; leave
explore --run laq --step 7 => no checkpoint of step 7; it has [1, 2]
export --run laq => required: --out
export --run laq --out out --format onnx => --format 'onnx' is not known; known: int8, safetensors, stablehlo
export --run laq --out out --format stablehlo => laq holds a tokenizer of frame pairs, & leave out --format stablehlo
export --run laq --out out --format int8 => laq holds a tokenizer of frame pairs; & leave out --format int8
export --run laq --out out --format int8 --samples 1 => --samples 1 must be at least 2
export --run laq --out out --dtype float8 => --dtype 'float8' is not bfloat16; leave it out
export --run laq --out out --data sample => --data goes with --format int8, & leave it out
export --run nowhere --out out => nowhere does not exist; give a run folder
export --run laq --out out --step best => has no checkpoint with a value of 'val/swap_gap'
export --run policy --out out --format stablehlo --platform cude => 'cude' is none of JAX's; did you mean 'cuda'?
export --run policy --out out --format int8 --max_error -1 => --max_error -1.0 must be more than 0, in percent
export --run laq --out full => full exists and is not an empty folder; name a new one
record_sim --env pushtable --episodes 2 --out out => did you mean 'push_table'?
record_sim --env push_table --episodes 0 --out out => --episodes is 1 to 999999, got 0
record_sim --env push_table --episodes 2 --out out --columns speed => --columns speed: known are action, state
record_sim --env push_table --episodes 2 --out out --format avi => --format avi is not one of shards, mp4
import_weights lacq --input file --out out => invalid choice: 'lacq' (choose from 'laq'
import_weights laq --input nowhere.pt --out out => nowhere.pt does not exist
import_weights laq --input file --out out => file ends in ''; known endings: .safetensors
import_weights laq --input file --out out --imagesize 3 => there is no option --imagesize; did you mean '--image_size'?
import_weights siglip --input nowhere --out out => nowhere is no folder; give that of a Hugging Face checkpoint
inspect_data nowhere => data folder nowhere does not exist; give
inspect_data videos => videos holds no step shards & tools/convert.py
inspect_data sample --split test => no steps in split 'test' & 'val': 99
inspect_data sample --run laq => --run laq holds a tokenizer of frame pairs; & stage-3 policies
inspect_data sample --gap_frames 0 => the frame gap must be positive, and whole in frames
make_tokenizer --data nowhere --out words => data folder nowhere does not exist; give
make_tokenizer --data sample --out full => full exists and is not an empty folder; name a new one
compare_runs empty laq => empty is no run folder: it has no config.json; give
read_profile laq => laq has no trace; train with --config.train.profile
read_profile nowhere => nowhere does not exist; give a run folder
sweep --out out => give either --file, or --config and what is varied
sweep --out out --config configs/laq.py:test => --metric is required: what is compared, such as val/swap_gap
sweep --out out --config configs/laq.py:test --metric val/psnr_gian => no metric & did you mean 'val/psnr_gain'?
sweep --out out --config configs/laq.py:test --metric val/psnr --grid model.quantizer=vq,fsqq => did you mean 'fsq'?
sweep --out out --config configs/laq.py:test --metric val/psnr --grid model.quantiser=vq => did you mean 'quantizer'?
sweep --out out --config configs/laq.py:test --metric val/psnr --config.data.path=nowhere => data folder nowhere does
sweep --out out --config configs/laq.py:test --metric val/psnr --random optim.learning_rate=log:0,1 --trials 3 => is no
sweep --out out --config configs/laq.py:test --metric val/psnr --share 3/2 => --share 3/2: give I/N
sweep --out out --file site.yaml => --file site.yaml does not exist
choose_gap nowhere --out out => data folder nowhere does not exist; give
choose_gap videos --out out => videos holds no step shards & tools/convert.py
choose_gap sample --out out --gaps 3,six => 3,six: give whole numbers of at least 1
choose_gap sample --out out --gaps 1000 => 1000 leaves no pair & has 27 frames; give smaller gaps
choose_gap sample --out out --seeds 0 => seeds is 0; give a whole number of at least 1
choose_gap sample --out out --steps 0 => --steps 0 must be 1 or more
choose_gap sample --out out --grid model.image_sise=32,48 => did you mean 'image_size'?
choose_gap sample --out out --labelled videos => videos holds no step shards & tools/convert.py
audit_step --config configs/lqa.py => configs/lqa.py does not exist; did you mean 'laq'?
audit_step --config configs/laq.py:test --device H100-95GB => did you mean 'H100-94GB'?
audit_step --config configs/laq.py:test --mesh eight => 'eight' is no mesh; give hosts x GPUs
audit_step --config configs/laq.py:test --act --mesh 1x4 => a prediction is audited on one device; leave --mesh out
segment --run laq --data sample --out out => laq holds a tokenizer of frame pairs, & give a run of configs/mstcn.py
segment --run laq --data nowhere --out out => data folder nowhere does not exist; give
segment --run laq --data sample --out out --split test => sample has no split 'test'; known: train, val
segment --run laq --data sample --out out --pictures -1 => --pictures -1 must be 0 (none) or more
export_lapa sample out --kind stage2 => --kind stage2 is not known; known: finetune, frames, latent
pseudo_actions --demonstrations sample --data sample --out out --gap 0 => --gap 0 must be at least 1
"""
"""Command => what the line says, parts joined by &. Folders are those of `desk`."""

SECONDS = 1.0
"""Of CPU time, at most, once everything is imported; imports take about one more in a process of their own."""
SLOWEST = (
    "train --config configs/laq.py:test --config.seed=-1", "train --config configs/vla_latent.py:test "
    "--config.data.text_tokenizer.name=bytez", "eval --run laq --split test", "explore --run laq --split test",
    "segment --run laq --data sample --out out", "train --config configs/laq.py:test --config.model.quantizer=vqq",
)  # fmt: skip
ROWS = [tuple(row.split(" => ")) for row in MISTAKES.strip().splitlines()]


@pytest.fixture(scope="module")
def desk(root, tmp_path_factory) -> pathlib.Path:
    """A folder with what the commands name: runs, raw videos, folders of other things."""
    folder = tmp_path_factory.mktemp("desk")
    small_run.write(folder / "laq", root, "sample")
    (folder / "imported").mkdir()
    for name, file in (("policy", "vla_action"), ("latent", "vla_latent"), ("tokens", "fsq")):
        (folder / name).mkdir()
        config = config_lib.load(f"{root}/configs/{file}.py:test")
        write_json(folder / name / "config.json", config_lib.to_json(config))
    write_json(folder / "imported/config.json", {"name": "laq", "data": {"image_size": 32},
                                                 "model": read_json(folder / "laq/config.json")["model"]})  # fmt: skip
    for name in ("empty", "videos", "full"):
        (folder / name).mkdir()
    (folder / "videos/a.mp4").write_bytes(b"no video")
    (folder / "full/notes.txt").write_text("mine")
    (folder / "file").write_text("text")
    (folder / "wrong.yaml").write_text("train: {stepz: 3}\n")
    return folder


@pytest.fixture(scope="module")
def port():
    """A port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def scripts(root) -> dict[str, types.ModuleType]:
    """The commands that the table names, imported."""
    loaded = {}
    for name in dict.fromkeys(row[0].split()[0] for row in ROWS):
        path = next(path for path in (root / "launch" / f"{name}.py", root / "tools" / f"{name}.py") if path.is_file())
        spec = importlib.util.spec_from_file_location(f"command_{name}", path)
        loaded[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    import lapa_jax.train.plan  # noqa: F401  what commands import where they need it

    return loaded


@pytest.mark.parametrize(("command", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_a_mistake_is_one_line_at_once(command, expected, desk, scripts, port, monkeypatch, capsys):
    name, *arguments = command.replace("PORT", str(port)).split()
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    # Where the packages of trackers are installed too.
    monkeypatch.setattr(trackers, "PACKAGES", {"tensorboard": "tensorboardX", "wandb": "no_such_package"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = contents(desk)
    seconds = []
    while not seconds or (seconds[-1] >= SECONDS and len(seconds) < 2):
        # Once more where it took long: the first to need a module pays for its import, which other tests measure.
        start = time.process_time()
        with pytest.raises(SystemExit) as ended:
            run_main(scripts[name].main)
        seconds.append(time.process_time() - start)
        line = error_of(capsys.readouterr().err)
    assert ended.value.code == 2
    assert [part for part in expected.split(" & ") if part not in line] == [], line
    assert contents(desk) == before, "something was written"
    assert min(seconds) < SECONDS


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("serve --run policy --port 0", "this needs aiohttp, & pip install 'lapa_jax[serve]'"),
        ("explore --run laq --port 0", "this needs aiohttp, & pip install 'lapa_jax[serve]'"),
        ("eval --env push_table --run policy", "push_table needs mujoco, & pip install 'lapa_jax[sim]'"),
        ("eval --env metaworld --run policy", "metaworld needs mujoco, & pip install 'lapa_jax[metaworld]'"),
    ],
)
def test_a_package_that_is_not_installed_is_said_before_jax_is_imported(
    command, expected, desk, scripts, monkeypatch, capsys
):
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    name, *arguments = command.split()
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(startup, "begin", lambda text: pytest.fail(f"it began: {text}"))
    with pytest.raises(SystemExit):
        run_main(scripts[name].main)
    line = error_of(capsys.readouterr().err)
    assert [part for part in expected.split(" & ") if part not in line] == [], line


def contents(folder: pathlib.Path) -> set[str]:
    """The files and folders within, but locks that nobody holds."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.name.endswith(".lock")}


def test_there_are_sixty_of_them_on_all_commands():
    assert len(ROWS) == len({row[0] for row in ROWS}) >= 60
    assert {"train", "convert", "label", "eval", "serve", "export", "record_sim", "import_weights", "inspect_data",
            "make_tokenizer"} <= {row[0].split()[0] for row in ROWS}  # fmt: skip


def test_all_commands_read_their_arguments_alike(root):
    """argparse's own parser prints its usage and no remedy."""
    own = [path.relative_to(root).as_posix() for folder in ("launch", "tools") for path in (root / folder).rglob("*.py")
           if "argparse.ArgumentParser(" in path.read_text()]  # fmt: skip
    assert own == []


@pytest.mark.parametrize("command", SLOWEST, ids=SLOWEST)
def test_a_command_of_its_own_takes_two_seconds_with_its_imports(command, root, desk):
    name, *arguments = command.split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-B", root / "launch" / f"{name}.py", *arguments], cwd=desk, text=True,
                          capture_output=True, env=env, check=False)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and error_of(done.stderr)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
