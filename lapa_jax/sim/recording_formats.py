"""How a recording is stored: as step shards, or as one mp4 and one npz an episode. Both with `episodes.jsonl` beside.

`write_episode` is called once an episode, in any order and process; `finish` once at the end. `episodes.jsonl` is
written last of all: a recording without it is unfinished.
"""

import io
import json
import pathlib
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from lapa_jax.core.files import atomic_path
from lapa_jax.data import images
from lapa_jax.data.shards import step_shards
from lapa_jax.data.statistics import column_statistics

FORMATS = ("shards", "mp4")
EPISODES = "episodes.jsonl"
SHARD_STEPS = 4096
CRF = "18"
"""x264's constant rate factor: visually lossless."""


def write_episode(options, out: pathlib.Path, work: pathlib.Path, entry: dict, recording) -> dict:
    """Writes what an episode needs; returns what its line in `episodes.jsonl` gets besides `entry`."""
    if options.format == "shards":
        _write_npz(work / f"{entry['id']}.npz", recording.arrays)
        with atomic_path(work / f"{entry['id']}.part") as part:
            part.write_bytes(b"".join(_samples(options, entry, recording)))
        return {}
    stem = f"{recording.task}/{entry['id']}"
    write_mp4(out / f"{stem}.mp4", recording.image, recording.fps)
    if recording.arrays:
        _write_npz(out / f"{stem}.npz", recording.arrays)
    return {"video": f"{stem}.mp4"} | ({"arrays": f"{stem}.npz"} if recording.arrays else {})


def finish(options, out: pathlib.Path, work: pathlib.Path, entries: list[dict]) -> None:
    """Packs the shards where there are any, then writes `episodes.jsonl`."""
    if options.format == "shards":
        _pack(options, out, work, entries)
    for left in out.rglob(".*.tmp"):
        left.unlink()  # of runs that were killed while they wrote
    with atomic_path(out / EPISODES) as path:
        path.write_text("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries))


def _samples(options, entry: dict, recording) -> Iterator[bytes]:
    for step, image in enumerate(recording.image):
        meta = {"episode": entry["id"], "step": step, "length": entry["frames"], "fps": entry["fps"]}
        meta |= {"source": f"{options.env} {entry['task']} seed {entry['seed']}"}
        members = {"image.jpg": images.encode(image, options.quality), "txt": entry["instruction"].encode()}
        members |= {"json": step_shards.json_bytes(meta)}
        for name, rows in recording.arrays.items():
            if step < len(rows):
                members[f"{name}.npy"] = step_shards.array_bytes(rows[step])
        yield step_shards.sample_bytes(step_shards.step_key(entry["id"], step), members)


def _pack(options, out: pathlib.Path, work: pathlib.Path, entries: list[dict]) -> None:
    splits = {}
    for split in ("train", "val"):
        chosen = [entry for entry in entries if entry["split"] == split]
        steps = sum(entry["frames"] for entry in chosen)
        summaries = [_pack_shard(out / f"{split}-{i:05d}.tar", work, group) for i, group in enumerate(_groups(chosen))]
        splits[split] = {"episodes": len(chosen), "steps": steps, "shards": summaries}
    features = {"image": {"shape": [options.size, options.size, 3], "codec": "jpeg"}}
    statistics = {}
    for name in options.columns:
        columns = [_read_npz(work / f"{entry['id']}.npz")[name] for entry in entries if entry["split"] == "train"]
        statistics[name] = column_statistics(columns)
        features[name] = {"shape": list(columns[0].shape[1:]), "dtype": "float32"}
    features["instruction"] = {"codec": "txt"}
    source = {"tool": "tools/record_sim.py", "env": options.env, "seed": options.seed, "noise": options.noise}
    step_shards.write_dataset(
        out, features=features, fps=entries[0]["fps"], source=source, splits=splits, statistics=statistics
    )


def _groups(entries: list[dict]) -> Iterator[list[dict]]:
    """Consecutive episodes of at most `SHARD_STEPS` steps together, at least one each."""
    group, steps = [], 0
    for entry in entries:
        if group and steps + entry["frames"] > SHARD_STEPS:
            yield group
            group, steps = [], 0
        group.append(entry)
        steps += entry["frames"]
    if group:
        yield group


def _pack_shard(path: pathlib.Path, work: pathlib.Path, entries: list[dict]) -> dict:
    with step_shards.ShardWriter(path) as writer:
        for entry in entries:
            writer.append(work / f"{entry['id']}.part", entry["frames"])
    return writer.summary


def write_mp4(path: pathlib.Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8[n, H, W, 3] as H.264 in mp4, atomically; H and W must be even. Equal frames give equal bytes."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CRF, "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
