import csv
import json

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.captions import match, read_captions
from lapa_jax.data.formats.reading import find_file

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
        ("c.csv", "video,label\na,12\nb,7\n", "'label' holds nothing but numbers, such as '12'"),
        ("c.json", '{"a": 3}', "nothing but numbers, such as 3"),
        ("c.csv", "video,caption\na,x\0y\n" + "b," + "x" * 200000 + "\n", "field larger than field limit"),
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_separators_within_a_text(tmp_path, encoding, end):
    """What json, csv and the standard say a record is: U+2028, U+2029, U+0085 and quoted newlines do not end it."""
    texts = ["push\u2028it", "open\u0085it", "a\u2029b\x0b\x0cc\x1cd"]
    lines = [json.dumps({"video": str(i), "caption": t}, ensure_ascii=False) for i, t in enumerate(texts)]
    (tmp_path / "c.jsonl").write_bytes(end.join(lines).encode(encoding))
    texts.append("push the block,\nthen \"stop\"")
    with open(tmp_path / "c.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerows([("video", "caption"), *enumerate(texts)])
    assert [row.text for row in read_captions(tmp_path / "c.jsonl")] == texts[:-1]
    assert [row.text for row in read_captions(tmp_path / "c.csv")] == texts


def test_classes_beside_sentences_and_texts_that_are_absent(tmp_path):
    (tmp_path / "c.csv").write_text("video_id,label,text\na,12,push it\nb,7,\nc,8,3\n")
    assert [row.text for row in read_captions(tmp_path / "c.csv")] == ["push it", "", "3"]
    rows = [{"id": 1, "caption": None, "label": 3}, {"id": 2, "caption": "open it", "label": 4}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert [row.text for row in read_captions(tmp_path / "d.json")] == ["", "open it"]
    (tmp_path / "e.json").write_text('{"a": "push it", "b": null, "c": NaN, "d": ["", "shut it", "close it"]}')
    assert [row.text for row in read_captions(tmp_path / "e.json")] == ["push it", "", "", "shut it"]
    (tmp_path / "f.jsonl").write_text('{"id": "a", "text": "one"}\n{"id": "b", "caption": "two"}\n')
    assert [row.text for row in read_captions(tmp_path / "f.jsonl")] == ["one", "two"]
    (tmp_path / "h.csv").write_text('Video, Label,Sentence\na,push,push it\nb,n/a,None\nc,3,nan\n')
    assert [row.text for row in read_captions(tmp_path / "h.csv")] == ["push it", "", "3"]
    (tmp_path / "i.csv").write_text("video,label\na,3\nb,N/A\n")
    with pytest.raises(UserError, match="'label' holds nothing but numbers"):
        read_captions(tmp_path / "i.csv")
    (tmp_path / "g.csv").write_text("video,arrays\na.mp4,a.npz\n")
    assert [(row.text, row.arrays) for row in read_captions(tmp_path / "g.csv")] == [("", "a.npz")]


def test_accents_of_one_character_or_two(tmp_path):
    composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
    for named, files in ((composed, [decomposed, "b.mp4"]), (decomposed, [composed, "b.mp4"])):
        (tmp_path / "c.json").write_text(json.dumps({named: "pour", "b.mp4": "stir"}))
        found, unused = match(read_captions(tmp_path / "c.json"), files, "c.json")
        assert [found[file].text for file in files] == ["pour", "stir"] and unused == 0
    (tmp_path / "c.json").write_text(json.dumps({composed: "one", decomposed: "two"}))
    found, _ = match(read_captions(tmp_path / "c.json"), [composed, decomposed], "c.json")
    assert [found[name].text for name in (composed, decomposed)] == ["one", "two"], "each its own where both exist"
    (tmp_path / "d\u00e9").mkdir()
    (tmp_path / "d\u00e9" / composed).write_text("x")
    assert find_file(tmp_path / "de\u0301" / decomposed) == tmp_path / "d\u00e9" / composed
    assert find_file(tmp_path / "none" / "x") == tmp_path / "none" / "x"
