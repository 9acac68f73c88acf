"""Instructions as token ids: a byte tokenizer that needs no download, and any tokenizer of Hugging Face.

A tokenizer is called with a list of instructions and gives padded ids and a mask. Each instruction is first made plain
(`plain`), then put into a prompt template. `build` makes one from a config.
"""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
import unicodedata
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import placeholder

PLACE = "{instruction}"


class Template(NamedTuple):
    """A prompt around an instruction; `lower`: the instruction is put into lower case."""

    text: str
    lower: bool = False


TEMPLATES = {
    "plain": Template(PLACE),
    "openvla": Template(f"In: What action should the robot take to {PLACE}?\nOut:", lower=True),
    "lapa": Template(
        f"<s> You are a helpful assistant. USER: What action should the robot take to `{PLACE}` ASSISTANT:"
    ),
    "lapa_7b": Template(
        f"<s> You are a helpful assistant. USER: What action should the robot take to `{PLACE}` ASSISTANT: <vision>"
    ),
}
"""By name; the strings are those that the models were trained with. "<s>" is part of LAPA's, besides the bos token;
"lapa_7b" is what the released model sees before an image."""


def plain(text: str) -> str:
    """An instruction without accidents of typing: Unicode NFC, runs of blanks and line breaks one blank, none around.

    Case and punctuation stay as they are, since they are the data's.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt(instruction: str, template: str = "plain") -> str:
    """An instruction in a template: a name of `TEMPLATES`, or a text that holds `{instruction}` once."""
    chosen = _template(template)
    instruction = plain(instruction)
    return chosen.text.replace(PLACE, instruction.lower() if chosen.lower else instruction)


def _template(template: str) -> Template:
    if template in TEMPLATES:
        return TEMPLATES[template]
    if template.count(PLACE) == 1:
        return Template(template)
    hint = did_you_mean(template, TEMPLATES)
    raise UserError(f"prompt template '{template}' is no known name, and does not hold {PLACE} once{hint}")


class Tokenizer:
    """What tokenizers have in common.

    Args:
      template: see `prompt`.
      special_tokens: add the tokens that the tokenizer puts around a text: bos in front for bytes and Llama, whatever
        a tokenizer of Hugging Face was trained with.
      truncate: cut texts that are longer than asked for, and count them in `truncated`. The default is to refuse them,
        since a cut instruction may ask for something else.
      lower: put instructions into lower case, whatever the template says.
      append: an id that every prompt ends with; it is added where the last one is another. For OpenVLA 29871, Llama's
        blank, which stands before the action in its training.

    Attributes:
      vocab_size: ids are smaller. pad_id, eos_id: int; bos_id: int or None where there is none.
      truncated: how many texts this object has cut so far (each loader worker counts its own).
    """

    vocab_size: int
    pad_id: int
    bos_id: int | None
    eos_id: int

    def __init__(
        self, template: str = "plain", special_tokens: bool = True, truncate: bool = False, lower: bool = False,
        append: int | None = None,
    ):  # fmt: skip
        _template(template)
        self.template, self.special_tokens, self.truncate = template, special_tokens, truncate
        self.lower, self.append = lower, append
        self.truncated = 0

    def __call__(self, instructions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32[B, length] and mask bool[B, length], true where a token is; padded on the right.

        Raises:
          UserError: an instruction takes more than `length` tokens, and `truncate` is off.
        """
        ids = np.full((len(instructions), length), self.pad_id, np.int32)
        mask = np.zeros((len(instructions), length), bool)
        for row, instruction in enumerate(instructions):
            text = self._prompt(instruction)
            tokens = self._ended(self.encode(text))
            if len(tokens) > length:
                tokens = self._cut(text, len(tokens), length)
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return ids, mask

    def _cut(self, text: str, tokens: int, length: int) -> list[int]:
        if not self.truncate:
            raise UserError(
                f"a prompt takes {tokens} tokens of {self!r} and {length} are allowed: '{_shorten(text)}'; allow more, "
                "or set truncate=True to cut long ones"
            )
        self.truncated += 1
        return self._ended(self._first(text, length if self.append is None else length - 1))

    def _prompt(self, instruction: str) -> str:
        return prompt(instruction.lower() if self.lower else instruction, self.template)

    def _ended(self, tokens: list[int]) -> list[int]:
        """With the id that every prompt ends with."""
        return tokens if self.append is None or tokens[-1:] == [self.append] else [*tokens, self.append]

    def lengths(self, instructions: Sequence[str]) -> list[int]:
        """How many tokens each prompt takes: to choose the length, or to check it before training."""
        return [len(self._ended(self.encode(self._prompt(instruction)))) for instruction in instructions]

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands, without template and padding."""
        raise NotImplementedError

    def _first(self, text: str, length: int) -> list[int]:
        """The ids of as much of a text as fits."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and padding. An id outside the vocabulary is a ValueError."""
        raise NotImplementedError

    def instruction(self, ids: Sequence[int]) -> str:
        """The instruction in the ids of a prompt, or the whole text where the words of the template are not found."""
        text, (before, _, after) = self.decode(ids), _template(self.template).text.partition(PLACE)
        start, end = text.find(before[-12:]), text.rfind(after[:12])
        if min(start, end) < 0:
            return text
        return text[start + len(before[-12:]) : end if after else None].strip()

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in np.asarray(ids).ravel()]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        return ids


class ByteTokenizer(Tokenizer):
    """The bytes of a text in UTF-8: pad 0, bos 1, eos 2, byte b is 3 + b; 259 ids."""

    pad_id, bos_id, eos_id, vocab_size = 0, 1, 2, 259
    _FIRST = 3

    def encode(self, text: str) -> list[int]:
        return ([self.bos_id] if self.special_tokens else []) + [self._FIRST + byte for byte in text.encode()]

    def _first(self, text: str, length: int) -> list[int]:
        room = max(0, length - self.special_tokens)
        whole = text.encode()[:room].decode(errors="ignore")  # not the first half of a character
        return self.encode(whole)[:length]

    def decode(self, ids: Sequence[int]) -> str:
        data = bytes(i - self._FIRST for i in self._check_ids(ids) if i >= self._FIRST)
        return data.decode(errors="replace")

    def __repr__(self) -> str:
        return "ByteTokenizer()"


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of Hugging Face. No code that comes with a tokenizer is run.

    Args:
      name: a folder with its files (`tokenizer.json`, or `tokenizer.model`, which needs the package sentencepiece), or
        its name on the hub.
      options: as of `Tokenizer`.

    `pad_id` is the tokenizer's; without one, as in Llama, its eos (the mask tells padding apart), else 0.
    """

    def __init__(self, name: str, **options):
        super().__init__(**options)
        self.name = name
        self._tokenizer = _from_pretrained(name)
        eos, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        self.bos_id, self.eos_id = self._tokenizer.bos_token_id, eos
        self.pad_id = next((i for i in (pad, eos) if i is not None), 0)
        self.vocab_size = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=self.special_tokens)["input_ids"]

    def _first(self, text: str, length: int) -> list[int]:
        options = {"add_special_tokens": self.special_tokens, "truncation": True, "max_length": length}
        return self._tokenizer(text, **options)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(self._check_ids(ids), skip_special_tokens=True)

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer({self.name})"


def build(config: Mapping) -> Tokenizer:
    """The tokenizer of a config: {"name": "bytes", or a Hugging Face name or folder, and options of `Tokenizer`}."""
    options = dict(config)
    name = options.pop("name", None)
    known = ("template", "special_tokens", "truncate", "lower", "append")
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"a tokenizer has no option '{unknown[0]}'{did_you_mean(unknown[0], known)}")
    if not name:
        raise UserError('a tokenizer needs a name: "bytes", or the name or folder of one of Hugging Face')
    return ByteTokenizer(**options) if name == "bytes" else HuggingFaceTokenizer(name, **options)


def check_name(config: Mapping) -> None:
    """Refuses the tokenizer of a config that is neither a folder with one, nor downloaded, nor to be had from the hub,
    as far as that shows without importing transformers, which takes a second.

    Raises:
      UserError: what it is, and what it needs.
    """
    name = config.get("name")
    if not name or name == "bytes":
        return
    folder = pathlib.Path(name)
    if folder.is_dir():
        if not any(re.search(r"token|vocab|\.model$", file.name) for file in folder.iterdir()):
            raise UserError(f"tokenizer folder {name} holds no tokenizer; it needs tokenizer.json, or tokenizer.model "
                            "and sentencepiece")  # fmt: skip
        return
    if _looks_local(name):
        raise _no_folder(name)
    # Where the hub's library keeps downloads, and the switch by which it is not asked.
    home = os.environ.get("HF_HOME", pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    cache = pathlib.Path(os.environ.get("HF_HUB_CACHE", pathlib.Path(home) / "hub")).expanduser()
    if (cache / f"models--{name.replace('/', '--')}").is_dir():
        return
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise _not_to_be_had(name, "HF_HUB_OFFLINE is set")
    try:
        _reach_hub()
    except OSError as error:
        raise _not_to_be_had(name, str(error)) from None


def _no_folder(name: str) -> UserError:
    return UserError(f"tokenizer folder {name} does not exist; name one that does (data.text_tokenizer.name), or "
                     "import released weights again with their --tokenizer")  # fmt: skip


def convert_sentencepiece(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes a Llama tokenizer of SentencePiece, `tokenizer.model`, as files that do not need it; bos goes first.

    Args:
      source: the file. folder: an existing one, for `tokenizer.json` and `tokenizer_config.json`.

    Raises:
      UserError: no such file, the package is missing, or the result would give other ids than SentencePiece itself.
    """
    if not source.is_file():
        raise UserError(f"{source} does not exist")
    try:
        import sentencepiece
    except ImportError:
        raise UserError(f"{source} needs a package: pip install 'lapa_jax[sentencepiece]'") from None
    from transformers import AutoTokenizer

    try:
        original = sentencepiece.SentencePieceProcessor(model_file=str(source))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{source} is no model of SentencePiece ({_shorten(str(error))})") from None
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copyfile(source, pathlib.Path(temporary) / "tokenizer.model")
        tokens = {f"{name}_token": original.id_to_piece(i) for name, i in (("unk", 0), ("bos", 1), ("eos", 2))}
        options = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **tokens}
        (pathlib.Path(temporary) / "tokenizer_config.json").write_text(json.dumps(options))
        AutoTokenizer.from_pretrained(temporary, local_files_only=True).save_pretrained(folder)
    converted = HuggingFaceTokenizer(str(folder))
    for words in ("pick up the red cup", "</vision> <delta>", "Öffne  die Schublade, 3 cm!", "a `b` </s-> x\ty"):
        for text in (words, f"{converted._tokenizer.bos_token} {words}"):
            expected = [1, *([1] if text != words else []), *original.encode(words)]
            if converted.encode(text) != expected:
                raise UserError(f"{source} cannot be converted: '{text}' becomes {converted.encode(text)}, in place of "
                                f"{expected}; give a folder with tokenizer.json")  # fmt: skip


def _from_pretrained(name: str):
    """A folder, else what an earlier download has left, else the hub."""
    folder = pathlib.Path(name)
    if _looks_local(name) and not folder.is_dir():
        raise _no_folder(name)
    if (folder / "tokenizer.model").exists() and importlib.util.find_spec("sentencepiece") is None:
        if not (folder / "tokenizer.json").exists():
            raise UserError(f"{folder / 'tokenizer.model'} needs a package: pip install sentencepiece")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that there is no PyTorch
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except _ERRORS as error:
        if folder.is_dir():
            if why := next((why for file in sorted(folder.iterdir()) if (why := placeholder(file))), ""):
                raise UserError(why) from None
            what = f"folder {name} holds no tokenizer that can be read ({_shorten(str(error))})"
            raise UserError(f"{what}; it needs tokenizer.json, or tokenizer.model and sentencepiece") from None
    try:
        _reach_hub()
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except _ERRORS as error:
        raise _not_to_be_had(name, str(error)) from None


def _looks_local(name: str) -> bool:
    """Whether a name can only be that of a folder: those of the hub are NAME or ORGANISATION/NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _not_to_be_had(name: str, why: str) -> UserError:
    return UserError(
        f"tokenizer '{name}' is no folder here and cannot be fetched from the Hugging Face hub ({_shorten(why)}); "
        f"check the name, and log in for gated ones (hf auth login). Without a network: run `hf download {name}` where "
        "there is one and give the folder; the name 'bytes' needs no download"
    )


_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError)


def _reach_hub() -> None:
    """An OSError where the hub's name is not known: the library would try for a minute before it says so."""
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if not urllib.request.getproxies():
        socket.getaddrinfo(host, 443)


def _shorten(text: str, limit: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
