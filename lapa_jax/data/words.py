"""A tokenizer of whole words for instructions that are few and alike: much shorter than bytes, nothing to download."""

import pathlib
import re
from collections.abc import Iterable

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_folder, write_json
from lapa_jax.data.text import plain

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>",
          "unk_token": "<unk>"}  # fmt: skip
_WORD = re.compile(r"\w+|[^\w\s]+")  # as the pre-tokenizer "Whitespace" cuts


def vocabulary(instructions: Iterable[str]) -> dict[str, int]:
    """Ids of all words, sorted, behind the special tokens."""
    words = sorted({word for text in instructions for word in _WORD.findall(plain(text))} - set(SPECIAL))
    return {word: i for i, word in enumerate((*SPECIAL, *words))}


def write_tokenizer(folder: pathlib.Path, instructions: Iterable[str]) -> int:
    """Writes a tokenizer for `data.text_tokenizer.name`, in the format of Hugging Face; words that no instruction has
    become "<unk>".

    Args:
      folder: a new or empty one.
      instructions: whose words it knows.

    Returns:
      How many ids it has.

    Raises:
      UserError: the folder is not empty, or there is no word.
    """
    # Imported where it is needed: training on other tokenizers does without the package.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = vocabulary(instructions)
    if len(ids) == len(SPECIAL):
        raise UserError("the data have no instructions, so there are no words to know")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    with atomic_folder(folder) as temporary:
        tokenizer.save(str(temporary / "tokenizer.json"))
        write_json(temporary / "tokenizer_config.json", CONFIG)
    return len(ids)
