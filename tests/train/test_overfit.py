"""The main models learn ten examples by heart, through the training step of a run: what reaches the loss and what is
predicted without it belong together, and a gradient reaches all that must learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.state import init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task

pytestmark = pytest.mark.usefixtures("one_device")

EXAMPLES = 10
TOWER = {"image_size": 28, "patch": 14, "dim": 16, "depth": 1, "heads": 2, "hidden": 32}
LLM = {"name": "llama", "vocab": 40, "dim": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 48, "head": "none"}
BODY = {"siglip": {"name": "vision.siglip", **TOWER}, "dinov2": {"name": "vision.dinov2", **TOWER}, "llm": LLM,
        "image_size": 28, "cameras": 1, "text_length": 4}  # fmt: skip
CHUNKS = {"action_dim": 3, "chunk_length": 2, "state_dim": 0, "constant": (), "binary": (2,)}
HEADS = {
    "bins": {"bins": 16},
    "latent": {"width": 32, "heads": 2, "code_length": 2, "codebook_size": 4},
    "chunk": {"width": 32},
    "flow": {"width": 32, "heads": 2, "depth": 1, "steps": 8},
}


def learned(spec: dict, weights: dict, batch: dict, steps: int, learning_rate: float, copies: int = 1):
    """(model, variables, loss of each step) after training on one batch, whose examples stand `copies` times in it."""
    task = Task(config_lib.build("lapa_jax.models", spec), weights)
    optim = {"learning_rate": learning_rate, "schedule": "cosine", "warmup_steps": 5, "clip_norm": 1.0,
             "groups": ((".*", {}),)}  # fmt: skip
    batch = {name: jnp.repeat(jnp.asarray(values), copies, axis=0) for name, values in batch.items()}

    @jax.jit
    def train(batch):
        state = init_state(task, lambda params: make_optimizer(optim, steps, params), 0, batch)
        step = make_train_step(task, make_optimizer(optim, steps, state.variables["params"]), seed=0)
        # all steps as one program: only one step is compiled, and nothing comes back in between
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=steps)

    state, metrics = train(batch)
    return task.model, state.variables, np.asarray(metrics["loss"])


def predicted(model, variables, batch, method="predict"):
    return jax.device_get(jax.jit(lambda v, b: model.apply(v, b, method=method))(variables, batch))


def seen(rng: np.random.Generator, model_example: dict) -> dict:
    """Ten images and instructions, of random pixels and words."""
    batch = {name: np.array(values) for name, values in model_example.items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["text"] = rng.integers(3, 40, batch["text"].shape).astype(np.int32)
    return batch


def moving_squares(rng: np.random.Generator) -> np.ndarray:
    """uint8 [10, 2, 16, 16, 3]: a square on a grey ground that moves in one of four directions."""
    frames = np.full((EXAMPLES, 2, 16, 16, 3), 60, np.uint8)
    for number, pair in enumerate(frames):
        row, column = rng.integers(4, 8, 2)
        down, right = ((0, 4), (0, -4), (4, 0), (-4, 0))[number % 4]
        pair[0, row : row + 4, column : column + 4] = 230
        pair[1, row + down : row + down + 4, column + right : column + right + 4] = 230
    return frames


def test_laq_on_pixels():
    spec = {"name": "tokenizers.laq", "image_size": 16, "patch_size": 4, "dim": 32, "quant_dim": 4, "heads": 2,
            "dim_head": 16, "spatial_depth": 1, "temporal_depth": 1, "decoder_depth": 1, "code_seq_len": 2,
            "codebook_size": 8, "output": "residual", "pooling": "maps", "delta_norm": "running",
            "codebook_init": "data", "replacement": "share", "replacement_schedule": ((120, 20),)}  # fmt: skip
    batch = {"frames": moving_squares(np.random.default_rng(0))}
    model, variables, losses = learned(spec, {"reconstruction": 1.0}, batch, steps=200, learning_rate=3e-3)
    arrays = predicted(model, variables, batch, "evaluate")
    # with the codes themselves, not the noise that training has in their place
    assert arrays["mse"].mean() < 0.1 * losses[0], (arrays["mse"].mean(), losses[0], losses[-1])
    assert arrays["mse_swapped"].mean() > 3 * arrays["mse"].mean(), "the frames are predicted from their own codes"
    assert len(np.unique(arrays["codes"])) > 4


@pytest.mark.parametrize("decode", ["parallel", "autoregressive"])
def test_stage_2(decode):
    spec = {"name": "policies.vla", **BODY, "code_length": 4, "codebook_size": 8, "decode": decode}
    rng = np.random.default_rng(0)
    batch = seen(rng, config_lib.build("lapa_jax.models", spec).example(EXAMPLES))
    batch["latent"] = rng.integers(0, 8, (EXAMPLES, 4)).astype(np.int32)
    model, variables, losses = learned(spec, {"latent": 1.0}, batch, steps=80, learning_rate=3e-3)
    assert losses[-1] < 0.05 * losses[0]
    unseen = {**batch, "latent": np.zeros_like(batch["latent"])}
    np.testing.assert_array_equal(predicted(model, variables, unseen)["codes"], batch["latent"])


@pytest.mark.parametrize("name", HEADS)
def test_stage_3(name):
    spec = {"name": "policies.vla_action", **BODY, **CHUNKS, "head": {"name": f"policies.heads.{name}", **HEADS[name]}}
    rng = np.random.default_rng(0)
    batch = seen(rng, config_lib.build("lapa_jax.models", spec).example(EXAMPLES))
    batch["action"] = rng.uniform(-1, 1, batch["action"].shape).astype(np.float32)
    batch["action"][..., 2] = np.where(batch["action"][..., 2] > 0, 1, -1)
    # a flow has a new noise in each copy of an example
    steps = {"bins": 100, "chunk": 200}.get(name, 300)
    copies = 4 if name == "flow" else 1
    model, variables, losses = learned(spec, {"action": 1.0}, batch, steps, 3e-3, copies)
    unseen = {**batch, "action": np.zeros_like(batch["action"])}
    error = np.abs(predicted(model, variables, unseen)["action"] - batch["action"])
    # half a bin of 2/16, or as near as that
    assert error.max() < 0.0626 if name != "flow" else error.mean() < 0.0626, (error.max(), error.mean(), losses[-1])
