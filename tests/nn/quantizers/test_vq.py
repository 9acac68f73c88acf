import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers import vq
from lapa_jax.nn.quantizers.vq import VQ
from tests import jitted

RNGS = {"params": jax.random.key(0), "noise": jax.random.key(1)}


def data(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def start(x, size=5, mask=None, **fields):
    module = VQ(size, **{"codebook_init": "normal", **fields})  # k-means takes long to compile
    module.check()
    return module, jax.jit(functools.partial(module.init, train=True))(RNGS, x, mask)


@functools.partial(jax.jit, static_argnums=0)
def train(module, variables, x, mask=None, seed=2):
    out, updated = module.apply(variables, x, mask, train=True, mutable=["codebook"],
                                rngs={"noise": jax.random.key(seed)})  # fmt: skip
    return out, {**variables, **updated}


def state(variables):
    return {name: np.asarray(value) for name, value in variables["codebook"].items()}


def with_state(variables, **changes):
    return {**variables, "codebook": {**variables["codebook"], **{k: jnp.asarray(v) for k, v in changes.items()}}}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(codes, counts, sums, x, decay, scale, eps=1e-5):
    """One update of one codebook, in float64 and one vector at a time."""
    size = len(codes)
    hits, added = np.zeros(size), np.zeros_like(codes)
    for vector in x:
        k = min(range(size), key=lambda k: np.sum((vector - codes[k]) ** 2))
        hits[k] += 1
        added[k] += vector
    counts, sums = decay * counts + (1 - decay) * hits, decay * sums + (1 - decay) * added
    total, new = counts.sum(), codes.copy()
    for k in range(size):
        if hits[k]:
            new[k] = scale(sums[k] / ((counts[k] + eps) / (total + size * eps) * total))
    return new, counts, sums


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("positions", [1, 3])
def test_moving_averages_follow_the_equations_step_by_step(distance, positions):
    scale = unit if distance == "cosine" else lambda v: v
    module, variables = start(data(8, 3, 4), distance=distance, positions=positions, decay=0.8)
    books = [tuple(state(variables)[name][p].astype(np.float64) for name in ("codes", "counts", "sums"))
             for p in range(positions)]  # fmt: skip
    for step in range(6):
        x = 2 * data(8, 3, 4, seed=step + 1)
        _, variables = train(module, variables, x)
        rows = np.asarray(x, np.float64)
        groups = [rows.reshape(-1, 4)] if positions == 1 else [rows[:, p] for p in range(3)]
        books = [by_hand(*book, scale(group), 0.8, scale) for book, group in zip(books, groups, strict=True)]
        for name, index in (("codes", 0), ("counts", 1), ("sums", 2)):
            np.testing.assert_allclose(state(variables)[name], [book[index] for book in books], rtol=2e-4, atol=2e-5)
    assert np.all(state(variables)["age"] == 6)


def test_the_nearest_code_is_found_by_a_search_over_all():
    x = data(6, 3, 4)
    for distance, positions in (("l2", 3), ("cosine", 1)):
        module, variables = start(x, distance=distance, positions=positions)
        books = np.broadcast_to(state(variables)["codes"], (3, 5, 4))
        if distance == "cosine":
            expected = np.einsum("bnd,nkd->bnk", unit(np.asarray(x)), unit(books)).argmax(-1)
        else:
            expected = np.linalg.norm(np.asarray(x)[:, :, None] - books, axis=-1).argmin(-1)
        (quantized, codes, _, _), _ = train(module, variables, x)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(jitted.apply(module, variables, x, method="nearest"), expected)
        chosen = np.stack([books[n][expected[:, n]] for n in range(3)], 1)
        np.testing.assert_allclose(quantized, chosen, rtol=1e-6)
        np.testing.assert_array_equal(jitted.apply(module, variables, codes, method="lookup"), quantized)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_gradient_of_what_is_done_with_the_codes_goes_straight_to_the_input(update):
    x = data(4, 2, 3)
    module, variables = start(x, update=update)

    def task(variables, x):
        (quantized, _, _, _), _ = train(module, variables, x)
        return jnp.sum(quantized**2)

    if update == "ema":  # whose other arrays count
        books, whole = variables["codebook"]["codes"], task
        task = lambda books, x: whole(with_state(variables, codes=books), x)  # noqa: E731
    of_variables, of_x = jax.jit(jax.grad(task, (0, 1)))(variables if update == "gradient" else books, x)
    np.testing.assert_allclose(of_x, 2 * train(module, variables, x)[0][0], rtol=1e-6)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_variables))


def test_codebook_loss_moves_only_codes_and_commitment_only_the_input():
    x = data(4, 2, 3)
    module, variables = start(x, update="gradient")
    book = np.asarray(variables["params"]["codebook"])[0]

    @functools.partial(jax.jacrev, argnums=(0, 1), has_aux=True)
    def losses(params, x):
        _, codes, terms, _ = module.apply({"params": params}, x, train=True)
        return {name: jnp.sum(term) for name, term in terms.items()}, codes

    gradients, codes = jax.jit(losses)(variables["params"], x)
    codes = np.asarray(codes)
    expected = np.zeros_like(book)
    for vector, code in zip(np.asarray(x).reshape(-1, 3), codes.reshape(-1), strict=True):
        expected[code] += 2 * (book[code] - vector) / (2 * 3)
    of_params, of_x = gradients["codebook"]
    np.testing.assert_allclose(of_params["codebook"][0], expected, rtol=1e-4, atol=1e-6)
    assert not np.any(of_x)
    of_params, of_x = gradients["commitment"]
    np.testing.assert_allclose(of_x, 2 * (np.asarray(x) - book[codes]) / (2 * 3), rtol=1e-4, atol=1e-6)
    assert not np.any(of_params["codebook"])


def test_both_losses_are_the_same_mean_and_carry_no_weight():
    x = data(4, 2, 3)
    module, variables = start(x, update="gradient")
    quantized, _, losses, _ = jitted.apply(module, variables, x, train=True)
    expected = np.mean(np.square(np.asarray(x) - np.asarray(quantized)), axis=(1, 2))
    np.testing.assert_allclose(losses["codebook"], expected, rtol=1e-5)
    np.testing.assert_allclose(losses["commitment"], expected, rtol=1e-5)


def test_moving_averages_have_no_loss_and_take_no_gradient():
    x = data(4, 2, 3)
    module, variables = start(x)

    def total(books, x):
        out, _ = train(module, with_state(variables, codes=books), x)
        return sum(jnp.sum(loss) for loss in out[2].values()) + jnp.sum(out[0])

    assert "params" not in variables
    assert not np.any(train(module, variables, x)[0][2]["codebook"])
    of_books, of_x = jax.jit(jax.grad(total, (0, 1)))(variables["codebook"]["codes"], x)
    assert not np.any(of_books) and np.all(np.isfinite(of_x))


def test_gradients_are_finite_for_vectors_of_length_zero():
    x = jnp.zeros((2, 1, 3))
    module, variables = start(data(4, 1, 3), distance="cosine")

    def total(x):
        quantized, _, losses, _ = train(module, variables, x)[0]
        return jnp.sum(quantized) + losses["commitment"].sum()

    assert np.all(np.isfinite(jax.jit(jax.grad(total))(x)))


def test_data_initialisation_finds_the_clusters_of_each_position_and_not_the_padding():
    corners = np.float32([[1, 1], [9, 1], [1, 9], [9, 9]])
    points = np.stack([np.repeat(corners, 10, 0), np.repeat(corners + 100, 10, 0)], 1) + 0.1 * data(40, 2, 2)
    padded = np.concatenate([np.full((20, 2, 2), -500, np.float32), points])
    mask = np.repeat([[0.0], [1.0]], [20, 40], axis=0) * np.ones((1, 2))
    module, variables = start(jnp.asarray(padded), 4, jnp.asarray(mask), positions=2, codebook_init="data")
    for position, offset in ((0, 0), (1, 100)):
        book = state(variables)["codes"][position]
        for corner in corners:
            assert np.linalg.norm(book - corner - offset, axis=-1).min() < 0.7
    np.testing.assert_allclose(state(variables)["counts"], 10)  # 40 vectors, 4 codes: padding does not count


def test_codes_that_nothing_chooses_keep_their_value_however_long():
    x = data(8, 2, 4)
    module, variables = start(x, size=6, decay=0.9)
    books = np.array(state(variables)["codes"])
    books[0, 5] = 1000.0
    variables = with_state(variables, codes=books, sums=books * state(variables)["counts"][..., None])
    for _ in range(300):
        _, variables = train(module, variables, x)
    assert state(variables)["counts"][0, 5] < 1e-6
    np.testing.assert_array_equal(state(variables)["codes"][0, 5], books[0, 5])


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("hits", [0, 1, 4])
def test_a_replaced_code_keeps_its_value_after_the_next_update(distance, hits):
    x = 3 + 0.3 * data(16, 4, 6)
    module, variables = start(x, size=8, distance=distance, dead_share=0.5, dead_age=3, decay=0.8)
    counts = np.array(state(variables)["counts"])
    counts[0, 2] = 0.0
    variables = with_state(variables, counts=counts, age=np.full((1, 8), 5))
    # Everything lies on one other code, so that code 2 has no hits in the pass that replaces it.
    same = jnp.broadcast_to(jnp.asarray(state(variables)["codes"][0, 1]), x.shape)
    (*_, metrics), variables = train(module, variables, same)
    replaced = state(variables)["codes"][0, 2]
    assert float(metrics["codes_replaced"]) >= 1 and state(variables)["age"][0, 2] == 0
    batch = np.array(same)
    batch[:] = state(variables)["codes"][0, 6]
    batch.reshape(-1, 6)[:hits] = replaced
    (_, codes, _, _), variables = train(module, variables, jnp.asarray(batch))
    assert np.sum(np.asarray(codes) == 2) == hits
    np.testing.assert_allclose(state(variables)["codes"][0, 2], replaced, rtol=1e-4)


def test_replaced_codes_become_different_vectors_of_the_batch_and_never_padding():
    x = np.asarray(data(30, 2, 4)) + 50
    mask = np.ones((30, 2))
    x[::2], mask[::2] = -1000.0, 0
    module, variables = start(jnp.asarray(x), 8, jnp.asarray(mask), dead_share=0.1, dead_age=1)
    books = np.array(state(variables)["codes"])
    books[0, 3:] = 7000.0
    counts = np.array(state(variables)["counts"])
    counts[0, 3:] = 0.0
    variables = with_state(variables, codes=books, counts=counts, age=np.full((1, 8), 5))
    _, after = train(module, variables, jnp.asarray(x), jnp.asarray(mask))
    valid = x[mask > 0]
    found = state(after)["codes"][0, 3:]
    nearest = np.linalg.norm(found[:, None] - valid, axis=-1)
    spread = np.std(books[0], axis=0).mean()
    assert np.all(nearest.min(1) < 1.0 * spread)
    assert len(np.unique(found, axis=0)) == 5
    mean = state(after)["sums"] / state(after)["counts"][..., None]
    np.testing.assert_allclose(mean[0, 3:], found, rtol=1e-4)


def test_what_is_drawn_in_place_of_dead_codes_are_distinct_members_while_there_are_enough():
    vectors = data(1, 12, 3)
    used = jnp.asarray([[True] * 7 + [False] * 5])
    books = {"codes": jnp.zeros((1, 6, 3)), "counts": jnp.ones((1, 6)), "sums": jnp.zeros((1, 6, 3)),
             "age": jnp.full((1, 6), 9)}  # fmt: skip
    dead = jnp.asarray([[True, False, True, True, False, True]])
    replace = jax.jit(lambda key: vq.replace_dead(books, dead, vectors, used, key, lambda v: v))
    for seed in range(20):
        after = replace(jax.random.key(seed))
        drawn = np.asarray(after["codes"])[0][np.asarray(dead)[0]]  # equal codes have no spread: no noise is added
        rows = [int(np.linalg.norm(np.asarray(vectors)[0] - row, axis=-1).argmin()) for row in drawn]
        np.testing.assert_array_equal(drawn, np.asarray(vectors)[0][rows])
        assert len(set(rows)) == 4 and max(rows) < 7
        assert not np.any(np.asarray(after["codes"])[0][~np.asarray(dead)[0]])


def test_no_storm_of_dead_codes_with_small_batches():
    """Batch 16 x 10 steps, 128 codes: 1.25 vectors a code. Under a threshold of 3 all would be dead all the time."""
    clusters = np.random.default_rng(0).normal(size=(128, 8)) * 3
    rng = np.random.default_rng(1)
    batches = [jnp.float32(clusters[rng.integers(0, 128, (16, 10))] + 0.1 * rng.normal(size=(16, 10, 8)))
               for _ in range(250)]  # fmt: skip
    module, variables = start(batches[0], 128, codebook_init="data", dead_share=0.1, dead_age=20, decay=0.97)
    replaced, used = [], np.zeros(128)
    for index, x in enumerate(batches):
        (_, codes, _, metrics), variables = train(module, variables, x, seed=index)
        replaced.append(float(metrics["codes_replaced"]))
        if index >= 200:
            used += np.bincount(np.asarray(codes).reshape(-1), minlength=128)
    assert np.mean(np.asarray(state(variables)["counts"]) < 3) > 0.9, "the absolute threshold would replace nearly all"
    assert sum(replaced) > 0 and np.mean(replaced[100:]) < 0.01 * 128
    assert np.mean(used > 0) > 0.95


def test_a_code_is_not_replaced_again_before_its_age():
    module, variables = start(data(4, 2, 3), 8, dead_share=0.9, dead_age=4, decay=0.0)
    ages = []
    for seed in range(12):
        before = state(variables)["age"]
        _, variables = train(module, variables, data(4, 2, 3, seed=seed), seed=seed)
        reset = state(variables)["age"] == 0
        ages += list(before[reset] + 1)
    assert ages and min(ages) >= 4


def test_padding_changes_nothing():
    x = np.array(data(6, 4, 3))
    mask = np.ones((6, 4))
    mask[2, 1:], mask[5, :] = 0, 0
    junk = np.where(mask[..., None] > 0, x, 1e3)
    module, variables = start(jnp.asarray(x), 5, jnp.asarray(mask), dead_share=0.3, dead_age=1)
    (_, codes, losses, metrics), after = train(module, variables, jnp.asarray(x), jnp.asarray(mask))
    (_, _, other_losses, other_metrics), other = train(module, variables, jnp.asarray(junk), jnp.asarray(mask))
    jax.tree.map(np.testing.assert_array_equal, (losses, metrics, after), (other_losses, other_metrics, other))
    assert losses["commitment"][5] == 0
    _, few = train(module, variables, jnp.asarray(x[:2]), jnp.asarray(mask[:2]))
    books = state(variables)["codes"]
    hits = np.bincount(np.asarray(codes)[:2].reshape(-1), minlength=5)
    np.testing.assert_allclose(state(few)["counts"][0],
                               np.where(state(few)["age"][0] == 0, state(few)["counts"][0],
                                        0.99 * state(variables)["counts"][0] + 0.01 * hits), rtol=1e-6)  # fmt: skip
    assert books.shape == (1, 5, 3)
    valid = np.asarray(codes)[mask > 0]
    assert float(metrics["codebook_utilization"]) == pytest.approx(len(np.unique(valid)) / 5)


def test_a_batch_of_padding_alone_leaves_the_codes():
    x = data(4, 2, 3)
    module, variables = start(x, 5, dead_share=0.5, dead_age=1)
    (_, _, losses, _), after = train(module, variables, x, jnp.zeros((4, 2)))
    np.testing.assert_array_equal(state(after)["codes"], state(variables)["codes"])
    assert not np.any(losses["commitment"])


@pytest.mark.parametrize("fields", [{}, {"distance": "cosine", "positions": 4}, {"update": "gradient"}])
def test_eight_devices_hold_the_codebook_that_one_device_computes(fields):
    devices = jax.devices()
    assert len(devices) == 8
    if fields.get("update") != "gradient":
        fields = {"dead_share": 0.6, "dead_age": 2, "decay": 0.5, **fields}
    batches = [data(16, 4, 6, seed=seed) for seed in range(6)]
    module = VQ(16, **fields)

    def run(mesh):
        place = NamedSharding(mesh, PartitionSpec("data"))
        same = NamedSharding(mesh, PartitionSpec())
        put = lambda x: jax.device_put(x, place)  # noqa: E731
        variables = jax.jit(lambda x: module.init(RNGS, x, train=True), out_shardings=same)(put(batches[0]))

        def step(variables, x, rng):
            def loss(params):
                out, updated = module.apply({**variables, **params}, x, train=True, mutable=["codebook"],
                                            rngs={"noise": rng})  # fmt: skip
                return jnp.sum(out[2]["codebook"]), (updated, out[3])

            params = {"params": variables["params"]} if "params" in variables else {}
            grads, (updated, metrics) = jax.grad(loss, has_aux=True)(params)
            moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
            return {**moved, **updated}, metrics

        step = jax.jit(step, out_shardings=same)
        replaced = 0.0
        for index, x in enumerate(batches):
            variables, metrics = step(variables, put(x), jax.random.key(index))
            replaced += float(metrics.get("codes_replaced", 0))
        return variables, replaced

    many, replaced = run(Mesh(np.asarray(devices), ("data",)))
    one, expected = run(Mesh(np.asarray(devices[:1]), ("data",)))
    for leaf in jax.tree.leaves(many):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8 and all(copy.shape == leaf.shape for copy in copies)
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, one)
    assert replaced == expected and ("dead_share" not in fields or replaced > 0)


def test_positions_do_not_see_each_other():
    x = np.array(data(8, 3, 4))
    module, variables = start(jnp.asarray(x), positions=3)
    _, after = train(module, variables, jnp.asarray(x))
    x[:, 1] += 5
    _, other = train(module, variables, jnp.asarray(x))
    changed = [not np.array_equal(state(after)["codes"][p], state(other)["codes"][p]) for p in range(3)]
    assert changed == [False, True, False]


def test_arithmetic_is_float32_whatever_comes_in():
    x = data(4, 2, 8).astype(jnp.bfloat16)
    for fields in ({}, {"update": "gradient"}):
        module, variables = start(x, **fields)
        (quantized, codes, losses, metrics), after = train(module, variables, x)
        assert quantized.dtype == jnp.float32 and codes.dtype == jnp.int32
        leaves = [*losses.values(), *metrics.values(), *jax.tree.leaves(after)]
        assert {leaf.dtype for leaf in leaves} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_evaluation_changes_nothing():
    x = data(4, 2, 3)
    module, variables = start(x, dead_share=0.5, dead_age=1)
    _, updated = jitted.apply(module, variables, x, train=False, mutable=["codebook"])
    jax.tree.map(np.testing.assert_array_equal, updated["codebook"], variables["codebook"])


def test_metrics_of_a_batch_are_those_of_its_histogram():
    x = data(8, 3, 4)
    module, variables = start(x, size=6)
    (quantized, codes, _, metrics), _ = train(module, variables, x)
    share = np.bincount(np.asarray(codes).reshape(-1), minlength=6) / 24
    entropy = -sum(p * np.log(p) for p in share if p)
    assert float(metrics["perplexity"]) == pytest.approx(np.exp(entropy), rel=1e-4)
    assert float(metrics["codebook_utilization"]) == pytest.approx(np.mean(share > 0))
    lengths = [np.linalg.norm(v, axis=-1).mean() for v in (np.asarray(x - quantized), np.asarray(x))]
    assert float(metrics["residual_ratio"]) == pytest.approx(lengths[0] / lengths[1], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distance": "cosin"}, "did you mean 'cosine'"),
        ({"update": "both"}, "update is 'both'"),
        ({"codebook_init": "kmeans"}, "codebook_init is 'kmeans'"),
        ({"size": 1}, "at least 2 codes"),
        ({"decay": 1.0}, "decay of a codebook is 1.0"),
        ({"dead_share": 3.0}, "in \\[0, 1\\)"),
        ({"dead_share": 0.1, "update": "gradient"}, "moving averages"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        VQ(**{"size": 8, **fields}).check()


def test_vectors_that_do_not_match_the_positions_are_refused():
    with pytest.raises(UserError, match="3 vectors for codebooks at 4 positions"):
        start(data(2, 3, 4), positions=4)
