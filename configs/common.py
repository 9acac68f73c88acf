"""What several configs share: plain functions that return or fill in one group, whose arguments say what differs.

The values here are those of most configs; what a key means says `launch/train.py --config FILE --help`.
"""

from collections.abc import Sequence

import ml_collections
from ml_collections import config_dict

SIZES = ("small", "tiny", "test")
"""Variants of most configs, of which one is to be chosen: for a few CPU cores, on the embedded sample, for tests."""


def data(samples: str, **fields) -> ml_collections.ConfigDict:
    """Samples of one kind, in random order; `fields` are those of the kind, or other values for what stands here."""
    group = ml_collections.ConfigDict()
    group.path = config_dict.placeholder(str)
    group.val_path = config_dict.placeholder(str)
    group.split_train = "train"
    group.split_val = "val"
    group.mixture = config_dict.placeholder(object)
    group.samples = samples
    group.augment = config_dict.placeholder(object)
    group.eval_examples = 2048
    group.shuffle = "full"
    group.window = 16384
    group.threads = 8
    group.workers = 0
    group.prefetch = 16
    group.max_bad_samples = 0
    group.max_normalized = 20.0
    group.scaled_decoding = False
    for name, value in fields.items():
        group[name] = value
    return group


def adam(learning_rate: float, **changes) -> ml_collections.ConfigDict:
    """Adam for all parameters, at a constant rate, without weight decay."""
    group = ml_collections.ConfigDict()
    group.learning_rate = learning_rate
    group.schedule = "constant"
    group.warmup_steps = 0
    group.final_learning_rate = 0.0
    group.boundaries = ()
    group.decay_factor = 0.1
    group.b1 = 0.9
    group.b2 = 0.999
    group.eps = 1e-8
    group.weight_decay = 0.0
    group.clip_norm = 1.0
    group.groups = ((".*", {}),)
    group.frozen_dtype = "float32"
    group.ema_decay = config_dict.placeholder(float)
    group.update(changes)
    return group


def training(
    steps: int, batch_size: int, eval_batch_size: int, every: int, best_metric: str, **changes
) -> ml_collections.ConfigDict:  # fmt: skip
    """A run of so many steps that evaluates and saves `every` so many of them."""
    group = ml_collections.ConfigDict()
    group.steps = steps
    group.batch_size = batch_size
    group.micro_batches = 1
    group.eval_batch_size = eval_batch_size
    group.log_every = 50
    group.eval_every = every
    group.save_every = every
    group.save_minutes = config_dict.placeholder(float)
    group.keep_last = 10
    group.keep_best = 1
    group.keep_every = config_dict.placeholder(int)
    group.fast_dir = config_dict.placeholder(str)
    group.fast_every = config_dict.placeholder(int)
    group.fast_minutes = config_dict.placeholder(float)
    group.keep_fast = 3
    group.hang_minutes = config_dict.placeholder(float)
    group.on_spike = "stop"
    group.spike_factor = config_dict.placeholder(float)
    group.best_metric = best_metric
    group.best_mode = "max"
    group.patience = config_dict.placeholder(int)
    group.min_delta = 0.0
    group.trackers = ("tensorboard",)
    group.images = True
    group.profile = config_dict.placeholder(object)
    group.update(changes)
    return group


def mesh(data: int, fsdp: int, rules: Sequence = ()) -> ml_collections.ConfigDict:
    """Devices on each axis; -1 is what remains."""
    return ml_collections.ConfigDict({"data": data, "fsdp": fsdp, "tensor": 1, "rules": tuple(rules),
                                      "grad_dtype": config_dict.placeholder(str)})  # fmt: skip


COMMITMENT = 0.005
"""Of deltas of unit size, next to which the errors of pixels are small: with the usual 0.25 deltas are pulled to their
codes until they say nothing but a code's number."""

ACTION_WEIGHT = 1.0
"""Of the squared error in standard deviations: with a tenth of it a moving background is learned before the action is,
see docs/results/latent_actions.md."""

# Frame pairs: configs/laq.py, configs/laq_conv.py


def frame_pair_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Pairs 0.6 s apart, as the paper has them for robots, of the model's image size."""
    return data("pairs", camera="image", image_size=config.model.get_ref("image_size"), gap_seconds=0.6,
                gap_frames=config_dict.placeholder(int))  # fmt: skip


def frame_pair_losses() -> ml_collections.ConfigDict:
    """The paper's weights: reconstruction alone. NSVQ and FSQ have no loss of the codebook, then the codebook's and the
    commitment's are 0. Those of actions, middle frames and flow need these fields of the samples, that of views
    needs `view_shift` and `view_deltas`, and the last three need `consistency`."""
    return ml_collections.ConfigDict({"reconstruction": 1.0, "motion": 0.0, "coarse": 0.0, "action": 0.0, "view": 0.0,
                                      "reversal": 0.0, "composition": 0.0, "midway": 0.0, "flow": 0.0,
                                      "flow_weighted": 0.0, "codebook": 1.0, "commitment": 0.25,
                                      "consistency": 0.0, "variance": 0.0, "covariance": 0.0})  # fmt: skip


def recommended(config: ml_collections.ConfigDict) -> None:
    """Codes that say how things move, where camera and background stand still: see docs/results/latent_actions.md."""
    side = config.model.image_size
    moving_views(config, shift=side // 4)
    # No feature of a delta says what another says, and none is small; each is rounded by itself, to one of K numbers.
    config.model.update({"delta_norm": "whitened", "quant_dim": 1, "codebook_init": "data", "replacement": "share"})
    # What the features say of a motion does not depend on where in the image it is.
    config.model.view_deltas = True
    config.loss.update({"view": 0.05, "commitment": COMMITMENT})


def few_actions(config: ml_collections.ConfigDict) -> None:
    """The actions of a few of the episodes, which say what the codes are to be about (LAOM, arXiv 2502.00379)."""
    config.data.update({"fields": ("frames", "pair_action"), "action_share": 0.025, "action_draws": 0.25})
    config.loss.action = ACTION_WEIGHT
    # Mirrored images have other actions, and nothing says which of their numbers would have to change.
    with config.ignore_type():
        config.data.augment = None


def consistency(config: ml_collections.ConfigDict) -> None:
    """Codes that say how learned features change instead of pixels, which the decoder alone learns from."""
    config.model.consistency = "instead"
    config.loss.update({"consistency": 1.0, "variance": 1.0, "covariance": 0.04})


def moving_views(config: ml_collections.ConfigDict, shift: int) -> None:
    """Pairs are seen twice, flipped half of the time, and small moving things count."""
    # Codes that say how things move: they serve the pair and a shifted copy of it.
    config.model.update({"view_shift": shift, "view_share": 0.7, "output": "residual"})
    # Small moving things in a busy scene: plain squared error hardly sees them. Models of features lack these losses.
    config.loss.update({name: 0.1 for name in ("motion", "coarse") if name in config.loss})
    if "pair_action" not in config.data.get("fields", ()):  # see few_actions
        config.data.augment = {"flip": 0.5}


def frame_pairs_at_32_pixels(config: ml_collections.ConfigDict) -> None:
    """What the small models of frame pairs have in common."""
    config.model.image_size = 32
    moving_views(config, shift=8)
    config.data.update({"threads": 2, "prefetch": 4})
    config.train.batch_size = 32
    config.mesh.update({"data": -1, "fsdp": 1})


# Vision towers of one's own: configs/mae.py, configs/laq.py:own_features


def plain_tower(dtype, **fields) -> ml_collections.ConfigDict:
    """A plain vision transformer: SigLIP's class has neither a class token nor scales of layers."""
    group = ml_collections.ConfigDict({"name": "vision.siglip", "layer": -1, "dtype": dtype, "remat": "none", **fields})
    group.heads, group.hidden = fields["dim"] // 64, 4 * fields["dim"]
    return group


def small_tower() -> ml_collections.ConfigDict:
    """The one that configs/mae.py:small learns."""
    tower = plain_tower("float32", image_size=64, patch=8, dim=128, depth=4)
    tower.heads = 4
    return tower


# Vision-language models: configs/vla_latent.py, configs/vla_action.py


def vision_language_model(name: str) -> ml_collections.ConfigDict:
    """The specification's body: SigLIP so400m and DINOv2 large, and Llama-2 7B behind them."""
    model = ml_collections.ConfigDict()
    model.name = name
    model.dtype = "bfloat16"
    dtype = model.get_ref("dtype")
    model.siglip = ml_collections.ConfigDict({
        "name": "vision.siglip", "image_size": 224, "patch": 14, "dim": 1152, "depth": 27, "heads": 16, "hidden": 4304,
        "layer": -2, "dtype": dtype, "remat": "none",
    })  # fmt: skip
    model.dinov2 = dinov2_large(dtype, layer=-2)
    model.llm = ml_collections.ConfigDict({
        "name": "llama", "vocab": 32000, "dim": 4096, "depth": 32, "heads": 32, "kv_heads": 32, "hidden": 11008,
        "rotary": 10000.0, "eps": 1e-5, "head": "none", "flash": True, "dtype": dtype, "remat": "full",
    })  # fmt: skip
    model.vision = config_dict.placeholder(ml_collections.ConfigDict)
    model.cameras = 1
    model.projection = "layernorm"
    model.image_attention = "causal"
    model.lora_rank = 0
    model.lora_alpha = 16.0
    model.lora_modules = "llm/decoder/layers/.*"
    return model


def dinov2_large(dtype, layer: int) -> ml_collections.ConfigDict:
    """DINOv2 large with registers; `layer` as of `nn.vit.VisionTower`."""
    return ml_collections.ConfigDict({
        "name": "vision.dinov2", "image_size": 518, "patch": 14, "dim": 1024, "depth": 24, "heads": 16, "hidden": 4096,
        "registers": 4, "layer": layer, "dtype": dtype, "remat": "none",
    })  # fmt: skip


def vision_language_data(config: ml_collections.ConfigDict, samples: str, fields: tuple[str, ...], **more) -> None:
    """Images of 224 pixels and instructions as Llama reads them; the model's sizes follow.

    224 pixels are 256 tokens from both towers. "bytes" stands for the tokenizer until a config names Llama's.
    """
    tokenizer = ml_collections.ConfigDict({"name": "bytes", "template": "openvla"})
    config.data = data(samples, fields=fields, camera="image", image_size=224, text_tokenizer=tokenizer,
                       text_length=192, eval_examples=4096, **more)  # fmt: skip
    config.model.image_size = config.data.get_ref("image_size")
    config.model.text_length = config.data.get_ref("text_length")


def vision_language_training(config: ml_collections.ConfigDict, steps: int, batch_size: int, **changes) -> None:
    """The specification's optimizer, with frozen towers, and a mesh that splits the parameters over all devices."""
    from lapa_jax.models.llama import MESH_RULES  # here, because it imports jax, which other configs do without

    config.optim = adam(1e-5, schedule="cosine", warmup_steps=2000, final_learning_rate=1e-6, b2=0.95,
                        weight_decay=0.1, groups=(("(siglip|dinov2)/.*", None), (".*", {})),
                        frozen_dtype="bfloat16")  # fmt: skip
    config.train = training(steps, batch_size, eval_batch_size=64, every=1000, log_every=10, keep_last=5, **changes)
    config.mesh = mesh(data=1, fsdp=-1, rules=MESH_RULES)


def openvla_inputs(config: ml_collections.ConfigDict) -> None:
    """Images and prompts as OpenVLA knows them. The tokenizer is that of the imported run: data.text_tokenizer.name."""
    config.data.resize = ml_collections.ConfigDict({"mode": "squash", "interpolation": "bicubic"})
    config.data.text_tokenizer.update({"lower": True, "append": 29871})
    config.data.text_length = 128


def tiny_vision_language_model(config: ml_collections.ConfigDict) -> None:
    """Everything small and trained from scratch, on images of 56 pixels: 16 patches."""
    config.model.dtype = "float32"
    config.model.siglip.update({"image_size": 56, "dim": 48, "depth": 2, "heads": 4, "hidden": 144})
    config.model.dinov2.update({"image_size": 56, "dim": 48, "depth": 2, "heads": 4, "hidden": 144, "registers": 0})
    with config.ignore_type():
        config.model.llm.vocab = config_dict.placeholder(int)
    config.model.llm.update({"dim": 96, "depth": 3, "heads": 4, "kv_heads": 2, "hidden": 256, "remat": "none"})
    config.data.update({"path": "sample", "image_size": 56, "text_length": 64, "threads": 2, "eval_examples": 1024})
    config.data.text_tokenizer.template = "plain"
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 100, "final_learning_rate": 1e-5,
                         "groups": ((".*", {}),), "frozen_dtype": "float32"})  # fmt: skip
    config.train.update({"steps": 1500, "batch_size": 32, "micro_batches": 1, "log_every": 50, "eval_every": 500,
                         "save_every": 500, "keep_last": 2})  # fmt: skip
    config.mesh.update({"data": -1, "fsdp": 1})


def small_vision_language_model(config: ml_collections.ConfigDict) -> None:
    """The tiny one with a tower that sees the instruction in place of the two, and two layers of decoder: 64 pixels.

    At the rate of the tiny one some seeds do not learn to look within 600 steps; at half of it all three tried did.
    """
    tiny_vision_language_model(config)
    with config.ignore_type():
        config.model.siglip = config.model.dinov2 = None
        config.model.vision = ml_collections.ConfigDict({"name": "vision.film_conv", "widths": (24, 48, 64),
                                                         "strides": (2, 2, 1), "points": 32,
                                                         "condition": 128, "tokens": 8, "dim": 64})  # fmt: skip
    config.model.llm.update({"dim": 64, "depth": 2, "hidden": 160})
    config.optim.learning_rate = 5e-4
    config.data.image_size = 64


def smallest_vision_language_model(config: ml_collections.ConfigDict) -> None:
    """The tiny one with one block everywhere, on images of 28 pixels: four patches. For tests."""
    shortest(config)
    for tower in ("siglip", "dinov2"):
        config.model[tower].update({"image_size": 28, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "layer": -1})
    config.model.llm.update({"dim": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 32})
    config.data.image_size = 28


# Variants for tests


def shortest(config: ml_collections.ConfigDict) -> None:
    """A run of four steps on a few samples, which still logs, evaluates and saves in between."""
    config.data.update({"eval_examples": 32, "threads": 1, "prefetch": 2})
    config.train.update({"steps": 4, "batch_size": 8, "eval_batch_size": 16, "log_every": 1, "eval_every": 2,
                         "save_every": 2, "trackers": (), "images": False})  # fmt: skip
    config.optim.warmup_steps = 0
