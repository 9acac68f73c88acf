import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.data.formats.lapa.records import PROMPT, QUESTION, instruction_of, place_of, read_spans, records


def test_the_prompts_are_lapas():
    asked = "What action should the robot take to `{}`"
    assert f"<s> You are a helpful assistant. USER: {asked} ASSISTANT:" == PROMPT
    assert f"<image>\n{asked}" == QUESTION


@given(st.text(), st.sampled_from([PROMPT, QUESTION]))
def test_the_instruction_comes_out_of_the_prompt(text, template):
    assert instruction_of(template.format("{}").replace("{}", text, 1)) == (text, True)


@pytest.mark.parametrize(
    "record, place",
    [
        ({"id": "bridge_3_12", "image": "x/img_00099.jpg"}, ("bridge_3", 12)),
        ({"id": "stack_-_0007", "image": "x.jpg"}, ("stack_-", 7)),
        ({"id": 17, "image": "a/b/img_00012.jpg"}, ("a/b/img", 12)),
        ({"id": "17", "image": "a/12.png"}, ("a", 12)),
        ({"image": "/data/v1/frame-3.jpg"}, ("/data/v1/frame", 3)),
        ({"image": "12.png"}, ("table", 12)),
        ({"id": "x", "image": "a/b.png"}, None),
    ],
)
def test_places_of_records(record, place):
    assert place_of(record, "table") == place


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=3), max_size=4),
    st.data(),
)
def test_records_know_their_bytes(tmp_path_factory, values, data):
    """The bytes of each record, whatever the layout of the file, hold just that record."""
    path = tmp_path_factory.mktemp("r") / "a.json"
    values = [{**value, "image": "p.jpg"} for value in values]
    ascii_only, indent = data.draw(st.booleans()), data.draw(st.sampled_from([None, 1]))
    try:
        text = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    except UnicodeEncodeError:
        return
    path.write_bytes(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\n "])) + text + b"\n")
    found = list(records(path))
    assert [r.value for r in found] == values and [r.number for r in found] == list(range(len(values)))
    assert [json.loads(path.read_bytes()[r.start : r.end]) for r in found] == values
    if values:
        stretch = (found[0].start, found[-1].end, len(values))
        assert read_spans(path, [stretch], listed=True) == values
