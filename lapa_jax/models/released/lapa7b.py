"""LAPA-7B's released files: the decoder's parameters as a streaming checkpoint, and its image tokenizer as a pickle.

Neither says how many heads the decoder has, what its rotary positions and norms are, or how large images are: these
are arguments, with the released model's values.
"""

import csv
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core import tree
from lapa_jax.core.array_stream import ArrayStream
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.core.inert_pickle import read_arrays
from lapa_jax.data import images as images_lib
from lapa_jax.data import text
from lapa_jax.models.policies import lapa, lapa_action
from lapa_jax.models.released.base import Place, Release, same
from lapa_jax.models.released.tensors import Renamed, SafetensorsFile

DIM_HEAD = 128
LAYERS = "transformer/h/scan_decoder"
DECODER = {
    "transformer/wte/embedding": "llm/embedding",
    "transformer/vte/embedding": "vision_embedding",
    "transformer/dte/embedding": "latent_embedding",
    "transformer/ln_f/kernel": "llm/decoder/norm_out/scale",
    "lm_head/kernel": "llm/to_logits/kernel",
    "vision_head/kernel": "to_vision/kernel",
    "delta_head/kernel": "to_latent/kernel",
    **{f"{LAYERS}/attention/w{letter}/kernel": f"llm/decoder/layers/attention/{name}/kernel"
       for letter, name in zip("qkvo", ("query", "key", "value", "out"))},
    **{f"{LAYERS}/feed_forward/w{number}/kernel": f"llm/decoder/layers/feedforward/{name}/kernel"
       for number, name in ((1, "gate"), (2, "down"), (3, "up"))},
    f"{LAYERS}/attention_norm/kernel": "llm/decoder/layers/attention_norm/scale",
    f"{LAYERS}/ffn_norm/kernel": "llm/decoder/layers/feedforward_norm/scale",
}  # fmt: skip
ACTIONS = {"transformer/ate/embedding": "action_embedding", "action_head/kernel": "to_action/kernel"}
TRAIN_STATE = "params/params/"
KIND = "LAPA-7B"
PROMPTS = {"latent_prompt": lapa.LATENT_PROMPT, "action_prompt": lapa_action.ACTION_PROMPT}


def read(
    params: pathlib.Path, vqgan: pathlib.Path, *, bins: pathlib.Path | None = None, heads: int | None = None,
    rotary: float | None = None, eps: float | None = None, image_size: int | None = None, code_length: int = 4,
    text_length: int = 128, dtype: str = "float32", words: "Words | None" = None, existing_bins: bool = False,
    center_crop: bool = False,
) -> Release:  # fmt: skip
    """Reads what the files hold, without the decoder's numbers.

    Args:
      params: the streaming checkpoint, of parameters or of a whole train state. vqgan: the pickle, or safetensors with
        the same names, joined by "/" or ".".
      bins: the CSV of the bins of actions; needed for a checkpoint with actions, and for no other.
      heads: of the decoder. rotary, eps: base of the rotary positions, of the norms. image_size: in pixels. None for
        what `sizes.json` beside `params` says, {"llama": {"num_attention_heads", "theta", "rms_norm_eps"}, "vqgan":
        {"resolution"}}, or for the released model's: heads of 128, 5e7, 1e-6 and 256.
      code_length: codes of a latent action. text_length: tokens that prompts are padded to.
      dtype: of the decoder's computation.
      words: the tokenizer; None: there is none, and the run cannot act on words.
      existing_bins: choose among the bins that a dimension has, see `lapa_action.Model`.
      center_crop: see the middle 0.9 of images' height, as models finetuned with `image_aug` are run.

    Raises:
      UserError: a file that is missing, damaged or of something else.
    """
    stream = _Stream(params)
    acts = bool(set(ACTIONS) & set(stream.shapes))
    _check_names(params, stream, acts)
    if acts != (bins is not None):
        raise UserError(f"{params} has actions: give the CSV of their bins with --bins" if acts else
                        f"{params} has no actions, so --bins {bins} is of another checkpoint")  # fmt: skip
    images, sizes = _vqgan_tensors(vqgan), _sizes(params)
    heads, image_size = heads or sizes.get("num_attention_heads"), image_size or sizes.get("resolution", 256)
    rotary, eps = rotary or float(sizes.get("theta", 5e7)), eps or float(sizes.get("rms_norm_eps", 1e-6))
    spec = {"name": "policies.lapa_action" if acts else "policies.lapa",
            "llm": _llm(stream.shapes, heads, rotary, eps, dtype), "vqgan": _vqgan(vqgan, images.shapes),
            "image_size": image_size, "text_length": text_length,
            "vision_vocab": _other(stream.shapes["vision_head/kernel"], _dim(stream)),
            "vision_end": images.shapes["quantize/embeddings"][0] + 1,
            "code_length": code_length,
            "codebook_size": _other(stream.shapes["delta_head/kernel"], _dim(stream))}  # fmt: skip
    prompts = words.prompts if words else PROMPTS
    if words is None and spec["llm"]["vocab"] <= max(lapa.LATENT_PROMPT):
        # a vocabulary of one's own without a tokenizer: any word will do, since none can be read
        prompts = dict.fromkeys(prompts, (0,))
    for name in ("latent_prompt", "action_prompt") if acts else ("latent_prompt",):
        spec[name] = list(prompts[name])
    if acts:
        spec |= {"edges": read_bins(bins), "bins": _other(stream.shapes["action_head/kernel"], _dim(stream)),
                 "chunk_length": 1, "choose": "existing" if existing_bins else "all"}  # fmt: skip
    data = {"samples": "steps", "fields": ["image", "text", "latent"]}
    if acts:
        data = {"samples": "chunks", "fields": ["image", "text", "action"], "chunk_length": 1, "normalize": "none"}
    data |= {"camera": "image", "image_size": image_size, "text_length": text_length,
             "resize": images_lib.LAPA_CROPPED if center_crop else "lapa",
             "text_tokenizer": words.config if words else None}  # fmt: skip
    sources = {name: (stream, name) for name in stream.shapes} | {f"vqgan/{n}": (images, n) for n in images.shapes}
    notes = [f"left out of {params.name}: {len(stream.left)} entries that are no parameters"] if stream.left else []
    if words is None:
        notes.append("there is no tokenizer: the run acts on words when --tokenizer names one")
    return Release(
        KIND, params, {"name": "lapa7b", "model": spec, "data": data}, Renamed(sources),
        _places(images.shapes, spec["llm"]["heads"], acts), files=words.files if words else {}, notes=notes,
        stored="bfloat16" if stream.dtypes == {"bfloat16"} else None, float32="vqgan/.*",
    )  # fmt: skip


class Words(NamedTuple):
    """A tokenizer for a run.

    Attributes:
      config: `data.text_tokenizer`. files: {name in the run folder: file to copy}.
      prompts: {"latent_prompt": ids, "action_prompt": ids}, of the words behind the image.
    """

    config: dict
    files: dict[str, pathlib.Path]
    prompts: dict[str, list[int]]


def tokenizer(name: str | None, folder: pathlib.Path) -> Words | None:
    """The tokenizer that a user names.

    Args:
      name: a `tokenizer.model` of SentencePiece, a folder with `tokenizer.json`, a name on the hub, "bytes"; or None.
      folder: an existing one, where files are written that the run folder gets.

    Raises:
      UserError: none that can be read.
    """
    if name is None:
        return None
    source, files, place = pathlib.Path(name), {}, name
    if source.is_file() or source.suffix == ".model":
        text.convert_sentencepiece(source, folder)
        source = place = folder
    if pathlib.Path(place).is_dir():
        files = {f"tokenizer/{file.name}": file for file in sorted(pathlib.Path(place).iterdir()) if file.is_file()}
    plain = text.build({"name": str(place), "special_tokens": False})
    prompts = {"latent_prompt": plain.encode("</vision> <delta>"), "action_prompt": plain.encode("</vision> <action>")}
    return Words({"name": "{run}/tokenizer" if files else name, "template": "lapa_7b"}, files, prompts)


def read_bins(path: pathlib.Path) -> list[list[float]]:
    """The edges of each dimension from the CSV that the official `data/finetune_preprocess.py` writes: a header, then a
    row of edges a dimension, those of fewer bins filled up with nothing.

    Raises:
      UserError: no such file, or something else in it.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    edges = []
    try:
        with open(path, newline="") as file:
            rows = csv.reader(file)
            next(rows, None)
            for row in rows:
                edges.append([float(value) for value in row if value.strip()])
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: row {len(edges) + 2} is no row of numbers ({error})") from None
    if not edges:
        raise UserError(f"{path} has no rows of edges behind its header")
    try:
        lapa_action.check_edges(edges, max(map(len, edges)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return edges


class _Stream:
    """The parameters in a streaming checkpoint. shapes: {name: shape}. dtypes: of the numbers. left: names of what else
    it holds."""

    def __init__(self, path: pathlib.Path):
        self._stream = ArrayStream(path)
        names = list(self._stream.arrays)
        wrapped = any(name.startswith(TRAIN_STATE) for name in names)
        self._names = {name.removeprefix(TRAIN_STATE): name for name in names
                       if not wrapped or name.startswith(TRAIN_STATE)}  # fmt: skip
        self.shapes = {name: self._stream.arrays[theirs].shape for name, theirs in self._names.items()}
        self.dtypes = {self._stream.arrays[theirs].dtype.name for theirs in self._names.values()}
        self.left = [*self._stream.others, *(name for name in names if name not in self._names.values())]

    def read(self, name: str) -> np.ndarray:
        """One array in the file's own dtype: a larger one would only take memory."""
        return self._stream.read(self._names[name])


class _Arrays:
    """Arrays in memory as tensors of a release."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays
        self.shapes = {name: array.shape for name, array in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """One array."""
        return self._arrays[name]


def _check_names(path: pathlib.Path, stream: _Stream, acts: bool) -> None:
    """Sizes are read off the arrays, so their names are checked first."""
    expected = {*DECODER, *(ACTIONS if acts else ())}
    lists = {"missing": expected - set(stream.shapes), "unexpected": set(stream.shapes) - expected}
    if lines := [f"{what} ({len(names)}): {', '.join(sorted(names))}" for what, names in lists.items() if names]:
        raise UserError(f"{path} is no complete {KIND}; {'; '.join(lines)}")


def _vqgan_tensors(path: pathlib.Path):
    """The tensors of the VQGAN, by names with "/"."""
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
        tensors = Renamed({name.replace(".", "/"): (file, name) for name in file.shapes})
    else:
        tensors = _Arrays(tree.flatten(read_arrays(path)))
    needed = ("encoder/Conv_1/kernel", "encoder/DownsamplingBlock_0/ResnetBlock_0/Conv_0/kernel", "quantize/embeddings")
    if missing := [name for name in needed if len(tensors.shapes.get(name, ())) < 2]:
        raise UserError(f"{path} is no VQGAN of {KIND}; missing ({len(missing)}): {', '.join(missing)}; it holds "
                        f"{', '.join(sorted(tensors.shapes)[:5])}, ...")  # fmt: skip
    return tensors


def _vqgan(path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The fields of `vision.vqgan`."""
    level = re.compile(r"encoder/DownsamplingBlock_(\d+)/ResnetBlock_0/Conv_0/kernel")
    widths = {int(m[1]): shape[-1] for name, shape in shapes.items() if (m := level.fullmatch(name))}
    block = re.compile(r"encoder/DownsamplingBlock_0/ResnetBlock_\d+/Conv_0/kernel")
    if sorted(widths) != list(range(len(widths))):
        raise UserError(f"{path} lacks levels of the encoder; it has {sorted(widths)}")
    size, width = shapes["quantize/embeddings"][:2]
    return {"name": "vision.vqgan", "widths": [widths[k] for k in range(len(widths))],
            "blocks": sum(bool(block.fullmatch(name)) for name in shapes),
            "latent": shapes["encoder/Conv_1/kernel"][-1], "codebook_size": size, "code_width": width}  # fmt: skip


def _sizes(params: pathlib.Path) -> dict:
    """What `sizes.json` beside a checkpoint says, the groups in one."""
    path = params.with_name("sizes.json")
    content = read_json(path) if path.is_file() else {}
    groups = [content.get(name) for name in ("llama", "vqgan")] if isinstance(content, Mapping) else [content]
    if not all(isinstance(group, Mapping | None) for group in groups):
        raise UserError(f'{path} does not hold {{"llama": {{...}}, "vqgan": {{...}}}}')
    return {name: value for group in groups for name, value in (group or {}).items()}


def _llm(shapes: Mapping[str, tuple[int, ...]], heads: int | None, rotary: float, eps: float, dtype: str) -> dict:
    """The fields of `llama`."""
    dim = shapes["transformer/ln_f/kernel"][0]
    if heads is None:
        heads = dim // DIM_HEAD
        if heads * DIM_HEAD != dim:
            raise UserError(f"the decoder is {dim} wide, which makes no heads of {DIM_HEAD}; say how many with --heads")
    if dim % heads or dim // heads % 2:
        raise UserError(f"--heads {heads} does not divide the decoder's width, {dim}, into heads of an even width")
    return {"name": "llama", "vocab": _other(shapes["lm_head/kernel"], dim), "dim": dim,
            "depth": shapes[f"{LAYERS}/attention_norm/kernel"][0], "heads": heads, "kv_heads": heads,
            "dim_head": dim // heads, "hidden": _other(shapes[f"{LAYERS}/feed_forward/w1/kernel"][1:], dim),
            "rotary": rotary, "eps": eps, "head": "own", "dtype": dtype}  # fmt: skip


def _dim(stream: _Stream) -> int:
    return stream.shapes["transformer/ln_f/kernel"][0]


def _other(shape: Sequence[int], dim: int) -> int:
    """The side of a matrix that is not `dim`, whichever way it lies: a transposed one is then told as what it is."""
    return next((side for side in shape if side != dim), dim)


def _places(images: Mapping[str, object], heads: int, acts: bool) -> dict[str, list[Place]]:
    places = {name: [Place(path, same)] for name, path in (DECODER | (ACTIONS if acts else {})).items()}
    for letter in "qk":
        name = f"{LAYERS}/attention/w{letter}/kernel"
        places[name] = [Place(DECODER[name], lambda x: halves_of_pairs(x, heads))]
    return places | {f"vqgan/{name}": [Place(f"vqgan/{name}", same)] for name in images}


def halves_of_pairs(kernel: np.ndarray, heads: int) -> np.ndarray:
    """A kernel [..., in, out] for rotary positions that turn neighbours (0, 1), (2, 3), ... of each head, for ours,
    which turn i together with i + half: the even columns of a head first, then the odd ones."""
    pairs = kernel.reshape(*kernel.shape[:-1], heads, -1, 2)
    return np.swapaxes(pairs, -1, -2).reshape(kernel.shape)
