"""From a folder to something that can be called: the rule that `lapa_jax.load` follows."""

import pathlib

import ml_collections

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.checkpoint_step import FOLDER, split_best
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import read_json
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import dataset_folder, read_dataset
from lapa_jax.inference import kinds
from lapa_jax.inference.base import TrainedModel
from lapa_jax.models import pretrained
from lapa_jax.nn import int8

MODELS = "lapa_jax.models"
IN_RUN = "{run}"


def load(path, step: int | str | None = None, devices=None) -> TrainedModel:
    """Loads a trained model from its folder alone.

    Args:
      path: a run folder, one `checkpoints/<step>` folder, or an exported folder (`config.json` + `model.safetensors`).
      step: which checkpoint of a run folder, a number or "best", by the run's `train.best_metric`; the newest whole one
        if None. `path` "RUN/checkpoints/best" asks for the best one too.
      devices: the devices to run on; all local ones if None.

    Returns:
      The inference object of the model's kind.

    Raises:
      UserError: nothing loadable there, or weights that do not fit the model of the config.
    """
    folder, step = split_best(pathlib.Path(path), step)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a run folder, a checkpoint folder or an exported folder")
    config, meta, variables = _read(folder, step)
    model = config_lib.build(MODELS, config.model)
    kind = kinds.kind_of(model)
    if kind is None:
        raise UserError(f"{folder} holds a {config.model.name}, which has no inference object")
    # 8-bit kernels have another dtype and scales besides, where the weights say so.
    expected = int8.expected(pretrained.expected_variables(model), variables)
    if wrong := tree.diff(expected, variables, tree.STORED):
        raise UserError(f"the weights in {folder} do not fit its config: {wrong}")
    return kinds.resolve(kind.trained)(
        model, variables, config=config, datasets=meta.get("datasets"), step=meta.get("step", 0), devices=devices
    )


def kind_of_run(path) -> kinds.Kind:
    """The kind of the model in a folder as of `load`, from its config alone: no weights are read.

    Raises:
      UserError: there is no config, or the model is of no kind.
    """
    folder, config = _config_of(path)
    kind = kinds.kind_of(config_lib.model_class(MODELS, config.get("model") or {}))
    if kind is None:
        raise UserError(f"{folder} holds a {config['model']['name']}, which has no inference object")
    return kind


def check_data(path, data: str | None, split: str | None) -> None:
    """Refuses a run without data of its own where the command names none, and a split that the data lack, before
    weights are read. A split is looked for where one folder of step shards is meant.

    Args: path: a folder as of `load`. data, split: what the command names; None: the run's own.
    """
    config = _config_of(path)[1].get("data") or {}
    if data is None and config and not any(config.get(name) for name in ("path", "val_path", "mixture")):
        raise UserError(f"{path} names no data of its own, as imported weights do: give --data FOLDER, of step shards")
    own = None if config.get("mixture") and not config.get("val_path") else config.get("val_path") or config.get("path")
    folder = data or own
    if split is None or folder is None or PairShards.is_one(dataset_folder(folder)):
        return
    splits = read_dataset(folder)["splits"]
    if split not in splits:
        raise UserError(f"{folder} has no split '{split}'{did_you_mean(split, splits)}")


def _config_of(path) -> tuple[pathlib.Path, dict]:
    """The folder of the run that a path as of `load` lies in, or of an export, and its config."""
    folder, _ = split_best(pathlib.Path(path), None)
    if folder.parent.name == FOLDER:
        folder = folder.parent.parent
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a run folder, a checkpoint folder or an exported folder")
    if not (folder / pretrained.CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no run folder: it has no {pretrained.CONFIG_FILE}; give the folder that "
                        "--workdir named, or an exported one")  # fmt: skip
    return folder, read_json(folder / pretrained.CONFIG_FILE)


def _read(folder: pathlib.Path, step: int | str | None) -> tuple[ml_collections.ConfigDict, dict, dict]:
    """Config, metadata and variables of a folder; imported weights have a config with nothing but the model."""
    if (folder / pretrained.WEIGHTS_FILE).is_file():
        if step is not None:
            raise UserError(f"{folder} is an exported model with one set of weights; leave out the step {step}")
        spec, variables, meta = pretrained.load_pretrained(folder)
        return config_lib.from_json({**meta.get("config", {}), "model": spec}), meta, variables
    # Imported here: orbax takes seconds, and exported folders do without it.
    from lapa_jax.train.checkpoint import load_for_inference

    saved = load_for_inference(folder, step)
    _find_tokenizer(saved.config, saved.path.parents[1])
    return saved.config, {**saved.meta, "step": saved.step}, saved.variables


def _find_tokenizer(config: ml_collections.ConfigDict, run: pathlib.Path) -> None:
    """Puts the run folder into the name of a tokenizer that lies within it, "{run}/tokenizer"."""
    spec = config.get("data", {}).get("text_tokenizer") or {}
    if str(spec.get("name", "")).startswith(IN_RUN):
        spec["name"] = str(run) + spec["name"].removeprefix(IN_RUN)
