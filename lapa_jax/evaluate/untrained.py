"""What can be read off the same network untrained: a random network gives features too, from which much of an action
can be read already. What a probe gains by training is measured against it."""

from collections.abc import Sequence

import jax

from lapa_jax.core.metrics import read_metrics
from lapa_jax.core.startup import say


def probes(evaluation, names: Sequence[str]) -> dict[str, float]:
    """The metrics of the network as the run began, by its seed and with what others gave, on the same pairs.

    Args:
      evaluation: a `BaseEvaluation` of frame pairs with `as_in_training`: whether they are of the run's own split.
      names: of metrics.

    Returns:
      {"<name>_untrained": value} of those that there are.
    """
    if recorded := _recorded(evaluation, names):
        return recorded
    say("measuring the same network untrained")
    tokenizer, first = evaluation.tokenizer, next(iter(evaluation.batches()))
    init = jax.jit(evaluation.task.init, out_shardings=tokenizer.replicated)
    # What is read in training alone, such as frames between those of the pair, is zeros here.
    example = tokenizer.model.example(len(first["frames"]))
    seed = tokenizer.config.get("seed", 0)
    variables = init(jax.random.key(seed), {name: first.get(name, zeros) for name, zeros in example.items()})
    # A pretrained tower was not trained by this run, and belongs to both sides.
    taken = {n for n, path in (tokenizer.config.get("init_from") or {}).items() if path is not None}
    params = {n: x for n, x in tokenizer.variables["params"].items() if n in taken}
    variables["params"] = {**variables["params"], **params}
    metrics, _ = evaluation.measure(variables)
    return {f"{name}_untrained": metrics[name] for name in names if name in metrics}


def _recorded(evaluation, names: Sequence[str]) -> dict[str, float]:
    """The same from the run's own evaluation before its first step, if that was of these pairs and of a network that
    had nothing from others; else nothing."""
    config = evaluation.tokenizer.config
    others = any(path is not None for path in (config.get("init_from") or {}).values())
    measured = min(config["data"].get("eval_examples") or 0, len(evaluation.source))
    if not evaluation.as_in_training or others or measured != evaluation.count:
        return {}
    begin = next((line for line in read_metrics(evaluation.run) if line["step"] == 0), {})
    scores = {f"{name}_untrained": begin.get(f"val/{name}") for name in names}
    return {} if None in scores.values() else scores
