"""OpenVLA folders to runs: what is read from where, what is refused, adapters; a run acts as the official code does."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.models.released import openvla
from tests.golden import released

DATASETS = ("bridge_orig", "toy_without_mask", "toy_4d")


@pytest.fixture
def source(shared, tmp_path):
    return released.copy_openvla(shared, tmp_path / "source")


@pytest.fixture(scope="module")
def golden(shared):
    return dict(np.load(shared / "golden" / "released" / "openvla_small" / "golden.npz"))


def refuse(folder, tmp_path, message, *options):
    with pytest.raises(UserError, match=message) as error:
        released.import_("openvla", folder, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_a_run_acts_as_the_official_code(source, golden, tmp_path):
    """From the instruction and the camera's image to the robot's units, float64 to the last digit but few."""
    released.import_("openvla", source, tmp_path / "run")
    shutil.rmtree(source)  # a run needs nothing else
    policy = lapa_jax.load(shutil.move(tmp_path / "run", tmp_path / "moved"))
    for i, instruction in enumerate(released.INSTRUCTIONS):
        batch, _ = policy.prepare(golden[f"case{i}.image"], instruction.upper(), dataset="toy_4d")
        length = golden[f"case{i}.input_ids"].shape[1]
        np.testing.assert_array_equal(batch["text"][:, :length], golden[f"case{i}.input_ids"])
        assert batch["text_mask"].sum() == length
        for name in DATASETS:
            action = policy.act(golden[f"case{i}.image"], instruction, dataset=name)
            np.testing.assert_allclose(action, golden[f"case{i}.action.{name}"], rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="bridge_orig, toy_without_mask, toy_4d"):
        policy.act(golden["case0.image"], "push")


def test_sizes_come_from_the_tensors_and_what_the_config_leaves_out_is_what_transformers_takes(source):
    released.edit_json(source / "config.json", image_sizes=None, text_config={"vocab_size": 32064, "hidden_size": 24,
                       "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4})  # fmt: skip
    spec = openvla.read(source).config["model"]
    assert (spec["llm"]["eps"], spec["llm"]["rotary"], spec["image_size"]) == (1e-6, 10000.0, 56)
    assert spec["siglip"] | {"dim": 64, "depth": 4, "heads": 16, "hidden": 239, "gelu": "exact"} == spec["siglip"]
    assert spec["dinov2"] | {"dim": 48, "depth": 3, "registers": 4, "hidden": 192} == spec["dinov2"]
    assert spec["dinov2"]["mean"] == [0.484375, 0.455078125, 0.40625] and spec["action_end"] == 32000


def test_the_statistics_beside_the_weights_go_before_those_of_the_config(source, tmp_path, capsys):
    """A finetuned model's file has its own data set alone."""
    stats = json.loads((source / "dataset_statistics.json").read_text())
    (source / "dataset_statistics.json").write_text(json.dumps({"mine": stats["toy_4d"]}))
    released.import_("openvla", source, tmp_path / "run")
    assert "actions of 1 data sets: mine" in capsys.readouterr().out
    policy = lapa_jax.load(tmp_path / "run")
    assert list(policy.datasets) == ["mine"] and policy.model.action_dim == 4
    assert policy.datasets["mine"]["statistics"]["action"]["mask"] == [True, False, True, True]
    (source / "dataset_statistics.json").unlink()
    assert sorted(openvla.read(source).meta["datasets"]) == sorted(DATASETS)


def test_images_are_seen_as_the_processor_says(source):
    read = lambda **chosen: openvla.read(source, chosen=openvla.Chosen(**chosen)).config  # noqa: E731
    assert read()["data"]["resize"] == {"mode": "squash", "interpolation": "bicubic"}
    assert read(center_crop=True)["data"]["resize"]["area"] == 0.9
    released.edit_json(source / "preprocessor_config.json", image_resize_strategy="letterbox")
    # one colour for both towers, that of the last
    assert read()["data"]["resize"] == {"mode": "letterbox", "interpolation": "bicubic", "fill": [127, 127, 127]}
    released.edit_json(source / "preprocessor_config.json", image_resize_strategy="resize-crop")
    assert read()["data"]["resize"]["mode"] == "shorter_side"
    released.edit_json(source / "preprocessor_config.json", tvf_normalize_params=None)
    assert read()["model"]["dinov2"]["mean"] == [0.485, 0.456, 0.406]
    (source / "preprocessor_config.json").unlink()
    without = openvla.read(source)
    assert without.config["model"]["dinov2"]["mean"] == [0.484375, 0.455078125, 0.40625]
    assert any("no preprocessor_config.json" in note for note in without.notes)


def test_one_tower_and_the_prompt_of_the_first_model(source, tmp_path):
    """As openvla-v01-7b: SigLIP alone, a projector of two layers, Vicuna's prompt."""
    start = {"vision_backbone.fused_featurizer.": "vision_backbone.featurizer."}
    tensors = {name: t for name, t in released.tensors_of(source).items()
               if not name.startswith(("vision_backbone.featurizer.", "projector."))}  # fmt: skip
    tensors = {_renamed(name, start): t for name, t in tensors.items()}
    rng = np.random.default_rng(0)
    for name, shape in (("fc1", (24, 64)), ("fc2", (24, 24))):
        tensors[f"projector.{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"projector.{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    released.write_tensors(source, tensors)
    released.edit_json(source / "config.json", timm_model_ids=["vit_so400m_patch14_siglip_224"], image_sizes=[56],
                       timm_override_act_layers=[None], use_fused_vision_backbone=False,
                       llm_backbone_id="vicuna-v15-7b")  # fmt: skip
    about = json.loads((source / "preprocessor_config.json").read_text())
    for name in ("input_sizes", "interpolations", "means", "stds", "tvf_crop_params", "tvf_normalize_params",
                 "tvf_resize_params"):  # fmt: skip
        about[name] = about[name][1:]
    (source / "preprocessor_config.json").write_text(json.dumps(about))
    model, variables, config = released.import_("openvla", source, tmp_path / "run")
    assert model.dinov2 is None and model.projection == "gelu-mlp"
    assert config.data.text_tokenizer.template.startswith("A chat between a curious user")
    kernel = variables["params"]["projector"]["hidden"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["projector.fc1.weight"].T)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    assert lapa_jax.load(tmp_path / "run").act(image, "pick up the red cup", dataset="bridge_orig").shape == (7,)


def _renamed(name, starts):
    return next((new + name.removeprefix(old) for old, new in starts.items() if name.startswith(old)), name)


def adapter(folder, source, modules, rank=2, **config):
    """An adapter of random numbers for some tensors of a folder, and the tensors that it makes of them."""
    folder.mkdir()
    rng, tensors, scale = np.random.default_rng(1), {}, config.pop("scale", 8 / rank)
    base, wanted = released.tensors_of(source), {}
    for module in modules:
        weight = base[f"{module}.weight"].astype(np.float32)
        a = rng.normal(size=(rank, *weight.shape[1:])).astype(np.float32)
        b = rng.normal(size=(weight.shape[0], rank, *[1] * (weight.ndim - 2))).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_A.weight"], tensors[f"base_model.model.{module}.lora_B.weight"] = a, b
        wanted[f"{module}.weight"] = weight + scale * np.einsum("or,r...->o...", b.reshape(len(b), rank), a)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "lora_alpha": 8, "r": rank, "base_model_name_or_path": "openvla/openvla-7b"}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return wanted


MODULES = ("language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.1.mlp.down_proj",
           "vision_backbone.featurizer.blocks.0.attn.qkv", "vision_backbone.fused_featurizer.patch_embed.proj",
           "projector.fc1")  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "scale": 8 / 2**0.5}])
def test_an_adapter_that_was_not_merged_is_merged_on_the_way(source, tmp_path, config):
    wanted = adapter(tmp_path / "adapter", source, MODULES, **config)
    stats = json.loads((source / "dataset_statistics.json").read_text())
    (tmp_path / "adapter" / "dataset_statistics.json").write_text(json.dumps({"mine": stats["bridge_orig"]}))
    merged = shutil.copytree(source, tmp_path / "merged")
    released.write_tensors(merged, released.tensors_of(source) | wanted)
    _, variables, _ = released.import_("openvla", source, tmp_path / "a", "--adapter", tmp_path / "adapter")
    _, expected, _ = released.import_("openvla", merged, tmp_path / "b")
    import jax

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), variables, expected)
    assert list(lapa_jax.load(tmp_path / "a").datasets) == ["mine"]


def test_adapters_that_do_not_fit_are_refused_with_what_does_not(source, tmp_path):
    adapter(tmp_path / "other", source, MODULES[:1])
    path = tmp_path / "other" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = f"base_model.model.{MODULES[0]}"
    safetensors.numpy.save_file({f"{name}.lora_A.weight": np.zeros((2, 25), np.float32),
                                 f"{name}.lora_B.weight": tensors[f"{name}.lora_B.weight"],
                                 "base_model.model.text.lora_A.weight": np.zeros((2, 2), np.float32)},
                                path)  # fmt: skip
    said = refuse(source, tmp_path, "no adapter of this model", "--adapter", tmp_path / "other")
    assert "unexpected (1): text.lora_A.weight" in said and "q_proj.weight (24, 25), there (24, 24)" in said
    adapter(tmp_path / "dora", source, MODULES[:1], use_dora=True)
    refuse(source, tmp_path, "use_dora True", "--adapter", tmp_path / "dora")
    refuse(tmp_path / "dora", tmp_path, r"is an adapter; give the model .*openvla/openvla-7b.* as --adapter")


def test_wrong_folders_are_refused_with_lists(source, shared, tmp_path):
    refuse(tmp_path / "absent", tmp_path, "is no folder")
    tensors = released.tensors_of(source)
    wrong = dict(tensors)
    del wrong["projector.fc2.bias"], wrong["vision_backbone.featurizer.cls_token"]
    wrong["language_model.model.layers.1.mlp.up_proj.weight"] = wrong.pop(
        "language_model.model.layers.1.mlp.up_proj.weight").T  # fmt: skip
    wrong["language_model.value_head.weight"] = np.zeros((3, 3), np.float32)
    released.write_tensors(source, wrong)
    said = refuse(source, tmp_path, "no complete OpenVLA")
    assert "missing (2): projector.fc2.bias, vision_backbone.featurizer.cls_token" in said
    assert "unexpected (1): language_model.value_head.weight" in said
    assert "layers.1.mlp.up_proj.weight has shape (24, 64), which does not give llm/decoder/layers/" in said
    released.write_tensors(source, {n: t for n, t in tensors.items() if "pos_embed" not in n})
    refuse(source, tmp_path, "'vit_large_patch14_reg4_dinov2.lvd142m' has is missing: pos_embed")


def test_shards_that_are_cut_off_or_not_what_the_index_says_are_refused(source, tmp_path):
    shards = sorted(source.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    refuse(source, tmp_path, f"{shards[1].name} is not a readable safetensors file")
    shards[1].write_bytes(whole)
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = "language_model.model.norm.weight"
    index.write_text(json.dumps({"weight_map": {n: f for n, f in content["weight_map"].items() if n != name}}))
    refuse(source, tmp_path, f"do not agree on {name}; download")
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {name: "../x.safetensors"}}))
    refuse(source, tmp_path, "names files outside of its folder")
    for shard in shards[:2]:
        shard.unlink()
    index.write_text(json.dumps(content))
    said = refuse(source, tmp_path, "does not exist")
    assert shards[0].name in said and shards[1].name in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; this imports 'openvla'"),
        ({"timm_model_ids": ["vit_large_patch14_clip_224.openai", "vit_so400m_patch14_siglip_224"]}, "clip_224"),
        ({"timm_override_act_layers": ["quick_gelu", None]}, "quick_gelu"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone"),
        ({"image_sizes": [56, 70]}, "towers of the same size"),
        ({"image_sizes": [84, 84]}, "do not go with the positions"),
        ({"text_config": {"model_type": "mistral"}}, "model_type 'mistral'"),
        ({"image_resize_strategy": "squeeze"}, None),
    ],
)
def test_configs_of_other_models_are_refused(shared, tmp_path, changed, message):
    source = released.copy_openvla(shared, tmp_path / "source", **changed)
    if message is None:
        (source / "preprocessor_config.json").unlink()
        message = "image_resize_strategy 'squeeze' is unknown"
    refuse(source, tmp_path, message)


def test_nothing_of_the_folder_is_executed(source, tmp_path):
    for name in ("modeling_prismatic.py", "configuration_prismatic.py", "processing_prismatic.py"):
        (source / name).write_text(f"raise SystemExit('{name} ran')")
    released.edit_json(source / "config.json", auto_map={"AutoConfig": "configuration_prismatic.OpenVLAConfig",
                       "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"})  # fmt: skip
    released.import_("openvla", source, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*.py")) == []
    lapa_jax.load(tmp_path / "run")
