"""The keys that all configs share: what each means, in one line, and which of them make others meaningless.

Fields of a model are explained in its docstring instead. Values are checked where they are used, but for numbers
that only have to be large enough.
"""

from collections.abc import Mapping

from lapa_jax.core.errors import UserError

KEYS = {
    "name": "name of the run folder, runs/<name>, unless --workdir is given",
    "seed": "for parameters, noise and the order of the data",
    "init_from": "run, checkpoint or exported folder that this part of the model starts from; None: from scratch",
    "init_from_except": "regular expressions of variables that start from scratch, or are not used of the other run",
    "init_from_fields": "fields of the model that are those of the whole run that it starts from, in place of these",
    "loss": "weight of this loss; 0 leaves it out",
    "loss.action": "weight of predicting actions; of frame pairs those of few, see data.action_share; 0: off",
    "loss.view": "weight of the squared difference of the deltas of a pair and of its shifted copy; needs "
                 "view_shift and view_deltas",
    "loss.reversal": "weight of how alike the codes of a pair and of its reverse are; needs the field middle_frame",
    "loss.composition": "weight of the codes of both halves telling that of the pair; needs the field middle_frame",
    "loss.midway": "weight of the middle frame, from the codes of the pair; needs the field middle_frame",
    "loss.flow": "weight of the optical flow that the decoder predicts, in squared pixels; needs the field flow",
    "loss.flow_weighted": "weight of the squared error of pixels in proportion to their flow; needs the field flow",
    "loss.consistency": "weight of predicting the features of the second frame; needs model.consistency",
    "loss.variance": "weight of how far standard deviations of features are below 1; needs model.consistency",
    "loss.covariance": "weight of what features say of each other; needs model.consistency",
    "model.name": "the model, a module under lapa_jax.models",
    # where the data lie
    "data.path": 'folder of step shards or ready-made pairs, an HDF5 file of robomimic, or "sample"',
    "data.val_path": "another folder to evaluate on, for example one with actions",
    "data.split_train": "name of the split that is trained on",
    "data.split_val": "name of the split that is evaluated on",
    "data.mixture": 'several data sets instead of data.path: ({"path": ..., "weight": ..., ...}, ...)',
    "data.labels": "output of launch/label.py; None where the data hold latents themselves",
    "data.labels_tokenizer": "required fingerprint of the labels' tokenizer; None accepts any",
    "data.val_labels": "labels of data.val_path",
    # what a sample is
    "data.samples": "the kind of sample, a module under lapa_jax.data.samples",
    "data.fields": "what a sample holds",
    "data.camera": "member of the step shards that the images come from; several names where the model takes them",
    "data.image_size": "side of the images in pixels; None keeps the stored size",
    "data.resize": 'how images come to that size: "squash", "center_crop", "lapa", or a group for Prismatic\'s models',
    "data.scaled_decoding": "decode training images of twice that size or more at a smaller one: faster, not exact",
    "data.gap_seconds": "time between the two frames of a pair",
    "data.gap_frames": "the same in frames, instead of data.gap_seconds",
    "data.action_share": 'of the field "pair_action": share of the episodes whose actions are used',
    "data.action_draws": "least share of the drawn pairs that have such an action; their episodes are drawn more often",
    "data.chunk_length": "actions of a chunk, in steps of the data",
    "data.history": "earlier steps that are observed besides the current one",
    "data.length": "steps of a window",
    "data.stride": "steps between the starts of windows",
    "data.future": "actions that each step predicts, its own and those after it",
    "data.goal": "samples hold the last observation of their episode, which acting is to lead to",
    "data.prompts": "demonstrations in a sample; 0 is plain behaviour cloning",
    "data.prompt_length": "steps of each demonstration",
    "data.prompt_steps": '"even", spread over the whole demonstration, or a "window" of it',
    "data.alone": 'an episode with no other of its task has an "empty" prompt; or "drop" it, or "refuse"',
    "data.held_out_tasks": "names of tasks that are not trained on",
    "data.tasks": 'train on the tasks that are not held out, "seen", on those that are, "held_out", or on "all"',
    "data.tasks_val": "the same for evaluation",
    "data.seed": "of the draws of prompts",
    "data.normalize": 'scaling of numbers: "none", "q01_q99", "q01_q99_clip", "mean_std", "min_max" or "openvla"',
    "data.max_normalized": "the largest normalised value that training accepts; None is any",
    "data.text_tokenizer": "tokenizer of instructions, {name, template, special_tokens, truncate, lower, append}",
    "data.text_tokenizer.name": '"bytes", or the name or folder of a Hugging Face tokenizer',
    "data.text_tokenizer.template": "words around the instruction",
    "data.text_length": "tokens that instructions are padded to; None: what the longest needs",
    "data.augment": "changes of images: shift, crop_area, flip, erase, brightness, contrast, saturation; or None",
    # how samples are read
    "data.eval_examples": "held-out samples of each evaluation in the loop",
    "data.shuffle": '"full", or "window", which keeps reads local',
    "data.window": 'samples that data.shuffle="window" mixes at a time',
    "data.threads": "reading threads",
    "data.workers": "reading processes instead of threads; 0 is none",
    "data.prefetch": "batches prepared in advance",
    "data.max_bad_samples": "damaged samples that may be replaced by others before training stops",
    # how parameters are updated
    "optim.learning_rate": "peak learning rate",
    "optim.schedule": 'after the warm-up: "constant", "cosine" or "step_decay"',
    "optim.warmup_steps": "steps of linear warm-up",
    "optim.final_learning_rate": "learning rate at the end of the cosine",
    "optim.boundaries": 'steps after which schedule "step_decay" multiplies the learning rate by decay_factor',
    "optim.decay_factor": 'of schedule "step_decay", between 0 and 1',
    "optim.b1": "Adam's decay of the mean of gradients",
    "optim.b2": "Adam's decay of the mean of squared gradients",
    "optim.eps": "Adam's epsilon",
    "optim.weight_decay": "decoupled (AdamW), of weights of linear layers and convolutions and of embeddings",
    "optim.clip_norm": "largest global norm of the gradients; None is off",
    "optim.groups": "((regex, settings or None), ...): the first that matches a parameter's name; None freezes it",
    "optim.frozen_dtype": 'how frozen parameters are stored: "float32" or "bfloat16"',
    "optim.ema_decay": "decay of a moving average of the parameters, used by evaluation and inference; None is off",
    # how long, and what is kept
    "train.steps": "length of the run in steps",
    "train.batch_size": "global: of all devices together",
    "train.micro_batches": "parts of a batch that gradients are averaged over, one after the other, to save memory",
    "train.eval_batch_size": "global batch of evaluation",
    "train.log_every": "steps between lines of the log",
    "train.eval_every": "steps between evaluations",
    "train.save_every": "steps between checkpoints",
    "train.save_minutes": "minutes after which a checkpoint is written besides; None is off",
    "train.keep_last": "newest checkpoints that are kept",
    "train.keep_best": "best checkpoints by train.best_metric that are kept besides",
    "train.keep_every": "checkpoints whose step this number divides are kept for good; None: none for that reason",
    "train.fast_dir": "folder on a disk of each node for fast checkpoints; None: none",
    "train.fast_every": "steps between fast checkpoints; None: not by steps",
    "train.fast_minutes": "minutes between fast checkpoints; None: not by the clock",
    "train.keep_fast": "newest fast checkpoints that are kept",
    "train.hang_minutes": "minutes without a step after which the run writes what it is doing and ends; None is off",
    "train.on_spike": 'a loss that spikes or is not finite: "stop" ends the run, "rollback" leaves out those batches',
    "train.spike_factor": "a spike is more than this times the median of the last 100 losses; None: what is not finite",
    "train.best_metric": "metric of the evaluation that chooses the best checkpoint; None: none",
    "train.best_mode": 'whether higher values of train.best_metric are better, "max", or lower ones, "min"',
    "train.patience": "stops after this many evaluations without improvement; None is off",
    "train.min_delta": "smallest improvement that counts for train.patience",
    "train.trackers": 'beside metrics.jsonl: any of "tensorboard", "wandb" and "clearml"',
    "train.images": "draws what the model does at evaluations, plots/<step>.png of the run folder; False: not",
    "train.profile": "(step, steps): traces so many steps from that one on, for tools/read_profile.py; None is off",
    # which devices do what
    "mesh.data": "devices that each hold all parameters and take their part of the batch; -1 is what remains",
    "mesh.fsdp": "devices that split parameters and batch; -1 is what remains",
    "mesh.tensor": "devices that split single matrices; -1 is what remains",
    "mesh.rules": "((regex, spec), ...): how single parameters are split",
    "mesh.grad_dtype": 'type in which devices send gradients of linear layers: "float32", or None for the model\'s',
}
"""What the keys mean. A group stands for those of its keys that are not listed."""


def line(key: str) -> str:
    """What a key means; "" for one that is not shared by configs."""
    while key and key not in KEYS:
        key = key.rpartition(".")[0]
    return KEYS.get(key, "")


LEAST = {
    **dict.fromkeys((f"train.{name}" for name in (
        "steps", "batch_size", "micro_batches", "eval_batch_size", "log_every", "eval_every", "save_every", "keep_last",
        "keep_every", "fast_every", "keep_fast")), 1),
    "data.eval_examples": 1,
    **dict.fromkeys(("seed", "train.keep_best", "data.threads", "data.workers", "data.prefetch", "data.max_bad_samples",
                     "optim.learning_rate", "optim.final_learning_rate", "optim.warmup_steps",
                     "optim.weight_decay"), 0),
}  # fmt: skip
"""{key: the least number that it may hold, where it holds one}."""


def check_numbers(config: Mapping) -> None:
    """Refuses numbers that are too small to mean anything.

    Raises:
      UserError: which one.
    """
    for key, least in LEAST.items():
        group, _, name = key.rpartition(".")
        value = (config.get(group) or {} if group else config).get(name)
        # NaN is less than nothing, and not at least anything either.
        if value is not None and not value >= least:
            raise UserError(f"config.{key} is {value}; it must be at least {least}")


def overruled(config: Mapping) -> dict[str, tuple[str, str]]:
    """The keys that count for nothing beside others, as {key: (the other key, why)}.

    A config may well hold such a value, as the recipe that another variant departs from. Only a user who asks for it
    and does not get it is told so.
    """
    data, optim, train, model = (config.get(group) or {} for group in ("data", "optim", "train", "model"))
    # What is malformed is refused where it is used.
    parts = [part for part in data.get("mixture") or () if isinstance(part, Mapping)]
    groups = [pair[1] for pair in optim.get("groups") or () if isinstance(pair, (tuple, list)) and len(pair) == 2]
    trained = [settings for settings in groups if isinstance(settings, Mapping)]
    overruled_keys = {}

    def say(key: str, other: str, why: str) -> None:
        overruled_keys.setdefault(key, (other, why))

    if data.get("gap_frames") is not None:
        say("data.gap_seconds", "data.gap_frames", f"is {data['gap_frames']} and wins; set it to None to use seconds")
    if data.get("mixture"):
        say("data.path", "data.mixture", "names the data; set it to None to use one path")
    if parts and not data.get("val_path"):
        # The common gap still is that of data that are labelled later.
        for key in set.intersection(*map(set, parts)) - {"path", "name", "weight", "gap_seconds", "gap_frames"}:
            say(f"data.{key}", "data.mixture", f'sets "{key}" in each of its parts')
    if not data.get("val_path"):
        say("data.val_labels", "data.val_path", "is None; the labels of the held-out split are those of data.labels")
    if not {"latent", "delta"} & set(data.get("fields") or ("latent",)):
        for key in ("labels", "labels_tokenizer", "val_labels"):
            say(f"data.{key}", "data.fields", 'holds no "latent" and no "delta"')
    if "pair_action" not in (data.get("fields") or ()):
        for key in ("action_share", "action_draws"):
            say(f"data.{key}", "data.fields", 'holds no "pair_action"')
    if model.get("quantizer") == "none":
        for key in ("codebook_size", "codebook_init", "codebook_update", "codebook_decay", "replacement",
                    "replacement_schedule", "replacement_min_hits", "replacement_min_share"):  # fmt: skip
            say(f"model.{key}", "model.quantizer", "is 'none', so that there are no codes")
    elif "quantizer" in model:
        say("model.delta_noise", "model.quantizer", f"is '{model['quantizer']}', which rounds deltas; set it to 'none'")
    if model.get("consistency") == "none":
        for key in ("consistency_views", "consistency_decay"):
            say(f"model.{key}", "model.consistency", "is 'none'; set it to 'beside' or 'instead'")
    if data.get("shuffle", "window") != "window":
        say("data.window", "data.shuffle", f"is '{data['shuffle']}', which mixes all samples; set it to 'window'")
    for key in set.intersection(*map(set, trained)) if trained else ():
        say(f"optim.{key}", "optim.groups", f"sets '{key}' in each group that is trained")
    schedules = {optim.get("schedule"), *(settings["schedule"] for settings in trained if "schedule" in settings)}
    owners = {"final_learning_rate": "cosine", "boundaries": "step_decay", "decay_factor": "step_decay"}
    for key, schedule in owners.items():
        if key in optim and "schedule" in optim and schedule not in schedules:
            say(f"optim.{key}", "optim.schedule", f"is '{optim['schedule']}'; set it to '{schedule}'")
    if None not in groups:
        say("optim.frozen_dtype", "optim.groups", "freezes no parameters")
    if train.get("patience") is None:
        say("train.min_delta", "train.patience", "is None, so the run never stops early")
    return overruled_keys
