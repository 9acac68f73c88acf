"""The options of a conversion: what decides the content of the shards. See `tools/convert.py`."""

import dataclasses
import pathlib

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import formats
from lapa_jax.data.convert.filter import Filter
from lapa_jax.data.images import RESIZE_MODES


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the content of the shards.

    `fps` None keeps the frame rates, `size` None the images' own size; `captions` None takes the table that recordings
    carry where there is one. `filter` is what `filter.Filter.parse` takes. `cameras`, `action`, `state` and `captions`
    "none" leave out what the source has of them. `white` is the value of white in images of 16 bits, see `image_files`.
    """

    format: str = "auto"
    fps: float | None = None
    size: int | None = 256
    resize: str = "squash"
    quality: int = 95
    cameras: str = "all"
    action: str = "all"
    state: str = "all"
    convention: str | None = None
    captions: str | None = None
    filter: str | None = None
    white: int | None = None
    split: str = "auto"
    val_fraction: float = 0.1
    samples_per_shard: int | None = None
    shard_bytes: int | None = None

    def __post_init__(self):
        rules = Filter.parse(self.filter)
        object.__setattr__(self, "filter", str(rules) if rules else None)
        names = ("auto", *formats.NAMES)
        checks = (
            (self.format in names, f"--format {self.format} is not known{did_you_mean(self.format, names)}"),
            (self.fps is None or 0 < self.fps < 1e4, f"--fps must be positive or 'native', got {self.fps}"),
            (self.size is None or 1 <= self.size <= 16384, f"--size is in pixels, 1 to 16384, got {self.size}"),
            (self.resize in RESIZE_MODES, f"--resize {self.resize} is not one of {', '.join(RESIZE_MODES)}"),
            (1 <= self.quality <= 100, f"--quality is 1 to 100, got {self.quality}"),
            (self.white is None or 255 <= self.white < 1 << 16, f"--white is 255 to 65535, got {self.white}"),
            (self.split in ("auto", "train", "val"), f"--split {self.split} is not auto, train or val"),
            (0 <= self.val_fraction < 1, f"--val_fraction lies in [0, 1), got {self.val_fraction}"),
            (
                self.samples_per_shard is None or self.shard_bytes is None,
                "--samples_per_shard and --shard_bytes exclude each other: give one",
            ),
            ((self.samples_per_shard or 1) > 0, f"--samples_per_shard must be positive, got {self.samples_per_shard}"),
            ((self.shard_bytes or 1) > 0, f"--shard_bytes must be positive, got {self.shard_bytes}"),
        )
        for fine, message in checks:
            if not fine:
                raise UserError(message)

    def for_readers(self) -> dict:
        """The options as the modules of `lapa_jax.data.formats` take them."""
        names = ("fps", "size", "resize", "cameras", "action", "state", "convention", "captions", "white",
                 "split")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def pinned(self) -> dict:
        """The options as JSON that does not depend on where the data lie: of files, only their names."""
        values = dataclasses.asdict(self)
        names = {name: values[name] and pathlib.Path(values[name]).name for name in ("captions", "convention")}
        return values | names
