"""Runs of Prismatic's to ours: the official numbers, which parts come from which file, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.core.torch_file import TorchFile
from lapa_jax.data import images
from lapa_jax.models.released import prismatic
from tests.core import torch_writer
from tests.golden import released

FILE = "checkpoints/latest-checkpoint.pt"
DINOV2, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "released" / "prismatic_small"


@pytest.fixture
def source(golden, tmp_path):
    shutil.copytree(golden, tmp_path / "source", copy_function=shutil.copyfile)
    for path in (tmp_path / "source", tmp_path / "source" / "checkpoints"):
        path.chmod(0o755)
    return tmp_path / "source"


def state_of(source):
    """The tensors of the checkpoint, nested as in the file."""
    file = TorchFile(source / FILE)
    return {part: {name: file.read(tensor) for name, tensor in tensors.items()}
            for part, tensors in file.content["model"].items()}  # fmt: skip


def refuse(source, tmp_path, message, *options):
    with pytest.raises(UserError, match=message) as error:
        released.import_("prismatic", source, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_numbers_are_those_of_the_official_code(golden, tmp_path):
    expected = dict(np.load(golden / "golden.npz"))
    model, variables, config = released.import_("prismatic", golden, tmp_path / "run")
    positions = variables["params"]["dinov2"]["positions"]
    np.testing.assert_allclose(positions[1:], expected["pos_embed_resized"][0], atol=1e-6)
    assert (positions[0] == 0).all(), "timm adds the class token's to the token itself"

    def whole(m, batch):
        towers, prefix = (m.dinov2, m.siglip), m.embed_prefix(batch)
        mask, positions = m._places(prefix.real, 0)
        states = m.llm(embeddings=prefix.embeddings, mask=mask, positions=positions)
        pixels = [tower._normalized(batch["image"]) for tower in towers]
        return pixels, [tower(batch["image"]) for tower in towers], m.encode_images(batch), states, m.lm_head(states)

    run = jax.jit(lambda v, b: model.apply(v, b, method=whole))
    for i in (0, 1):
        find = lambda name, i=i: expected[f"case{i}.{name}"]  # noqa: E731
        image = images.resize(find("image"), 56, config.data.resize.to_dict())
        pixels, (dino, siglip), projected, states, logits = run(
            variables, released.batch_of(image, find("input_ids"), 20))  # fmt: skip
        np.testing.assert_allclose(np.moveaxis(np.concatenate(pixels, -1), -1, 1), find("pixel_values"), atol=2e-6)
        length = find("logits").shape[1]
        for got, name in ((dino, "dino"), (siglip, "siglip"), (projected, "projected"),
                          (states[:, :length], "hidden_last"), (logits[:, :length], "logits")):  # fmt: skip
            np.testing.assert_allclose(got, find(name), atol=5e-5, err_msg=name)


def test_without_sizes_json_the_names_say_how_large_images_and_heads_are(source):
    (source / "sizes.json").unlink()
    read = prismatic.read(source).config
    assert (read["model"]["image_size"], read["model"]["dinov2"]["image_size"]) == (224, 224)
    assert read["model"]["llm"]["heads"] == 1, "of 48 features, where 128 are a head"
    assert read["data"]["text_tokenizer"]["name"] == "meta-llama/Llama-2-7b-hf"
    assert read["model"]["llm"]["eps"] == 1e-5 and read["model"]["dinov2"]["mean"] == [0.485, 0.456, 0.406]


def test_towers_that_were_trained_are_taken_from_the_checkpoint(source, tmp_path):
    state = state_of(source)
    tower = safetensors.numpy.load_file(source / f"{DINOV2}.safetensors")
    siglip = safetensors.numpy.load_file(source / f"{SIGLIP}.open_clip.safetensors")
    state["vision_backbone"] = {
        **{f"dino_featurizer.{name}": t + 1 for name, t in tower.items()},
        **{f"siglip_featurizer.{name.removeprefix('visual.trunk.')}": t + 1
           for name, t in siglip.items() if name.startswith("visual.trunk.")},
    }  # fmt: skip
    torch_writer.save(source / FILE, {"model": state})
    for path in source.glob("*.safetensors"):
        path.unlink()
    _, variables, _ = released.import_("prismatic", source / FILE, tmp_path / "run")
    for kind, name in (("dinov2", "patch_embed.proj.bias"), ("siglip", "visual.trunk.patch_embed.proj.bias")):
        bias = {"dinov2": tower, "siglip": siglip}[kind][name]
        np.testing.assert_array_equal(variables["params"][kind]["embed"]["bias"], bias + 1)


def test_one_tower_and_a_projector_of_two_layers(source, tmp_path):
    state, rng = state_of(source), np.random.default_rng(0)
    state["projector"] = {f"projector.{i}.{what}": rng.normal(size=shape).astype(np.float32)
                          for i, width in ((0, 64), (2, 48)) for what, shape in (("weight", (48, width)), ("bias", 48))}
    torch_writer.save(source / FILE, {"model": state})
    about = json.loads((source / "config.json").read_text())
    about["model"] |= {"vision_backbone_id": "siglip-vit-so400m", "arch_specifier": "no-align+gelu-mlp",
                       "image_resize_strategy": "letterbox", "llm_backbone_id": "vicuna-v15-7b"}  # fmt: skip
    (source / "config.json").write_text(json.dumps(about))
    model, variables, config = released.import_("prismatic", source, tmp_path / "run")
    assert (model.projection, model.dinov2) == ("gelu-mlp", None)
    assert config.data.resize.to_dict() == {"mode": "letterbox", "interpolation": "bicubic", "fill": (127, 127, 127)}
    np.testing.assert_array_equal(variables["params"]["projector"]["hidden"]["kernel"],
                                  state["projector"]["projector.0.weight"].T)  # fmt: skip
    options = ("--siglip", source / f"{SIGLIP}.open_clip.safetensors", "--tokenizer", "bytes", "--template", "plain")
    released.import_("prismatic", source, tmp_path / "explicit", *options)
    action = lapa_jax.load(tmp_path / "explicit").act(rng.integers(0, 256, (40, 60, 3), np.uint8), "go")
    assert action.shape == (7,) and np.abs(action).max() <= 1


def test_a_training_of_openvla_acts_by_its_statistics(source, shared, tmp_path):
    """Its config.json names the model that it began with; the statistics lie beside it."""
    (source / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
    stats = shared / "golden" / "released" / "openvla_small" / "dataset_statistics.json"
    shutil.copy(stats, source / "dataset_statistics.json")
    (source / FILE).rename(source / "checkpoints" / "step-000100-epoch-00-loss=1.2.pt")
    released.import_("prismatic", source, tmp_path / "run", "--tokenizer", "bytes")
    policy = lapa_jax.load(tmp_path / "run")
    action = policy.act(np.zeros((30, 40, 3), np.uint8), "go", dataset="toy_4d")
    low, high = (np.array(policy.datasets["toy_4d"]["statistics"]["action"][name]) for name in ("q01", "q99"))
    assert action.shape == (4,) and (action[[0, 2, 3]] > low[[0, 2, 3]]).all() and (action < high)[[0, 2, 3]].all()


def test_wrong_runs_are_refused_with_what_is_wrong(source, tmp_path):
    refuse(tmp_path / "absent", tmp_path, "does not exist; give a run folder of Prismatic")
    state = state_of(source)
    wrong = {part: dict(tensors) for part, tensors in state.items()}
    wrong["projector"]["projector.2.weight"] = wrong["projector"]["projector.2.weight"].T
    wrong["llm_backbone"]["llm.extra.weight"] = wrong["llm_backbone"].pop("llm.model.norm.weight")
    torch_writer.save(source / FILE, {"model": wrong})
    said = refuse(source, tmp_path, "no complete Prismatic")
    assert "missing (1): language_model.model.norm.weight" in said
    assert "unexpected (1): language_model.extra.weight" in said
    assert "projector.fc2.weight has shape (448, 48), which does not give projector/hidden/kernel (448, 48)" in said
    torch_writer.save(source / FILE, {"model": {"policy": state["projector"]}})
    refuse(source, tmp_path, r"it holds \['policy'\], expected is 'model' with projector")
    whole = (source / FILE).read_bytes()
    (source / FILE).write_bytes(whole[: len(whole) // 2])
    refuse(source, tmp_path, "no whole file of torch.save")


def test_a_file_that_would_run_something_is_refused(source, tmp_path):
    call = b"cposix\nsystem\n(X\x0a\x00\x00\x00touch /tmp!tR"
    torch_writer.save(source / FILE, {"model": state_of(source)}, extra=call)
    refuse(source, tmp_path, r"posix\.system")


def test_what_the_folder_lacks_is_named(source, tmp_path):
    (source / f"{DINOV2}.safetensors").rename(tmp_path / "dino.safetensors")
    refuse(source, tmp_path, f"does not hold the tower '{DINOV2}', which was frozen: give .* with --dinov2")
    released.import_("prismatic", source, tmp_path / "run", "--dinov2", tmp_path / "dino.safetensors")
    for name in ("a.pt", "b.pt"):
        shutil.copy(source / FILE, source / "checkpoints" / name)
    (source / FILE).unlink()
    refuse(source, tmp_path, r"has no latest-checkpoint.pt; give the file as --input \(there: a.pt, b.pt\)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": {}}, "no group 'model' and no group 'vla'"),
        ({"vla": {"base_vlm": "prism-clip+7b"}}, "base_vlm 'prism-clip"),
        ({"model": {"vision_backbone_id": "clip-vit-l", "llm_backbone_id": "llama2-7b-pure"}}, "id 'clip-vit-l'"),
        ({"model": {"vision_backbone_id": "dinov2-vit-l", "llm_backbone_id": "phi-2-3b"}}, "phi-2-3b"),
    ],
)
def test_configs_of_models_that_we_have_not_are_refused(source, tmp_path, content, message):
    (source / "config.json").write_text(json.dumps(content))
    refuse(source, tmp_path, message)
