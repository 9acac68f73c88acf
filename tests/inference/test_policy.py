"""Stage-3 policies at inference: units, single pictures and batches, several datasets, chunks over time, refusals."""

import jax
import ml_collections
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data import images, text
from lapa_jax.data.statistics import column_statistics
from lapa_jax.inference import load
from lapa_jax.inference.ensemble import Ensemble
from lapa_jax.inference.policies import Policy
from lapa_jax.models.policies.heads import bins
from lapa_jax.models.pretrained import expected_variables

A, T, S, SIDE, LENGTH = 4, 3, 5, 28, 40
CONSTANT, GRIPPER = 1, 3
TOWER = {"image_size": SIDE, "patch": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 12}
MODEL = {"name": "policies.vla_action", "siglip": {"name": "vision.siglip", **TOWER},
         "dinov2": {"name": "vision.dinov2", **TOWER},
         "llm": {"name": "llama", "vocab": 259, "dim": 16, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 24,
                 "head": "none"},
         "image_size": SIDE, "cameras": 1, "text_length": LENGTH, "action_dim": A, "chunk_length": T, "state_dim": S,
         "constant": (CONSTANT,), "binary": (GRIPPER,),
         "head": {"name": "policies.heads.bins", "bins": 16}}  # fmt: skip
DATA = {"samples": "chunks", "fields": ("image", "text", "action", "state"), "normalize": "q01_q99",
        "text_tokenizer": {"name": "bytes", "template": "plain"}}  # fmt: skip


def statistics(seed: int, width: int = A) -> dict:
    """Of actions with a constant and a gripper among them, and of states, on scales of their own."""
    rng = np.random.default_rng(seed)
    action = (0.02 * (seed + 1) * rng.normal(size=(500, A)) + 0.1).astype(np.float32)
    action[:, CONSTANT], action[:, GRIPPER] = 0.25, np.where(action[:, GRIPPER] > 0.1, 1.0, 0.0)
    state = (3 + 2 * rng.normal(size=(500, S))).astype(np.float32)
    return {"action": column_statistics([action[:, :width]]), "state": column_statistics([state])}


def make(datasets=None, **changes) -> Policy:
    """A policy with random weights on one device."""
    config = ml_collections.ConfigDict({"name": "small", "model": {**MODEL, **changes}, "data": DATA})
    model = config_lib.build("lapa_jax.models", config.model)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.array(0.3 * rng.normal(size=x.shape), x.dtype), expected_variables(model))
    about = datasets or {"table": {"statistics": statistics(0), "features": {}}}
    return Policy(model, variables, config=config, datasets=about, step=3, devices=jax.devices()[:1])


def seen(rows: int = 4, size: int = 40):
    """Pictures, instructions and states."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (rows, 5, 5, 3)).astype(np.uint8)
    pictures = blocks.repeat(size // 5, 1).repeat(size // 5, 2)
    return pictures, [f"push block {i}" for i in range(rows)], (3 + rng.normal(size=(rows, S))).astype(np.float32)


@pytest.fixture(scope="module", params=["bins", "chunk", "flow"])
def policy(request):
    fields = {"bins": {"bins": 16}, "chunk": {"width": 8},
              "flow": {"width": 8, "heads": 2, "depth": 1, "steps": 2}}  # fmt: skip
    return make(head={"name": f"policies.heads.{request.param}", **fields[request.param]})


def test_a_chunk_is_the_models_own_in_the_units_of_the_data(policy):
    pictures, texts, states = seen()
    low, high = (np.array(statistics(0)["state"][name]) for name in ("q01", "q99"))
    ids, mask = text.ByteTokenizer()(texts, LENGTH)
    batch = {"image": np.stack([images.resize(one, SIDE) for one in pictures]), "text": ids,
             "text_mask": mask.astype(np.float32),
             "state": (2 * (states - low) / (high - low) - 1).astype(np.float32)}  # fmt: skip
    run = jax.jit(lambda v, b: policy.model.apply(v, b, method="predict")["action"])
    expected = np.asarray(run(policy.variables, batch), np.float64)
    low, high = (np.array(statistics(0)["action"][name]) for name in ("q01", "q99"))
    expected = low + (expected + 1) / 2 * (high - low)
    found = policy.chunk(pictures, texts, states)
    assert found.shape == (4, T, A) and found.dtype == np.float32
    fine = [i for i in range(A) if i not in (CONSTANT, GRIPPER)]
    np.testing.assert_allclose(found[..., fine], expected[..., fine], atol=1e-5)
    assert (found[..., CONSTANT] == np.float32(0.25)).all(), "what never moved does not move"
    if isinstance(policy.model.head, bins.Model):
        assert set(np.unique(found[..., GRIPPER])) <= {0.0, 1.0}
    else:  # random bins are hardly ever others
        assert np.ptp(found[..., fine], axis=0).max() > 1e-4, "it depends on what is seen"
    one = policy.chunk(pictures[2], texts[2], states[2])
    np.testing.assert_allclose(one, found[2], atol=1e-6)
    np.testing.assert_array_equal(policy.act(pictures[2], texts[2], states[2]), one[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t, s: (p.astype(np.float32), t, s), "uint8"),
        (lambda p, t, s: (p, t[:2], s), "4 images and 2 instructions"),
        (lambda p, t, s: (p, t, None), "give the state"),
        (lambda p, t, s: (p, t, s[:2]), "4 images and 2 states"),
        (lambda p, t, s: (p, t, s[:, :3]), "the last of 5"),
        (lambda p, t, s: (p, t, np.where(s > 3, np.nan, s)), "not finite"),
        (lambda p, t, s: (p[0], ["one", "two"], s[0]), "give one text"),
        (lambda p, t, s: (p, ["push " * 40] * 4, s), "tokens"),
    ],
)
def test_what_it_cannot_see_is_refused(policy, change, message):
    with pytest.raises(UserError, match=message):
        policy.chunk(*change(*seen()))


def test_one_observation_at_a_time_where_one_is_meant(policy):
    with pytest.raises(UserError, match="one observation"):
        policy.act(*seen())


def test_an_exported_policy_is_the_same_to_the_bit(policy, tmp_path):
    policy.save_pretrained(tmp_path / "exported")
    again = load.load(tmp_path / "exported", devices=jax.devices()[:1])
    assert isinstance(again, Policy)
    np.testing.assert_array_equal(again.chunk(*seen()), policy.chunk(*seen()))


def test_each_dataset_has_its_units_and_its_dimensions():
    features = {"action": {"shape": [2]}, "state": {"shape": [S]}}
    policy = make({"table": {"statistics": statistics(0), "features": {}},
                   "lab": {"statistics": statistics(4, 2), "features": features}},
                  head={"name": "policies.heads.chunk", "width": 8}, constant=(), binary=())  # fmt: skip
    pictures, texts, states = seen()
    with pytest.raises(UserError, match="trained on several datasets"):
        policy.chunk(pictures, texts, states)
    with pytest.raises(UserError, match="this model was trained on: table, lab"):
        policy.chunk(pictures, texts, states, dataset="labs")
    table, lab = (policy.chunk(pictures, texts, states, dataset=name) for name in ("table", "lab"))
    assert table.shape == (4, T, A) and lab.shape == (4, T, 2)


class Foreseen:
    """Gives the chunks that it is told, one a call."""

    def __init__(self, chunks):
        self._chunks = iter(chunks)

    def chunk(self, image, instruction, state=None, *, dataset=None):
        return next(self._chunks)


@pytest.mark.parametrize("decay", [0.0, 0.5, -0.1])
def test_an_ensemble_averages_what_all_chunks_say_of_a_step(decay):
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(6, T, A)).astype(np.float32)
    ensemble = Ensemble(Foreseen([*chunks, chunks[0]]), decay)
    for t in range(6):
        first = max(0, t - T + 1)
        speak = [(chunks[made][t - made], np.exp(-decay * (made - first))) for made in range(first, t + 1)]
        expected = sum(weight * action for action, weight in speak) / sum(weight for _, weight in speak)
        np.testing.assert_allclose(ensemble.act(None, ""), expected, atol=1e-6)
    ensemble.reset()
    np.testing.assert_allclose(ensemble.act(None, ""), chunks[0][0], atol=1e-6)
    with pytest.raises(UserError, match="decay"):
        Ensemble(Foreseen([]), float("nan"))
