"""Action and feature tokenizers: units, masks, padding, windows and devices, against the model applied by hand."""

import jax
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.data.shards.step_shards import read_dataset
from lapa_jax.inference.load import load
from lapa_jax.inference.tokenizers import ActionTokenizer, FeatureTokenizer
from tests import jitted, toys
from tests.data.samples import make
from tests.inference import untrained

RNG = np.random.default_rng(0)
ACTIONS = (3 * RNG.normal(size=(20, 4, 3)) + 1).astype(np.float32)


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    hand = {"train": [[30]], "val": [[8]]}
    return [make.write(base / "arm", toys.LENGTHS, cameras=()),
            make.write(base / "hand", hand, cameras=(), widths={"action": 5, "feature": 5}, seed=2)]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(data, tmp_path_factory):
    """{name: a toy with random weights}."""
    base, found = tmp_path_factory.mktemp("runs"), {}
    mixture = {"mixture": tuple({"path": str(folder), "weight": 1.0} for folder in data)}
    asked = {"chunks": ("chunks", data[0], {}), "steps": ("steps", data[0], {}), "rows": ("rows", data[0], {}),
             "causal": ("steps", data[0], {"causal": True}), "mixture": ("chunks", mixture, {})}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        for name, (toy, places, model) in asked.items():
            found[name] = lapa_jax.load(untrained.write(base / name, toys.config(toy, places, model=model)))
    return found


def scaled(rows, summary):
    """q01..q99 to -1..1, by hand."""
    low, high = np.array(summary["q01"]), np.array(summary["q99"])
    return ((rows - low) / (high - low) * 2 - 1).astype(np.float32)


def apply(tokenizer, method, *args):
    return jax.tree.map(np.asarray, jitted.apply(tokenizer.model, jax.device_get(tokenizer.variables), *args,
                                                 method=method))  # fmt: skip


def statistics(folder):
    return read_json(folder / "statistics.json")


def test_what_load_gives_follows_from_the_model(tokenizers):
    kinds = {name: type(tokenizer) for name, tokenizer in tokenizers.items()}
    assert kinds.pop("rows") is FeatureTokenizer and set(kinds.values()) == {ActionTokenizer}
    assert tokenizers["steps"].codebook_sizes == (8, 4) == tokenizers["steps"].codebook_size
    assert tokenizers["chunks"].codebook_size == 8 and tokenizers["chunks"].code_length == 2


def test_chunks_are_in_the_units_of_the_data(tokenizers, data):
    chunks, summary = tokenizers["chunks"], statistics(data[0])["action"]
    codes = chunks.encode(ACTIONS)
    batch = {"action": scaled(ACTIONS, summary), "action_mask": np.ones((20, 4), np.float32)}
    np.testing.assert_array_equal(codes, apply(chunks, "encode", batch)["codes"])
    assert codes.dtype == np.int32 and codes.shape == (20, 2) and len(np.unique(codes)) > 1
    low, high = np.array(summary["q01"]), np.array(summary["q99"])
    expected = (apply(chunks, "decode", codes) + 1) / 2 * (high - low) + low
    decoded = chunks.decode(codes)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)
    assert decoded.dtype == np.float32 and decoded.shape == ACTIONS.shape
    np.testing.assert_array_equal(chunks.encode(ACTIONS[3]), codes[3])
    np.testing.assert_allclose(chunks.decode(codes[3]), decoded[3], rtol=1e-5)  # another batch is another program


def test_what_a_mask_hides_does_not_matter(tokenizers):
    for name in ("chunks", "steps"):
        tokenizer, mask = tokenizers[name], np.ones((20, 4))
        mask[:, 2:] = 0
        spoiled = np.where(mask[..., None] > 0, ACTIONS, np.nan)
        codes = tokenizer.encode(spoiled, mask)
        other = tokenizer.encode(np.where(mask[..., None] > 0, ACTIONS, 7.0), mask.astype(bool))
        np.testing.assert_array_equal(codes, other)
        short = tokenizer.encode(ACTIONS[:, :2])
        np.testing.assert_array_equal(codes if name == "chunks" else codes[:, :2], short)
        assert not np.array_equal(codes, tokenizer.encode(ACTIONS))


@pytest.mark.parametrize("name", ["steps", "causal"])
def test_steps_take_any_length(tokenizers, data, name):
    steps, summary = tokenizers[name], statistics(data[0])["action"]
    for length in (1, 5, 8, 13):
        actions = RNG.normal(size=(3, length, 3)).astype(np.float32)
        mask = np.ones((3, length), np.float32)
        codes = steps.encode(actions)
        batch = {"action": scaled(actions, summary), "action_mask": mask}
        np.testing.assert_array_equal(codes, apply(steps, "encode", batch)["codes"])
        assert codes.shape == (3, length, 2)
        low, high = np.array(summary["q01"]), np.array(summary["q99"])
        expected = (apply(steps, "decode", codes, mask) + 1) / 2 * (high - low) + low
        np.testing.assert_allclose(steps.decode(codes), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps.decode(codes[1]), steps.decode(codes)[1], rtol=1e-6)
    half = np.ones((3, 13), bool)
    half[:, 6:] = False
    np.testing.assert_allclose(steps.decode(codes, half)[:, :6], steps.decode(codes[:, :6]), rtol=1e-5, atol=1e-6)


def test_codes_of_whole_episodes(tokenizers, monkeypatch):
    lengths = [1, 3, 7, 8, 9, 12, 21, 40]
    episodes = [(RNG.normal(size=(n, 3)).astype(np.float32), np.ones(n), None) for n in lengths]
    episodes[-1][1][-1] = 0  # the last step of a recording has no action
    for name in ("steps", "causal"):
        # a step sees one neighbour on each side, or two behind it: windows must give what the whole episode gives
        found = tokenizers[name].encode_episodes(episodes)
        for codes, (actions, mask, _) in zip(found, episodes, strict=True):
            np.testing.assert_array_equal(codes, tokenizers[name].encode(actions, mask))
    found = tokenizers["chunks"].encode_episodes(episodes)
    for codes, (actions, mask, _) in zip(found, episodes, strict=True):
        for t in range(len(actions)):
            chunk = np.zeros((4, 3), np.float32)
            real = np.zeros(4)
            chunk[: len(actions[t : t + 4])], real[: len(mask[t : t + 4])] = actions[t : t + 4], mask[t : t + 4]
            np.testing.assert_array_equal(codes[t], tokenizers["chunks"].encode(chunk, real))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("context", [2, 3, 8, 16])
def test_windows_cover_every_step_once_with_neighbours(tokenizers, causal, context, monkeypatch):
    steps = tokenizers["steps"]
    own = type(steps.model)
    monkeypatch.setattr(own, "reach", property(lambda self: (100, 0 if causal else 100)))
    monkeypatch.setattr(steps, "model", own(3, context=context, causal=causal))
    for length in range(1, 60):
        starts, which, place = steps.windows(length)
        np.testing.assert_array_equal(starts[which] + place, np.arange(length))
        assert place.min() >= 0 and place.max() < context and (np.diff(starts) > 0).all()
        back = np.minimum(np.arange(length), context // (2 if causal else 4))
        ahead = np.minimum(np.arange(length)[::-1], 0 if causal else context // 4)
        assert (place >= back).all() and (context - 1 - place >= ahead).all()


def test_rows_of_features(tokenizers, data):
    rows, summary = tokenizers["rows"], statistics(data[0])["feature"]
    features = RNG.normal(size=(300, 5)).astype(np.float32)
    codes = rows.encode(features)
    np.testing.assert_array_equal(codes, apply(rows, "encode", {"feature": scaled(features, summary)})["codes"])
    low, high = np.array(summary["q01"]), np.array(summary["q99"])
    np.testing.assert_allclose(
        rows.decode(codes), (apply(rows, "decode", codes) + 1) / 2 * (high - low) + low, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(rows.encode(features[7]), codes[7])
    assert rows.decode(codes[7]).shape == (5,) and codes.shape == (300, 3)


def test_several_datasets_have_their_own_units(tokenizers, data):
    both = tokenizers["mixture"]
    with pytest.raises(UserError, match="several datasets.*one of arm, hand"):
        both.encode(ACTIONS)
    with pytest.raises(UserError, match="unknown dataset 'hands'; this model was trained on: arm, hand"):
        both.decode(np.zeros((1, 2), int), dataset="hands")
    wide = RNG.normal(size=(6, 4, 5)).astype(np.float32)
    for name, folder, actions in (("arm", data[0], ACTIONS), ("hand", data[1], wide)):
        summary = statistics(folder)["action"]
        padded = np.zeros((len(actions), 4, 5), np.float32)
        padded[..., : actions.shape[-1]] = scaled(actions, summary)
        codes = both.encode(actions, dataset=name)
        batch = {"action": padded, "action_mask": np.ones(padded.shape[:2], np.float32)}
        np.testing.assert_array_equal(codes, apply(both, "encode", batch)["codes"])
        assert both.decode(codes, dataset=name).shape == actions.shape
        assert both.dataset_of(read_dataset(folder)["fingerprint"]) == name
    with pytest.raises(UserError, match="several datasets"):
        both.dataset_of("0" * 64)


def test_padding_to_devices_does_not_matter(tokenizers, data, tmp_path):
    chunks = tokenizers["chunks"]
    many = RNG.normal(size=(300, 4, 3)).astype(np.float32)
    whole = chunks.encode(many)
    np.testing.assert_array_equal(np.concatenate([chunks.encode(many[i : i + 7]) for i in range(0, 300, 7)]), whole)
    chunks.save_pretrained(tmp_path / "exported")
    one = load(tmp_path / "exported", devices=jax.devices()[:1])
    assert chunks.mesh.size == 8 and one.mesh.size == 1
    np.testing.assert_array_equal(one.encode(many), whole)


@pytest.mark.parametrize("name", ["chunks", "steps", "rows", "mixture"])
def test_export_round_trips_exactly(tokenizers, tmp_path, name):
    tokenizer = tokenizers[name]
    tokenizer.save_pretrained(tmp_path / "exported")
    again = lapa_jax.load(tmp_path / "exported")
    assert again.fingerprint == tokenizer.fingerprint and again.datasets == tokenizer.datasets
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), again.variables, tokenizer.variables))
    rows = ACTIONS[0, :, :3] if name != "rows" else RNG.normal(size=(4, 5))
    which = {"dataset": "arm"} if name == "mixture" else {}
    codes = tokenizer.encode(rows, **which)
    np.testing.assert_array_equal(again.encode(rows, **which), codes)
    np.testing.assert_array_equal(again.decode(codes, **which), tokenizer.decode(codes, **which))


def test_the_fingerprint_sees_the_codebook(tokenizers):
    """A codebook of moving averages is no parameter, but other codes are another tokenizer."""
    chunks = tokenizers["chunks"]
    changed = jax.device_get(chunks.variables)
    codebook = changed["codebook"]["quantizer"]
    changed["codebook"]["quantizer"] = {**codebook, "codes": codebook["codes"] + 1e-3}
    about = {"config": chunks.config, "datasets": chunks.datasets}
    assert ActionTokenizer(chunks.model, changed, **about).fingerprint != chunks.fingerprint
    assert ActionTokenizer(chunks.model, jax.device_get(chunks.variables), **about).fingerprint == chunks.fingerprint


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t: t.encode(ACTIONS[..., :2]), "the last of 3"),
        (lambda t: t.encode(ACTIONS[0, 0]), "2 or 3 axes"),
        (lambda t: t.encode(ACTIONS[:0]), r"\(0, 4, 3\)"),
        (lambda t: t.encode(np.full((4, 3), "1")), "<U1"),
        (lambda t: t.encode(np.full((4, 3), np.nan)), r"not finite, at \[0, 0\]"),
        (lambda t: t.encode(np.zeros((5, 3))), "5 steps; this tokenizer's chunks have 4"),
        (lambda t: t.encode(ACTIONS, np.ones((20, 3))), r"mask is float64 \(20, 3\)"),
        (lambda t: t.encode(ACTIONS, np.full((20, 4), 0.5)), "zeros and ones"),
        (lambda t: t.encode(ACTIONS, state=np.zeros(2)), "leave out the state"),
        (lambda t: t.decode(np.zeros((1, 3), int)), "the last of 2"),
        (lambda t: t.decode(np.zeros((1, 2))), "float64"),
        (lambda t: t.decode(np.array([0, 8])), "8..8 at position 1.*0..7"),
        (lambda t: t.decode(np.array([-1, 0])), "-1..-1 at position 0"),
    ],
)
def test_bad_arguments_are_refused(tokenizers, call, words):
    with pytest.raises(UserError, match=words):
        call(tokenizers["chunks"])


def test_a_model_without_codes_has_no_inference_object(tokenizers, tmp_path, monkeypatch):
    tokenizers["chunks"].save_pretrained(tmp_path / "exported")
    monkeypatch.setattr(type(tokenizers["chunks"].model), "kind", None)
    with pytest.raises(UserError, match="holds a chunks, which has no inference object"):
        lapa_jax.load(tmp_path / "exported")
    assert config_lib.build("tests.toys", {"name": "chunks", "action_dim": 3}).chunk_length == 4
