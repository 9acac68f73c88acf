"""In-context imitation: a transformer sees demonstrations of a task as its prompt and then acts.

Without a variant: the specification's sizes (6 layers of width 512 with 8 heads, context 10, AdamW at 1e-4), on states
and raw actions. What the specification leaves open, or would leak:

  - an action is predicted at the token of its step's state, which comes before the action's own token; the
    specification shows the policy codes of the very actions that it predicts
  - causal; causal=False (the specification's) holds for the prompt alone
  - prompts are evenly spread steps of one other episode of the task; a tenth of the samples have none
  - an episode without another one of its task gets an empty prompt (data.alone), and is counted

  image       pictures and states; width and depth as without a variant
  goal        the observation that an episode ends with stands before the prompt
  bins        actions out as 256 bins of each dimension, by cross-entropy
  dct         actions out as FAST's cosine coefficients of chunks of eight
  tokens      actions as clusters q of an MS-TCN tokenizer that is trained along, as in the specification
  frozen      the same with a trained one: give it as init_from.tokenizer
  small       a model and recipe that one CPU core trains in minutes; set data.path
  tiny        `small` on the pictures of the sample that comes with the package
  test        the smallest that still has every part, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


def published() -> ml_collections.ConfigDict:
    """The specification's sizes."""
    config = ml_collections.ConfigDict()
    config.name = "icl"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"tokenizer": config_dict.placeholder(str)})

    config.model = ml_collections.ConfigDict()
    config.model.name = "policies.icl"
    for taken_from_the_data in ("action_dim", "state_dim", "cameras", "image_size"):
        config.model[taken_from_the_data] = config_dict.placeholder(int)
    config.model.context = 10
    config.model.prompts = 1
    config.model.prompt_length = 10
    config.model.future = 1
    config.model.goal = False
    config.model.head = config_dict.placeholder(object)
    config.model.dim = 512
    config.model.depth = 6
    config.model.heads = 8
    config.model.hidden = 2048
    config.model.patch = 16
    config.model.vit_dim = 192
    config.model.vit_depth = 4
    config.model.vit_heads = 3
    config.model.actions = "raw"
    config.model.tokenizer = config_dict.placeholder(object)
    config.model.train_tokenizer = False
    config.model.fifa_temperature = config_dict.placeholder(float)
    config.model.causal = True
    config.model.supervise_all_steps = True
    config.model.prompt_loss = False
    config.model.prompt_dropout = 0.1
    config.model.state_noise = 0.005
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.loss = ml_collections.ConfigDict({"l2": 1.0, "smooth_l1": 0.0, "cosine": 0.0})

    config.data = common.data("sequences", fields=("state", "action"), camera="image",
                              image_size=config_dict.placeholder(int), normalize="q01_q99", threads=2)  # fmt: skip
    config.data.length = config.model.get_ref("context")
    config.data.stride = 1
    for field in ("future", "goal", "prompts", "prompt_length"):
        config.data[field] = config.model.get_ref(field)
    config.data.prompt_steps = "even"
    config.data.alone = "empty"
    config.data.held_out_tasks = ()
    config.data.tasks = "seen"
    config.data.tasks_val = "all"

    config.optim = common.adam(1e-4, warmup_steps=1000, weight_decay=0.01)
    config.train = common.training(steps=50_000, batch_size=64, eval_batch_size=64, every=2500,
                                   best_metric="val/action_r2")  # fmt: skip
    config.mesh = common.mesh(data=1, fsdp=-1)
    return config


def image(config: ml_collections.ConfigDict) -> None:
    """Images of 96 pixels and states."""
    config.data.update({"fields": ("image", "state", "action"), "image_size": 96, "threads": 8})


def goal(config: ml_collections.ConfigDict) -> None:
    """Policies that are told what to reach: in training the last observation of the window's own episode."""
    config.model.goal = True


def bins(config: ml_collections.ConfigDict) -> None:
    """Actions out as bins, as OpenVLA has them."""
    _head(config, "bins", bins=256, decode="argmax")


def dct(config: ml_collections.ConfigDict) -> None:
    """Chunks of eight actions out as rounded cosine coefficients, as FAST has them before its byte-pair encoding."""
    _head(config, "dct", scale=10.0, limit=40)
    config.model.future = 8


def _head(config: ml_collections.ConfigDict, name: str, **fields) -> None:
    with config.ignore_type():
        config.model.head = ml_collections.ConfigDict({"name": f"policies.heads.{name}", **fields})
    for numbers in ("l2", "smooth_l1", "cosine"):
        del config.loss[numbers]
    config.loss.action = 1.0


def frozen(config: ml_collections.ConfigDict) -> None:
    """Actions as codes of a trained tokenizer (causal): set init_from.tokenizer to its run."""
    config.model.actions = "q"
    config.optim.groups = (("tokenizer/.*", None), (".*", {}))


def tokens(config: ml_collections.ConfigDict) -> None:
    """The specification's tokenizer, 128 subclusters and 32 clusters, mended as in configs/mstcn.py and trained along.

    optim.groups with {"start_step": N} for the policy trains the tokenizer alone first.
    """
    with config.ignore_type():
        config.model.tokenizer = ml_collections.ConfigDict({
            "name": "tokenizers.mstcn", "action_dim": config_dict.placeholder(int), "state_dim": 0, "context": 10,
            "embed_dim": 512, "width": 512, "layers": 4, "stages": 2, "causal": True, "subclusters": 128,
            "clusters": 32, "decoder_input": "z", "decay": 0.8, "dead_share": 0.1, "dead_age": 20,
        })  # fmt: skip
    config.model.update({"actions": "q", "train_tokenizer": True})
    config.loss.update({"tokenizer_reconstruction": 1.0, "tokenizer_commitment_z": 0.02})
    config.optim.groups = (("tokenizer/.*", {"weight_decay": 1e-4}), (".*", {}))


def small(config: ml_collections.ConfigDict) -> None:
    """Half a million parameters."""
    config.model.update({"dim": 96, "depth": 4, "heads": 4, "hidden": 256, "state_noise": 0.02, "vit_dim": 48,
                         "vit_depth": 2, "vit_heads": 3, "patch": 8})  # fmt: skip
    config.optim.update({"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 100,
                         "final_learning_rate": 1e-5})  # fmt: skip
    config.train.update({"steps": 1000, "batch_size": 32, "eval_every": 500, "save_every": 500})
    config.mesh.update({"data": -1, "fsdp": 1})


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the sample, whose observations are images; few of its tasks have a second episode."""
    small(config)
    config.data.update({"path": "sample", "fields": ("image", "action"), "image_size": 32})
    config.train.update({"steps": 400, "eval_every": 100, "save_every": 100})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block and images of four patches, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"context": 4, "prompt_length": 4, "dim": 32, "depth": 1, "heads": 2, "hidden": 32,
                         "vit_dim": 16, "vit_depth": 1, "vit_heads": 2, "patch": 8})  # fmt: skip
    config.data.image_size = 16


VARIANTS = {"image": image, "goal": goal, "bins": bins, "dct": dct, "frozen": frozen, "tokens": tokens, "small": small,
            "tiny": tiny, "test": test}  # fmt: skip


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(published(), variants, VARIANTS, one_of=(("frozen", "tokens"), ("bins", "dct"), common.SIZES))
