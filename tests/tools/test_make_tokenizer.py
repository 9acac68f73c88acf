"""The tokenizer of words, from the command to what the loader makes of instructions."""

import json

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import text, words
from lapa_jax.data.shards.step_shards import StepShards, read_dataset
from tests.data.samples import make
from tools import make_tokenizer

PLAIN = ["push the red cube left", "Push it; don't stop!", "schiebe den Würfel"]


def test_every_instruction_of_the_sample_comes_back_word_by_word(tmp_path, capsys):
    import lapa_jax

    sample = lapa_jax.__path__[0] + "/sample"
    make_tokenizer.main(["--data", sample, "--out", str(tmp_path / "words")])
    made = text.build({"name": str(tmp_path / "words")})
    told = {t for split in read_dataset(sample)["splits"] for t in StepShards(sample, split).instructions()}
    assert told and f"of {len(told)} instructions" in capsys.readouterr().out
    for instruction in told:
        ids, mask = made([instruction], 24)
        assert mask.sum() == len(instruction.split()) + 1 and ids[0, 0] == made.bos_id, "one token a word, behind bos"
        assert made.decode(ids[0]) == instruction and (ids[~mask] == made.pad_id).all()
    assert len({tuple(made([t], 24)[0][0]) for t in told}) == len(told)


def test_words_that_come_later_in_an_episode_are_known(tmp_path):
    (tmp_path / "data").mkdir()
    make.write(tmp_path / "data", [4], texts=[["push it", "push it", "then lift", "push it"]])
    make_tokenizer.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "words")])
    made = text.build({"name": str(tmp_path / "words")})
    assert made.decode(made(["then lift it"], 8)[0][0]) == "then lift it"


def test_a_recording_without_held_out_episodes_has_words_too(tmp_path):
    (tmp_path / "data").mkdir()
    make.write(tmp_path / "data", [4], texts=["push it"])
    about = read_dataset(tmp_path / "data")
    about["splits"]["val"] = {"episodes": 0, "steps": 0, "shards": []}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(about))
    make_tokenizer.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "words")])
    assert text.build({"name": str(tmp_path / "words")})(["push it"], 4)[1].sum() == 3


def test_ids_depend_on_the_words_alone(tmp_path):
    sizes = [words.write_tokenizer(tmp_path / str(i), some) for i, some in enumerate((PLAIN, PLAIN[::-1] + PLAIN))]
    made = [text.build({"name": str(tmp_path / str(i))}) for i in range(2)]
    assert sizes[0] == sizes[1] == made[0].vocab_size
    np.testing.assert_array_equal(made[0](PLAIN, 12)[0], made[1](PLAIN, 12)[0])
    assert made[0].lengths(PLAIN) == [6, 9, 4], "punctuation apart: Push it ; don ' t stop !"


def test_unknown_words_are_one_token(tmp_path):
    words.write_tokenizer(tmp_path / "w", PLAIN)
    made = text.build({"name": str(tmp_path / "w")})
    ids = made(["push the purple cube left"], 8)[0][0]
    known = made([PLAIN[0]], 8)[0][0]
    assert (ids != known).sum() == 1 and ids[3] == words.SPECIAL.index("<unk>")


def test_what_lies_there_is_kept_and_no_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="no words"):
        words.write_tokenizer(tmp_path / "w", ["", "  "])
    assert not any(tmp_path.iterdir())
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine").write_text("x")
    with pytest.raises(UserError, match="not an empty folder"):
        words.write_tokenizer(tmp_path / "w", PLAIN)
    assert (tmp_path / "w" / "mine").read_text() == "x"
