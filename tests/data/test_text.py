import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.text import TEMPLATES, ByteTokenizer, HuggingFaceTokenizer, build, plain, prompt

TEXTS = ["push the red block to the left", "öffne die Schublade", "", "pick up the cup 🥤 and put it on the plate"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.booleans())
def test_bytes_come_back(texts, special):
    tokenizer = ByteTokenizer(special_tokens=special)
    length = max(tokenizer.lengths(texts)) + 2
    ids, mask = tokenizer(texts, length)
    assert ids.shape == mask.shape == (len(texts), length) and (ids.dtype, mask.dtype) == (np.int32, bool)
    for text, row, told in zip(texts, ids, mask):
        raw = plain(text).encode()
        assert row[told].tolist() == [1] * special + [3 + byte for byte in raw] and told.sum() == len(raw) + special
        assert (row[~told] == 0).all() and not told[-1] and (np.diff(told.astype(int)) <= 0).all(), "on the right"
        assert tokenizer.decode(row) == plain(text)
    assert ids.max() < tokenizer.vocab_size == 259


def test_texts_are_made_plain_and_nothing_more():
    assert plain("  Pick up\tthe\n\nred  block. ") == "Pick up the red block."
    assert plain("o\u0308ffne") == "\u00f6ffne", "one spelling of the same letter"
    assert plain("") == ""


def test_templates_are_those_that_the_models_were_trained_with():
    assert prompt("  Pick up the CUP ") == "Pick up the CUP"
    assert prompt("Pick up the CUP", "openvla") == "In: What action should the robot take to pick up the cup?\nOut:"
    assert prompt("Pick up the CUP", "lapa") == (
        "<s> You are a helpful assistant. USER: What action should the robot take to `Pick up the CUP` ASSISTANT:"
    )
    assert prompt("go {instruction} {0}", "Task: {instruction}.") == "Task: go {instruction} {0}.", "put in once"
    for bad in ("open_vla", "Task: {task}", "{instruction} {instruction}"):
        with pytest.raises(UserError, match="is no known name, and does not hold {instruction} once"):
            ByteTokenizer(template=bad)
    ids, mask = build({"name": "bytes", "template": "openvla"})(["Push"], 80)
    assert ByteTokenizer().decode(ids[0]) == "In: What action should the robot take to push?\nOut:"


def test_long_texts_are_refused_unless_cutting_is_asked_for():
    with pytest.raises(UserError, match=r"takes 9 tokens of ByteTokenizer\(\) and 8 are allowed: 'push red'"):
        ByteTokenizer()(["push red"], 8)
    tokenizer = ByteTokenizer(truncate=True)
    ids, mask = tokenizer(["push red", "push", "ééé"], 6)
    assert [tokenizer.decode(row) for row in ids] == ["push ", "push", "éé"], "no half character"
    assert tokenizer.truncated == 2 and mask.sum(1).tolist() == [6, 5, 5]


def test_unknown_options_and_ids_are_refused():
    with pytest.raises(UserError, match="did you mean 'template'"):
        build({"name": "bytes", "templat": "plain"})
    with pytest.raises(UserError, match="needs a name"):
        build({"template": "plain"})
    for bad in (-1, 259):
        with pytest.raises(ValueError, match=f"token id {bad} is outside"):
            ByteTokenizer().decode([5, bad])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BPE of the `tokenizers` library, saved as Hugging Face saves one: Llama's special tokens, no pad."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20 + [prompt(text, "lapa") for text in TEXTS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    out = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    return out


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_a_tokenizer_of_hugging_face_gives_the_librarys_own_ids(folder, template):
    from tokenizers import Tokenizer

    tokenizer = build({"name": str(folder), "template": template})
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [prompt(text, template) for text in TEXTS]
    ids, mask = tokenizer(TEXTS, 60)
    assert ids.dtype == np.int32 and ids.shape == (4, 60)
    for text, row, told in zip(prompts, ids, mask):
        expected = reference.encode(text).ids
        assert row[told].tolist() == expected and told[: len(expected)].all() and expected[0] == 1
        assert (row[~told] == tokenizer.pad_id).all()
        assert tokenizer.decode(row).strip() == text.removeprefix("<s>").strip()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2), "no pad token: eos, and the mask"
    assert tokenizer.vocab_size == reference.get_vocab_size() and tokenizer.lengths(TEXTS) == mask.sum(1).tolist()
    bare = build({"name": str(folder), "special_tokens": False})
    assert bare.encode(TEXTS[0]) == reference.encode(TEXTS[0], add_special_tokens=False).ids


def test_long_texts_of_hugging_face_tokenizers(folder):
    whole = HuggingFaceTokenizer(str(folder)).encode(TEXTS[0])
    with pytest.raises(UserError, match=f"takes {len(whole)} tokens"):
        HuggingFaceTokenizer(str(folder))(TEXTS[:1], 4)
    tokenizer = HuggingFaceTokenizer(str(folder), truncate=True)
    ids, mask = tokenizer(TEXTS[:1], 4)
    assert ids[0].tolist() == whole[:4] and mask.all() and tokenizer.truncated == 1
    assert len(tokenizer.encode(TEXTS[0])) == len(whole), "cutting once does not cut what follows"


def test_tokenizers_go_to_workers(folder):
    for tokenizer in (ByteTokenizer(template="openvla"), build({"name": str(folder), "template": "lapa"})):
        again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
        np.testing.assert_array_equal(again(TEXTS, 160)[0], tokenizer(TEXTS, 160)[0])
        assert repr(again) == repr(tokenizer)


def test_what_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="folder ./nowhere does not exist"):
        build({"name": "./nowhere"})
    with pytest.raises(UserError, match="holds no tokenizer that can be read.*needs tokenizer.json"):
        build({"name": str(tmp_path)})
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")  # a name that by its standard never resolves
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(UserError, match="'nobody/nothing' is no folder here.*hf download.*'bytes' needs no download"):
        build({"name": "nobody/nothing"})


def test_a_model_file_without_sentencepiece_says_which_package(tmp_path, monkeypatch):
    import importlib.util

    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        build({"name": str(tmp_path)})


def test_importing_it_is_cheap(root):
    program = "import sys, lapa_jax.data.text; print({'transformers', 'tokenizers', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_id_that_every_prompt_ends_with_is_added_where_it_is_missing():
    tokenizer = build({"name": "bytes", "append": 3 + ord("!"), "lower": True})
    ids, mask = tokenizer(["Go", "go!"], 5)
    assert ids.tolist() == [[1, 3 + ord("g"), 3 + ord("o"), 3 + ord("!"), 0]] * 2 and mask.sum() == 8
    assert tokenizer.lengths(["Go", "go!"]) == [4, 4]
    with pytest.raises(UserError, match="takes 6 tokens"):
        tokenizer(["goes"], 5)
    cut = build({"name": "bytes", "append": 3 + ord("!"), "truncate": True})
    assert cut(["goes"], 4)[0].tolist() == [[1, 3 + ord("g"), 3 + ord("o"), 3 + ord("!")]] and cut.truncated == 1
