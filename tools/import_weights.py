"""Turns weights of other projects into models of ours.

  python tools/import_weights.py laq --input laq_openx.pt --out runs/laq_openx [--image_size 256]
  python tools/import_weights.py llama --input Llama-2-7b-hf --out weights/llama [--no_head] [--dtype bfloat16]
  python tools/import_weights.py siglip --input siglip-so400m-patch14-224 --out weights/siglip [--layer -2]
  python tools/import_weights.py dinov2 --input dinov2-with-registers-large --out weights/dinov2 [--layer -2]
  python tools/import_weights.py univla_lam --input lam-stage-2.ckpt --out runs/univla_lam
  python tools/import_weights.py univla --input univla-7b --out runs/univla [--action_decoder action_decoder.pt]
  python tools/import_weights.py lapa7b --input params --vqgan vqgan --tokenizer tokenizer.model --out runs/lapa7b

write run folders with the checkpoint of step 0: `lapa_jax.load` takes those that act or encode, `config.init_from` all,
each device reading its own part. `.safetensors` files need nothing else; old `.pt` files of LAQ need torch. Tensors
pass through one by one, by way of a file beside the checkpoint that needs as much room again while the import lasts.
Nothing of a checkpoint is executed, and one with missing, unexpected or misshapen tensors is refused with their names.
"""

import argparse
import functools
import math
import pathlib
import re
import shutil
import tempfile
import textwrap
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lapa_jax.core import progress, startup, tree
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import arrays_on_disk, check_room, placeholder, read_json_object
from lapa_jax.core.torch_file import Tensor, TorchFile

# Models import jax, so each importer imports its own when it runs: --help and mistakes in options are answered at once.
if TYPE_CHECKING:
    from lapa_jax.models.released import base

PARTS = 8
"""Devices that the host is taken for: arrays are written in so many parts, few of which are in memory at a time."""


class Command(NamedTuple):
    """A kind of checkpoint.

    Attributes:
      help: what it is. input: what `--input` names.
      options: adds the command's own options to its parser.
      run: imports; called with the input, the folder to write and the options by name.
    """

    help: str
    input: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., None]


def write_release(release: "base.Release", out: pathlib.Path, wanted: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Streams a released checkpoint into a run folder and says what was done.

    Args:
      release: what its reader found. out: the folder to write. wanted: {path: shape} of the model's parameters.
      dtype: what numbers are stored as, if the release does not say.

    Raises:
      UserError: lists the tensors that are missing, unexpected or of a wrong shape; nothing is written then.
    """
    import jax.numpy as jnp

    from lapa_jax.models.released import base
    from lapa_jax.train.checkpoint import write_weights

    left = base.check(release, wanted)
    meta = {"source": {"kind": release.kind, "folder": release.source.resolve().name}, **release.meta}
    dtype = release.stored or dtype
    dtypes = {path: "float32" if re.fullmatch(release.float32, path) else dtype for path in wanted}
    # The arrays lie on the disk twice, until the checkpoint is written.
    check_room(out, 2 * sum(math.prod(shape) * jnp.dtype(dtypes[path]).itemsize for path, shape in wanted.items()))
    with arrays_on_disk(out, wanted, {path: jnp.dtype(stored) for path, stored in dtypes.items()}) as arrays:
        for name, places in progress.bar(release.places.items(), desc="reading", unit="tensor"):
            tensor = release.tensors.read(name)
            for place in places:
                arrays[place.path][slice(None) if place.layer is None else place.layer] = place.change(tensor)
            arrays.forget()
        for name, file in release.files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, out / name)
        startup.say(f"writing the checkpoint of {out}")
        write_weights(out, release.config, {"params": tree.unflatten(arrays)}, meta, arrays.forget)
    if left:
        say(f"left out: {len(left)} tensors that the model does not use, {', '.join(left[:3])}"
              f"{', ...' if len(left) > 3 else ''}")  # fmt: skip
    for line in release.notes:
        say(line)
    fields = ", ".join(textwrap.shorten(f"{key}={value}", 300) for key, value in release.config["model"].items()
                       if key != "name")  # fmt: skip
    count = sum(math.prod(shape) for shape in wanted.values())
    say(f"{release.source.name}: {len(release.places)} tensors, {count:,} numbers, {dtype} -> {out}\n{fields}")


def read_state_dict(path: pathlib.Path) -> dict:
    """Reads tensors (or nested dicts of them) as numpy arrays; nothing in a `.pt` file but tensors is ever executed.

    Raises:
      UserError: no such file, an unknown ending, a damaged file, or torch is needed and not installed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if reason := placeholder(path):
        raise UserError(reason)
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.numpy

        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file ({error})") from None
    if path.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(path)
    raise UserError(f"{path} ends in '{path.suffix}'; known endings: .safetensors, .pt, .pth, .bin")


def _read_torch(path: pathlib.Path) -> dict:
    if zipfile.is_zipfile(path):
        file = TorchFile(path)
        return _arrays(file, file.content)
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} is a torch file of before version 1.6; install torch with `pip install "
                        "'lapa_jax[torch]'`") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types: zip, unpickling, runtime and end-of-file errors
        raise UserError(f"{path} holds no plain tensors that torch can read ({str(error).splitlines()[0]})") from None
    return _to_numpy(state, path)


def _arrays(file: TorchFile, value):
    if isinstance(value, dict):
        return {key: _arrays(file, v) for key, v in value.items()}
    return file.read(value).astype(np.float32) if isinstance(value, Tensor) else value


def _to_numpy(value, path: pathlib.Path):
    if isinstance(value, dict):
        return {key: _to_numpy(v, path) for key, v in value.items()}
    return value.float().numpy() if hasattr(value, "numpy") and hasattr(value, "float") else value


def import_laq(
    source: pathlib.Path, out: pathlib.Path, image_size: int, gap_seconds: float = 0.6, gap_frames: int | None = None
) -> None:  # fmt: skip
    """Converts an official LAQ file into a run folder and says what was done. The gap is that of pairs to label."""
    from lapa_jax.models.official_laq import convert, unwrap
    from lapa_jax.train.checkpoint import write_weights

    state = read_state_dict(source)
    if not isinstance(state, dict):
        raise UserError(f"{source} holds a {type(state).__name__}, not a state dict")
    plain, notes = unwrap(state)
    spec, variables, dropped = convert(plain, image_size)
    config = {"name": "laq", "model": spec, "data": _pairs(image_size, gap_seconds, gap_frames)}
    write_weights(out, config, variables, {"source": {"kind": "official LAQ", "file": source.name}})
    for line in (*notes, *dropped):
        say(line)
    count = sum(np.size(leaf) for leaf in plain.values())
    fields = ", ".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    say(f"{source.name}: {len(plain)} tensors, {count:,} numbers -> {out}\n{fields}")


def import_hugging_face(kind: str, source: pathlib.Path, out: pathlib.Path, dtype: str, **options) -> None:
    """Writes a Hugging Face checkpoint as a run folder and says what was done.

    Args:
      kind, options: as of `hugging_face.plan`.
      source: the folder that was downloaded. out: the folder to write. dtype: what numbers are stored as.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder; give that of a Hugging Face checkpoint")
    from lapa_jax.models.released import base, hugging_face
    from lapa_jax.models.released.tensors import SafetensorsFolder, aligned

    plan = hugging_face.plan(kind, read_json_object(source / "config.json"), **options)
    tensors, notes = aligned(SafetensorsFolder(source), plan.places)
    release = base.Release(kind, source, {"model": plan.spec}, tensors, plan.places, plan.unused,
                           {"source": {"kind": f"Hugging Face {kind}", "folder": source.resolve().name}},
                           notes=notes)  # fmt: skip
    write_release(release, out, hugging_face.shapes(plan.spec), dtype)


def _stored_as(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="float32", choices=tree.STORED, help="what the numbers are stored as")


def _pairs(image_size: int | None, gap_seconds: float, gap_frames: int | None) -> dict:
    """`config.data` of a tokenizer of frame pairs: labels are of pairs with this gap."""
    return {"samples": "pairs", "camera": "image", "image_size": image_size, "gap_seconds": gap_seconds,
            "gap_frames": gap_frames}  # fmt: skip


def _pairs_options(parser: argparse.ArgumentParser, image_size: int | None, gap_seconds: float) -> None:
    parser.add_argument("--image_size", type=int, default=image_size, help="side of the frames in pixels; the released "
                        "model's by default")  # fmt: skip
    parser.add_argument("--gap_seconds", type=float, default=gap_seconds, help="between the frames of pairs to label")
    parser.add_argument("--gap_frames", type=int, help="the same in frames, in place of --gap_seconds")


def _laq_options(parser: argparse.ArgumentParser) -> None:
    _pairs_options(parser, 256, 0.6)


def _llama_options(parser: argparse.ArgumentParser) -> None:
    _stored_as(parser)
    parser.add_argument("--no_head", dest="head", action="store_false", help="leave the logits' matrix out")


def _tower_options(parser: argparse.ArgumentParser) -> None:
    _stored_as(parser)
    parser.add_argument("--layer", type=int, default=-1, choices=(-1, -2),
                        help="last block with the final norm (-1), or the one before without (-2)")  # fmt: skip


def _hugging_face(kind: str, options: Callable) -> Command:
    def run(source: pathlib.Path, out: pathlib.Path, **chosen) -> None:
        import_hugging_face(kind, source, out, **chosen)

    return Command(f"a Hugging Face folder of {kind}", "folder with config.json and safetensors", options, run)


def import_openvla(source: pathlib.Path, out: pathlib.Path, adapter: pathlib.Path | None, **chosen) -> None:
    """Writes an OpenVLA folder as a run. Arguments: see `openvla.read`."""
    from lapa_jax.models.released import openvla
    from lapa_jax.models.released.prismatic_parts import Chosen

    _write_policy(openvla.read(source, adapter, Chosen(**chosen)), out, chosen["dtype"])


def import_prismatic(
    source: pathlib.Path, out: pathlib.Path, dinov2: pathlib.Path | None, siglip: pathlib.Path | None, **chosen
) -> None:  # fmt: skip
    """Writes a run of Prismatic's as one of ours. Arguments: see `prismatic.read`."""
    from lapa_jax.models.released import prismatic
    from lapa_jax.models.released.prismatic_parts import Chosen

    _write_policy(prismatic.read(source, dinov2, siglip, Chosen(**chosen)), out, chosen["dtype"])


def _write_policy(release: "base.Release", out: pathlib.Path, dtype: str) -> None:
    from lapa_jax.models.released import base

    write_release(release, out, base.parameters(release.config["model"]), dtype)


def _policy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="float32", choices=tree.STORED,
                        help="of the numbers, as they are stored and as the model computes")  # fmt: skip
    parser.add_argument("--tokenizer", help="folder or hub name of the tokenizer; by default its files in --input")
    parser.add_argument("--text_length", type=int, default=128, help="tokens that prompts are padded to")
    parser.add_argument("--template", help="of the prompt, see data.text_tokenizer.template; the model's by default")
    parser.add_argument("--center_crop", action="store_true", help="see the middle 0.9 of images' area, as models that "
                        "were finetuned with image_aug are run")  # fmt: skip


def _action_tokens_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--actions_only", action="store_true", help="choose among the ids of actions alone, which "
                        "reads that part of the matrix only; else, as the official code, among all")  # fmt: skip


def _adapter_options(parser: argparse.ArgumentParser) -> None:
    _policy_options(parser)
    parser.add_argument("--adapter", type=pathlib.Path, help="folder of a PEFT adapter that was trained on --input")


def _openvla_options(parser: argparse.ArgumentParser) -> None:
    _adapter_options(parser)
    _action_tokens_options(parser)


def _prismatic_options(parser: argparse.ArgumentParser) -> None:
    _policy_options(parser)
    _action_tokens_options(parser)
    for kind in ("dinov2", "siglip"):
        parser.add_argument(f"--{kind}", type=pathlib.Path, help="timm's safetensors file of the tower, where the "
                            "checkpoint does not hold it; by default looked for in the run folder")  # fmt: skip


def _lapa7b_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vqgan", type=pathlib.Path, required=True, help="image tokenizer, as released or safetensors")
    parser.add_argument("--tokenizer", help="tokenizer.model, a folder with tokenizer.json, or 'bytes'")
    parser.add_argument("--bins", type=pathlib.Path, help="CSV of the bins of actions, of a checkpoint with actions")
    parser.add_argument("--existing_bins", action="store_true",
                        help="choose among the bins that a dimension has; else, as the official code, among all, and a "
                        "bin that it has not is the action 1")  # fmt: skip
    parser.add_argument("--center_crop", action="store_true", help="see the middle 0.9 of images' height, as models "
                        "that were finetuned with image_aug are run")  # fmt: skip
    parser.add_argument("--heads", type=int, help="heads of the decoder; by default as many of 128 as it is wide, or "
                        "like the following what sizes.json beside params says")  # fmt: skip
    parser.add_argument("--rotary", type=float, help="base of the rotary positions; 5e7 by default")
    parser.add_argument("--eps", type=float, help="of the decoder's norms; 1e-6 by default")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels; 256 by default")
    parser.add_argument("--code_length", type=int, default=4, help="codes of a latent action")
    parser.add_argument("--text_length", type=int, default=128, help="tokens that prompts are padded to")
    parser.add_argument("--dtype", default="float32", choices=tree.STORED,
                        help="of the decoder's computation; bfloat16 files are stored as bfloat16 anyway")  # fmt: skip


def import_lapa7b(source: pathlib.Path, out: pathlib.Path, tokenizer: str | None, **options) -> None:
    """Writes LAPA-7B's released files as a run folder and says what was done."""
    from lapa_jax.models.released import lapa7b

    with tempfile.TemporaryDirectory() as temporary:
        words = lapa7b.tokenizer(tokenizer, pathlib.Path(temporary))
        release = lapa7b.read(source, words=words, **options)
        _write_policy(release, out, options["dtype"])


def _univla_lam_options(parser: argparse.ArgumentParser) -> None:
    _pairs_options(parser, None, 1.0)
    parser.add_argument("--heads", type=int, help="of the blocks; by default the checkpoint's own, or heads of 64")
    parser.add_argument("--tower_heads", type=int, help="of DINOv2; by default heads of 64")
    parser.add_argument("--dtype", default="float32", choices=tree.STORED, help="of the computation")


def import_univla_lam(source: pathlib.Path, out: pathlib.Path, **options) -> None:
    """Writes UniVLA's latent action model as a run folder and says what was done."""
    from lapa_jax.models.released import univla

    data = _pairs(options.pop("image_size"), options.pop("gap_seconds"), options.pop("gap_frames"))
    release = univla.read_lam(source, data=data, **options)
    _write_policy(release, out, "float32")


def _univla_options(parser: argparse.ArgumentParser) -> None:
    _adapter_options(parser)
    parser.add_argument("--action_decoder", type=pathlib.Path, help="of a finetuned model: .pt or .safetensors")
    parser.add_argument("--code_length", type=int, default=4, help="codes of a latent action")
    parser.add_argument("--codebook_size", type=int, help="by default as many as the tokenizer has <ACT_0>, ..., or 16")
    parser.add_argument("--decoder_heads", type=int, default=8, help="of the attention of the action decoder")


def import_univla(
    source: pathlib.Path, out: pathlib.Path, adapter: pathlib.Path | None, action_decoder: pathlib.Path | None,
    code_length: int, codebook_size: int | None, decoder_heads: int, **chosen,
) -> None:  # fmt: skip
    """Writes UniVLA's policy as a run. Arguments: see `univla_policy.read`."""
    from lapa_jax.models.released import univla_policy
    from lapa_jax.models.released.prismatic_parts import Chosen

    release = univla_policy.read(source, decoder=action_decoder, adapter=adapter, chosen=Chosen(**chosen),
                                 code_length=code_length, codebook_size=codebook_size,
                                 decoder_heads=decoder_heads)  # fmt: skip
    _write_policy(release, out, chosen["dtype"])


COMMANDS = {
    "laq": Command("an official LAQ state dict", ".pt or .safetensors file", _laq_options, import_laq),
    "llama": _hugging_face("llama", _llama_options),
    "siglip": _hugging_face("siglip", _tower_options),
    "dinov2": _hugging_face("dinov2", _tower_options),
    "openvla": Command("a Hugging Face folder of OpenVLA, released or finetuned",
                       "folder with config.json, safetensors and the other files", _openvla_options, import_openvla),
    "prismatic": Command("a run of Prismatic, or of OpenVLA's training code", "run folder, or a .pt file in it",
                         _prismatic_options, import_prismatic),
    "univla_lam": Command("UniVLA's latent action model", "lam-stage-2.ckpt, or safetensors with its names",
                          _univla_lam_options, import_univla_lam),
    "univla": Command("UniVLA's policy, a folder in OpenVLA's layout", "folder with config.json, safetensors and the "
                      "other files", _univla_options, import_univla),
    "lapa7b": Command("LAPA-7B's released files", "the streaming checkpoint, params", _lapa7b_options, import_lapa7b),
}
"""By the first word of the command line. To add one: a reader in `lapa_jax/models/released/`, and an entry here."""


def main(argv: list[str], devices: int | None = None) -> None:
    """Imports. devices: how many the host is taken for; only a program that has not used jax yet can choose."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, command in COMMANDS.items():
        options = kinds.add_parser(kind, help=command.help, allow_abbrev=False)
        options.add_argument("--input", type=pathlib.Path, required=True, help=command.input)
        options.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
        command.options(options)
    chosen = vars(parser.parse_args(argv))
    kind, source, out = (chosen.pop(name) for name in ("kind", "input", "out"))
    startup.say(f"importing {kind} from {source}")
    if devices is not None:
        import jax

        jax.config.update("jax_num_cpu_devices", devices)
    from lapa_jax.train.checkpoint import check_unused

    check_unused(out)
    COMMANDS[kind].run(source, out, **chosen)


if __name__ == "__main__":
    run_main(functools.partial(main, devices=PARTS))
