"""Run folders of small vision-language policies with random weights, as training on the sample would leave them."""

import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.files import write_json
from lapa_jax.data import pipeline
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.train.checkpoint import CONFIG_FILE, Checkpointer
from lapa_jax.train.state import State

SMALL = ["data.image_size=28", "data.eval_examples=40", "model.siglip.depth=2", "model.dinov2.depth=2",
         "model.siglip.dim=16", "model.siglip.hidden=24", "model.dinov2.dim=16", "model.dinov2.hidden=24",
         "model.llm.dim=32", "model.llm.depth=2", "model.llm.hidden=32"]  # fmt: skip
HEADS = {"bins": ["model.head.bins=16"], "chunk": ["model.head.width=16"],
         "latent": ["model.head.width=16", "model.head.heads=2"],
         "flow": ["model.head.width=16", "model.head.heads=2", "model.head.depth=1", "model.head.steps=3"]}  # fmt: skip
STATE = {"count": 4, "mean": [0.0, 1.0, 5.0], "std": [1.0, 2.0, 0.5], "min": [-3.0, -4.0, 3.0], "max": [3.0, 6.0, 7.0],
         "q01": [-2.0, -3.0, 4.0], "q99": [2.0, 5.0, 6.0]}  # fmt: skip


def write(run, root, config: str, *overrides: str, head: str = "bins", state: bool = False, names=("sample",)):
    """Writes a run of step 5; returns its folder.

    Args:
      config: a file of `configs/`, "vla_action.py" or "vla_latent.py", whose variant tiny is made smaller.
      head: of "vla_action.py". overrides: "model.lora_rank=3" and the like.
      state: with proprioception of 3 numbers, which the sample does not have.
      names: of the datasets that it claims to be trained on, each with statistics of its own.
    """
    small, variant = [*SMALL, *overrides], "tiny"
    if config == "vla_action.py":
        small, variant = [*SMALL, *HEADS[head], "data.chunk_length=2", *overrides], f"tiny+{head}"
    values = config_lib.load(f"{root}/configs/{config}:{variant}", [f"--config.{o}" for o in small])
    source = pipeline.build(values.data, "train")
    spec = config_lib.complete("lapa_jax.models", values.model, source, 0) | ({"state_dim": 3} if state else {})
    values = {**config_lib.to_json(values), "model": config_lib.to_json(config_lib.from_json(spec))}
    datasets = {name: about(next(iter(source.meta()["datasets"].values())), k, state) for k, name in enumerate(names)}
    write_json(run / CONFIG_FILE, values)
    checkpoints = Checkpointer(run, keep_last=1, best_metric=None)
    variables = weights(expected_variables(config_lib.build("lapa_jax.models", config_lib.from_json(values).model)))
    checkpoints.save(State(np.array(5, np.int32), variables, {"slots": np.zeros(2)}), 5,
                     {"config": values, "datasets": datasets, "step": 5}, None)  # fmt: skip
    checkpoints.close()
    return run


def about(entry: dict, number: int, state: bool) -> dict:
    """What a checkpoint says of a dataset; those after the first act on a larger scale."""
    statistics = dict(entry["statistics"])
    if number:
        action = {key: np.multiply(statistics["action"][key], 1.0 + number).tolist() if key != "count" else value
                  for key, value in statistics["action"].items()}  # fmt: skip
        statistics["action"] = action
    statistics |= {"state": STATE} if state else {}
    return {**entry, "statistics": statistics}


def weights(shapes) -> dict:
    """Random ones of the usual size of a kernel's; queries are small, so that what is seen decides what is done."""
    rng = np.random.default_rng(0)

    def draw(name: str, leaf):
        size = 0.02 if name.endswith("queries") else max(leaf.shape[-2:][0], 4) ** -0.5
        return np.array(size * rng.normal(size=leaf.shape), leaf.dtype)

    return tree.map_named(draw, shapes)


def seen(policy, rows: int = 3, seed: int = 0) -> tuple:
    """Arguments of `chunk` or `predict`: pictures of another size, and instructions."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (rows, 40, 32, 3)).astype(np.uint8)
    texts = [f"push the {colour} cube" for colour in ("red", "blue", "yellow", "green", "black")]
    found = pictures, (texts * rows)[:rows]
    width = getattr(policy.model, "state_dim", 0)
    return (*found, rng.normal(size=(rows, width)).astype(np.float32)) if width else found
