"""Small WebDataset tars of every kind, written with `tarfile` as the webdataset package does, for tests."""

import io
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence

import av
import numpy as np
from PIL import Image

SIZE = 16


def jpeg(image: np.ndarray, kind: str = "JPEG") -> bytes:
    """A picture file of uint8[H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def seen(data: bytes) -> np.ndarray:
    """What Pillow reads from a picture file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def npy(values) -> bytes:
    """A .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def npz(**arrays) -> bytes:
    """An .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def mp4(frames: Sequence[np.ndarray], rate: int = 10) -> bytes:
    """An mp4 of uint8[H, W, 3] frames, which must be a multiple of 16 in size."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def write_tar(path: pathlib.Path, members: Sequence[tuple[str, bytes]]) -> pathlib.Path:
    """A tar of (name, data) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uname, entry.gname = len(data), 0o444, "bigdata", "bigdata"
            file.addfile(entry, io.BytesIO(data))
    return path


def smooth(rng: np.random.Generator, steps: int, size: int = SIZE) -> np.ndarray:
    """uint8[T, size, size, 3]: colours that change slowly, which JPEG keeps well."""
    top, bottom = rng.uniform(0, 255, (2, steps, 1, 1, 3))
    share = np.linspace(0, 1, size)[:, None, None]
    return np.rint(np.broadcast_to(top * (1 - share) + bottom * share, (steps, size, size, 3))).astype(np.uint8)


def episodes(seed: int, size: int = SIZE) -> dict[str, dict]:
    """{name: {"action", "state", "text", "frames"}} of three episodes of 4, 5 and 7 steps."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, steps in (("a-0", 4), ("b/1", 5), ("c-2", 7)):
        action, state = (rng.normal(size=shape).astype("f4") for shape in ((steps - 1, 2), (steps, 3)))
        values = {"action": action, "state": state, "text": f"push the cube to {name}"}
        made[name] = {**values, "frames": smooth(rng, steps, size)}
    return made


def step_members(name: str, content: Mapping, start: int = 0) -> list[tuple[str, bytes]]:
    """The members of an episode as steps of its own, keys `{episode}_{number}`."""
    members = []
    for t, frame in enumerate(content["frames"]):
        key = f"{name}_{start + t:04d}"
        members += [(f"{key}.jpg", jpeg(frame)), (f"{key}.state.npy", npy(content["state"][t]))]
        if t < len(content["action"]):
            members.append((f"{key}.action.npy", npy(content["action"][t])))
        members.append((f"{key}.json", json.dumps({"instruction": content["text"], "fps": 5}).encode()))
    return members


def make(folder: pathlib.Path, seed: int = 0) -> dict:
    """Step samples in two tars, the second episode cut in two by them."""
    made = episodes(seed)
    members = [member for name, content in made.items() for member in step_members(name, content)]
    cut = next(i for i, (name, _) in enumerate(members) if name.startswith("b/1_0002"))
    write_tar(folder / "data-000.tar", members[:cut])
    write_tar(folder / "data-001.tar", members[cut:])
    for content in made.values():
        content["frames"] = np.stack([seen(jpeg(frame)) for frame in content["frames"]])
    return made


def make_videos(folder: pathlib.Path, seed: int = 0) -> dict:
    """Video samples with npz and json; the names of the episodes have the tar's before them."""
    made = episodes(seed, 32)
    members = []
    for name, content in made.items():
        members.append((f"{name}.mp4", mp4(content["frames"])))
        members.append((f"{name}.npz", npz(action=content["action"], state=content["state"], reward=np.zeros(3))))
        members.append((f"{name}.json", json.dumps({"text": content["text"], "task": name[0], "fps": 10}).encode()))
    write_tar(folder / "train.tar", members)
    return {f"train/{name}": content for name, content in made.items()}


def make_pairs(folder: pathlib.Path, seed: int = 0) -> dict:
    """Ready-made pairs with codes; only the first two frames of each episode."""
    made, members = {}, []
    for number, (name, content) in enumerate(episodes(seed).items()):
        pair = [jpeg(frame) for frame in content["frames"][:2]]
        codes = np.arange(4, dtype=np.int64) + number
        members += [(f"{number:06d}.t.jpg", pair[0]), (f"{number:06d}.t1.jpg", pair[1])]
        members += [(f"{number:06d}.latent.npy", npy(codes)), (f"{number:06d}.txt", content["text"].encode())]
        members.append((f"{number:06d}.json", json.dumps({"video_id": name, "frame_idx": 0}).encode()))
        frames = np.stack([seen(data) for data in pair])
        made[f"pairs-0/{number:06d}"] = {"text": content["text"], "latent": codes[None], "frames": frames}
    write_tar(folder / "pairs-0.tar", members)
    return made
