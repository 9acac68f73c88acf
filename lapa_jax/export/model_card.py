"""The model card of an exported folder, `README.md`: what it is, what it learned from, how good it is, how to load it.

Hugging Face's hub shows such a file, and reads its head (https://huggingface.co/docs/hub/model-cards).
"""

import json
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from lapa_jax.core import escape
from lapa_jax.core.files import read_json
from lapa_jax.core.metrics import read_metrics

FILE = "README.md"
METRICS_FILE = "eval/metrics.json"
"""Of a run folder, where `launch/eval.py` writes by default."""
NOT_SAID = "not said"
MOST = 40
"""Metrics that are listed at most."""

LIMITS = {
    "frame_pair_tokenizer": (
        "A code means what it meant for the embodiments, cameras and frame gap of the data above. For others, measure "
        "it again: `launch/eval.py --data SHARDS`.",
        "Codes say nothing about units: a policy has to learn what they mean for a robot.",
    ),
    "image_encoder": ("Features are of images like those of the data above.",),
    "action_tokenizer": ("Actions are scaled by the statistics of the data above; other robots need their own.",),
    "feature_tokenizer": ("Codes are of features like those of the data above.",),
    "latent_policy": ("It gives latent actions, which no robot executes: it is meant to be trained on.",),
    "in_context_policy": ("It acts by demonstrations that it is shown, of tasks like those of the data above.",),
    None: (
        "Actions are in the units, and at the rate, of the data above; another robot, camera or rate needs training.",
        "It knows no limits of joints, speed or force: whoever runs it on a robot has to set them.",
    ),
}
"""{kind of model: what it does not do}. None: of the policies that act."""

USE = {
    "frame_pair_tokenizer": "codes = model.encode(frames)                  # uint8 [B, 2, H, W, 3] -> int32 [B, N]\n"
                            "next_frames = model.decode(frames[:, 0], codes)",
    "image_encoder": "features = model.encode(images)    # uint8 [B, H, W, 3] -> float32 [B, rows, columns, D]",
    "action_tokenizer": "codes = model.encode(actions)                  # numbers [B, T, A], in the units of the data\n"
                        "actions = model.decode(codes)",
    "feature_tokenizer": "codes = model.encode(features)                 # numbers [B, F], in the units of the data\n"
                         "features = model.decode(codes)",
    "latent_policy": 'codes = model.predict(image, "pick up the red block")    # uint8 [H, W, 3] -> int32 [N]',
    "in_context_policy": "# see docs/howto/in_context.md: demonstrations are its prompt",
    None: 'action = model.act(image, "pick up the red block")       # uint8 [H, W, 3] -> float32 [A]',
}  # fmt: skip
"""{kind of model: lines of Python that use it}."""


def write(folder: pathlib.Path, trained, run, license: str | None) -> None:
    """Writes the card into an exported folder.

    Args:
      folder: with `config.json` in it. trained: what was exported, as `lapa_jax.load` gives it.
      run: the folder it came from, whose evaluation is quoted. license: of the weights; None: not said.
    """
    name = escape.markdown(trained.config.get("name") or pathlib.Path(run).name)
    parts = [_head(license), f"# {name}", *_what(trained), "## Data", *_data(trained), "## Evaluation",
             *_evaluation(pathlib.Path(run), trained.step), "## Limits", *_limits(trained), "## Use", *_use(trained),
             "## Licence", f"{escape.markdown(license or NOT_SAID)}. The licences of the data and of weights that "
             "training began from apply too."]  # fmt: skip
    (folder / FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(license: str | None) -> str:
    """What the hub reads; texts as JSON, which YAML is a superset of."""
    said = f"license: {json.dumps(license)}\n" if license else ""
    return f"---\nlibrary_name: lapa_jax\npipeline_tag: robotics\n{said}tags: [lapa, latent-actions, jax]\n---"


def _what(trained) -> Iterator[str]:
    leaves = jax.tree.leaves(trained.variables.get("params", {}))
    parameters = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    yield (f"A {trained.kind.noun} of lapa_jax ([LAPA, arXiv 2410.11758](https://arxiv.org/abs/2410.11758) in JAX): "
           f"`{trained.config.model.name}` with {parameters:,} parameters, after {trained.step:,} steps of training. "
           "`config.json` has its whole config.")  # fmt: skip
    yield f"Fingerprint of the weights: `{trained.fingerprint}`."


def _data(trained) -> Iterator[str]:
    if not trained.datasets:
        yield "Not said: these weights were imported from another project."
        return
    rows = [("dataset", "weight", "rate", "columns", "fingerprint")]
    for name, entry in trained.datasets.items():
        features, fps = entry.get("features") or {}, entry.get("fps")
        rows.append((name, f"{entry.get('weight', 1.0):g}", f"{fps:g} Hz" if fps else "", ", ".join(features),
                     str(entry.get("fingerprint") or "")[:12]))  # fmt: skip
    yield _table(rows)
    if labels := {str((entry.get("labels") or {}).get("tokenizer"))[:12] for entry in trained.datasets.values()
                  if entry.get("labels")}:  # fmt: skip
        yield f"The latent actions are of the tokenizer {escape.markdown(', '.join(sorted(labels)))}."
    yield "`config.json` has the statistics of their numbers."


def _evaluation(run: pathlib.Path, step: int) -> Iterator[str]:
    path = run / METRICS_FILE
    measured = read_json(path) if path.is_file() else {}
    if isinstance(measured, dict) and isinstance(measured.get("metrics"), dict) and measured.get("step") == step:
        split, data = (escape.markdown(measured.get(key, NOT_SAID)) for key in ("split", "data"))
        yield f"By `launch/eval.py`, on the split {split} of {data}:"
        yield _metrics(measured["metrics"])
        return
    lines = [line for line in read_metrics(run) if line["step"] == step]
    values = {name: value for line in lines for name, value in line.items() if name.startswith("val/")}
    if values:
        yield "By the last evaluation in training, on held-out data:"
        yield _metrics(values)
    else:
        yield "Not evaluated where they were exported; `launch/eval.py --run FOLDER --data SHARDS` does that."


def _metrics(values: Mapping[str, float | None]) -> str:
    numbers = [(name, f"{value:.4g}") for name, value in values.items() if isinstance(value, int | float)]
    left = f"\n\n{len(numbers) - MOST} more are left out." if len(numbers) > MOST else ""
    return _table([("metric", "value"), *numbers[:MOST]]) + left


def _limits(trained) -> Iterator[str]:
    measured = "Nothing here was measured on a real robot by the program that wrote this card."
    yield "\n".join(f"- {line}" for line in (*LIMITS.get(trained.kind.name, LIMITS[None]), measured))


def _use(trained) -> Iterator[str]:
    lines = USE.get(trained.kind.name, USE[None])
    if len(trained.datasets) > 1 and trained.kind.name not in ("frame_pair_tokenizer", "image_encoder"):
        lines += '\n# of several datasets: name the one whose units are meant, dataset="..."'
    yield f'```python\nimport lapa_jax\n\nmodel = lapa_jax.load("FOLDER")               # this folder\n{lines}\n```'


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (list(map(escape.markdown, row)) for row in rows)
    return "\n".join(escape.table(head, body))
