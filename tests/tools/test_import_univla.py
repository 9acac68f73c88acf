"""UniVLA's policy: codes are OpenVLA's logits at the ids behind the vocabulary; actions are the decoder's equations."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core.errors import UserError
from tests import jitted
from tests.core import torch_writer
from tests.golden import released

FIRST, CODES, LENGTH, DIM, HIDDEN, CHUNK = 32001, 16, 4, 16, 24, 3


def decoder(seed: int, width: int, state: int = 0, actions: int = 7) -> dict[str, np.ndarray]:
    """The state dict of an action decoder with random numbers."""
    rng, pool = np.random.default_rng(seed), "attn_pool" if state else "latent_action_pool"
    tensors = {}

    def linear(name, out, inputs, bias=True):
        tensors[f"net.{name}.weight"] = (rng.normal(size=(out, inputs)) / inputs**0.5).astype(np.float32)
        if bias:
            tensors[f"net.{name}.bias"] = rng.normal(size=out).astype(np.float32) / 5

    for name in (pool, "visual_pool"):
        tensors[f"net.{name}.latents"] = rng.normal(size=(1, DIM)).astype(np.float32)
        linear(f"{name}.projection", DIM, width)
        linear(f"{name}.attn.q", DIM, DIM, bias=False)
        linear(f"{name}.attn.kv", 2 * DIM, DIM, bias=False)
        linear(f"{name}.attn.proj", DIM, DIM)
        linear(f"{name}.mlp.0.project", 2 * HIDDEN, DIM)
        linear(f"{name}.mlp.1", DIM, HIDDEN)
        for norm in ("attn_norm", "mlp_norm"):
            tensors[f"net.{name}.{norm}.g"] = (1 + rng.normal(size=DIM) / 5).astype(np.float32)
    if state:
        linear("proprio_proj.0", DIM, state)
        linear("proprio_proj.2", DIM, DIM)
    linear("proj.0", actions * CHUNK, 2 * DIM if state else DIM)
    return tensors


def decoded(tensors: dict, prefix: np.ndarray, latent: np.ndarray, state=None, heads: int = 2) -> np.ndarray:
    """Actions [T, A] of the states [S, D] of an image and [N, D] of codes: the equations, row by row, in float64."""
    t = {name.removeprefix("net."): x.astype(np.float64) for name, x in tensors.items()}
    linear = lambda name, x: x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)  # noqa: E731
    root = lambda x, g: x / max(np.linalg.norm(x) * len(x) ** -0.5, 1e-8) * g  # noqa: E731

    def pool(name, tokens, added=0.0):
        x, query = linear(f"{name}.projection", tokens), t[f"{name}.latents"][0] + added
        q, kv = linear(f"{name}.attn.q", query), linear(f"{name}.attn.kv", x)
        key, value, size, gathered = kv[:, :DIM], kv[:, DIM:], DIM // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weight = np.exp(key[:, part] @ q[part] / size**0.5)
            gathered.append(weight @ value[:, part] / weight.sum())
        query = root(query + linear(f"{name}.attn.proj", np.concatenate(gathered)), t[f"{name}.attn_norm.g"])
        first, second = np.split(linear(f"{name}.mlp.0.project", query), 2)
        forward = linear(f"{name}.mlp.1", first * second / (1 + np.exp(-second)))
        return root(query + forward, t[f"{name}.mlp_norm.g"])

    visual = pool("visual_pool", prefix)
    if state is None:
        return np.tanh(linear("proj.0", pool("latent_action_pool", latent, visual))).reshape(CHUNK, -1)
    hidden = linear("proprio_proj.0", state)
    hidden = hidden * [0.5 * (1 + math.erf(h / 2**0.5)) for h in hidden]
    pooled = pool("attn_pool", latent, visual)
    return linear("proj.0", np.concatenate([pooled, linear("proprio_proj.2", hidden)])).reshape(CHUNK, -1)


@pytest.fixture(scope="module")
def source(shared, tmp_path_factory):
    """The golden OpenVLA with the tokens of codes, statistics of one data set, and vocabulary enough."""
    folder = released.copy_openvla(shared, tmp_path_factory.mktemp("univla") / "source")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": FIRST + k, "content": f"<ACT_{k}>", **special} for k in range(CODES)]
    tokenizer["model"]["vocab"] |= {f"<ACT_{k}>": FIRST + k for k in range(CODES)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    stats = json.loads((folder / "dataset_statistics.json").read_text())
    stats["bridge_orig"]["proprio"] = stats["bridge_orig"]["action"]
    (folder / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": stats["bridge_orig"]}))
    return folder


@pytest.fixture(scope="module")
def golden(shared):
    return dict(np.load(shared / "golden" / "released" / "openvla_small" / "golden.npz"))


@pytest.fixture(scope="module")
def latent(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("latent") / "run"
    released.import_("univla", source, out)
    return lapa_jax.load(out)


@pytest.fixture(scope="module")
def openvla(source, tmp_path_factory):
    """(model, variables) of the same folder as an OpenVLA."""
    return released.import_("openvla", source, tmp_path_factory.mktemp("openvla") / "run")[:2]


@pytest.fixture(scope="module")
def acting(source, tmp_path_factory):
    """(policy with an action decoder, the decoder's tensors)."""
    folder = tmp_path_factory.mktemp("acting")
    width = released.tensors_of(source)["language_model.lm_head.weight"].shape[1]
    torch_writer.save(folder / "decoder.pt", tensors := decoder(3, width))
    released.import_("univla", source, folder / "run", "--action_decoder", folder / "decoder.pt", "--decoder_heads", 2)
    return lapa_jax.load(folder / "run"), tensors


def test_the_codes_are_the_largest_of_the_logits_that_openvla_has_for_their_ids(latent, openvla, golden):
    model, variables = openvla
    assert latent.model.first_code == FIRST and latent.model.codebook_size == CODES and latent.model.code_length == 4
    for i, instruction in enumerate(released.INSTRUCTIONS):
        codes = latent.predict(golden[f"case{i}.image"], instruction)
        batch, _ = latent.observed(golden[f"case{i}.image"], instruction)
        tokens = np.zeros((1, LENGTH), np.int32)
        for number in range(LENGTH):  # one after the other, all of the sequence anew
            logits = jitted.apply(model, variables, batch, tokens, method="teacher_forced_logits")[0, number]
            tokens[0, number] = FIRST + np.argmax(logits[FIRST : FIRST + CODES])
        np.testing.assert_array_equal(codes, tokens[0] - FIRST)


def test_logits_given_the_true_codes_are_openvlas(latent, openvla, golden):
    model, variables = openvla
    batch, _ = latent.observed(golden["case0.image"], released.INSTRUCTIONS[0])
    codes = np.array([[3, 15, 0, 7]], np.int32)
    logits = jitted.apply(model, variables, batch, FIRST + codes, method="teacher_forced_logits")
    logits = logits[:, :LENGTH, FIRST : FIRST + CODES]
    taught = jitted.apply(latent.model, latent.variables, batch, codes, method="teach")
    np.testing.assert_allclose(taught.logits, logits, rtol=1e-4, atol=1e-5)


def test_the_codes_of_the_step_before_stand_in_the_prompt(latent, golden):
    image = golden["case0.image"]
    latent.predict(image, "pick up the red cup", history=[1, 2, 3, 15])
    added = latent.with_history("pick up the Red cup", np.array([[1, 2, 3, 15]]))
    plain = latent.tokenizer(["pick up the red cup"], 128)[0][0]
    ids = added["text"][0][added["text_mask"][0] > 0].tolist()
    place = ids.index(FIRST + 1)
    assert ids[place : place + 4] == [FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 15]
    assert ids[:place][: plain.tolist().index(29973) + 1] == plain[: plain.tolist().index(29973) + 1].tolist()
    assert ids[place + 4 :] == [13, 3744, 29901, 29871]
    for wrong in ([1, 2, 3], [1, 2, 3, 16], [0.5, 1, 2, 3]):
        with pytest.raises(UserError, match="the 4 codes of the step before"):
            latent.predict(image, "pick up", history=wrong)


def test_the_loss_is_the_cross_entropy_of_the_codes_and_of_the_end_among_all_ids(latent, openvla, golden):
    """As in the official training, whose labels are the last five ids of a prompt with its answer."""
    model, variables = openvla
    batch, _ = latent.observed(golden["case0.image"], released.INSTRUCTIONS[0])
    codes = np.array([[3, 15, 0, 7]], np.int32)
    logits = jitted.apply(model, variables, batch, FIRST + codes, method="teacher_forced_logits")[0]
    logits = np.asarray(logits, np.float64)
    shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -np.mean([shares[number, token] for number, token in enumerate([*(FIRST + codes[0]), 2])])
    batch |= {"latent": codes, "latent_mask": np.ones(1, np.float32)}
    out = jitted.apply(latent.model, latent.variables, batch, train=False)
    np.testing.assert_allclose(out.losses["latent"], [wanted], rtol=1e-4)


def test_actions_are_learned_from_the_true_codes_where_there_are_some(acting, golden):
    policy, tensors = acting
    model, rng = policy.model.clone(learns_codes=True), np.random.default_rng(0)
    batch, _ = policy.prepare(golden["case0.image"], released.INSTRUCTIONS[0])
    batch |= {"latent": np.array([[3, 15, 0, 7]], np.int32), "action_mask": np.array([[1, 1, 0]], np.float32),
              "action": rng.uniform(-1, 1, (1, CHUNK, 7)).astype(np.float32)}  # fmt: skip
    out = jitted.apply(model, policy.variables, batch, train=False)
    taught = jitted.apply(policy.model, policy.variables, batch, batch["latent"], method="teach")
    own = jitted.apply(policy.model, policy.variables, batch, method="say")
    assert (own.codes != batch["latent"]).any()
    predicted = decoded(tensors, np.asarray(taught.prefix[0, : model.image_tokens], np.float64),
                        np.asarray(taught.states[0, :LENGTH], np.float64))  # fmt: skip
    np.testing.assert_allclose(out.losses["action"], [np.abs(predicted - batch["action"][0])[:2].mean()], rtol=1e-4)
    np.testing.assert_array_equal(taught.states[0, 0], own.states[0, 0])
    assert set(out.losses) == {"action", "latent"} and set(model.example(2)) > {"latent"}


def test_each_query_is_told_the_codes_of_the_one_before(acting, golden):
    policy, _ = acting
    images = np.stack([golden["case1.image"], golden["case1.image"][::-1]])
    texts = list(released.INSTRUCTIONS)
    session = policy.session(history=True)
    chunks, codes = policy.chunk_and_codes(images, texts)
    np.testing.assert_array_equal(session.chunk(images, texts), chunks)
    np.testing.assert_array_equal(chunks, policy.chunk(images, texts))
    assert codes.shape == (2, LENGTH) and codes.dtype == np.int32
    second = session.chunk(images, texts)
    for row in (0, 1):
        alone, said = policy.chunk_and_codes(images[row], texts[row], history=codes[row])
        np.testing.assert_allclose(second[row], alone, atol=1e-5)
        plain, _ = policy.prepare(images[row], texts[row])
        told = policy.with_history(texts[row], codes[row][None])
        assert told["text_mask"].sum() > plain["text_mask"].sum() + LENGTH and said.shape == (LENGTH,)
    assert np.abs(second - chunks).max() > 1e-4, "history makes a difference"
    assert policy.session() is policy


@pytest.mark.parametrize("state", [0, 7])
def test_an_action_decoder_acts_as_its_equations_say(source, golden, tmp_path, state):
    width = released.tensors_of(source)["language_model.lm_head.weight"].shape[1]
    tensors = decoder(1 + state, width, state)
    if state:
        safetensors.numpy.save_file(tensors, path := tmp_path / "decoder.safetensors")
    else:
        torch_writer.save(path := tmp_path / "decoder.pt", tensors)
    released.import_("univla", source, tmp_path / "run", "--action_decoder", path, "--decoder_heads", 2)
    policy = lapa_jax.load(tmp_path / "run")
    assert (policy.model.chunk_length, policy.model.action_dim, policy.model.state_dim) == (CHUNK, 7, state)
    image, numbers = golden["case1.image"], np.linspace(-0.02, 0.02, 7).astype(np.float32) if state else None
    batch, _ = policy.prepare(image, "place the carrot on the plate", numbers)
    spoken = jitted.apply(policy.model, policy.variables, batch, method="say")
    normalised = decoded(tensors, np.asarray(spoken.prefix[0, : policy.model.image_tokens], np.float64),
                         np.asarray(spoken.states[0], np.float64), batch["state"][0] if state else None)  # fmt: skip
    np.testing.assert_allclose(policy.predict(batch)[0], normalised, rtol=1e-4, atol=1e-5)
    stats = policy.datasets["bridge_orig"]["statistics"]["action"]
    low, high, mask = (np.array(stats[name]) for name in ("q01", "q99", "mask"))
    expected = np.where(mask, 0.5 * (normalised + 1) * (high - low) + low, normalised)
    chunk = policy.chunk(image, "place the carrot on the plate", numbers)
    np.testing.assert_allclose(chunk, expected, rtol=1e-4, atol=1e-5)


def test_the_wrong_decoder_is_refused_with_a_list(source, tmp_path):
    width = released.tensors_of(source)["language_model.lm_head.weight"].shape[1]

    def refuse(tensors, message):
        safetensors.numpy.save_file(tensors, tmp_path / "decoder.safetensors")
        with pytest.raises(UserError, match=message):
            released.import_("univla", source, tmp_path / "out", "--action_decoder", tmp_path / "decoder.safetensors",
                             "--decoder_heads", 2)  # fmt: skip
        assert not (tmp_path / "out").exists()

    whole = decoder(0, width)
    refuse({"weight": np.zeros(3, np.float32)}, "no action decoder of UniVLA; missing .*visual_pool.latents")
    refuse({**whole, "net.extra": np.zeros(3, np.float32)}, r"unexpected \(1\): action_decoder.extra")
    key = "net.visual_pool.attn.q.weight"
    refuse({name: x for name, x in whole.items() if name != key}, r"missing \(1\): .*visual_pool.attn.q.weight")
    key = "net.visual_pool.projection.weight"
    refuse({**whole, key: np.ascontiguousarray(whole[key].T)}, "visual_pool.projection.weight has shape")
    refuse(decoder(0, width, actions=5), "no chunk of actions of 7 dimensions")
