"""Llama against Hugging Face's on a tiny random model, its masks and its cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.llama import Model
from tests.golden.imported import imported


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return imported("llama", tmp_path_factory.mktemp("llama") / "out")


@pytest.fixture(scope="module")
def hidden(golden):
    """jitted (tokens, mask, **) -> hidden states."""
    model, variables, _ = golden
    run = jax.jit(model.apply)
    return lambda tokens, mask=None, **more: run(variables, tokens, mask=mask, **more)


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_hidden_states_and_logits_are_those_of_hugging_face(name, tmp_path):
    model, variables, expected = imported(name, tmp_path / "out")
    assert model.head == {"llama": "own", "llama_tied": "tied"}[name]
    assert ("to_logits" in variables["params"]) == (name == "llama")

    def run(tokens, mask):
        states = model.apply(variables, tokens, mask=mask)
        return states, model.apply(variables, states, method="logits")

    states, logits = jax.jit(run)(expected["tokens"], expected["mask"])
    there = expected["mask"]
    assert logits.dtype == jnp.float32 and not there.all()
    np.testing.assert_allclose(states[there], expected["hidden"][there], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[there], expected["logits"][there], atol=1e-4, rtol=0)


def test_padding_changes_nothing(golden, hidden):
    tokens, mask = golden[2]["tokens"], golden[2]["mask"]
    whole, short = hidden(tokens, mask), hidden(tokens[1:, :6])
    np.testing.assert_allclose(whole[1, :6], short[0], atol=1e-5)
    other = np.where(mask, tokens, 7)
    np.testing.assert_array_equal(hidden(other, mask)[mask], whole[mask])


@pytest.mark.parametrize("pieces", [(9,), (4, 1, 1, 1, 1, 1)])
def test_the_cache_gives_what_the_whole_gives(golden, hidden, pieces):
    model, variables, expected = golden
    tokens, mask, at, parts = expected["tokens"], expected["mask"], 0, []
    cache, slots = model.new_cache(2, 11), np.pad(mask, ((0, 0), (0, 2)))
    step = jax.jit(lambda tokens, cache, at: model.apply(variables, tokens, mask=slots, cache=cache, at=at))
    for count in pieces:
        states, cache = step(tokens[:, at : at + count], cache, at)
        parts.append(states)
        at += count
    np.testing.assert_allclose(np.concatenate(parts, 1)[mask], hidden(tokens, mask)[mask], atol=1e-5)


def test_prompts_of_different_lengths_go_on_behind_their_padding(golden, hidden):
    """Slots of padding stay empty, and positions count the tokens, not the slots."""
    model, variables, expected = golden
    tokens, lengths = expected["tokens"], (4, 2)
    slots = np.arange(7)[None] < np.array(lengths)[:, None]
    slots[:, 4:] = True
    _, cache = hidden(tokens[:, :4], slots, cache=model.new_cache(2, 7))
    got, _ = hidden(tokens[:, 6:], slots, cache=cache, at=4)
    for row, length in enumerate(lengths):
        alone = np.concatenate([tokens[row, :length], tokens[row, 6:], np.zeros(6 - length, tokens.dtype)])
        plain = hidden(np.stack([alone, alone])[:, :9])[row]
        np.testing.assert_allclose(got[row], plain[length : length + 3], atol=1e-5)


def test_embeddings_and_a_mask_of_ones_own(golden, hidden):
    model, variables, expected = golden
    tokens = expected["tokens"]
    embedded = variables["params"]["embedding"][tokens]
    causal = np.broadcast_to(np.tril(np.ones((9, 9), bool)), (2, 9, 9))
    plain = hidden(tokens)
    np.testing.assert_allclose(hidden(None, causal, embeddings=embedded), plain, atol=1e-6)
    prefix = causal.copy()
    prefix[:, :4, :4] = True  # as pictures may see themselves
    assert np.abs(hidden(None, prefix, embeddings=embedded)[:, 0] - plain[:, 0]).max() > 0.01


def test_options_of_the_computation_keep_the_parameters(golden, hidden):
    model, variables, expected = golden
    tokens, other = expected["tokens"], model.clone(dtype="bfloat16", remat="full")
    half = jax.jit(other.apply)(variables, tokens)
    assert half.dtype == jnp.bfloat16 and np.abs(half.astype(np.float32) - hidden(tokens)).max() < 0.2
    assert tree.diff(variables, jax.eval_shape(other.init, jax.random.key(0), tokens)) == ""


def test_the_default_is_llama_2_7b():
    shapes = jax.eval_shape(Model().init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 6_738_415_616


def test_a_model_without_head_has_no_matrix_for_it(tmp_path):
    model, variables, expected = imported("llama", tmp_path / "out", "--no_head")
    assert model.head == "none" and "to_logits" not in variables["params"]
    with pytest.raises(ValueError, match="no logits"):
        model.apply(variables, expected["hidden"], method="logits")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30, "heads": 4}, "dim 30 is not a multiple of the heads, 4"),
        ({"dim": 12, "heads": 4}, "heads of 3 features"),
        ({"kv_heads": 3}, "kv_heads 3 does not divide"),
        ({"head": "untied"}, "did you mean 'tied'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_fields_that_cannot_work_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        config_lib.check(Model(**fields))
