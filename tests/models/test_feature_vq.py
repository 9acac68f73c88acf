import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers import feature_vq
from lapa_jax.models.tokenizers import feature_vq as between
from lapa_jax.models.tokenizers.feature_vq import metrics
from lapa_jax.models.tokenizers.feature_vq.layout import auto_ratios, codebook_sizes, latent_dims, parse_ratios

SMALL = {"hidden_dim": 12, "embedding_dim": 10, "decoder_dim": 14, "partial_dim": 6, "dropout": 0.0, "dead_age": 3,
         "ema_decay": 0.9, "topo_samples": 16, "name": "tokenizers.feature_vq"}  # fmt: skip


class Table:
    """What `from_data` needs of a source."""

    def __init__(self, rows, column="feature"):
        self.rows, self.column = np.asarray(rows, np.float32), column

    def __len__(self):
        return len(self.rows)

    def batch(self, indices):
        return {self.column: self.rows[np.asarray(indices, int)], "step": np.asarray(indices)}


def rows(count=400, seed=0):
    """Groups (0, 2, 5, 7) and (1, 3, 4); 7 is -10 times 0, and 6 constant."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, count, 1))
    table = np.concatenate([a, b, a, b, b, a], 1) * [1, 2, -3, 0.1, 50, 1] + [0, 1, 5, 0, 300, 0]
    table = table + 0.2 * rng.normal(size=(count, 6)) * [1, 2, -3, 0.1, 50, 1]
    return np.concatenate([table, np.full((count, 1), 4.5), -10 * table[:, :1] + 3], 1).astype(np.float32)


def build(**fields):
    spec = feature_vq.from_data({**SMALL, **fields}, Table(rows()), seed=0)
    return config.build("lapa_jax.models", spec)


@functools.cache
def small():
    model = build()
    return model, init(model)


def init(model):
    keys = {name: jax.random.key(i) for i, name in enumerate(("params", "noise", "dropout"))}
    return jax.jit(lambda batch: model.init(keys, batch, train=True))({"feature": rows(64)})


@functools.cache
def step(model):
    """(variables, batch, key) -> (gradients of each named loss, updated collections, output)."""

    def run(variables, batch, key):
        rest = {name: value for name, value in variables.items() if name != "params"}

        def losses(params):
            values, keys = {"params": params, **rest}, {"noise": key, "dropout": key}
            output, updated = model.apply(values, batch, train=True, mutable=["codebook"], rngs=keys)
            return jnp.stack([output.losses[name].mean() for name in LOSSES]), (output, updated)

        grads, (output, updated) = jax.jacrev(losses, has_aux=True)(variables["params"])
        return {name: jax.tree.map(lambda g: g[i], grads) for i, name in enumerate(LOSSES)}, updated, output  # noqa: B023

    return jax.jit(run)


LOSSES = ("reconstruction", "commitment", "orthogonality", "informativeness", "topographic")


@functools.cache
def jitted(model, method):
    return jax.jit(lambda variables, *args: model.apply(variables, *args, method=method))


@functools.cache
def forward(model):
    return jax.jit(lambda variables, batch: model.apply(variables, batch, train=False))


def run(model, variables, method, *args):
    return jitted(model, method)(variables, *args)


def test_what_only_the_data_tell_is_filled_in_and_needs_no_data_to_load():
    spec = feature_vq.from_data(SMALL, Table(rows()), seed=0)
    assert spec["groups"] == ((0, 2, 5, 7), (1, 3, 4))
    assert spec["constants"] == (6,) and spec["duplicates"] == ((7, 0, -1),) and spec["feature_dim"] == 8
    np.testing.assert_allclose(spec["center"], rows().mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(spec["scale"], rows().std(0), rtol=1e-3)
    again = config.from_json(config.to_json(config.ml_collections.ConfigDict(spec)))
    assert config.build("lapa_jax.models", again) == config.build("lapa_jax.models", spec)
    assert feature_vq.from_data(SMALL, Table(rows(), "state"), seed=0) == spec, "a state is a feature vector too"
    with pytest.raises(UserError, match="no feature vectors"):
        feature_vq.from_data(SMALL, Table(rows(), "action"), seed=0)


def test_of_large_data_a_bounded_sample_is_read_the_same_for_the_same_seed():
    source = Table(np.arange(60_000)[:, None] + np.zeros((1, 2)))
    first, second, other = (feature_vq.sample_rows(source, 500, seed) for seed in (1, 1, 2))
    assert first.shape == (500, 2) and len(np.unique(first[:, 0])) == 500
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("features", "ratios", "dims"), [(8, (0.5, 1, 1.5), (4, 8, 12)), (3, (0.5, 1, 1.5), (4, 4, 8)),
                                                          (21, (0.5, 1, 1.5), (12, 24, 32))])  # fmt: skip
def test_widths_are_ratios_of_the_number_of_features_in_steps_of_four(features, ratios, dims):
    assert latent_dims(features, ratios) == dims


def test_codebook_sizes_follow_features_and_the_rows_there_are():
    """base = int(7 log2 8) = 21. The reference has 10,000 rows written into its code."""
    assert codebook_sizes(8, 10_000) == (20, 10, 6)
    assert codebook_sizes(3, 10_000) == (15, 6, 6), "int(4.8 sqrt(10)) = 15 is more than 4 (11 // 4) = 8"
    assert codebook_sizes(3, 500)[0] == 8 and codebook_sizes(3, 10**6)[0] == 28
    assert codebook_sizes(60, 100) == (40, 20, 10)


def test_level_0_has_the_shortest_vectors_and_the_most_codes():
    """Error (h) of the reference: its texts call level 0 coarse and fine by turns."""
    for features in range(2, 60):
        dims, sizes = latent_dims(features, parse_ratios("0.5:1:1.5")), codebook_sizes(features, 5000)
        assert dims == tuple(sorted(dims)) and sizes == tuple(sorted(sizes, reverse=True))


def test_auto_ratios_follow_the_spectrum():
    assert parse_ratios("auto") is None
    assert auto_ratios(np.ones((8, 8))) == (1 / 8, 1 / 8, 1 / 8)
    assert auto_ratios(np.eye(10)) == (0.8, 1.0, 1.0)
    for text in ("0.5:1", "0.5:1:-1", "fine", "0.5:1:nan"):
        with pytest.raises(UserError, match="compression_ratios is"):
            parse_ratios(text)
    assert build(compression_ratios="auto").latent_dims == ((4, 4, 4), (4, 4, 4))


def test_encode_decode_predict_and_evaluate_agree():
    model, variables = small()
    batch = {"feature": rows(64, 1)}
    codes = run(model, variables, "encode", batch)["codes"]
    assert codes.shape == (64, 6) and codes.dtype == jnp.int32
    assert np.all(np.max(codes, 0) < np.ravel(model.codebook_sizes))
    decoded = run(model, variables, "decode", codes)
    predicted = run(model, variables, "predict", {"state": batch["feature"]})
    np.testing.assert_array_equal(codes, predicted["codes"])
    np.testing.assert_allclose(decoded, predicted["reconstruction"], rtol=1e-5)
    arrays = run(model, variables, "evaluate", batch)
    physical = np.asarray(arrays["reconstruction"]) * model.scale + model.center
    np.testing.assert_allclose(physical, decoded, rtol=1e-4, atol=1e-4)
    output = forward(model)(variables, batch)
    np.testing.assert_array_equal(output.codes, codes)
    singles = [0, 1, 2, 3, 4, 5]
    error = np.square(np.asarray(arrays["reconstruction"] - arrays["feature"])[:, singles]).mean(1)
    np.testing.assert_allclose(output.losses["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(output.losses["commitment"], arrays["commitment"], rtol=1e-4)
    np.testing.assert_allclose(output.losses["informativeness"], arrays["informativeness"], rtol=1e-4)
    assert len(model.code_names) == 6


def test_constants_come_back_and_duplicates_follow_their_original():
    model, variables = small()
    decoded = np.asarray(run(model, variables, "predict", {"feature": rows(64, 2)})["reconstruction"])
    np.testing.assert_array_equal(decoded[:, 6], 4.5)
    np.testing.assert_allclose(decoded[:, 7], -10 * decoded[:, 0] + 3, rtol=1e-4, atol=1e-3)


def test_a_category_is_encoded_from_its_own_features_alone():
    model, variables = small()
    batch = rows(64, 1)
    moved = batch.copy()
    moved[:, [1, 3, 4]] += [5, 1, 90]
    before, after = (run(model, variables, "encode", {"feature": x}) for x in (batch, moved))
    np.testing.assert_array_equal(before["codes"][:, :3], after["codes"][:, :3])
    assert np.any(before["codes"][:, 3:] != after["codes"][:, 3:])
    owner = model.layout().owner
    np.testing.assert_array_equal(*(np.asarray(x["latent"])[:, owner == 0] for x in (before, after)))


def test_every_loss_has_a_gradient_where_it_should_and_nowhere_else():
    """Error (a) of the reference: its orthogonality loss is a Python number, without gradient."""
    model, variables = small()
    grads, _, output = step(model)(variables, {"feature": rows(64, 1)}, jax.random.key(0))
    assert set(output.losses) == set(LOSSES) and all(loss.shape == (64,) for loss in output.losses.values())
    reached = {name: {n.split("/")[0] for n, g in tree.flatten(grad).items() if np.abs(g).max() > 1e-9}
               for name, grad in grads.items()}  # fmt: skip
    encoders = {"encoders_0", "encoders_1"}
    assert reached == {
        "reconstruction": encoders | {"decoder"}, "commitment": encoders, "orthogonality": encoders,
        "informativeness": encoders | {"partial_decoders"}, "topographic": encoders,
    }  # fmt: skip
    assert all(np.isfinite(leaf).all() for grad in grads.values() for leaf in jax.tree.leaves(grad))


def test_codebooks_are_moving_averages_and_no_parameters():
    """Error (b) of the reference: moving averages and the optimizer both update the codebook."""
    _, variables = small()
    assert {name.split("/")[0] for name in tree.flatten(variables["params"])} == {
        "encoders_0", "encoders_1", "decoder", "partial_decoders"}  # fmt: skip
    assert set(variables["codebook"]["codebooks"]) == {"codes", "counts", "sums", "age"}


def test_commitment_pulls_vectors_to_their_codes():
    """The other half of error (b): the two terms are swapped there, so the codes are pulled and the encoder is not."""
    model, variables = small()
    batch = {"feature": rows(64, 1)}
    grads, _, output = step(model)(variables, batch, jax.random.key(0))
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], grads["commitment"])
    _, _, after = step(model)({**variables, "params": moved}, batch, jax.random.key(0))
    assert after.losses["commitment"].mean() < output.losses["commitment"].mean()


def test_orthogonality_is_the_mean_squared_cross_correlation():
    rng = np.random.default_rng(0)
    latent, owner = rng.normal(size=(50, 5)), np.array([0, 0, 1, 1, 2])
    latent[:, 2] += 2 * latent[:, 0]
    found = between.cross_correlation(jnp.asarray(latent, jnp.float32), owner)
    apart = owner[:, None] != owner
    assert float(found) == pytest.approx(np.mean(np.corrcoef(latent.T)[apart] ** 2), rel=1e-4)
    assert float(between.cross_correlation(jnp.asarray(latent, jnp.float32), np.zeros(5, int))) == 0
    gradient = jax.grad(lambda x: between.cross_correlation(x, owner))(jnp.asarray(latent, jnp.float32))
    lower = between.cross_correlation(latent - 5.0 * gradient, owner)
    assert float(lower) < float(found) - 1e-3
    still = jax.grad(lambda x: between.cross_correlation(x, owner))(jnp.ones((8, 5)))
    assert np.isfinite(still).all()


def test_topographic_is_one_minus_pearson_over_pairs_of_different_rows():
    rng = np.random.default_rng(0)
    features, latents, codes = (rng.normal(size=(2, 9, d)).astype(np.float32) for d in (4, 3, 3))
    features[0, :, 3], codes[1, 4] = 0, codes[1, 7]
    found = between.topographic(*map(jnp.asarray, (features, latents, codes)))
    expected = []
    for p in range(2):
        tables = [[np.linalg.norm(x[p, i] - x[p, j]) for i in range(9) for j in range(9) if i != j]
                  for x in (features, latents, codes)]  # fmt: skip
        before, after = (np.corrcoef(a, b)[0, 1] for a, b in zip(tables, tables[1:]))
        expected.append(0.3 * (1 - before) + 0.7 * (1 - after))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(between.topographic(*3 * (jnp.asarray(latents),))) == pytest.approx(0, abs=1e-5)
    gradient = jax.grad(lambda x: between.topographic(jnp.asarray(features), x, x))(jnp.ones((2, 9, 3)))
    assert np.isfinite(gradient).all(), "equal rows have no direction, and must not give NaN"


def test_topographic_ignores_the_rows_beyond_its_bound():
    model, variables = small()
    batch = rows(64, 1)
    other = np.concatenate([batch[:16], rows(48, 5)])
    first, second = (forward(model)(variables, {"feature": x}).losses for x in (batch, other))
    np.testing.assert_allclose(first["topographic"][0], second["topographic"][0], rtol=1e-5)
    assert np.abs(first["orthogonality"][0] - second["orthogonality"][0]) > 1e-6


def test_informativeness_is_the_error_of_the_partial_decoders():
    model, variables = small()
    arrays = {k: np.asarray(v) for k, v in run(model, variables, "evaluate", {"feature": rows(64, 3)}).items()}
    weights = {n: np.asarray(w) for n, w in tree.flatten(variables["params"]["partial_decoders"]).items()}
    errors = []
    for i, (start, end) in enumerate(model.layout().spans):
        code = arrays["quantized"][:, start:end]
        hidden = code @ weights["hidden_layer/kernel"][i, : end - start] + weights["hidden_layer/bias"][i]
        guess = np.maximum(hidden, 0) @ weights["to_features/kernel"][i] + weights["to_features/bias"][i]
        errors.append(np.square(guess - arrays["feature"][:, :6]).mean(1))
    np.testing.assert_allclose(arrays["informativeness"], np.mean(errors, 0), rtol=1e-4)


def test_the_summary_against_numpy():
    """Error (f) of the reference: the composite is computed and never used; here it is what the config asks for."""
    model, variables = small()
    arrays = {k: np.asarray(v) for k, v in run(model, variables, "evaluate", {"feature": rows(64, 4)}).items()}
    found = model.summarize(arrays)
    varying = [0, 1, 2, 3, 4, 5, 7]
    mse = np.square(arrays["feature"] - arrays["reconstruction"])[:, varying].mean()
    assert found["mse"] == pytest.approx(mse, rel=1e-5) and found["quality"] == pytest.approx(max(0, 1 - mse), abs=1e-6)
    sizes = np.ravel(model.codebook_sizes)
    used = np.array([len(set(column)) for column in arrays["codes"].T])
    assert found["codebook_utilization"] == pytest.approx(used.sum() / sizes.sum())
    largest = [np.bincount(column).max() / len(column) for column in arrays["codes"].T]
    assert found["largest_code_share_category_1_level_0"] == largest[3] and found["largest_code_share"] == max(largest)
    assert found["collapse"] == (max(largest) > 0.9)
    assert found["utilization_level_1"] == pytest.approx((used[1] + used[4]) / (sizes[1] + sizes[4]))
    weighed = sum(metrics.WEIGHTS[name] * found[f"loss_{name}"] for name in LOSSES)
    assert found["composite"] == pytest.approx(0.5 * found["topo_post"] + 0.5 * found["quality"] - weighed)
    other = model.clone(composite_loss=-2.0, composite_topo_post=0.0, composite_quality=0.25).summarize(arrays)
    assert other["composite"] == pytest.approx(0.25 * found["quality"] - 2 * weighed)
    assert found["clipped"] == 0 and found["constants_moved"] == 0
    assert all(np.isfinite(value) for value in found.values())
    perfect = model.summarize({**arrays, "reconstruction": arrays["feature"], "quantized": arrays["latent"]})
    assert perfect["topo_post"] == pytest.approx(1) and perfect["quality"] == 1
    assert perfect["composite"] > found["composite"], "higher is better"


def test_spearman_has_mean_ranks_for_equal_values():
    a, b = np.array([1.0, 1.0, 2.0, 5.0, 9.0]), np.array([3.0, 4.0, 4.0, 100.0, 101.0])
    ranks = lambda x: np.array([np.mean([np.sum(x < v) + 1, np.sum(x <= v)]) for v in x])  # noqa: E731
    assert metrics.spearman(a, b) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
    assert metrics.spearman(a, np.ones(5)) == 0


def test_what_moves_out_of_range_is_told():
    model, variables = small()
    table = rows(64, 1)
    table[:5, 1], table[:10, 6] = 1e6, 0.0
    arrays = run(model, variables, "evaluate", {"feature": table})
    assert np.asarray(arrays["clipped"]).mean() == pytest.approx(5 / 64 / 8)
    assert np.asarray(arrays["constants_moved"]).mean() == pytest.approx(10 / 64)
    assert np.abs(arrays["feature"]).max() <= model.clip


def test_eight_devices_give_the_codebooks_of_one():
    model, variables = small()
    batch = {"feature": rows(64, 1)}
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    shared = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    _, one, _ = step(model)(variables, batch, jax.random.key(0))
    _, many, _ = step(model)(shared, spread, jax.random.key(0))
    for name, value in tree.flatten(one).items():
        other = tree.flatten(many)[name]
        np.testing.assert_allclose(value, other, atol=1e-5, err_msg=name)
        copies = [np.asarray(shard.data) for shard in other.addressable_shards]
        assert other.is_fully_replicated and all(np.array_equal(copies[0], copy) for copy in copies), name


def test_the_config_has_the_weights_and_the_metric_of_the_specification(root):
    values = config.load(str(root / "configs/feature_vq.py"))
    assert dict(values.loss) == metrics.WEIGHTS
    assert values.train.best_metric == "val/composite" and values.train.steps == 410 * 49
    assert (values.model.ema_decay, values.model.embedding_dim, values.optim.learning_rate) == (0.995, 126, 7e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"hidden_dim": 0}, "hidden_dim is 0"),
        ({"topo_samples": 2}, "topo_samples is 2"),
        ({"dead_share": 1.5}, "dead_share is 1.5"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; give at least 0 and less than 1"),
        ({"discovery_rows": 0}, "discovery_rows is 0"),
        ({"max_clusters": 1}, "max_clusters is 1"),
        ({"codebook_sizes": ((8, 6, 1), (8, 6, 6))}, "codebook_sizes must give 3 numbers"),
        ({"latent_dims": ((4, 4, 4),)}, "latent_dims must give 3 numbers"),
        ({"compression_ratios": "1:2"}, "compression_ratios is '1:2'"),
        ({"num_categories": 5}, "num_categories 5 cannot be had"),
        ({"groups": ((0, 2, 5), (1, 3, 4))}, "leave out feature 7"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_compiles(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


def test_a_model_without_its_data_says_what_is_missing():
    with pytest.raises(UserError, match="feature_dim, groups.* must be filled in from data"):
        config.build("lapa_jax.models", SMALL)
    model, variables = small()
    with pytest.raises(UserError, match="rows of 5 features; this model is of 8"):
        run(model, variables, "encode", {"feature": np.zeros((2, 5), np.float32)})
