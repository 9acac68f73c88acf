"""Hugging Face folders to checkpoints of ours: what is refused, what is left out, and how much memory it takes."""

import contextlib
import json
import pathlib
import shutil
import threading
import time

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core.errors import UserError
from tests.golden.imported import TOWERS, read
from tools import import_weights


def run(kind, source, out, *options):
    import_weights.main([kind, "--input", str(source), "--out", str(out), *options])


@pytest.fixture
def copy(tmp_path):
    """copy(name, **changed) -> a golden folder in one file, with keys of its config.json changed."""

    def make(name, **changed):
        folder, tensors = tmp_path / "source", {}
        folder.mkdir()
        config = json.loads((TOWERS / name / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))
        for path in sorted((TOWERS / name).glob("*.safetensors")):
            tensors |= safetensors.numpy.load_file(path)
        return folder, tensors

    return make


def write(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def refuse(kind, folder, out, message):
    with pytest.raises(UserError, match=message) as error:
        run(kind, folder, out)
    assert not out.exists()
    return str(error.value)


def test_one_file_gives_what_shards_give_and_every_tensor_lies_where_it_belongs(copy, tmp_path, capsys):
    folder, tensors = copy("llama")
    write(folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)})
    run("llama", folder, tmp_path / "one")
    said, progress = capsys.readouterr()
    assert "left out: 1 tensors" in said and "5,456 numbers" in said and "kv_heads=2" in said
    assert "reading: 100%" in progress and "writing the checkpoint" in progress
    run("llama", TOWERS / "llama", tmp_path / "shards")
    (spec, one, meta), (_, shards, _) = read(tmp_path / "one"), read(tmp_path / "shards")
    jax.tree.map(np.testing.assert_array_equal, one, shards)
    assert spec["name"] == "llama" and meta["source"] == {"kind": "Hugging Face llama", "folder": "source"}
    layers = one["params"]["decoder"]["layers"]
    np.testing.assert_array_equal(layers["feedforward"]["up"]["kernel"][1],
                                  tensors["model.layers.1.mlp.up_proj.weight"].T)  # fmt: skip


def test_half_precision_is_read_to_the_bit(copy, tmp_path):
    folder, tensors = copy("llama")
    for dtype, stored in ((np.float16, "float32"), (ml_dtypes.bfloat16, "float32"), (ml_dtypes.bfloat16, "bfloat16")):
        half = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        write(folder, half)
        out = tmp_path / f"{np.dtype(dtype).name}_{stored}"
        run("llama", folder, out, "--dtype", stored)
        _, variables, _ = read(out)
        got, expected = variables["params"]["embedding"], half["model.embed_tokens.weight"].astype(np.float32)
        assert got.dtype == stored
        np.testing.assert_array_equal(got.astype(np.float32), expected)


def test_a_whole_siglip_gives_its_vision_tower(copy, tmp_path):
    """As released: the text tower beside it, a prefix before the names, sizes in `vision_config`, defaults unsaid."""
    folder, tensors = copy("siglip")
    config = json.loads((folder / "config.json").read_text())
    vision = {k: v for k, v in config.items() if k not in ("layer_norm_eps", "hidden_act")}
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": vision}))
    prefixed = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    write(folder, prefixed | {"logit_scale": np.zeros(1, np.float32), "text_model.head.bias": np.zeros(3, np.float32)})
    run("siglip", folder, tmp_path / "whole", "--layer", "-2")
    run("siglip", TOWERS / "siglip", tmp_path / "tower", "--layer", "-2")
    (spec, whole, _), (same, tower, _) = read(tmp_path / "whole"), read(tmp_path / "tower")
    assert spec == same | {"eps": 1e-6} and spec["layer"] == -2
    jax.tree.map(np.testing.assert_array_equal, whole, tower)


def part_of_a_larger_model(name):
    """As transformers 5 names the parts of LLaVA: the layers under `model.language_model.`, the head beside them."""
    return name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize(
    ("kind", "rename", "options", "said"),
    [
        ("llama", lambda n: f"language_model.{n}", (), "begin with 'language_model.', which was taken off"),
        ("llama", part_of_a_larger_model, (), "begin with 'model.language_model.', which was taken off"),
        ("llama", lambda n: n.removeprefix("model."), ("--no_head",), "lack the prefix 'model.', which was put before"),
        ("dinov2", lambda n: f"dinov2.{n}", (), "begin with 'dinov2.', which was taken off"),
        ("siglip", lambda n: f"model.vision_tower.vision_model.{n}", (), "'model.vision_tower.vision_model.'"),
    ],
)
def test_names_with_another_prefix_give_the_same_model(copy, tmp_path, capsys, kind, rename, options, said):
    folder, tensors = copy(kind)
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    prefixed = kind != "llama" or not options
    others = {f"other.{i}.weight": np.zeros(2, np.float32) for i in range(3)} if prefixed else {}
    write(folder, renamed | others)
    run(kind, folder, tmp_path / "renamed", *options)
    printed = capsys.readouterr().out
    assert said in printed and (not others or "left out: 3 tensors outside of" in printed)
    run(kind, TOWERS / kind, tmp_path / "plain", *options)
    (spec, variables, _), (same, plain, _) = read(tmp_path / "renamed"), read(tmp_path / "plain")
    assert spec == same
    jax.tree.map(np.testing.assert_array_equal, variables, plain)


def test_another_model_is_refused_in_a_few_names(copy, tmp_path):
    folder, tensors = copy("llama")
    write(folder, {f"transformer.h.{i}.attn.weight": np.zeros(2, np.float32) for i in range(50)})
    said = refuse("llama", folder, tmp_path / "out", "no complete llama; missing")
    assert len(said) < 1500 and "unexpected (50): transformer.h.0.attn.weight" in said
    write(folder, {f"language_model.{name}": t for name, t in tensors.items() if "norm" not in name})
    said = refuse("llama", folder, tmp_path / "out", "missing")
    assert len(said) < 1500 and "unexpected" not in said, "the prefix is no reason to list all that is there"


def test_rope_parameters_without_a_theta_have_the_usual_one(copy, tmp_path):
    folder, tensors = copy("llama", rope_parameters={"rope_type": "default"}, rope_theta=None)
    config = json.loads((folder / "config.json").read_text())
    write(folder, tensors)
    for given, expected in (({}, 10000.0), ({"rope_theta": 5e5}, 5e5)):
        config = {key: value for key, value in config.items() if key != "rope_theta"} | given
        (folder / "config.json").write_text(json.dumps(config))
        run("llama", folder, tmp_path / f"{expected}")
        assert read(tmp_path / f"{expected}")[0]["rotary"] == expected


def test_missing_unexpected_and_misshapen_tensors_are_named_together(copy, tmp_path):
    folder, tensors = copy("dinov2")
    gone = tensors.pop("encoder.layer.1.mlp.fc1.weight")
    tensors["layernorm.weight"] = np.ones(5, np.float32)
    write(folder, tensors | {"classifier.weight": gone})
    said = refuse("dinov2", folder, tmp_path / "out", "no complete dinov2")
    assert "missing (1): encoder.layer.1.mlp.fc1.weight" in said and "unexpected (1): classifier.weight" in said
    assert "layernorm.weight has shape (5,), which does not give norm_out/scale (16,)" in said


def test_weights_of_other_sizes_than_the_config_says_are_refused(copy, tmp_path):
    folder, tensors = copy("llama", num_hidden_layers=3, vocab_size=50)
    write(folder, tensors)
    said = refuse("llama", folder, tmp_path / "out", r"missing \(9\): model.layers.2.input_layernorm.weight")
    assert "model.embed_tokens.weight has shape (48, 16), which does not give embedding (50, 16)" in said


@pytest.mark.parametrize(
    ("kind", "name", "changed", "message"),
    [
        ("llama", "siglip", {}, "model_type 'siglip_vision_model'; what can be imported has 'llama'"),
        ("siglip", "dinov2", {}, "model_type 'dinov2'"),
        ("dinov2", "dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn True"),
        ("llama", "llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "scaled rotary positions"),
        ("llama", "llama", {"attention_bias": True}, "attention_bias True"),
        ("llama", "llama", {"hidden_size": None}, "hidden_size None; a whole number"),
    ],
)
def test_checkpoints_of_another_make_are_refused(copy, tmp_path, kind, name, changed, message):
    folder, tensors = copy(name, **changed)
    write(folder, tensors)
    refuse(kind, folder, tmp_path / "out", message)


def test_files_that_cannot_be_read_are_named(copy, tmp_path):
    out = tmp_path / "out"
    refuse("llama", tmp_path / "absent", out, "absent is no folder")
    folder, tensors = copy("llama")
    refuse("llama", folder, out, "model.safetensors does not exist")
    (folder / "model.safetensors").write_bytes(b"not at all")
    refuse("llama", folder, out, "model.safetensors is not a readable safetensors file")
    write(folder, tensors | {"model.norm.weight": np.zeros(16, np.int8)})
    refuse("llama", folder, out, "model.norm.weight is I8")
    (folder / "config.json").unlink()
    refuse("llama", folder, out, "config.json does not exist")


def test_a_shard_that_is_not_what_its_index_says_is_refused(tmp_path):
    folder = shutil.copytree(TOWERS / "llama", tmp_path / "source")
    shards = sorted(folder.glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    refuse("llama", folder, tmp_path / "out", "do not agree on .*model.layers.*download the checkpoint again")
    shards[1].unlink()
    refuse("llama", folder, tmp_path / "out", f"{shards[1].name} does not exist")


def test_loading_a_tower_says_that_it_is_only_a_part(tmp_path):
    run("siglip", TOWERS / "siglip", tmp_path / "siglip")
    with pytest.raises(UserError, match="vision.siglip, which has no inference object"):
        lapa_jax.load(tmp_path / "siglip")


def test_another_run_is_not_written_over(tmp_path):
    run("siglip", TOWERS / "siglip", tmp_path / "siglip")
    with pytest.raises(UserError, match="holds a run or an import already"):
        run("siglip", TOWERS / "siglip", tmp_path / "siglip")
    assert sorted(path.name for path in (tmp_path / "siglip").iterdir()) == ["checkpoints", "config.json"]


@contextlib.contextmanager
def peak_of_memory():
    """Yields a list that gets the most bytes that this process held meanwhile, files not counted; Linux only."""
    found, done = [], threading.Event()

    def held():
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def watch():
        while not done.is_set():
            found[0] = max(found[0], held())
            time.sleep(0.001)

    try:
        found.append(held())
    except (OSError, StopIteration):
        pytest.skip("this system does not tell what memory a process holds")
    start, watcher = found[0], threading.Thread(target=watch)
    watcher.start()
    yield found
    done.set()
    watcher.join()
    found[0] -= start


def test_no_second_copy_of_the_model_is_held(tmp_path):
    depth, dim, hidden, vocab = 16, 512, 512, 64
    rng = np.random.default_rng(0)
    layer = {"input_layernorm": (dim,), "post_attention_layernorm": (dim,), "mlp.gate_proj": (hidden, dim),
             "mlp.up_proj": (hidden, dim), "mlp.down_proj": (dim, hidden)}  # fmt: skip
    layer |= {f"self_attn.{name}_proj": (dim, dim) for name in "qkvo"}
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(depth) for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (dim,), "model.embed_tokens.weight": (vocab, dim), "lm_head.weight": (vocab, dim)}
    write(tmp_path, {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()})
    config = {"model_type": "llama", "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": depth,
              "num_attention_heads": 4, "vocab_size": vocab}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    run("llama", tmp_path, tmp_path / "once")  # what is compiled and imported once is not the import's
    with peak_of_memory() as peak:
        run("llama", tmp_path, tmp_path / "out")
    stacked = 4 * depth * dim * hidden
    assert peak[0] < stacked  # of 7 in the model: parts of one array at a time are on their way to the disk
