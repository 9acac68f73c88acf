"""The MS-TCN tokenizer: shapes, where gradients flow, masks, causality, the hierarchy, and every error of its plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers import vq

SMALL = {"name": "tokenizers.mstcn", "action_dim": 3, "embed_dim": 8, "width": 12, "layers": 2, "context": 6,
         "stages": 1, "subclusters": 12, "clusters": 4, "codebook_init": "normal"}  # fmt: skip


def build(**fields):
    return config.build("lapa_jax.models", {**SMALL, **fields})


def batch_of(model, count=8, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, model.context, model.action_dim)
    batch = {"action": rng.normal(size=shape).astype(np.float32), "action_mask": np.ones(shape[:2], np.float32)}
    return batch | ({"state": rng.normal(size=(count, model.state_dim)).astype(np.float32)} if model.state_dim else {})


def init(model, batch=None, seed=0):
    rngs = {name: jax.random.key(seed + i) for i, name in enumerate(("params", "noise", "dropout"))}
    batch = batch_of(model) if batch is None else batch
    return jax.jit(functools.partial(model.init, train=True))(rngs, batch)


@functools.cache
def small(**fields):
    model = build(**fields)
    return model, init(model)


@functools.cache
def jitted(model, method):
    return jax.jit(lambda variables, *args: model.apply(variables, *args, method=method))


def run(model, variables, method, *args):
    return jitted(model, method)(variables, *args)


def train(model, variables, batch, seed=1):
    rngs = {name: jax.random.key(seed + i) for i, name in enumerate(("noise", "dropout"))}
    step = jax.jit(lambda v, b: model.apply(v, b, train=True, mutable=["codebook"], rngs=rngs))
    output, updated = step(variables, batch)
    return output, {**variables, **updated}


@pytest.mark.parametrize("fields", [{}, {"causal": True, "decoder_input": "q"}, {"state_dim": 5, "stages": 2},
                                    {"decoder_input": "z+q", "dtype": "bfloat16", "dropout": 0.2}],
                         ids=lambda fields: "-".join(map(str, fields.values())) or "plain")  # fmt: skip
def test_shapes_and_types(fields):
    model = build(**fields)

    def everything(batch):
        rngs = {name: jax.random.key(0) for name in ("params", "noise", "dropout")}
        variables = model.init(rngs, batch, train=True)
        output, _ = model.apply(variables, batch, train=True, mutable=["codebook"], rngs=rngs)
        encoded = model.apply(variables, batch, method="encode")
        decoded = model.apply(variables, encoded["codes"], method="decode")
        return variables, output, encoded, decoded, model.apply(variables, batch, method="evaluate")

    variables, output, encoded, decoded, evaluated = jax.eval_shape(everything, model.example(3))
    assert set(output.losses) == {"reconstruction", "commitment_z", "commitment_q"}
    assert {(loss.shape, loss.dtype) for loss in output.losses.values()} == {((3,), jnp.dtype("float32"))}
    assert output.codes.shape == (3, 6, 2) and output.codes.dtype == jnp.int32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert encoded["embedding"].shape == (3, 6, 8) and encoded["embedding"].dtype == jnp.float32
    assert decoded.shape == (3, 6, 3) and decoded.dtype == jnp.float32
    assert {value.shape[0] for value in evaluated.values()} == {3}
    assert model.codebook_sizes == (12, 4)
    assert model.reach == {(1, False): (3, 3), (1, True): (6, 0), (2, False): (6, 6)}[model.stages, model.causal]


def test_one_forward_serves_training_evaluation_and_prediction():
    model, variables = small()
    batch = batch_of(model)
    output = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)
    predicted = run(model, variables, "predict", batch)
    np.testing.assert_array_equal(output.codes, predicted["codes"])
    encoded = run(model, variables, "encode", batch)
    np.testing.assert_array_equal(encoded["codes"], predicted["codes"])
    np.testing.assert_allclose(run(model, variables, "decode", encoded["codes"]), predicted["reconstruction"],
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    mse = np.mean((np.asarray(predicted["reconstruction"]) - batch["action"]) ** 2, (1, 2))
    np.testing.assert_allclose(output.losses["reconstruction"], mse, rtol=1e-4)


def test_the_hierarchy_maps_every_subcluster_to_its_nearest_cluster():
    model, variables = small()
    z, q = (np.asarray(variables["codebook"]["codes"][level]["codes"][0]) for level in ("z", "q"))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    hierarchy = run(model, variables, "hierarchy")
    np.testing.assert_array_equal(hierarchy, np.argmax(z @ q.T, axis=1))
    codes = np.asarray(run(model, variables, "predict", batch_of(model, seed=3))["codes"])
    np.testing.assert_array_equal(codes[..., 1], np.asarray(hierarchy)[codes[..., 0]])
    embedding = run(model, variables, "encode", batch_of(model, seed=3))["embedding"]
    nearest = np.argmax(np.asarray(embedding) @ z.T, axis=-1)
    np.testing.assert_array_equal(codes[..., 0], nearest)


def gradients(model, variables, name, batch):
    """Of one named loss with respect to the parameters and the actions that go in."""

    def loss(params, action):
        given = {**batch, "action": action}
        output, _ = model.apply({**variables, "params": params}, given, train=True, mutable=["codebook"],
                                rngs={"noise": jax.random.key(0), "dropout": jax.random.key(1)})  # fmt: skip
        return output.losses[name].sum()

    return tree.flatten(jax.jit(jax.grad(loss))(variables["params"], batch["action"]))


@pytest.mark.parametrize("name", ["reconstruction", "commitment_z", "commitment_q"])
def test_every_loss_has_a_gradient_where_it_should_and_nowhere_else(name):
    """Spec error 8 (and the fork that lost the straight-through gradient): no loss is without a gradient; commitment
    moves the encoder alone."""
    model, variables = small()
    found = gradients(model, variables, name, batch_of(model))
    moved = {key.split("/")[0] for key, value in found.items() if np.abs(value).max() > 0}
    assert moved == ({"encoder", "norm", "decoder"} if name == "reconstruction" else {"encoder", "norm"})


def test_codes_are_no_parameters_and_get_no_gradient():
    """Spec: a codebook that is a parameter too would move by gradient and by averages."""
    model, variables = small()
    assert not [name for name in tree.flatten(variables["params"]) if "codes" in name]
    batch = batch_of(model)

    def loss(codebook):
        output, _ = model.apply({**variables, "codebook": codebook}, batch, train=True, mutable=["codebook"],
                                rngs={"noise": jax.random.key(0)})  # fmt: skip
        return sum(value.sum() for value in output.losses.values())

    collection = variables["codebook"]
    floats = {k: v for k, v in tree.flatten(collection).items() if v.dtype == jnp.float32}
    whole = lambda part: tree.unflatten({**tree.flatten(collection), **part})  # noqa: E731
    found = jax.jit(jax.grad(lambda part: loss(whole(part))))(floats)
    assert not any(np.abs(v).max() > 0 for v in found.values())


@pytest.mark.parametrize("decoder_input", ["z", "q", "z+q"])
def test_the_decoder_gradient_reaches_the_embedding_once(decoder_input):
    """Spec error 8: two straight-through estimators in a chain, or z and q both passing it on, would double it."""
    model, (_, variables) = build(decoder_input=decoder_input), small()
    mask = jnp.ones((2, 6))
    embedding = jax.random.normal(jax.random.key(5), (2, 6, 8))
    into = jax.random.normal(jax.random.key(6), (2, 6, 8))

    def through(embedding):
        found = model.apply(variables, embedding, mask, method=lambda m, *args: m.codes(*args, train=False))
        return jnp.sum(found["vectors"] * into)

    got = jax.jit(jax.grad(through))(embedding)
    want = jax.jit(jax.grad(lambda e: jnp.sum(vq.unit(e) * 8**0.5 * into)))(embedding)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_commitment_of_q_is_to_the_embedding_itself():
    """Spec error 8: it is named, weighed and differentiated once, not a side effect of a chained estimator."""
    model, variables = small()
    batch = batch_of(model)
    embedding = np.asarray(run(model, variables, "encode", batch)["embedding"])
    direction = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    codes = np.asarray(run(model, variables, "predict", batch)["codes"])
    output = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)
    for place, level in enumerate(("z", "q")):
        book = np.asarray(variables["codebook"]["codes"][level]["codes"][0])
        want = np.mean(2 - 2 * np.sum(direction * book[codes[..., place]], -1), 1)
        np.testing.assert_allclose(output.losses[f"commitment_{level}"], want, rtol=1e-3, atol=1e-5)


def test_what_the_mask_hides_changes_nothing():
    """Spec error 11: padded steps reach no code, no loss, no average; a window without steps is harmless."""
    model, variables = small()
    batch = batch_of(model)
    batch["action_mask"][:, 4:] = 0
    batch["action_mask"][0] = 0
    junk = {**batch, "action": np.where(batch["action_mask"][..., None] > 0, batch["action"], 99.0)}
    clean = {**batch, "action": batch["action"] * batch["action_mask"][..., None]}
    (a, after_a), (b, after_b) = train(model, variables, clean), train(model, variables, junk)
    for name in a.losses:
        np.testing.assert_array_equal(a.losses[name], b.losses[name])
        assert np.isfinite(a.losses[name]).all() and a.losses[name][0] == 0
    for x, y in zip(jax.tree.leaves(after_a), jax.tree.leaves(after_b), strict=True):
        np.testing.assert_array_equal(x, y)
    counts = after_a["codebook"]["codes"]["z"]["counts"].sum()
    before = variables["codebook"]["codes"]["z"]["counts"].sum()
    np.testing.assert_allclose(counts, 0.8 * before + 0.2 * 7 * 4, rtol=1e-5)


def test_missing_dimensions_of_a_mixture_are_in_no_loss():
    model, variables = small()
    batch = batch_of(model)
    dims = np.ones((8, 3), np.float32)
    dims[3:, 2] = 0
    batch["action"] *= dims[:, None]
    output = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, {**batch, "action_dims": dims})
    guess = np.asarray(run(model, variables, "predict", batch)["reconstruction"])
    error = (guess - batch["action"]) ** 2
    want = np.concatenate([error[:3].mean((1, 2)), error[3:, :, :2].mean((1, 2))])
    np.testing.assert_allclose(output.losses["reconstruction"], want, rtol=1e-4)


def test_a_causal_tokenizer_cannot_know_what_comes():
    """Spec error 10: with the plan's bidirectional net the code at t holds a_t+1, which a policy then copies."""
    for causal in (True, False):
        model = build(causal=causal, context=12, layers=3)
        variables = init(model)
        batch = batch_of(model, 4)
        changed = {**batch, "action": batch["action"].copy()}
        changed["action"][:, 7:] += 5
        embed = lambda b: np.asarray(run(model, variables, "encode", b)["embedding"])  # noqa: B023, E731
        same = np.abs(embed(batch) - embed(changed))[:, :7].max() == 0
        codes = np.random.default_rng(0).integers(0, [12, 4], (4, 12, 2)).astype(np.int32)
        other = codes.copy()
        other[:, 7:] = (other[:, 7:] + 1) % 4
        decode = lambda c: np.asarray(run(model, variables, "decode", c))  # noqa: B023, E731
        same_decoded = np.abs(decode(codes) - decode(other))[:, :7].max() == 0
        assert (same, same_decoded) == (causal, causal)


def test_the_state_reaches_the_codes_and_the_decoder_needs_none():
    model, variables = small(state_dim=5)
    batch = batch_of(model)
    other = {**batch, "state": batch["state"] + 3}
    a, b = (run(model, variables, "encode", x) for x in (batch, other))
    assert np.abs(a["embedding"] - b["embedding"]).max() > 1e-3
    assert run(model, variables, "decode", a["codes"]).shape == (8, 6, 3)
    with pytest.raises(UserError, match="state_dim 5, and no state came"):
        run(model, variables, "encode", {name: batch[name] for name in ("action", "action_mask")})
