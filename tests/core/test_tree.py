import numpy as np
import pytest

from lapa_jax.core import tree

TREE = {"a": {"b": np.zeros((2, 3)), "c": np.ones(4)}, "d": np.zeros(())}


def test_flatten_round_trip():
    flat = tree.flatten(TREE)
    assert list(flat) == ["a/b", "a/c", "d"]
    assert tree.flatten(tree.unflatten(flat)).keys() == flat.keys()


def test_split_and_merge_are_inverse_and_match_whole_names():
    matching, rest = tree.split(TREE, "a/.*")
    assert list(tree.flatten(matching)) == ["a/b", "a/c"] and list(tree.flatten(rest)) == ["d"]
    assert tree.split(TREE, "a")[0] == {}
    assert tree.flatten(tree.merge(rest, matching)).keys() == tree.flatten(TREE).keys()
    with pytest.raises(ValueError, match="both trees"):
        tree.merge(TREE, matching)


def test_diff_lists_missing_unexpected_and_shapes():
    other = {"a": {"b": np.zeros((2, 4))}, "e": np.zeros(1), "d": np.zeros(())}
    assert tree.diff(TREE, other) == "missing: a/c; unexpected: e; a/b has shape (2, 4) where (2, 3) is expected"
    assert tree.diff(TREE, TREE) == ""
    half = {"x": np.zeros(2, np.float16)}
    assert tree.diff({"x": np.zeros(2, np.float32)}, half) == "x is float16 where float32 is expected"


@pytest.mark.parametrize(("regex", "found"), [
    ("siglp/.*", "; did you mean 'siglip'?"),
    ("(siglp|dinv2)/.*", "; did you mean 'siglip' or 'dinov2'?"),
    (".*llm/decodr/.*", "; did you mean 'llm/decoder'?"),
    ("llm/decoder/layer/kernel", "; did you mean 'llm/decoder/layers/kernel'?"),
    ("audio/.*", "; names begin with dinov2, llm, siglip"),
])  # fmt: skip
def test_what_an_expression_without_a_match_resembles(regex, found):
    names = ["siglip/embed/kernel", "dinov2/embed/kernel", "llm/decoder/layers/kernel", "llm/decoder/norm_out/scale"]
    assert tree.closest(regex, names) == found
