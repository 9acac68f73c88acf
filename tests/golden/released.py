"""The golden OpenVLA and Prismatic checkpoints, a tokenizer that gives their ids, and changed copies of them."""

import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy

from lapa_jax.core import config as config_lib
from lapa_jax.train.checkpoint import load_for_inference
from tools import import_weights

WORDS = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "\n": 13, "the": 278, "to": 304, "on": 373, "In": 512, "up": 701, "should": 881,
    "car": 1559, "What": 1724, "place": 2058, "take": 2125, "red": 2654, "action": 3158, "Out": 3744, "rot": 5450,
    "pick": 5839, "plate": 15284, "cup": 18002, "robot": 19964, ":": 29901, "?": 29973, "<PAD>": 32000,
}  # fmt: skip
"""Of Llama-2's vocabulary what the golden prompts need."""

INSTRUCTIONS = ("pick up the red cup", "place the carrot on the plate")


def write_tokenizer(folder: pathlib.Path) -> None:
    """Files of a tokenizer that gives the golden prompts the ids that Llama-2's gives them."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"car(?=rot)|rot|\n|\w+|[:?]"), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
             "unk_token": "<unk>", "pad_token": "<PAD>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def copy_openvla(shared: pathlib.Path, folder: pathlib.Path, **changed) -> pathlib.Path:
    """A copy of the golden OpenVLA with a tokenizer, and with keys of its config.json changed; None takes one out."""
    shutil.copytree(shared / "golden" / "released" / "openvla_small", folder, copy_function=shutil.copy)
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    write_tokenizer(folder)
    edit_json(folder / "config.json", **changed)
    return folder


def edit_json(path: pathlib.Path, **changed) -> None:
    """Changes keys of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return found


def write_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Puts tensors into one file in the place of the folder's shards."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        path.unlink()
    safetensors.numpy.save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()},
                                folder / "model.safetensors")  # fmt: skip


def import_(kind: str, source: pathlib.Path, out: pathlib.Path, *options: str):
    """(model, variables, config) of an import by the command that users run."""
    import_weights.main([kind, "--input", str(source), "--out", str(out), *map(str, options)])
    saved = load_for_inference(out)
    return config_lib.build("lapa_jax.models", saved.config.model), saved.variables, saved.config


def batch_of(image: np.ndarray, ids: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """A batch of one resized image and prompt ids [1, L], padded to `length`."""
    text, mask = np.zeros((1, length), np.int32), np.zeros((1, length), np.float32)
    text[:, : ids.shape[1]], mask[:, : ids.shape[1]] = ids, 1
    return {"image": image[None], "text": text, "text_mask": mask}
