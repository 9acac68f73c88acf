"""Latent action pretraining from videos, in JAX and Flax Linen.

`import lapa_jax` is cheap: jax and flax are imported when something that needs them is called.
"""

__version__ = "0.1.0"


def load(path, step=None):
    """Loads a trained model for inference from its folder alone.

    Args:
      path: a run folder, one checkpoint folder, or an exported folder (`config.json` + `model.safetensors`).
      step: the checkpoint step to take from a run folder; the newest complete one if None.

    Returns:
      The inference object of the model's kind, e.g. a `LatentActionTokenizer` with `encode` and `decode`.
    """
    from lapa_jax.inference.load import load as load_run

    return load_run(path, step=step)
