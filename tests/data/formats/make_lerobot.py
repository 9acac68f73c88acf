"""Small LeRobot datasets for tests, as the lerobot package lays them out: v2.1 and v3.0."""

import fractions
import io
import json
import pathlib

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS, PIXELS, LENGTHS = 10, 16, (5, 7, 4)
TASKS = ("push the red block", "open the drawer")
VIDEO, PICTURE = "observation.images.front", "observation.images.wrist"
_V2 = {
    "data": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
_V3 = {
    "data": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def content(seed: int = 0) -> dict[str, dict]:
    """{name: {"action", "state", "text", "frames", "wrist"}} of three episodes; `wrist` are pictures too."""
    random = np.random.default_rng(seed)
    episodes = {}
    for number, length in enumerate(LENGTHS):
        levels = random.permutation(24)[:length, None, None, None] * 10
        ramp = np.arange(PIXELS, dtype=np.uint8)[None, :, None, None]
        episodes[f"episode_{number:06d}"] = {
            "action": random.normal(size=(length, 3)).astype(np.float32),
            "state": random.normal(size=(length, 2)).astype(np.float32),
            "force": random.normal(size=(length, 1)).astype(np.float32),
            "text": TASKS[number % 2],
            "frames": np.broadcast_to(levels + ramp, (length, PIXELS, PIXELS, 3)).astype(np.uint8),
            "wrist": random.integers(0, 255, (length, PIXELS, PIXELS, 3), dtype=np.uint8),
        }
    return episodes


def make(folder: pathlib.Path, seed: int = 0) -> dict[str, dict]:
    """Writes a v2.1 dataset: a parquet file and a video for each episode."""
    episodes, start = content(seed), 0
    rows = []
    for number, episode in enumerate(episodes.values()):
        place = {"episode_chunk": 0, "episode_index": number}
        length = len(episode["action"])
        write_parquet(folder / _V2["data"].format(**place), [table(episode, number, start)])
        write_video(folder / _V2["video"].format(**place, video_key=VIDEO), episode["frames"])
        rows.append({"episode_index": number, "tasks": [episode["text"]], "length": length})
        start += length
    write_info(folder, "v2.1", _V2)
    write_lines(folder / "meta/episodes.jsonl", rows)
    write_lines(folder / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    return episodes


def make_v3(folder: pathlib.Path, seed: int = 0) -> dict[str, dict]:
    """Writes a v3.0 dataset: the first two episodes share a parquet file and a video, the third has its own."""
    episodes, start = content(seed), 0
    files, rows = [[], []], []
    for number, episode in enumerate(episodes.values()):
        file, length = number // 2, len(episode["action"])
        before = sum(len(e["action"]) for _, e, _ in files[file])
        files[file].append((number, episode, start))
        row = {"episode_index": number, "tasks": [episode["text"]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": file, "dataset_from_index": start}
        row |= {f"videos/{VIDEO}/chunk_index": 0, f"videos/{VIDEO}/file_index": file}
        row |= {f"videos/{VIDEO}/from_timestamp": before / FPS, f"videos/{VIDEO}/to_timestamp": (before + length) / FPS}
        row |= {"stats/action/mean": episode["action"].mean(0).tolist()}
        rows.append(row)
        start += length
    for file, members in enumerate(files):
        place = {"chunk_index": 0, "file_index": file}
        write_parquet(folder / _V3["data"].format(**place), [table(e, n, s) for n, e, s in members])
        frames = np.concatenate([e["frames"] for _, e, _ in members])
        write_video(folder / _V3["video"].format(**place, video_key=VIDEO), frames)
    write_info(folder, "v3.0", _V3)
    write_parquet(folder / "meta/episodes/chunk-000/file-000.parquet", [pa.Table.from_pylist(rows)])
    tasks = {"task_index": pa.array(range(len(TASKS))), "__index_level_0__": pa.array(TASKS, pa.large_string())}
    write_parquet(folder / "meta/tasks.parquet", [pa.table(tasks)])
    return episodes


def table(episode: dict, number: int, start: int) -> pa.Table:
    """The rows of an episode."""
    length = len(episode["action"])
    vectors = {"observation.state": "state", "action": "action"}
    columns = {}
    for key, name in vectors.items():
        width = episode[name].shape[1]
        columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(episode[name].ravel()), width)
    columns["observation.force"] = pa.array(episode["force"][:, 0])  # a vector of one number is stored as the number
    pictures = [{"bytes": png(picture), "path": f"frame_{i}.png"} for i, picture in enumerate(episode["wrist"])]
    columns[PICTURE] = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    columns["timestamp"] = pa.array((np.arange(length) / FPS).astype(np.float32))
    columns["frame_index"] = pa.array(np.arange(length))
    columns["episode_index"] = pa.array(np.full(length, number))
    columns["index"] = pa.array(np.arange(start, start + length))
    columns["task_index"] = pa.array(np.full(length, TASKS.index(episode["text"])))
    return pa.table(columns)


def png(picture: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path: pathlib.Path, tables: list[pa.Table]) -> None:
    """A row group for each table, with checksums of the pages, which lerobot itself does not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, tables[0].schema, compression="snappy", write_page_checksum=True) as writer:
        for part in tables:
            writer.write_table(part)


def write_video(path: pathlib.Path, frames: np.ndarray) -> None:
    """H.264 with a key frame for every second frame, as lerobot writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", FPS, options={"g": "2", "crf": "5"})
        stream.width = stream.height = PIXELS
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, FPS)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def write_info(folder: pathlib.Path, version: str, paths: dict[str, str], **more) -> None:
    """`meta/info.json`."""
    picture = {"shape": [PIXELS, PIXELS, 3], "names": ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["shoulder", "elbow"]}},
        "action": {"dtype": "float32", "shape": [3], "names": [["x", "y", "grip"]]},
        "observation.force": {"dtype": "float32", "shape": [1], "names": None},
        VIDEO: {"dtype": "video", **picture, "info": {"video.is_depth_map": False}},
        PICTURE: {"dtype": "image", **picture},
    }
    features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in ("frame_index", "episode_index")}
    features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in ("index", "task_index")}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    info = {"codebase_version": version, "fps": FPS, "total_episodes": len(LENGTHS), "chunks_size": 1000}
    info |= {"splits": {"train": f"0:{len(LENGTHS)}"}, "data_path": paths["data"], "video_path": paths["video"]}
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps({**info, "features": features, **more}, indent=4))


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
