"""LAPA-7B's files through the command: every golden of the official code, other sizes, and what is refused."""

import os
import pickle
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import lapa_jax
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.models.policies.lapa import Sequence
from tests import jitted
from tests.golden import released_lapa as released
from tests.golden.imported import read
from tools import import_weights

SMALL = ("--heads", "2", "--image_size", "16", "--text_length", "12", "--rotary", "1e4", "--eps", "1e-5")


def run(params, vqgan, out, *options):
    import_weights.main(["lapa7b", "--input", str(params), "--vqgan", str(vqgan), "--out", str(out), *options])
    return out


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "released" / "lapa7b_small"
    return folder, np.load(folder / "golden.npz")


@pytest.fixture(scope="module")
def latent(golden, tmp_path_factory):
    """The pretrained golden as `lapa_jax.load` gives it; its sizes lie beside it."""
    folder, out = golden[0], tmp_path_factory.mktemp("lapa") / "run"
    run(folder / "params", folder / "vqgan", out, "--tokenizer", "bytes", "--text_length", "160")
    return lapa_jax.load(out)


@pytest.fixture(scope="module")
def acting(golden, tmp_path_factory):
    """The finetuned golden."""
    folder, out = golden[0], tmp_path_factory.mktemp("lapa_action") / "run"
    run(folder / "params_action", folder / "vqgan", out, "--heads", "3", "--image_size", "64", "--tokenizer", "bytes",
        "--text_length", "160", "--bins", str(folder / "action_bins.csv"))  # fmt: skip
    return lapa_jax.load(out)


def sequence(golden, case, action=""):
    name = f"case{case}."
    ids, vision = golden[f"{name}{action}input_ids"], golden[f"{name}{action}vision_mask"]
    return Sequence(ids.astype(np.int32), vision, golden[f"{name}attention_mask"] > 0)


def apply(policy, method, *arguments):
    return jax.device_get(jitted.apply(policy.model, policy.variables, *arguments, method=method))


def features(model, image):
    return model.vqgan.features(image)


def looked_up(model, codes):
    return model.vqgan.quantize.lookup(codes)


def close(got, expected, tolerance=1e-4):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("case", [0, 1])
def test_images_features_and_codes_are_the_official_ones(golden, latent, case):
    g, name = golden[1], f"case{case}."
    image = latent.observed(g[f"{name}image"], "x")[0]["image"]
    np.testing.assert_array_equal(image[0], g[f"{name}resized"])
    close(apply(latent, features, image), g[f"{name}features"])
    codes = apply(latent, "image_codes", image)
    np.testing.assert_array_equal(codes, g[f"{name}codes"])
    close(apply(latent, looked_up, codes), g[f"{name}quantized"])
    close(2 * latent.seen(g[f"{name}image"][None]) - 1, g[f"{name}reconstruction"], 1e-3)


@pytest.mark.parametrize("case", [0, 1])
def test_logits_and_latent_codes_are_the_official_ones(golden, latent, case):
    g, name = golden[1], f"case{case}."
    given = sequence(g, case)
    logits = apply(latent, "every_head", given)
    close(logits["text"][0, -1], g[f"{name}text_logits_last"])
    close(logits["vision"][0, -1], g[f"{name}vision_logits_last"])
    close(logits["latent"][0][given.real[0]], g[f"{name}delta_logits"])
    codes, logits = apply(latent, "latent_codes", given)
    np.testing.assert_array_equal(codes[0], g[f"{name}delta_tokens_greedy"])
    close(logits[0], g[f"{name}delta_logits_4"])
    close(apply(latent, "teacher_forced_logits", given, codes)[0], g[f"{name}delta_logits_4"])


def test_the_official_sampler_loses_what_comes_after_a_two(golden, latent):
    from lapa_jax.models.policies.lapa import official_sampler

    for case in (0, 1):
        greedy, official = (golden[1][f"case{case}.delta_tokens_{word}"] for word in ("greedy", "official"))
        assert 2 in greedy[:-1] and (greedy != official).any()
        np.testing.assert_array_equal(official_sampler(greedy), official)
    np.testing.assert_array_equal(official_sampler(np.array([[2, 2, 1, 3], [0, 1, 3, 2], [7, 2, 0, 5]])),
                                  [[2, 0, 0, 0], [0, 1, 3, 2], [7, 2, 0, 0]])  # fmt: skip
    image = golden[1]["case0.image"]
    codes = latent.predict(image, "pick up the cup")
    assert codes.shape == (4,) and codes.dtype == np.int32
    np.testing.assert_array_equal(latent.predict(image, "pick up the cup", official_sampler=True),
                                  official_sampler(codes))  # fmt: skip


@pytest.mark.parametrize("case", [0, 1])
def test_actions_are_the_official_ones(golden, acting, case):
    g, name = golden[1], f"case{case}."
    tokens, logits = apply(acting, "action_tokens", sequence(g, case, "action_"))
    np.testing.assert_array_equal(tokens[0, 0], g[f"{name}action_tokens_greedy"])
    close(logits[0, 0], g[f"{name}action_logits_7"])
    np.testing.assert_allclose(acting.model.actions_of(tokens)[0, 0], g[f"{name}action"], rtol=0, atol=1e-9)
    close(apply(acting, "action_logits", sequence(g, case, "action_"), tokens)[0, 0], g[f"{name}action_logits_7"])


def test_a_finetuned_model_acts_and_says_how_many_numbers(golden, acting):
    image = golden[1]["case1.image"]
    action = acting.act(image, "open the drawer")
    assert action.shape == (7,) and acting.model.action_dim == 7 and acting.kind.name == "token_policy"
    batch, _ = acting.prepare(image, "open the drawer")
    tokens = apply(acting, "predict", batch)["tokens"]
    np.testing.assert_allclose(action, acting.model.actions_of(tokens)[0, 0], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def chosen(golden, tmp_path_factory):
    """The finetuned golden with the choices that are not the defaults."""
    folder, out = golden[0], tmp_path_factory.mktemp("lapa_chosen") / "run"
    run(folder / "params_action", folder / "vqgan", out, "--heads", "3", "--image_size", "64", "--tokenizer", "bytes",
        "--text_length", "160", "--bins", str(folder / "action_bins.csv"), "--existing_bins", "--center_crop")
    return lapa_jax.load(out)


def test_of_the_bins_that_exist_one_is_chosen_where_that_is_wanted(golden, chosen):
    policy, g = chosen, golden[1]
    assert (g["case0.action_tokens_greedy"][-1] > 1) and g["case0.action"][-1] == 1, "a bin that the gripper has not"
    tokens, _ = apply(policy, "action_tokens", sequence(g, 0, "action_"))
    assert tokens[0, 0, -1] in (0, 1) and policy.model.actions_of(tokens)[0, 0, -1] in (0, 1)
    np.testing.assert_array_equal(tokens[0, 0, :-1], g["case0.action_tokens_greedy"][:-1])


def test_a_model_that_was_finetuned_on_cropped_images_sees_them_so(golden, chosen):
    policy, image = chosen, golden[1]["case0.image"]
    for seen in (image, golden[1]["case0.resized"]):  # an image of the right size is cropped as well
        np.testing.assert_array_equal(policy.observed(seen, "x")[0]["image"][0],
                                      images.resize(image, 64, "lapa_cropped"))  # fmt: skip


def test_numbers_are_stored_as_they_are_and_images_in_float32(golden, latent):
    spec, variables, meta = read_of(latent)
    assert variables["llm"]["embedding"].dtype == ml_dtypes.bfloat16
    assert variables["vqgan"]["quantize"]["embeddings"].dtype == np.float32
    vqgan = pickle.loads((golden[0] / "vqgan").read_bytes())  # noqa: S301 (our own file)
    for name, value in tree.flatten(vqgan).items():
        np.testing.assert_array_equal(tree.flatten(variables["vqgan"])[name], value)
    assert spec["llm"]["rotary"] == 5e7 and spec["llm"]["eps"] == 1e-6


def read_of(policy):
    return policy.config.model.to_dict(), jax.device_get(policy.variables)["params"], policy.datasets


@pytest.mark.parametrize(
    ("seed", "sizes", "theta", "eps"),
    [(1, {}, 1e4, 1e-5), (2, {"dim": 24, "depth": 2, "hidden": 10, "codes": 9, "vocab": 310, "vision": 300}, 5e7, 1e-6),
     (3, {"dtype": np.float32, "depth": 1}, 100.0, 1e-2)],
)  # fmt: skip
def test_other_sizes_equal_a_decoder_written_out_in_numpy(tmp_path, seed, sizes, theta, eps):
    params = released.lapa_params(seed, **sizes)
    vqgan = released.write_vqgan(tmp_path / "vqgan", released.vqgan_arrays(seed))
    out = run(released.write_params(tmp_path / "params", params), vqgan, tmp_path / "run", "--heads", "2",
              "--image_size", "8", "--rotary", str(theta), "--eps", str(eps), "--code_length", "3")  # fmt: skip
    policy, rng = lapa_jax.load(out), np.random.default_rng(seed)
    vision = np.array([[False] * 5 + [True] * 4 + [False] * 3])
    ids = np.where(vision, rng.integers(0, 250, (1, 12)), rng.integers(0, 300, (1, 12))).astype(np.int32)
    real = np.arange(12)[None] > 1
    logits = apply(policy, "every_head", Sequence(ids, vision, real))
    embeddings = np.where(vision[0, :, None], *(np.asarray(params[f"transformer/{name}/embedding"], np.float64)[
        np.where(vision[0] == (name == "vte"), ids[0], 0)] for name in ("vte", "wte")))  # fmt: skip
    states = released.lapa_states(params, embeddings, real[0], 2, theta, eps)
    for name, head in (("text", "lm_head"), ("vision", "vision_head"), ("latent", "delta_head")):
        expected = states @ np.asarray(params[f"{head}/kernel"], np.float64)
        close(logits[name][0][real[0]], expected[real[0]])
    codes, _ = apply(policy, "latent_codes", Sequence(ids, vision, real))
    table = np.asarray(params["transformer/dte/embedding"], np.float64)
    for number in range(3):  # one after the other, all of it anew
        again = np.concatenate([embeddings, table[codes[0, :number]]])
        states = released.lapa_states(params, again, np.concatenate([real[0], np.ones(number, bool)]), 2, theta, eps)
        assert codes[0, number] == (states[-1] @ np.asarray(params["delta_head/kernel"], np.float64)).argmax()


def test_sizes_that_lie_beside_the_golden_are_taken(golden, latent, tmp_path):
    spec = latent.config.model
    assert (spec["llm"]["heads"], spec["llm"]["rotary"], spec["llm"]["eps"], spec["image_size"]) == (3, 5e7, 1e-6, 64)
    given = ("--heads", "2", "--eps", "1e-5")
    spec, _, _ = read(run(golden[0] / "params", golden[0] / "vqgan", tmp_path / "other", *given))
    assert (spec["llm"]["heads"], spec["llm"]["eps"]) == (2, 1e-5)


def test_a_train_state_gives_its_parameters_and_a_vqgan_in_safetensors_its_own(tmp_path, capsys):
    params, vqgan = released.lapa_params(0), released.vqgan_arrays(0, widths=(32, 32, 64), blocks=2)
    state = {f"params/params/{name}": array for name, array in params.items()}
    state |= {"opt_state/0/mu/lm_head/kernel": params["lm_head/kernel"], "step": np.int32(7)}
    flat = tree.flatten(vqgan)
    tensors = tmp_path / "vqgan.safetensors"
    safetensors.numpy.save_file({name.replace("/", "."): value for name, value in flat.items()}, tensors)
    out = run(released.write_params(tmp_path / "state", state), tensors, tmp_path / "state_run", *SMALL)
    assert "left out of state: 2 entries" in capsys.readouterr().out
    plain = run(released.write_params(tmp_path / "params", params), released.write_vqgan(tmp_path / "vqgan", vqgan),
                tmp_path / "plain", *SMALL)  # fmt: skip
    (spec, a, _), (other, b, _) = read(out), read(plain)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert spec == other and spec["vqgan"]["widths"] == (32, 32, 64) and spec["vqgan"]["blocks"] == 2
    for name, value in tree.flatten(a["params"]["vqgan"]).items():
        np.testing.assert_array_equal(value, flat[name])


@pytest.fixture
def files(tmp_path):
    """(parameters by name, the VQGAN's file, refuse(parameters or bytes, message, *options) -> what was said)."""
    params = released.lapa_params(0)
    vqgan = released.write_vqgan(tmp_path / "vqgan", released.vqgan_arrays(0))

    def refuse(content, message, *options, vqgan=vqgan):
        if isinstance(content, bytes):
            (tmp_path / "params").write_bytes(content)
        else:
            released.write_params(tmp_path / "params", content)
        with pytest.raises(UserError, match=message) as error:
            run(tmp_path / "params", vqgan, tmp_path / "out", *SMALL, *options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return params, vqgan, refuse


def test_missing_and_unexpected_entries_are_listed(files):
    params, _, refuse = files
    wrong = {name: array for name, array in params.items() if "w2" not in name and name != "lm_head/kernel"}
    said = refuse(wrong | {"head/kernel": params["lm_head/kernel"]}, "no complete LAPA-7B")
    assert "missing (2): lm_head/kernel, transformer/h/scan_decoder/feed_forward/w2/kernel" in said
    assert "unexpected (1): head/kernel" in said


def test_entries_of_a_wrong_shape_are_listed(files):
    params, _, refuse = files
    wrong = dict(params)
    for name in ("transformer/wte/embedding", "delta_head/kernel"):
        wrong[name] = params[name].T.copy()
    w1 = "transformer/h/scan_decoder/feed_forward/w1/kernel"
    wrong[w1] = params[w1].swapaxes(1, 2).copy()
    said = refuse(wrong, "no complete LAPA-7B")
    for name, shape in (("transformer/wte/embedding", "16, 300"), ("delta_head/kernel", "6, 16"), (w1, "3, 24, 16")):
        assert re.search(rf"{name}[^;,]*[\[(]{shape}[\])]", said), said
    assert not re.search("lm_head|w2|w3", said), "a transposed neighbour does not make others wrong"


def test_a_truncated_file_is_refused(files, tmp_path):
    params, _, refuse = files
    whole = released.write_params(tmp_path / "params", params).read_bytes()
    assert "too early" in refuse(whole[: len(whole) // 2], "no whole streaming checkpoint")
    # cut exactly between two entries: what is there is whole, and what is not is named
    first = released.write_params(tmp_path / "params", dict(list(params.items())[:4])).read_bytes()
    assert whole.startswith(first)
    refuse(first, r"missing \(\d+\): delta_head/kernel, lm_head/kernel")


def test_the_files_of_another_model_are_refused(files, tmp_path):
    params, vqgan, refuse = files
    refuse(vqgan.read_bytes(), "no whole streaming checkpoint")
    safetensors.numpy.save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    refuse((tmp_path / "other.safetensors").read_bytes(), "no whole streaming checkpoint")
    refuse(params, "is no VQGAN of LAPA-7B; missing.*holds weight", vqgan=tmp_path / "other.safetensors")
    refuse(params, "no whole file of arrays", vqgan=tmp_path / "params")
    refuse(params, "does not exist", vqgan=tmp_path / "absent")


class System:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_that_wants_to_run_a_program_is_refused_and_does_not(files, tmp_path):
    params, _, refuse = files
    hostile = released.vqgan_arrays(0) | {"quant_conv": System(tmp_path / "trace")}
    said = refuse(params, "posix.system", vqgan=released.write_vqgan(tmp_path / "hostile", hostile))
    assert "nothing was run" in said and not (tmp_path / "trace").exists()


def test_a_vqgan_that_lacks_or_transposes_something_is_refused_with_names(files, tmp_path):
    params, _, refuse = files
    arrays = released.vqgan_arrays(0)
    del arrays["decoder"]["Conv_1"]["bias"]
    arrays["encoder"]["Conv_0"]["kernel"] = arrays["encoder"]["Conv_0"]["kernel"].transpose(3, 2, 0, 1).copy()
    said = refuse(params, "no complete LAPA-7B", vqgan=released.write_vqgan(tmp_path / "wrong", arrays))
    assert "parameters that no tensor gives (1): vqgan/decoder/Conv_1/bias" in said
    assert re.search(r"vqgan/encoder/Conv_0/kernel[^;,]*[\[(]32, 3, 3, 3[\])]", said), said


def test_bins_go_with_a_checkpoint_of_actions_and_with_no_other(files, tmp_path):
    params, _, refuse = files
    acting = released.lapa_params(0, actions=9)
    table = tmp_path / "bins.csv"
    table.write_text("0,1,2,3\n-1.0,0.0,0.5,1.0\n-0.5,0.5,1.5,\n")
    refuse(acting, "give the CSV of their bins with --bins")
    refuse(params, "has no actions, so --bins", "--bins", str(table))
    wrong = {"": "no rows of edges", "0,1\n": "no rows of edges", "0,1\n1.0,x\n": "row 2 is no row",
             "0,1,2\n1.0,0.5,2.0\n": "no increasing numbers", "0\n1.0\n": "at least two",
             "0\n" + ",".join(map(str, range(11))): "10 bins, more than the 9 tokens"}  # fmt: skip
    for content, message in wrong.items():
        table.write_text(content)
        refuse(acting, message, "--bins", str(table))
    refuse(acting, "does not exist", "--bins", str(tmp_path / "absent.csv"))


def test_what_no_file_says_is_asked_for(files):
    params, _, refuse = files
    refuse(params, "16 wide into heads|does not divide the decoder's width, 16", "--heads", "5")
    refuse(params, "no multiple of 2, the pixels of one code", "--image_size", "15")


def test_without_a_tokenizer_words_are_refused_with_what_to_do(files, tmp_path):
    params, vqgan, _ = files
    policy = lapa_jax.load(run(released.write_params(tmp_path / "params", params), vqgan, tmp_path / "run", *SMALL))
    with pytest.raises(UserError, match="text_tokenizer"):
        policy.predict(np.zeros((16, 16, 3), np.uint8), "go")


def test_a_tokenizer_of_sentencepiece_gives_the_ids_of_the_released_sampler(files, tmp_path):
    """Two tokens of the beginning, then the words as SentencePiece has them."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = "You are a helpful assistant. USER: What action should the robot take to `{}` ASSISTANT: <vision>"
    (tmp_path / "text").write_text("\n".join([words.format("move the red cup"), "</vision> <delta> <action>"] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=299,
        byte_fallback=True, normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    params, vqgan, _ = files
    options = [*SMALL[:4], "--text_length", "120", *SMALL[6:], "--tokenizer", str(tmp_path / "tokenizer.model")]
    out = run(released.write_params(tmp_path / "params", params), vqgan, tmp_path / "run", *options)
    (tmp_path / "tokenizer.model").unlink()
    policy = lapa_jax.load(out)
    batch, _ = policy.observed(np.zeros((30, 20, 3), np.uint8), "move the Red cup")
    ids = batch["text"][0][batch["text_mask"][0] > 0].tolist()
    assert ids == [1, 1, *original.encode(words.format("move the Red cup"))]
    assert policy.model.latent_prompt == tuple(original.encode("</vision> <delta>"))
    assert policy.predict(np.zeros((30, 20, 3), np.uint8), "move the red cup").shape == (4,)
