"""From a client's message to what a policy takes: which keys mean what, and what is refused. Imports no jax: the
processes that read large messages hold nothing else."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import image_files, images
from lapa_jax.inference import observations
from lapa_jax.serve import msgpack_numpy
from lapa_jax.serve.limits import Limits

NOTHING = "nothing"
PREFIX = "observation/"
TEXT, STATE, DATASET = "instruction", "state", "dataset"
GROUPS = ("image", "images", f"{PREFIX}images")
"""Keys that may hold {camera: image}."""


class Parts(NamedTuple):
    """What a message holds. image: uint8 [(V,) side, side, 3], as the model takes it. state: f64 [S] or None. dataset:
    whose units the numbers are in."""

    image: np.ndarray
    instruction: str
    state: np.ndarray | None
    dataset: str | None


@dataclasses.dataclass(frozen=True)
class Contract:
    """What messages are checked against, of plain values.

    Attributes:
      cameras: names, in the order of training. image_size: in pixels. takes_state: whether a state is needed.
      datasets: {name: {"features": ...}}. resize: `data.resize` of the run. limits: of images and texts.
      renamed: pairs (key of messages, own name): a camera, "instruction", "state", "dataset", or "nothing" for what is
        left out. Several keys of "state" are put behind each other, in this order.
    """

    cameras: Sequence[str]
    image_size: int
    takes_state: bool
    datasets: Mapping[str, Mapping]
    resize: str | Mapping | None
    limits: Limits
    renamed: Sequence[tuple[str, str]] = ()

    @property
    def config(self) -> dict:
        """As a `TrainedModel` has it, for `observations.resized`."""
        return {"data": {"resize": self.resize}}


class Reader:
    """Reads messages.

    Args:
      contract: what they are checked against.

    Attributes:
      keys: {own name: keys of messages that mean it}. state_parts: the keys that the state is put together from.

    Raises:
      UserError: an own name that there is not.
    """

    def __init__(self, contract: Contract):
        self._contract, self._limits, self._cameras = contract, contract.limits, contract.cameras
        self.keys = _accepted(self._cameras)
        for key, name in contract.renamed:
            if name != NOTHING and name not in self.keys:
                raise UserError(f"--rename {key}={name}: '{name}' is nothing that the policy takes"
                                f"{did_you_mean(name, [*self.keys, NOTHING])}")  # fmt: skip
        self.state_parts = [key for key, name in contract.renamed if name == STATE]
        self._meaning = {key: name for name, accepted in self.keys.items() for key in accepted}
        self._meaning |= dict(contract.renamed)
        self.keys = {name: [key for key, means in self._meaning.items() if means == name] for name in self.keys}

    def read(self, message) -> Parts:
        """Checks one observation and brings its images to the model's size.

        Raises:
          UserError: a key that is missing, unknown or there twice; a value that the policy or the limits do not allow.
        """
        values = self._sort(message)
        dataset = observations.chosen_dataset(self._contract.datasets, self._optional_text(values, DATASET))
        sides = [self._image(name, values, dataset) for name in self._cameras]
        image = sides[0] if len(self._cameras) == 1 else np.stack(sides)
        state = self._state(values)
        return Parts(image, self._text(values), state, dataset)

    def _sort(self, message) -> dict[str, dict[str, object]]:
        """{own name: {key: value}} of a message."""
        if not isinstance(message, Mapping):
            raise UserError(f"a message is a {type(message).__name__}; a map is expected, with {self._expected()}")
        sorted_values: dict[str, dict[str, object]] = {}
        for key, value in _flat(message):
            name = self._meaning.get(key) if isinstance(key, str) else None
            if name is None:
                remedy = "--rename KEY=NAME of the server gives it a meaning, KEY=nothing leaves it out"
                shown = repr(str(key)[:60])
                raise UserError(f"nothing is known of the key {shown}; expected are {self._expected()}. {remedy}")
            if key in sorted_values.setdefault(name, {}):
                raise UserError(f"{key} is there twice, alone and in a map of cameras; send it once")
            sorted_values[name][key] = value
        for name, values in sorted_values.items():
            if len(values) > 1 and name != NOTHING and not (name == STATE and set(values) <= set(self.state_parts)):
                raise UserError(f"{' and '.join(values)} both mean {name}; send one of them")
        return sorted_values

    def _expected(self) -> str:
        needed = [*self._cameras, TEXT, *((STATE,) if self._contract.takes_state else ())]
        if len(self._contract.datasets) > 1:
            needed.append(DATASET)
        return ", ".join(f"{name} (as {' or '.join(self.keys[name])})" if self.keys[name] != [name] else name
                         for name in needed)  # fmt: skip

    def _one(self, values: Mapping[str, Mapping], name: str):
        if name not in values:
            raise UserError(f"the message has no {name}; expected are {self._expected()}")
        ((key, value),) = values[name].items()
        return key, value

    def _image(self, name: str, values: Mapping[str, Mapping], dataset: str | None) -> np.ndarray:
        """uint8 [side, side, 3] of an array or a JPEG."""
        key, value = self._one(values, name)
        side, most = self._contract.image_size, self._limits.picture_side
        if isinstance(value, bytes):
            value = _jpeg(value, key, most)
        if not isinstance(value, np.ndarray):
            raise UserError(f"{key} is a {type(value).__name__}; uint8 [H, W, 3] or the bytes of a JPEG is expected")
        # torch's order; the policy would see it as a very flat image.
        if value.ndim == 3 and value.shape[0] == 3 != value.shape[2]:
            raise UserError(f"{key} has shape {value.shape}, channels first; [H, W, 3] is expected")
        if max(value.shape, default=0) > most:
            raise UserError(f"{key} has shape {value.shape}; sides of at most {most} pixels are allowed")
        return observations.model_images(value, key, (), 1, side, self._contract, dataset)

    def _text(self, values: Mapping[str, Mapping]) -> str:
        key, value = self._one(values, TEXT)
        if not isinstance(value, str):
            raise UserError(f"{key} is a {type(value).__name__}; a text is expected")
        if len(value) > self._limits.instruction_characters:
            raise UserError(f"{key} has {len(value)} characters; {self._limits.instruction_characters} are allowed")
        # JSON may hold half of a surrogate pair, which cannot be encoded as UTF-8 for the tokenizer.
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"{key} holds half a character (a lone surrogate), which is no text")
        return value

    def _optional_text(self, values: Mapping[str, Mapping], name: str) -> str | None:
        value = next(iter(values.get(name, {}).values()), None)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{name} is a {type(value).__name__}; a text is expected")
        return value

    def _state(self, values: Mapping[str, Mapping]) -> np.ndarray | None:
        """f64 [S]; None for a policy that takes none, whatever was sent."""
        if not self._contract.takes_state:
            return None
        if STATE not in values:
            self._one(values, STATE)
        parts = values[STATE]
        if set(parts) & set(self.state_parts) and len(parts) < len(self.state_parts):
            raise UserError(f"the state is {', '.join(self.state_parts)}; the message has {', '.join(parts)} only")
        ordered = self.state_parts if len(parts) > 1 else parts
        return np.concatenate([_numbers(parts[key], key) for key in ordered])


def decode(data: bytes | bytearray, packed: bool) -> tuple[object, dict[str, bool]]:
    """A message in msgpack (`packed`) or JSON, and which kind of answer is expected.

    JSON may be a text in {"encoded": ...}; its answer is then JSON in a text: "twice". "chunk": all actions are asked
    for. "package": lists are, see `msgpack_numpy.unpack`.

    Raises:
      UserError, WireError: no message.
    """
    replies: dict[str, bool] = {}
    if packed:
        return msgpack_numpy.unpack(data, replies), replies
    message = msgpack_numpy.from_json(data)
    replies["twice"] = isinstance(message, dict) and set(message) == {"encoded"}
    if replies["twice"]:
        if not isinstance(message["encoded"], str):
            raise UserError(f"encoded is a {type(message['encoded']).__name__}; JSON as a text is expected")
        message = msgpack_numpy.from_json(message["encoded"])
    replies["chunk"] = isinstance(message, dict) and "full_image" in message
    return message, replies


def work(message) -> int:
    """How much there is to do: pixels of a message's images, those of a JPEG as often as it has scans."""
    return sum(_pixels(value) for _, value in _flat(message)) if isinstance(message, Mapping) else 0


def _pixels(value) -> int:
    if isinstance(value, np.ndarray):
        return value.size // 3
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(value) if isinstance(value, bytes) else (0, 0)
        return height * width * image_files.scans_of(value) if height else 0
    except ValueError:  # no JPEG, which `Reader.read` says
        return 0


def _accepted(cameras: Sequence[str]) -> dict[str, list[str]]:
    """{own name: keys}: those of lapa_jax, of openpi's examples and of OpenVLA's clients."""
    keys = {name: [name, f"{PREFIX}{name}"] for name in cameras}
    for name in cameras:
        if name.startswith("image_"):
            swapped = f"{name.removeprefix('image_')}_image"
            keys[name] += [swapped, f"{PREFIX}{swapped}"]
    first = keys[cameras[0]]
    # Single-camera clients say "image" or "full_image" whatever the camera is called here.
    first += [key for key in ("image", f"{PREFIX}image", "full_image") if not any(key in k for k in keys.values())]
    return keys | {TEXT: [TEXT, "prompt"], STATE: [STATE, f"{PREFIX}{STATE}"], DATASET: [DATASET, "unnorm_key"]}


def _flat(message: Mapping):
    """(key, value) of a message; maps of images by camera are laid open."""
    for key, value in message.items():
        if isinstance(value, Mapping) and key in GROUPS:
            yield from value.items()
        else:
            yield key, value


def _jpeg(data: bytes, key: str, most: int) -> np.ndarray:
    """A JPEG's image, if it is not too large."""
    try:
        # The header first: a small JPEG can claim a size whose pixels fill the memory.
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if max(height, width) > most:
            raise UserError(f"{key} is a JPEG of {width} x {height}; sides of at most {most} pixels are allowed")
        if (scans := image_files.scans_of(data)) > image_files.MAX_SCANS:
            raise UserError(f"{key} is a JPEG of {scans:,} scans; at most {image_files.MAX_SCANS} are allowed")
        return images.decode(data)
    except ValueError:
        raise UserError(f"{key} is neither an array nor a whole JPEG ({len(data)} bytes)") from None


def _numbers(value, key: str) -> np.ndarray:
    """f64 [N] of an array, a list of numbers or one number."""
    if isinstance(value, list | tuple) and all(isinstance(x, int | float) and abs(x) < 1e300 for x in value):
        value = np.array(value, np.float64)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        value = np.array([value], np.float64) if abs(value) < 1e300 else None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim != 1:
        shown = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise UserError(f"{key} is {shown}; a row of numbers is expected")
    return value.astype(np.float64)
