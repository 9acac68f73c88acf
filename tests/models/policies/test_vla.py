"""The stage-2 policy: what each token sees, padding, the two ways to decode, its loss, its figures, what it refuses."""

import functools

import jax
import numpy as np
import optax
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import fields, tree
from lapa_jax.core.errors import UserError
from lapa_jax.models import llama
from lapa_jax.models.policies import vision_language, vla
from lapa_jax.models.policies import vla as vla_summary
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.models.vision import dinov2, film_conv, siglip
from lapa_jax.train.task import Task
from tests import jitted

ROWS, LENGTH, SIDE, N, K = 4, 7, 28, 4, 8
TOWER = {"image_size": SIDE, "patch": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 12}
DECODER = {"vocab": 50, "dim": 16, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 24, "head": "none"}
RNGS = {name: jax.random.key(i) for i, name in enumerate(("params", "noise", "dropout"))}


def build(**changes):
    parts = {"siglip": siglip.Model(**TOWER), "dinov2": dinov2.Model(**TOWER), "llm": llama.Model(**DECODER)}
    values = {"image_size": SIDE, "cameras": 1, "text_length": LENGTH, "code_length": N, "codebook_size": K}
    model = vla.Model(**{**parts, **values, **changes})
    fields.check(model)
    model.check()
    return model


def random_batch(model, seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    batch = model.example(rows)
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["text"] = rng.integers(3, 50, batch["text"].shape).astype(np.int32)
    words = rng.integers(2, model.text_length + 1, rows)
    batch["text_mask"] = (np.arange(model.text_length) < words[:, None]).astype(np.float32)
    batch["latent"] = rng.integers(0, model.codebook_size, batch["latent"].shape).astype(np.int32)
    return batch


@functools.cache
def variables_of(model):
    """Random ones, of the size that initial ones have."""
    rng = np.random.default_rng(1)

    def draw(name, leaf):
        size = leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.1
        return np.float32(name.endswith("scale") + size * rng.normal(size=leaf.shape))

    return tree.map_named(draw, expected_variables(model))


def apply(model, batch, method, variables=None):
    variables = variables_of(model) if variables is None else variables
    return jax.tree.map(np.asarray, jitted.apply(model, variables, batch, method=method))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_who_sees_whom(attention):
    model = build(image_attention=attention)
    real = np.array([[1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9 + [0, 0]], bool)  # bos, 4 patches, 6 places for words
    mask, positions = jax.jit(lambda v, real: model.apply(v, real, 2, method="_places"))(variables_of(model), real)
    for row, rest in enumerate(real):
        tokens = [*rest, True, True]
        for i, seen in enumerate(np.asarray(mask.whole()[row])):
            for j, there in enumerate(tokens):
                picture = attention == "bidirectional" and 1 <= i <= 4 and 1 <= j <= 4
                assert seen[j] == ((there and (j <= i or picture)) or i == j)
        assert [int(p) for p, there in zip(positions[row], tokens) if there] == list(range(sum(tokens)))


@pytest.mark.parametrize("decode", ("parallel", "autoregressive"))
def test_what_stands_in_the_padding_and_how_much_of_it_there_is_changes_nothing(decode):
    model, longer = build(decode=decode), build(decode=decode, text_length=LENGTH + 5)
    batch = random_batch(model)
    expected = apply(model, batch, "predict")["logits"]
    other = {**batch, "text": np.where(batch["text_mask"] > 0, batch["text"], 11)}
    np.testing.assert_allclose(apply(model, other, "predict")["logits"], expected, atol=1e-6)
    wide = {**batch, **{name: np.pad(batch[name], ((0, 0), (0, 5))) for name in ("text", "text_mask")}}
    found = apply(longer, wide, "predict", variables_of(model))["logits"]
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("decode", ("parallel", "autoregressive"))
def test_pictures_and_every_word_reach_every_code(decode):
    model, batch = build(decode=decode), random_batch(build())
    batch["text_mask"][:] = 1
    expected = apply(model, batch, "predict")["logits"]
    changes = [("image", np.roll(batch["image"], 1, axis=0))]
    changes += [("text", np.where(np.arange(LENGTH) == place, 49, batch["text"])) for place in (0, 3, LENGTH - 1)]
    for name, changed in changes:
        moved = np.abs(apply(model, {**batch, name: changed}, "predict")["logits"] - expected).max(axis=2)
        assert (moved > 1e-5).all(), name


def test_several_cameras_are_read_one_after_the_other():
    model = build(cameras=2)
    batch = random_batch(model)
    assert batch["image"].shape == (ROWS, 2, SIDE, SIDE, 3)
    prefix = apply(model, batch, "embed_prefix")
    one = build()
    single = {**batch, "image": batch["image"][:, 1]}
    second = apply(one, single, "embed_prefix", variables_of(model))
    assert prefix.embeddings.shape == (ROWS, LENGTH + 8, 16)
    np.testing.assert_allclose(prefix.embeddings[:, 5:9], second.embeddings[:, 1:5], atol=1e-6)


def test_images_that_the_patch_does_not_divide_are_read_without_their_border(root):
    """As siglip-so400m-patch14-384 needs it: 27 x 27 patches from both towers."""
    model, exact = build(image_size=SIDE + 5), build()
    batch = random_batch(model)
    whole = {**batch, "image": batch["image"][:, :SIDE, :SIDE]}
    assert model.image_tokens == exact.image_tokens == 4
    found, expected = (apply(m, b, "predict", variables_of(exact)) for m, b in ((model, batch), (exact, whole)))
    np.testing.assert_array_equal(found["logits"], expected["logits"])
    sizes = ["--config.data.image_size=384", "--config.model.siglip.image_size=384"]
    large = config_lib.load(f"{root}/configs/vla_latent.py", sizes).model
    published = config_lib.build("lapa_jax.models", large.copy_and_resolve_references().to_dict())
    assert published.image_tokens == 27 * 27


def test_one_after_the_other_is_the_greedy_search_over_whole_passes():
    model, batch = build(decode="autoregressive"), random_batch(build())
    found = apply(model, batch, "predict")
    codes = np.zeros((ROWS, N), np.int32)
    for place in range(N):
        logits = apply(model, {**batch, "latent": codes}, "_teacher_forced_logits")
        codes[:, place] = logits[:, place].argmax(-1)
    np.testing.assert_array_equal(found["codes"], codes)
    forced = apply(model, {**batch, "latent": codes}, "_teacher_forced_logits")
    np.testing.assert_allclose(found["logits"], forced, atol=1e-5)


def test_a_code_is_not_seen_by_those_before_it_or_by_its_own_place():
    model, batch = build(decode="autoregressive"), random_batch(build())
    expected = apply(model, batch, "_teacher_forced_logits")
    for place in range(N):
        other = {**batch, "latent": np.where(np.arange(N) == place, (batch["latent"] + 1) % K, batch["latent"])}
        moved = np.abs(apply(model, other, "_teacher_forced_logits") - expected).max(axis=(0, 2)) > 1e-6
        assert moved.tolist() == [later > place for later in range(N)]


def test_the_loss_is_the_cross_entropy_of_the_steps_that_count():
    model, batch = build(), random_batch(build())
    batch["latent_mask"][1] = 0
    task = Task(model, {"latent": 1.0})
    losses = functools.partial(jax.jit(lambda v, batch: task.loss(v, batch, jax.random.key(0))[0]), variables_of(model))
    logits = apply(model, batch, "predict")["logits"]
    rows = [0, 2, 3]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[rows], batch["latent"][rows]).mean()
    assert losses(batch) == pytest.approx(float(expected), rel=1e-5)
    other = batch["latent"].copy()
    other[1] = (other[1] + 3) % K
    assert losses({**batch, "latent": other}) == pytest.approx(float(expected), rel=1e-5)


def test_evaluation_tells_the_same_as_the_predictions():
    model, batch = build(decode="autoregressive"), random_batch(build())
    found, predicted = apply(model, batch, "evaluate"), apply(model, batch, "predict")
    np.testing.assert_array_equal(found["predicted"], predicted["codes"])
    taught = apply(model, batch, "_teacher_forced_logits")
    expected = optax.softmax_cross_entropy_with_integer_labels(taught, batch["latent"])
    np.testing.assert_allclose(found["loss"], expected, atol=1e-5)
    three = np.argsort(-predicted["logits"], axis=-1)[..., :3]
    np.testing.assert_array_equal(found["top3"], [[c in row for c, row in zip(cs, rs)]
                                                  for cs, rs in zip(batch["latent"], three)])  # fmt: skip


def test_figures_of_a_data_set():
    rng = np.random.default_rng(0)
    codes = rng.choice(3, p=[0.6, 0.3, 0.1], size=(500, 2))
    predicted = np.where(rng.random((500, 2)) < 0.7, codes, 0)
    mask = (rng.random(500) < 0.8).astype(np.float32)
    kept = mask > 0
    arrays = {"codes": codes, "predicted": predicted, "loss": rng.random((500, 2)), "top3": codes < 2,
              "latent_mask": mask}  # fmt: skip
    found = vla_summary.summarize(arrays, 4)
    assert found["latent_accuracy"] == pytest.approx((codes == predicted)[kept].mean())
    assert found["latent_accuracy_position_1"] == pytest.approx((codes == predicted)[kept, 1].mean())
    assert found["latent_accuracy_all"] == pytest.approx((codes == predicted)[kept].all(1).mean())
    most = [np.unique(c, return_counts=True)[1].max() / kept.sum() for c in codes[kept].T]
    assert found["majority_accuracy"] == pytest.approx(np.mean(most))
    assert found["accuracy_gain"] == pytest.approx(found["latent_accuracy"] - np.mean(most))
    shares = np.array([[np.mean(c == k) for k in range(3)] for c in codes[kept].T])
    assert found["loss_unigram"] == pytest.approx(-(shares * np.log(shares)).sum(1).mean())
    assert found["latent_accuracy_top3"] == pytest.approx((codes < 2)[kept].mean())
    for position in range(2):
        of_position = np.mean([row[position] < 2 for row in codes[kept].tolist()])
        assert found[f"latent_accuracy_top3_position_{position}"] == pytest.approx(of_position)
    assert found["majority_accuracy_top3"] == pytest.approx(1)
    assert vla_summary.summarize({**arrays, "latent_mask": mask * 0}, 4) == {}


def test_low_rank_adapters_start_from_the_model_itself_and_are_all_that_learns():
    plain, batch = build(), random_batch(build())
    model = build(lora_rank=2, lora_modules="llm/decoder/layers/attention/(query|value)")
    variables = jax.jit(lambda b: model.init(RNGS, b, train=True))(batch)  # of adapters what they start with counts
    names = [name for name in tree.flatten(variables) if "lora" in name]
    assert len(names) == 4
    layers = variables["params"]["llm"]["decoder"]["layers"]["attention"]
    assert layers["query"]["lora_a"].shape == (2, 16, 2)
    expected = apply(plain, batch, "predict", variables)["logits"]
    np.testing.assert_allclose(apply(model, batch, "predict", variables)["logits"], expected, atol=1e-6)
    layers["query"]["lora_b"] = layers["query"]["lora_b"] + 1.0
    assert np.abs(apply(model, batch, "predict", variables)["logits"] - expected).max() > 1e-3
    rows = jax.eval_shape(lambda v, b: model.apply(v, b, method="evaluate"), variables, batch)
    assert rows["predicted"].shape == batch["latent"].shape, "an evaluation of a run has nothing to refuse"


class Source:
    """A source of samples as `from_data` sees it."""

    vocabulary, label_info = 40, {"codebook_size": 8}

    def __init__(self, **changes):
        self._batch = {"image": np.zeros((0, 56, 56, 3), np.uint8), "text": np.zeros((0, 9), np.int32),
                       "latent": np.zeros((0, 4), np.int32), **changes}  # fmt: skip

    def batch(self, indices):
        return {name: value for name, value in self._batch.items() if value is not None}


SPEC = {"name": "policies.vla", "llm": {"name": "llama", "vocab": None}}


def test_what_only_the_data_tell():
    found = vla.from_data(SPEC, Source(), 0)
    assert {name: found[name] for name in ("image_size", "cameras", "text_length", "code_length", "codebook_size")} == {
        "image_size": 56, "cameras": 1, "text_length": 9, "code_length": 4, "codebook_size": 8}  # fmt: skip
    assert found["llm"]["vocab"] == 40
    views = Source(image=np.zeros((0, 3, 56, 56, 3), np.uint8))
    assert vision_language.body_from_data({**SPEC, "llm": {"vocab": 50}}, views)["cameras"] == 3


@pytest.mark.parametrize(
    ("spec", "source", "message"),
    [
        ({}, Source(latent=None), "launch/label.py"),
        ({}, Source(image=None), "image of each step"),
        ({}, Source(image=np.zeros((0, 56, 42, 3), np.uint8)), "data.image_size"),
        ({"codebook_size": 16}, Source(), "codebook_size is 16, the data have 8"),
        ({"code_length": 2}, Source(), "code_length is 2"),
        ({"llm": {"name": "llama", "vocab": 30}}, Source(), "tokenizer has 40 tokens"),
    ],
)
def test_data_that_do_not_fit_are_refused(spec, source, message):
    with pytest.raises(UserError, match=message):
        vla.from_data({**SPEC, **spec}, source, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 13}, "13x13 pixels is smaller than a patch of 14"),
        ({"llm": llama.Model(**{**DECODER, "head": "own"})}, "llm.head is 'own'"),
        ({"dinov2": dinov2.Model(**{**TOWER, "patch": 7})}, "patch by patch"),
        ({"siglip": None}, "only dinov2 and llm are set"),
        ({"vision": film_conv.Model()}, "siglip and dinov2 or, in place of both, vision"),
        ({"llm": None}, "needs llm"),
        ({"decode": "paralel"}, "did you mean 'parallel'"),
        ({"image_attention": "full"}, "image_attention is 'full'"),
        ({"projection": "mlp"}, "projection is 'mlp'"),
        ({"codebook_size": 1}, "codebook_size is 1"),
        ({"cameras": 0}, "cameras is 0"),
    ],
)
def test_fields_that_cannot_work_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build(**change)


@pytest.mark.parametrize("kind", ["layernorm", "openvla"])
def test_projectors_have_the_layers_of_their_papers(kind):
    params = expected_variables(build(projection=kind))["params"]["projector"]
    shapes = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    plans = {"layernorm": {"hidden": (16, 16), "out": (16, 16)},
             "openvla": {"widen": (16, 64), "hidden": (64, 16), "out": (16, 16)}}  # fmt: skip
    assert shapes == plans[kind] and ("norm_in" in params) == (kind == "layernorm")


def test_one_tower_that_sees_the_instruction_takes_the_place_of_two():
    tower = film_conv.Model(widths=(4, 6), condition=8, tokens=3, dim=5)
    model = build(siglip=None, dinov2=None, vision=tower, cameras=2)
    batch = random_batch(model)
    assert model.image_tokens == 6 and batch["image"].shape == (ROWS, 2, SIDE, SIDE, 3)
    seen = apply(model, batch, "encode_images")
    assert seen.shape == (ROWS, 6, DECODER["dim"])
    other = {**batch, "text": np.roll(batch["text"], 1, axis=0), "text_mask": np.roll(batch["text_mask"], 1, axis=0)}
    assert np.abs(apply(model, other, "encode_images") - seen).max() > 1e-3, "what is seen depends on the instruction"
    swapped = apply(model, {**batch, "image": batch["image"][:, ::-1]}, "encode_images")
    np.testing.assert_allclose(swapped, np.roll(seen, 3, axis=1), atol=1e-5)
    assert apply(model, batch, "predict")["codes"].shape == (ROWS, N)
