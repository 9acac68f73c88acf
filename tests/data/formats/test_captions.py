import json

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.captions import match, read_captions

ROWS = [("a/one.mp4", "push it"), ("a/two.mp4", 'say "hi", twice')]


@pytest.mark.parametrize(
    "name, text",
    [
        ("c.json", json.dumps(dict(ROWS))),
        ("c.json", json.dumps({video: {"label": text, "template": "x"} for video, text in ROWS})),
        ("c.json", json.dumps([{"id": video, "label": text, "placeholders": []} for video, text in ROWS])),
        ("c.jsonl", "".join(json.dumps({"id": 0, "video": v, "instruction": t}) + "\n\n" for v, t in ROWS)),
        ("c.csv", 'video,caption\na/one.mp4,push it\na/two.mp4,"say ""hi"", twice"\n'),
        ("c.csv", '\ufeffid;label\na/one.mp4;push it\na/two.mp4;"say ""hi"", twice"\n'),
        ("c.tsv", 'id\ttext\na/one.mp4\tpush it\na/two.mp4\t"say ""hi"", twice"\n'),
    ],
)
def test_forms(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [(c.video, c.text, c.arrays) for c in read_captions(tmp_path / name)] == [(*row, "") for row in ROWS]


def test_something_something_v2(tmp_path):
    rows = [{"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}]
    (tmp_path / "train.json").write_text(json.dumps(rows + [{"id": "5", "label": "unused"}]))
    found, unused = match(read_captions(tmp_path / "train.json"), ["20bn/42326.webm", "20bn/78687.webm"], "train.json")
    assert {video: caption.text for video, caption in found.items()} == {"20bn/78687.webm": "holding potato"}
    assert unused == 1


@pytest.mark.parametrize("name", ["a/one.mp4", "./a/one.mp4", "a\\one.mp4", "a/one", "one.mp4", "one"])
def test_names_of_videos(tmp_path, name):
    (tmp_path / "c.json").write_text(json.dumps({name: "x"}))
    found, _ = match(read_captions(tmp_path / "c.json"), ["a/one.mp4", "b/two.mp4"], "c.json")
    assert list(found) == ["a/one.mp4"]


@pytest.mark.parametrize(
    "captions, message",
    [
        ({"one": "x"}, "fits a/one.mp4 and b/one.mp4"),
        ({"three": "x"}, "no caption fits.*'three'.*'a/one.mp4'"),
        ({"a/one": "x", "a/one.mp4": "y"}, "two captions, 'x' and 'y'"),
    ],
)
def test_captions_that_cannot_be_matched(tmp_path, captions, message):
    (tmp_path / "c.json").write_text(json.dumps(captions))
    with pytest.raises(UserError, match=message):
        match(read_captions(tmp_path / "c.json"), ["a/one.mp4", "b/one.mp4"], "c.json")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("c.json", "{", "not valid JSON"),
        ("c.json", "3", "must hold a list"),
        ("c.json", "[3]", "entry 0: an object was expected"),
        ("c.json", "[]", "empty"),
        ("c.jsonl", '{"video": "a", "text": "b"}\n{', "line 2"),
        ("c.csv", "foo,bar\n1,2\n", "line 2: needs one of"),
        ("c.txt", "a: b", "not one of"),
    ],
)
def test_files_that_say_nothing(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        read_captions(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read captions file"):
        read_captions(tmp_path / "none.json")
