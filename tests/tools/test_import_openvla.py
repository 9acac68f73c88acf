"""OpenVLA folders to runs: what is read from where, what is refused, adapters; a run acts as the official code does."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.models.released import openvla
from tests import jitted
from tests.golden import openvla_by_hand, released
from tests.tools.test_import_towers import peak_of_memory

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


def tower(name, depth, dim, hidden, grid, seed, registers=0, scaled=True):
    """A tower of random numbers; scaled: with the class token and the layer scale of DINOv2."""
    rng, start = np.random.default_rng(seed), f"vision_backbone.{name}."
    normal = lambda *shape: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)  # noqa: E731
    tensors = {"pos_embed": normal(1, grid**2, dim), "patch_embed.proj.weight": normal(dim, 3, 14, 14) / 14,
               "patch_embed.proj.bias": normal(dim), "norm.weight": normal(dim), "norm.bias": normal(dim)}  # fmt: skip
    if scaled:
        tensors["cls_token"] = normal(1, 1, dim)
    if registers:
        tensors["reg_token"] = normal(1, registers, dim)
    for block in (f"blocks.{layer}" for layer in range(depth)):
        for part, shape in (("attn.qkv", (3 * dim, dim)), ("attn.proj", (dim, dim)), ("mlp.fc1", (hidden, dim)),
                            ("mlp.fc2", (dim, hidden)), ("norm1", (dim,)), ("norm2", (dim,))):  # fmt: skip
            tensors[f"{block}.{part}.weight"] = normal(*shape) + (len(shape) == 1)
            tensors[f"{block}.{part}.bias"] = normal(shape[0])
        tensors |= {f"{block}.ls{number}.scale_factor": normal(dim) for number in (1, 2) if scaled}
    return {start + key: tensor for key, tensor in tensors.items()}


OTHER = {
    "two towers, grouped queries": (
        {"timm_model_ids": ["vit_base_patch14_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"]},
        (tower("featurizer", 3, 24, 50, 3, 1), tower("fused_featurizer", 2, 32, 70, 3, 2, scaled=False)), (12, 16),
        {"depth": 3, "dim": 32, "hidden": 40, "heads": 8, "kv_heads": 2}),
    "DINOv2 alone, coarse bins": (
        {"timm_model_ids": ["vit_small_patch14_reg4_dinov2.lvd142m"], "n_action_bins": 64, "pad_to_multiple_of": 32},
        (tower("featurizer", 2, 36, 20, 3, 3, registers=2),), (6,),
        {"depth": 1, "dim": 20, "hidden": 30, "heads": 2, "kv_heads": 2}),
    "SigLIP alone, one group": (
        {"timm_model_ids": ["vit_so400m_patch14_siglip_224"], "n_action_bins": 300},
        (tower("featurizer", 3, 16, 33, 3, 4, scaled=False),), (16,),
        {"depth": 2, "dim": 48, "hidden": 16, "heads": 4, "kv_heads": 1}),
}  # fmt: skip
"""{what: keys of config.json, towers, their heads, decoder}."""


@pytest.mark.parametrize("what", OTHER)
def test_other_shapes_equal_the_equations(source, tmp_path, what):
    """Of all that a folder may have otherwise; the whole generation anew for each token, on the folder's tensors."""
    config, towers, tower_heads, decoder = OTHER[what]
    count, dims = len(towers), [next(t.shape[-1] for n, t in each.items() if "pos_embed" in n) for each in towers]
    tensors = with_decoder(source, towers=towers, features=sum(dims), **decoder)
    released.edit_json(source / "config.json", **config, image_sizes=[42] * count, use_fused_vision_backbone=count > 1,
                       timm_override_act_layers=[None] * count)  # fmt: skip
    (source / "preprocessor_config.json").unlink()
    released.import_("openvla", source, tmp_path / "run")
    policy = lapa_jax.load(tmp_path / "run")
    t = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    image, instruction = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8), released.INSTRUCTIONS[1]
    batch, _ = policy.prepare(image, instruction, dataset="toy_4d")
    means = {"dinov2": ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
             "siglip": ((0.5,) * 3, (0.5,) * 3)}  # fmt: skip
    pixels = np.concatenate([((batch["image"][0] / 255 - np.array(means[kind][0])) / np.array(means[kind][1]))
                             .transpose(2, 0, 1) for kind in ("dinov2", "siglip")
                             if any(kind in timm_id for timm_id in config["timm_model_ids"])])  # fmt: skip
    ids = [int(i) for i in batch["text"][0][batch["text_mask"][0] > 0]]
    depths = [1 + max(int(n.split(".")[3]) for n in each if ".blocks." in n) for each in towers]

    @jax.jit
    def whole(t, ids, pixels):
        """Logits of all places: what stands behind a token does not count, so that one program does for any length."""
        x = openvla_by_hand.embed(t, ids, pixels, depths, tower_heads)
        states = openvla_by_hand.llama(t, x, decoder["depth"], decoder["heads"], 1e-5, 500.0)
        return states[-len(ids) :] @ t["language_model.lm_head.weight"].T

    space = len(ids) + policy.model.action_dim
    while len(ids) < space:
        logits = whole(t, np.array(ids + [0] * (space - len(ids))), pixels.astype(np.float32))[len(ids) - 1]
        ids.append(int(np.argmax(logits)))
    tokens = np.array(ids[-policy.model.action_dim :])
    forced = jitted.apply(policy.model, policy.variables, batch, tokens[None], method="teacher_forced_logits")
    np.testing.assert_allclose(forced[0, policy.model.action_dim - 1], logits, atol=1e-4 * np.abs(logits).max())
    end, edges = 32064 - config.get("pad_to_multiple_of", 64), np.linspace(-1, 1, config.get("n_action_bins", 256))
    bins = np.clip(end - tokens - 1, 0, len(edges) - 2)
    stats = policy.datasets["toy_4d"]["statistics"]["action"]
    low, high, mask = (np.array(stats[name]) for name in ("q01", "q99", "mask"))
    action = ((edges[1:] + edges[:-1]) / 2)[bins][:4]
    expected = np.where(mask, 0.5 * (action + 1) * (high - low) + low, action)
    np.testing.assert_allclose(policy.act(image, instruction, dataset="toy_4d"), expected, rtol=0, atol=1e-12)


def with_decoder(source, depth, dim=192, hidden=768, heads=4, kv_heads=2, towers=None, features=112):
    """Puts a decoder of another shape, with random numbers and grouped queries, into a folder, and also towers, which
    have so many features together."""
    rng = np.random.default_rng(depth)
    normal = lambda *shape: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(ml_dtypes.bfloat16)  # noqa: E731
    tensors = {n: t for n, t in released.tensors_of(source).items() if n.startswith("vision_backbone.")}
    if towers is not None:
        tensors = {name: tensor for each in towers for name, tensor in each.items()}
    layers = (("fc1", (4 * features, features)), ("fc2", (dim, 4 * features)), ("fc3", (dim, dim)))
    if towers is not None and len(towers) == 1:
        layers = (("fc1", (dim, features)), ("fc2", (dim, dim)))
    for name, shape in layers:
        tensors[f"projector.{name}.weight"], tensors[f"projector.{name}.bias"] = normal(*shape), normal(shape[0])
    start, width = "language_model.model.", dim // heads
    tensors |= {f"{start}embed_tokens.weight": normal(32064, dim), "language_model.lm_head.weight": normal(32064, dim),
                f"{start}norm.weight": 1 + normal(dim)}  # fmt: skip
    shapes = {"self_attn.q_proj": (dim, dim), "self_attn.k_proj": (kv_heads * width, dim),
              "self_attn.v_proj": (kv_heads * width, dim), "self_attn.o_proj": (dim, dim),
              "mlp.gate_proj": (hidden, dim), "mlp.up_proj": (hidden, dim), "mlp.down_proj": (dim, hidden)}  # fmt: skip
    for layer in range(depth):
        for name, shape in shapes.items():
            tensors[f"{start}layers.{layer}.{name}.weight"] = normal(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{start}layers.{layer}.{name}.weight"] = 1 + normal(dim)
    released.write_tensors(source, tensors)
    released.edit_json(source / "config.json", text_config={"vocab_size": 32064, "hidden_size": dim,
                       "intermediate_size": hidden, "num_hidden_layers": depth, "num_attention_heads": heads,
                       "num_key_value_heads": kv_heads, "rope_theta": 500.0, "rms_norm_eps": 1e-5})  # fmt: skip
    return tensors


def test_memory_is_that_of_the_largest_tensor_and_not_of_the_model(source, tmp_path):
    """The embedding is larger than all else; a decoder of four times the layers takes as much memory."""
    peaks = {}
    for depth in (4, 8, 32):  # the first one imports and compiles what is needed once
        with_decoder(source, depth)
        with peak_of_memory() as peak:
            released.import_weights.main(["openvla", "--input", str(source), "--out", str(tmp_path / str(depth)),
                                          "--dtype", "bfloat16"])  # fmt: skip
        peaks[depth] = peak[0]
    largest, layer = 4 * 32064 * 192, 2 * (3 * 192 * 768 + 3 * 192 * 192)
    assert 24 * layer > largest / 2, "the folder has grown"
    assert peaks[32] < peaks[8] + 6 * layer and peaks[32] < 3 * largest


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
    assert "but (64, 24)" in said
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


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "dataset_statistics.json"])
def test_files_that_hold_something_else_are_named(source, tmp_path, name):
    (source / name).write_text("[1, 2]")
    refuse(source, tmp_path, f"{name} holds a list and not an object")
    if name == "dataset_statistics.json":
        for content in ('{"mine": 1}', '{"mine": {"action": [1, 2]}}'):
            (source / name).write_text(content)
            refuse(source, tmp_path, "'mine' is no entry of statistics")


def test_an_oft_is_refused_by_the_heads_beside_it(source, tmp_path):
    """Its config.json and its shards are those of an OpenVLA, as which it would act wrongly."""
    (source / "action_head--150000_checkpoint.pt").write_bytes(b"")
    refuse(source, tmp_path, "is an OpenVLA-OFT .action_head--150000_checkpoint.pt.")


def test_nothing_of_the_folder_is_executed(source, tmp_path):
    for name in ("modeling_prismatic.py", "configuration_prismatic.py", "processing_prismatic.py"):
        (source / name).write_text(f"raise SystemExit('{name} ran')")
    released.edit_json(source / "config.json", auto_map={"AutoConfig": "configuration_prismatic.OpenVLAConfig",
                       "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"})  # fmt: skip
    released.import_("openvla", source, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*.py")) == []
    lapa_jax.load(tmp_path / "run")
