"""features.json of an RLDS dataset: what a step holds, and how a serialised episode is taken apart. No TensorFlow."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.data.formats.rlds.conventions import Field

FILE = "features.json"
STEPS = "steps"


class Features:
    """The fields of one dataset.

    Attributes:
      step: {key: Field} of a step; keys are paths joined by "/".
      episode: the same for what lies beside the steps.

    Raises:
      UserError: features.json is missing or damaged, or describes something else than RLDS episodes.
    """

    def __init__(self, folder: pathlib.Path):
        import tensorflow_datasets as tfds

        path = folder / FILE
        read_json(path)
        try:
            self._tree = tfds.features.FeaturesDict.from_config(str(folder))
        except Exception as error:  # the parser raises whatever it stumbles over
            raise UserError(f"{path} cannot be understood ({_reason(error)}); copy it again from the dataset") from None
        tree = self._tree if isinstance(self._tree, tfds.features.FeaturesDict) else {}
        steps = tree[STEPS] if STEPS in tree.keys() else None
        if not isinstance(steps, tfds.features.Dataset) or not isinstance(steps.feature, tfds.features.FeaturesDict):
            raise UserError(f"{path} has no nested dataset '{STEPS}': the data are no RLDS episodes")
        self._paths: dict[str, tuple[str, ...]] = {}
        self.step = {key: _field(feature) for key, feature in self._leaves(steps.feature, ())}
        outside = {key: feature for key, feature in self._tree.items() if key != STEPS}
        self.episode = {key: _field(feature) for key, feature in self._leaves(outside, ()) if key not in self.step}

    def _leaves(self, tree: Mapping, path: tuple[str, ...]) -> Iterable[tuple[str, object]]:
        import tensorflow_datasets as tfds

        for name, feature in tree.items():
            if isinstance(feature, tfds.features.FeaturesDict):
                yield from self._leaves(feature, (*path, name))
            else:
                key = "/".join((*path, name))
                self._paths.setdefault(key, (*path, name))
                yield key, feature

    def parser(self, keys: Iterable[str]) -> "Parser":
        """Takes the fields `keys` out of episodes, and looks at nothing else."""
        step = {key: self._paths[key] for key in keys if key in self.step}
        episode = {key: self._paths[key] for key in keys if key not in self.step}
        return Parser(self._tree, step, episode)


class Parser:
    """Takes chosen fields out of serialised episodes.

    Args:
      tree: the dataset's feature tree.
      step: {key: path in the tree of a step} of the fields to take. episode: the same beside the steps.
    """

    def __init__(self, tree, step: Mapping[str, tuple[str, ...]], episode: Mapping[str, tuple[str, ...]]):
        import tensorflow_datasets as tfds

        self._step, self._episode = dict(step), dict(episode)
        inner, decoders = _branch(tree[STEPS].feature, self._step.values())
        outer, _ = _branch(tree, self._episode.values())
        self._features = tfds.features.FeaturesDict({**outer, STEPS: tfds.features.Dataset(inner)})
        self._decoders = {STEPS: decoders} if decoders else None

    def __call__(self, data: bytes) -> tuple[list[dict], dict]:
        """The steps and the fields beside them, {key: value} each. Pictures stay the bytes of their files.

        Raises:
          ValueError: the bytes are no such episode.
        """
        try:
            episode = self._features.deserialize_example_np(data, decoders=self._decoders)
            steps = [{key: _at(step, path) for key, path in self._step.items()} for step in episode[STEPS]]
            return steps, {key: _at(episode, path) for key, path in self._episode.items()}
        except Exception as error:  # protobuf, zlib and the decoders each raise their own kinds
            raise ValueError(f"the record is no episode of this dataset ({_reason(error)})") from None


def _branch(tree, paths: Iterable[tuple[str, ...]]) -> tuple[dict, dict]:
    """The part of a feature tree that `paths` lead to, and decoders for it that leave pictures encoded."""
    import tensorflow_datasets as tfds

    features, decoders, below = {}, {}, {}
    for name, *rest in paths:
        if rest:
            below.setdefault(name, []).append(tuple(rest))
            continue
        features[name] = tree[name]
        if isinstance(tree[name], tfds.features.Image):
            decoders[name] = tfds.decode.SkipDecoding()
    for name, rests in below.items():
        branch, inner = _branch(tree[name], rests)
        features[name] = tfds.features.FeaturesDict(branch)
        if inner:
            decoders[name] = inner
    return features, decoders


def _at(values: Mapping, path: tuple[str, ...]):
    for name in path:
        values = values[name]
    return values


def _field(feature) -> Field:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Text):
        return Field("text")
    if not isinstance(feature, (tfds.features.Image, tfds.features.Tensor)):
        return Field("other")
    shape, dtype = tuple(feature.shape), np.dtype(feature.np_dtype)
    picture = len(shape) == 3 and shape[-1] == 3 and dtype == np.uint8
    if picture or isinstance(feature, tfds.features.Image):
        return Field("image" if picture else "other", shape)
    if dtype.kind in "OSU":
        return Field("text", shape)
    return Field("number" if dtype.kind in "biuf" else "other", shape)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
