"""Small files as LAPA's scripts write them: finetuning json, its preprocessed jsonl, latent actions of stage 2."""

import json
import pathlib

import numpy as np

from tests.data.formats.make_webdataset import jpeg, seen, smooth

STEPS = {"pick_up_cube_0": 4, "pick_up_cube_1": 5, "stack": 7}


def _pictures(folder: pathlib.Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Writes `images/<episode>/img_00000.jpg`, ... and gives what Pillow reads of them."""
    found = {}
    for episode, steps in STEPS.items():
        files = [jpeg(frame) for frame in smooth(rng, steps)]
        for step, data in enumerate(files):
            path = folder / "images" / episode / f"img_{step:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        found[episode] = np.stack([seen(data) for data in files])
    return found


def make(folder: pathlib.Path, seed: int = 0) -> dict:
    """Finetuning data: one json list of conversations."""
    rng = np.random.default_rng(seed)
    made, records = {}, []
    for episode, frames in _pictures(folder, rng).items():
        action, state = rng.normal(size=(len(frames), 7)), rng.normal(size=(len(frames), 7))
        text = f"put the spoon on the towel of {episode}"
        for step in range(len(frames)):
            vectors = {"eef_pos": state[step, :3].tolist(), "eef_euler": state[step, 3:6].tolist()}
            question = {"from": "human", "value": f"<image>\nWhat action should the robot take to `{text}`"}
            answer = {"from": "gpt", "raw_actions": action[step].tolist()}
            answer["states"] = {**vectors, "gripper_state": state[step, 6]}
            record = {"id": f"{episode}_{step}", "image": f"images/{episode}/img_{step:05d}.jpg"}
            records.append({**record, "conversations": [question, answer]})
        columns = {"action": action.astype("f4"), "state": state.astype("f4")}
        made[episode] = {**columns, "text": text, "frames": frames}
    (folder / "train.json").write_text(json.dumps(records, indent=1))
    return made


def make_preprocessed(folder: pathlib.Path, seed: int = 0) -> dict:
    """The same records after LAPA's preprocessing: jsonl with bins."""
    made = make(folder, seed)
    records = json.loads((folder / "train.json").read_text())
    (folder / "train.json").unlink()
    with open(folder / "processed.jsonl", "w") as file:
        for record in records:
            question, answer = record.pop("conversations")
            asked = question["value"].removeprefix("<image>\n")
            record["instruction"] = f"<s> You are a helpful assistant. USER: {asked} ASSISTANT:"
            record |= {
                "raw_actions": answer["raw_actions"],
                "action": [128] * 7,
                "fields": "[instruction],[vision],action",
            }
            file.write(json.dumps(record) + "\n")
    return {episode: {k: v for k, v in content.items() if k != "state"} for episode, content in made.items()}


def make_latent(folder: pathlib.Path, seed: int = 0, ids: bool = False) -> dict:
    """Stage 2: jsonl with codes and VQGAN ids, by default without ids of the steps, as the released file."""
    rng = np.random.default_rng(seed)
    made = {}
    with open(folder / "latent.jsonl", "w") as file:
        for episode, frames in _pictures(folder, rng).items():
            codes, text = rng.integers(0, 8, (len(frames), 4)), f"open the `{episode}` drawer"
            for step, row in enumerate(codes):
                record = {"id": f"{episode}_{step}"} if ids else {}
                record |= {"image": f"images/{episode}/img_{step:05d}.jpg", "vision": [7] * 16}
                asked = f"What action should the robot take to `{text}`"
                record["instruction"] = f"<s> You are a helpful assistant. USER: {asked} ASSISTANT:"
                record |= {"delta": [str(c) for c in row], "fields": "[instruction],[vision],delta"}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            name = episode if ids else f"images/{episode}/img"
            made[name] = {"latent": codes.astype("i4"), "text": text, "frames": frames}
    return made
