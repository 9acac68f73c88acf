"""UniVLA's latent action model through the command: the official golden, other sizes, and what is refused."""

import jax
import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.torch_file import TorchFile
from tests.core import torch_writer
from tests.golden import released_univla as released
from tests.golden.imported import read
from tools import import_weights

SMALL = ("--heads", "2", "--tower_heads", "2", "--image_size", "28")


def run(source, out, *options):
    import_weights.main(["univla_lam", "--input", str(source), "--out", str(out), *options])
    return out


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "released" / "univla_lam_small"
    return folder / "lam-stage-2.ckpt", np.load(folder / "golden.npz")


@pytest.fixture(scope="module")
def loaded(golden, tmp_path_factory):
    out = tmp_path_factory.mktemp("lam") / "run"
    return lapa_jax.load(run(golden[0], out))  # sizes.json lies beside it


def close(got, expected, tolerance=1e-4):
    assert np.abs(got.reshape(expected.shape) - expected).max() <= tolerance * np.abs(expected).max()


def stages(model, frames):
    features = model._frames(frames)
    task, background = model.deltas(features)
    return features, task, background, model.background.nearest(background), model.predict({"frames": frames})


def test_features_latents_codes_and_predictions_are_the_official_ones(golden, loaded):
    g = golden[1]
    call = jax.jit(lambda variables, frames: loaded.model.apply(variables, frames, method=stages))
    features, task, background, background_codes, predicted = jax.device_get(call(loaded.variables, g["videos"]))
    close(features, g["dino_features"])
    close(task, g["latent"])
    close(background, g["latent_uncontrol"])
    np.testing.assert_array_equal(predicted["codes"], g["indices"])
    np.testing.assert_array_equal(background_codes, g["indices_uncontrol"])
    close(predicted["reconstruction"], g["reconstruction"])
    assert len(np.unique(g["indices"])) > 2, "a single code would agree by chance"


def test_the_labels_are_the_codes_of_the_task(golden, loaded):
    g = golden[1]
    assert loaded.kind.name == "frame_pair_tokenizer" and (loaded.code_length, loaded.codebook_size) == (4, 16)
    np.testing.assert_array_equal(loaded.encode(g["videos"]), g["indices"])
    shown = loaded.decode(g["videos"][:, 0], g["indices"])
    assert shown.shape == (4, 4, 4, 32) and not loaded.predicts_images
    still = loaded.decode(g["videos"][:, 0], np.roll(g["indices"], 1, axis=0))
    assert np.abs(shown - still).max() > 0, "other codes of the task lead elsewhere"


OTHER = {"dim": 20, "tower": 12, "codes": 5, "registers": 0, "queries": 3}


@pytest.mark.parametrize(("seed", "sizes"), [(1, {}), (2, OTHER)])
def test_other_sizes_equal_the_equations_written_out_in_numpy(tmp_path, seed, sizes):
    state = released.lam_state(seed, **sizes)
    torch_writer.save(tmp_path / "lam.ckpt", {"state_dict": {f"lam.{n}": v for n, v in state.items()}, "epoch": 1})
    lam, rng = lapa_jax.load(run(tmp_path / "lam.ckpt", tmp_path / "run", *SMALL)), np.random.default_rng(seed)
    frames = rng.integers(0, 256, (3, 2, 28, 28, 3), dtype=np.uint8)
    call = jax.jit(lambda variables, frames: lam.model.apply(variables, frames, method=stages))
    features, task, background, _, predicted = jax.device_get(call(lam.variables, frames))
    expected_task, expected_background = released.lam_deltas(state, features.reshape(3, 2, 4, -1), heads=2)
    close(task, expected_task)
    close(background, expected_background)
    distance = np.linalg.norm(expected_task[:, :, None] - state["vq_action.codebook.weight"], axis=-1)
    np.testing.assert_array_equal(predicted["codes"], distance.argmin(-1))
    close(predicted["reconstruction"], released.lam_prediction(state, features.reshape(3, 2, 4, -1), heads=2))


def test_safetensors_and_other_prefixes_give_the_same(tmp_path):
    state = released.lam_state(0)
    torch_writer.save(tmp_path / "lam.ckpt", {"state_dict": {f"lam.{n}": v for n, v in state.items()}})
    safetensors.numpy.save_file({f"module.lam.{n}": v for n, v in state.items()}, tmp_path / "lam.safetensors")
    torch_writer.save(tmp_path / "plain.pt", state)
    runs = [read(run(tmp_path / name, tmp_path / f"run_{name}", *SMALL))[1] for name in (
        "lam.ckpt", "lam.safetensors", "plain.pt")]  # fmt: skip
    for other in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, runs[0], other)


def test_the_heads_that_the_checkpoint_keeps_are_taken(tmp_path):
    content = {"state_dict": released.lam_state(0), "hyper_parameters": {"lam_num_heads": 4, "log_path": "x"}}
    torch_writer.save(tmp_path / "lam.ckpt", content)
    spec, _, _ = read(run(tmp_path / "lam.ckpt", tmp_path / "run", *SMALL[2:]))
    assert spec["heads"] == 4 and spec["tower"]["heads"] == 2


def refuse(tmp_path, content, message, *options, extra=b"", name="lam.ckpt"):
    torch_writer.save(tmp_path / name, content, extra=extra)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / name, tmp_path / "out", *SMALL, *options)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_missing_unexpected_and_transposed_tensors_are_listed(tmp_path):
    state = released.lam_state(0)
    del state["decoder.out.bias"], state["encoder.transformer_blocks.1.temporal_attn.to_k.weight"]
    state["encoder.ffn.1.weight"] = state["encoder.ffn.1.weight"].T.copy()
    state["patch_up.weight"] = state["patch_up.weight"].T.copy()
    said = refuse(tmp_path, {"state_dict": {**state, "policy.weight": np.zeros((2, 2), np.float32)}}, "no complete")
    assert "missing (2): decoder.out.bias, encoder.transformer_blocks.1.temporal_attn.to_k.weight" in said
    assert "unexpected (1): policy.weight" in said
    assert "encoder.ffn.1.weight" in said and "patch_up.weight" in said and "encoder.ffn.0" not in said


def test_the_first_stage_and_other_models_are_refused(tmp_path, shared):
    state = released.lam_state(0)
    refuse(tmp_path, {"state_dict": state | {"lang_proj.bias": np.zeros(3, np.float32)}}, "first stage")
    other = {"state_dict": {"layer.weight": np.zeros((3, 3), np.float32)}}
    refuse(tmp_path, other, "is no latent action model.*holds layer")
    refuse(tmp_path, {"state_dict": {}}, "holds no tensors")
    with pytest.raises(UserError, match="is no latent action model of UniVLA; missing"):
        run(shared / "golden" / "laq_seq4.pt", tmp_path / "out")
    with pytest.raises(UserError, match="no whole file of torch.save"):
        run(shared / "golden" / "released" / "lapa7b_small" / "params", tmp_path / "out")


def test_a_checkpoint_that_wants_to_run_a_program_is_refused(tmp_path):
    hostile = b"cposix\nsystem\n(X\x0b\x00\x00\x00touch /none" + b"tR"
    said = refuse(tmp_path, {"state_dict": released.lam_state(0)}, "posix.system", extra=hostile)
    assert "nothing was run" in said


def test_a_truncated_file_is_refused(tmp_path):
    torch_writer.save(tmp_path / "whole.ckpt", {"state_dict": released.lam_state(0)})
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:-500])
    with pytest.raises(UserError, match="no whole file"):
        run(tmp_path / "cut.ckpt", tmp_path / "out", *SMALL)


def test_heads_that_nothing_says_are_asked_for(tmp_path):
    torch_writer.save(tmp_path / "lam.ckpt", {"state_dict": released.lam_state(0)})
    with pytest.raises(UserError, match="makes no heads of 64; say how many with --tower_heads"):
        run(tmp_path / "lam.ckpt", tmp_path / "out", "--heads", "2")
    with pytest.raises(UserError, match="--heads 5 does not divide a width of 24"):
        run(tmp_path / "lam.ckpt", tmp_path / "out", "--heads", "5", "--tower_heads", "2")


def test_every_number_of_the_golden_lies_in_the_run(golden, loaded):
    file = TorchFile(golden[0])
    total = sum(int(np.prod(tensor.shape)) for name, tensor in file.tensors().items() if "mask_token" not in name)
    assert total == sum(leaf.size for leaf in tree.flatten(loaded.variables["params"]).values())
