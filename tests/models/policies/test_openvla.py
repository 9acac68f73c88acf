"""OpenVLA against the numbers of the official code, and its tokens of actions against formulas of their own."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.models.policies import openvla
from tests import jitted
from tests.golden import released

CASES = (0, 1)
LENGTH = 40


def run(model, variables, batch, method, *args):
    return jitted.apply(model, variables, batch, *args, method=method)


def features(m, batch):
    towers, image = (m.dinov2, m.siglip), batch["image"]
    seen = [tower._normalized(image) for tower in towers], [tower(image) for tower in towers]
    return (*seen, m.encode_images(batch))


def whole(m, batch):
    prefix = m.embed_prefix(batch)
    mask, positions = m._places(prefix.real, 0)
    states = m.llm(embeddings=prefix.embeddings, mask=mask, positions=positions)
    return states, m.lm_head(states)


@pytest.fixture(scope="module")
def golden(shared):
    return dict(np.load(shared / "golden" / "released" / "openvla_small" / "golden.npz"))


@pytest.fixture(scope="module")
def imported(shared, tmp_path_factory):
    source = shared / "golden" / "released" / "openvla_small"
    model, variables, config = released.import_("openvla", source, tmp_path_factory.mktemp("openvla") / "run")
    return model, variables, config


@pytest.fixture(scope="module")
def batches(golden, imported):
    resize = imported[2].data.resize.to_dict()
    return [released.batch_of(images.resize(golden[f"case{i}.image"], 56, resize), golden[f"case{i}.input_ids"], LENGTH)
            for i in CASES]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_images_and_features_are_those_of_the_official_code(golden, imported, batches, case):
    model, variables, _ = imported
    find = lambda name: golden[f"case{case}.{name}"]  # noqa: E731

    pixels, (dino, siglip), projected = run(model, variables, batches[case], features)
    np.testing.assert_allclose(np.moveaxis(np.concatenate(pixels, -1), -1, 1), find("pixel_values"), atol=1e-6)
    np.testing.assert_allclose(dino, find("dino"), atol=2e-5)
    np.testing.assert_allclose(siglip, find("siglip"), atol=2e-5)
    np.testing.assert_allclose(projected, find("projected"), atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_states_and_logits_are_those_of_the_official_code(golden, imported, batches, case):
    """eps 1e-5 in place of 1e-6 would be 9e-5 off."""
    model, variables, _ = imported
    find = lambda name: golden[f"case{case}.{name}"]  # noqa: E731

    states, logits = run(model, variables, batches[case], whole)
    length = find("hidden_last").shape[1]
    np.testing.assert_allclose(states[:, :length], find("hidden_last"), atol=2e-5)
    np.testing.assert_allclose(logits[0, :length, 31743:32001], find("logits_actions"), atol=1e-4)
    if case == 0:
        np.testing.assert_allclose(logits[0, length - 1], find("logits_last"), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_their_logits_are_those_of_the_official_code(golden, imported, batches, case):
    model, variables, _ = imported
    wanted = golden[f"case{case}.generated_ids"][:, -7:]
    np.testing.assert_array_equal(run(model, variables, batches[case], "predict")["tokens"][:, 0], wanted)
    logits = run(model, variables, batches[case], "teacher_forced_logits", jnp.asarray(wanted))
    np.testing.assert_allclose(logits[0, :7, 31743:32001], golden[f"case{case}.generated_logits_actions"], atol=1e-4)
    best = np.sort(logits[0, :7])[:, ::-1][:, :2]
    np.testing.assert_allclose(best, golden[f"case{case}.generated_logits_top2"], atol=1e-4)


def test_a_batch_of_prompts_of_different_lengths_gives_each_its_own_tokens(golden, imported, batches):
    model, variables, _ = imported
    both = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    wanted = [golden[f"case{i}.generated_ids"][0, -7:] for i in CASES]
    np.testing.assert_array_equal(run(model, variables, both, "predict")["tokens"][:, 0], wanted)


def test_bfloat16_chooses_the_tokens_that_the_official_code_chooses_in_it(golden, shared, tmp_path, batches):
    source = shared / "golden" / "released" / "openvla_small"
    model, variables, _ = released.import_("openvla", source, tmp_path / "run", "--dtype", "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
    for i in CASES:
        tokens = run(model, variables, batches[i], "predict")["tokens"][:, 0]
        np.testing.assert_array_equal(tokens, golden[f"case{i}.generated_ids_bfloat16"][:, -7:])


def test_the_part_of_the_head_that_holds_actions_chooses_the_best_of_them(imported, batches):
    model, variables, _ = imported

    def chosen(choose, params):
        return np.asarray(run(model.clone(choose=choose), {"params": params}, batches[0], "predict")["tokens"])

    choices = typing.get_args(openvla.Choose)
    np.testing.assert_array_equal(*(chosen(choose, variables["params"]) for choose in choices))
    # a text's token that beats all actions is chosen by the one and not by the other
    kernel = variables["params"]["lm_head"]["kernel"]
    kernel = np.where(np.arange(kernel.shape[1]) == 5, 100 * kernel[:, 31761:31762], kernel)
    params = {**variables["params"], "lm_head": {"kernel": kernel}}
    assert 5 in chosen("all", params) and chosen("actions", params).min() >= 31744


def test_the_loop_over_tokens_is_one_program(imported, batches):
    """The images and the prompt are seen once; the other tokens come from a loop, not from copies of the decoder."""
    model, variables, _ = imported
    predict = jax.jit(lambda v, b: model.apply(v, b, method="predict")["tokens"])
    short = jax.jit(lambda v, b: model.clone(action_dim=3).apply(v, b, method="predict")["tokens"])
    lowered = [f.lower(variables, batches[0]) for f in (predict, short)]
    sizes = [len(each.as_text()) for each in lowered]
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[0]
    tokens = run(model, variables, batches[0], "predict")["tokens"]
    np.testing.assert_array_equal(lowered[1].compile()(variables, batches[0]), tokens[..., :3])


def model_of(**fields):
    spec = {"name": "policies.openvla", "siglip": {"name": "vision.siglip", "image_size": 28, "dim": 8, "depth": 2,
            "heads": 2, "hidden": 16, "layer": -2}, "llm": {"name": "llama", "vocab": 400, "dim": 16, "depth": 1,
            "heads": 2, "hidden": 32, "head": "none"}, "image_size": 28, "cameras": 1, "text_length": 5,
            "projection": "gelu-mlp", "action_dim": 3, "action_end": 390, "edges": 256}  # fmt: skip
    return config_lib.build("lapa_jax.models", {**spec, **fields})


def test_tokens_are_numpys_digitize_and_decode_to_the_middles_of_the_bins():
    model, edges = model_of(), np.linspace(-1, 1, 256)
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.uniform(-1.2, 1.2, 10_000), edges, np.nextafter(edges, 2), np.nextafter(edges, -2)])
    actions = np.concatenate([actions.astype(np.float32), np.nextafter(edges.astype(np.float32), np.float32(-2))])
    wanted = 390 - np.digitize(np.clip(actions.astype(np.float64), -1, 1), edges)
    np.testing.assert_array_equal(model.tokens_of(actions), wanted)
    decoded = model.actions_of(wanted)
    assert decoded.dtype == np.float64 and np.abs(decoded).max() == 1 - 1 / 255
    inside = np.abs(actions) <= 1
    assert np.abs(decoded - actions)[inside].max() <= 1 / 255 + 1e-7
    # whatever is no action is decoded as the nearest end: low ids as the largest action
    np.testing.assert_array_equal(model.actions_of([5, 399]), [1 - 1 / 255, 1 / 255 - 1])


def in_one_pass(model, image, ids):
    """Logits of the last four of one example without padding, every token in one causal pass."""
    words, image = model.llm.embed(ids[None]), model.encode_images({"image": image[None]})
    states = model.llm(embeddings=jnp.concatenate([words[:, :1], image, words[:, 1:]], axis=1))
    return model.lm_head(states[:, -4:])[0]


def test_the_loss_is_the_cross_entropy_of_the_actions_and_of_the_end():
    model, rng = model_of(), np.random.default_rng(0)
    batch = model.example(2)
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    batch["text"][:] = [[1, 7, 9, 11, 0], [1, 3, 5, 0, 0]]
    batch["text_mask"][:] = [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    batch["action"] = rng.uniform(-1, 1, batch["action"].shape).astype(np.float32)
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=True))(batch)
    loss = jax.jit(lambda v, b: model.apply(v, b, train=True).losses["action"])(variables, batch)
    tokens = np.asarray(model.tokens_of(batch["action"][:, 0]))
    for row, length in enumerate((4, 3)):

        ids = np.concatenate([batch["text"][row, :length], tokens[row]])
        logits = np.asarray(run(model, variables, batch["image"][row], in_one_pass, ids), np.float64)
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = -np.mean([shares[i, token] for i, token in enumerate([*tokens[row], 2])])
        np.testing.assert_allclose(loss[row], wanted, rtol=1e-5)


def test_the_rest_of_an_image_that_makes_no_whole_patch_is_not_seen():
    model, rng = model_of(image_size=30), np.random.default_rng(0)
    batch = model.example(1)
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=True))(batch)
    seen = run(model, variables, batch, "encode_images")
    assert seen.shape == (1, 4, 16)
    np.testing.assert_array_equal(seen, run(model, variables, {"image": batch["image"][:, :28, :28]}, "encode_images"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action_end": 401}, "action_end is 401"),
        ({"action_end": 255}, "action_end is 255"),
        ({"edges": 1}, "edges is 1"),
        ({"choose": "some"}, "choose is 'some'"),
        ({"projection": "openvla"}, "siglip and dinov2"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        model_of(**fields)
