"""Trained tokenizers as codecs: tiny ones with random weights, which must encode and decode all the same."""

import functools

import jax
import ml_collections
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.evaluate.codecs import measures
from lapa_jax.evaluate.codecs.chunks import read_chunks
from lapa_jax.evaluate.codecs.learned import Learned, codecs_of
from lapa_jax.inference.tokenizers import ActionTokenizer
from lapa_jax.models.tokenizers import mstcn
from tests.evaluate.codecs.action_shards import episodes, write
from tests.toys import chunks as toy

STEPS = 8


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("walks") / "s"
    return read_chunks("walks", write(folder, episodes(rng, [30] * 6), episodes(rng, [16] * 3)), length=STEPS)


def tokenizer(model, name, chunks, fingerprint=None, key=0, **data):
    """With random weights, and the statistics of the chunks."""
    keys = {"params": jax.random.key(key), "noise": jax.random.key(1)}
    variables = jax.jit(functools.partial(model.init, train=False))(keys, model.example(4))
    spec = {field: value for field, value in vars(model).items() if field in type(model).__annotations__}
    spec = {**spec, "name": name}
    config = ml_collections.ConfigDict({"model": spec, "data": {"normalize": "min_max", "fields": ("action",), **data}})
    features = {"action": {"shape": [3], "dtype": "float32"}, "state": {"shape": [2], "dtype": "float32"}}
    statistics = {"action": chunks.summary, "state": {}}
    entry = {"statistics": statistics, "features": features, "fingerprint": fingerprint or chunks.fingerprint}
    return ActionTokenizer(model, variables, config=config, datasets={"its name": entry}, devices=jax.devices()[:1])


def two_levels(reads, **fields):
    sizes = {"context": STEPS, "embed_dim": 8, "width": 8, "layers": 2, "stages": 1, "subclusters": 12, "clusters": 5}
    how = {"action_dim": 3, "state_dim": 0, "decoder_input": reads, "codebook_init": "normal"}
    return mstcn.Model(**{**sizes, **how, **fields})


def test_codes_of_chunks(walks):
    made = tokenizer(toy.Model(action_dim=3, chunk_length=STEPS, tokens=3, size=8), "tokenizers.fsq", walks)
    codec = Learned("ours", made).fit(walks.train, walks.summary)
    assert codec.family == "FSQ" and codec.usual
    tokens = codec.encode(walks.val)
    np.testing.assert_array_equal(np.stack(tokens), made.encode(walks.val))
    np.testing.assert_allclose(codec.bits(tokens), 3 * 3)
    decoded, failed = codec.decode(tokens)
    expected = np.clip(made.decode(made.encode(walks.val)), walks.summary["min"], walks.summary["max"])
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)
    assert not failed.any() and measures.damaged_failures(codec, tokens) == 0
    assert codec.decode([np.array([0, 8, 0])])[1].tolist() == [True]


@pytest.mark.parametrize(("reads", "size"), [("z", 12), ("q", 5), ("z+q", 12)])
def test_of_two_levels_one_number_tells_all_that_the_decoder_reads(walks, reads, size):
    made = tokenizer(two_levels(reads), "tokenizers.mstcn", walks)
    codec = Learned("ours", made).fit(walks.train, walks.summary)
    assert codec.family == f"MS-TCN {reads}"
    tokens, pairs = codec.encode(walks.val), made.encode(walks.val)
    assert pairs.shape == (6, STEPS, 2) and len(np.unique(pairs[..., 0])) > 1
    np.testing.assert_array_equal(np.stack(tokens), pairs[..., 1 if reads == "q" else 0])
    np.testing.assert_allclose(codec.bits(tokens), STEPS * np.log2(size))
    expected = np.clip(made.decode(pairs), walks.summary["min"], walks.summary["max"])
    np.testing.assert_allclose(codec.decode(tokens)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def saved(walks, tmp_path):
    def save(name, model=None, **how):
        folder = tmp_path / name
        tokenizer(model or two_levels("z"), "tokenizers.mstcn", walks, **how).save_pretrained(folder)
        return str(folder)

    return save


def test_runs_go_to_the_data_that_they_were_trained_on(walks, saved):
    folder = saved("run")
    found = codecs_of([("a", folder), ("b", folder)], [walks])
    assert [codec.name for codec in found["walks"]] == ["a", "b"]
    codec = found["walks"][0].fit(walks.train, walks.summary)
    again = Learned("a", tokenizer(two_levels("z"), "tokenizers.mstcn", walks)).fit(walks.train, walks.summary)
    np.testing.assert_array_equal(codec.encode(walks.val), again.encode(walks.val))


def test_runs_that_cannot_be_compared_are_one_line(walks, saved):
    folder = saved("run")
    other = saved("other", fingerprint="of other data")
    longer = saved("longer", two_levels("z", context=2 * STEPS))
    stateful = saved("stateful", two_levels("z", state_dim=2))
    for runs, told in (
        ([("a", folder), ("a", folder)], "two runs for walks are called 'a'"),
        ([("a", other)], "was trained on its name, which is none of --data \\(walks\\)"),
        ([("a", longer)], "chunks of 16 steps, those of walks have 8: give --chunk_length walks=16"),
        ([("a", stateful)], "encodes states with the actions"),
        ([("a", "/nowhere")], "/nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=told):
            codecs_of(runs, [walks])
