"""Trees of arrays by name: `{"a": {"b": x}}` is `{"a/b": x}`. Splitting, merging and comparing happen on names."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

SEPARATOR = "/"
# Parameters that a model may have besides those of the model whose weights it begins with; see `nn/lora.py`.
ADAPTER = re.compile(r".*/lora_[ab]")
# Types that parameters are stored in: bfloat16 where they are not trained. The same model may have either.
STORED = ("float32", "bfloat16")


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """Flattens nested mappings to `{"a/b/c": leaf}` in sorted order; anything but a mapping is a leaf."""
    flat = {}
    for key in sorted(tree):
        if not isinstance(key, str) or SEPARATOR in key:
            raise ValueError(f"tree key {key!r} must be a string without '{SEPARATOR}'")
        name = f"{prefix}{key}"
        if isinstance(tree[key], Mapping):
            flat.update(flatten(tree[key], name + SEPARATOR))
        else:
            flat[name] = tree[key]
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """The inverse of `flatten` (empty sub-trees are not kept)."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_named(function: Callable[[str, object], object], tree: Mapping) -> dict:
    """Applies `function(name, leaf)` to every leaf of nested mappings."""
    return unflatten({name: function(name, leaf) for name, leaf in flatten(tree).items()})


def split(tree: Mapping, pattern: str) -> tuple[dict, dict]:
    """Splits into the leaves whose whole name matches `pattern` and the others: `(matching, rest)`."""
    flat = flatten(tree)
    matching = {name for name in flat if re.fullmatch(pattern, name)}
    pick = lambda wanted: unflatten({n: leaf for n, leaf in flat.items() if (n in matching) == wanted})  # noqa: E731
    return pick(True), pick(False)


def merge(first: Mapping, second: Mapping) -> dict:
    """Merges two trees with disjoint names."""
    a, b = flatten(first), flatten(second)
    if common := sorted(a.keys() & b.keys()):
        raise ValueError(f"both trees hold {common[:3]}")
    return unflatten({**a, **b})


def diff(expected: Mapping, got: Mapping, alike: Sequence[str] = ()) -> str:
    """Describes how the names, shapes and dtypes of two trees differ; the empty string when they agree.

    Args:
      expected, got: the trees. alike: names of dtypes that may stand for each other, such as `STORED`.
    """
    e, g = flatten(expected), flatten(got)
    lines = _listed("missing", [n for n in e if n not in g]) + _listed("unexpected", [n for n in g if n not in e])
    for name in sorted(e.keys() & g.keys()):
        shapes = tuple(getattr(e[name], "shape", ())), tuple(getattr(g[name], "shape", ()))
        dtypes = getattr(e[name], "dtype", None), getattr(g[name], "dtype", None)
        if shapes[0] != shapes[1]:
            lines.append(f"{name} has shape {shapes[1]} where {shapes[0]} is expected")
        elif None not in dtypes and dtypes[0] != dtypes[1] and not {str(dtype) for dtype in dtypes} <= set(alike):
            lines.append(f"{name} is {dtypes[1]} where {dtypes[0]} is expected")
    return "; ".join(lines)


def closest(regex: str, names: Iterable[str]) -> str:
    """For messages about a regular expression that matches none of the names: "; did you mean ...?".

    Compared are parts of names of as many components as the expression has, "llm/decoder" of "llm/decoder/norm/scale".
    Without any that resemble it the first components of all names are listed.
    """
    names = sorted(names)
    words = [word.strip(SEPARATOR) for word in re.sub(r"[\\^$.*+?()\[\]{}]", "", regex).split("|")]
    close: list[str] = []
    for word in filter(None, words):
        count = word.count(SEPARATOR) + 1
        split = (name.split(SEPARATOR) for name in names)
        parts = {SEPARATOR.join(path[i : i + count]) for path in split for i in range(len(path) - count + 1)}
        close += difflib.get_close_matches(word, sorted(parts), n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(part) for part in dict.fromkeys(close))}?"
    return f"; names begin with {', '.join(dict.fromkeys(name.partition(SEPARATOR)[0] for name in names))}"


def _listed(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what}: {', '.join(sorted(names))}"] if names else []
