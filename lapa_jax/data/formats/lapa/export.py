"""Step shards as LAPA's own files: the other way round of `lapa_jax.data.formats.lapa`."""

import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import atomic_folder, clear_leftovers
from lapa_jax.core.lock import beside, locked
from lapa_jax.core.progress import bar
from lapa_jax.data.formats.base import MAIN
from lapa_jax.data.formats.lapa.records import PROMPT, QUESTION
from lapa_jax.data.shards.labels import open_labels
from lapa_jax.data.shards.step_shards import StepShards, read_dataset

KINDS = {
    "frames": "stage 1: <split>/<episode>/img_00000.jpg, ...",
    "latent": "stage 2: <split>.jsonl with instruction and delta, and the pictures",
    "finetune": "finetuning: <split>.json with instruction, raw_actions and states, and the pictures",
}
_USED = {
    "frames": {MAIN},
    "latent": {MAIN, "latent", "instruction"},
    "finetune": {MAIN, "action", "state", "instruction"},
}


def export(data, out, kind: str, splits: Sequence[str] | None = None, labels=None) -> dict:
    """Writes step shards as files that LAPA's own scripts read.

    Pictures are the bytes of the shards. In jsonl and json their paths are relative to the file; steps have the id
    `<episode>_<step>`. A record of kind "latent" has no `vision`, whose ids need LAPA's VQGAN; `fields` names it all
    the same, as LAPA's loader wants it. The folder gets its name when it is complete.

    Args:
      data: a folder of step shards. out: the folder to write; new, or empty.
      kind: one of `KINDS`.
      splits: of the shards; None takes all.
      labels: a labelled set of `data` to take the codes from; None takes those that lie beside the pictures.

    Returns:
      {"splits": {split: {"episodes", "records", "pictures"}}, "left_out": {what: how many}}.

    Raises:
      UserError: the shards lack what the kind needs, or the output holds something.
    """
    out = pathlib.Path(out)
    if kind not in KINDS:
        raise UserError(f"--kind {kind} is not known{did_you_mean(kind, KINDS)}")
    if labels is not None and kind != "latent":
        raise UserError(f"labels belong to --kind latent, not to {kind}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"output {out} is not an empty folder; choose a new one")
    chosen = splits or [name for name, split in read_dataset(data)["splits"].items() if split["steps"]]
    sources = {split: _Source(data, split, kind, labels) for split in dict.fromkeys(chosen)}
    report = {"splits": {}, "left_out": Counter()}
    with locked(beside(out), f"exporting to {out}"):
        clear_leftovers(out)
        with atomic_folder(out) as temporary:
            for split, source in sources.items():
                report["splits"][split] = source.write(temporary, report["left_out"])
            os.sync()
    return report | {"left_out": dict(report["left_out"])}


class _Source:
    """One split to be exported."""

    def __init__(self, data, split: str, kind: str, labels):
        self.shards, self.split, self.kind = StepShards(data, split), split, kind
        features = self.shards.features
        if MAIN not in features:
            raise UserError(f"{self.shards.folder} has no pictures, which LAPA's files need; it has {sorted(features)}")
        if kind == "finetune" and "action" not in features:
            raise UserError(f"{self.shards.folder} has no actions to finetune on; it has {sorted(features)}")
        if kind == "latent":
            if labels is None and "latent" not in features:
                raise UserError(
                    f"{self.shards.folder} has no latent actions; label it with launch/label.py and give what that "
                    "wrote with --labels"
                )
            self.labels, _ = open_labels(labels, self.shards)

    def write(self, folder: pathlib.Path, left_out: Counter) -> dict[str, int]:
        """Writes pictures and records; counts into `left_out` what LAPA's files have no place for."""
        for name in set(self.shards.features) - _USED[self.kind]:
            left_out[f"{name} ({self.split})"] += len(self.shards)
        folder.mkdir(exist_ok=True)
        counts = {"episodes": len(self.shards.episodes), "records": 0, "pictures": 0}
        if self.kind == "frames":
            for _, _ in self._pictures(folder, self.split, left_out):
                counts["pictures"] += 1
            return counts
        opening, between, end = ("", "\n", "\n") if self.kind == "latent" else ("[\n", ",\n", "\n]\n")
        suffix = "jsonl" if self.kind == "latent" else "json"
        with open(folder / f"{self.split}.{suffix}", "w", encoding="utf-8") as file:
            file.write(opening)
            for record in self._records(folder, left_out):
                file.write(between if counts["records"] else "")
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False))
                counts["records"] += 1
            file.write(end)
        return counts | {"pictures": counts["records"]}

    def _pictures(self, folder: pathlib.Path, within: str, left_out: Counter) -> Iterator[tuple[int, dict]]:
        """Writes the pictures, and yields each step's number with the beginning of its record."""
        for episode in bar(self.shards.episodes, desc=f"export {self.split}", unit="episode"):
            for step in range(episode.length):
                i = episode.start + step
                if not self.shards.has(i, f"{MAIN}.jpg"):
                    left_out["steps without a picture"] += 1
                elif self.kind == "finetune" and not self.shards.has(i, "action.npy"):
                    left_out["steps without an action, the last of their episodes"] += 1
                else:
                    name = f"{within}/{episode.id}/img_{step:05d}.jpg"
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(self.shards.read(i, [f"{MAIN}.jpg"])[f"{MAIN}.jpg"])
                    yield i, {"id": f"{episode.id}_{step}", "image": name}

    def _records(self, folder: pathlib.Path, left_out: Counter) -> Iterator[dict]:
        for i, record in self._pictures(folder, f"images/{self.split}", left_out):
            text = self.shards.text(i)
            if not text:
                raise UserError(
                    f"{self.shards.folder}: step {self.shards.key(i)} has no instruction, LAPA's files need one"
                )
            yield record | (self._latent(i, text) if self.kind == "latent" else self._finetune(i, text))

    def _latent(self, i: int, text: str) -> dict:
        codes = [str(code) for code in self.labels.array(i, "latent").tolist()]
        return {"instruction": PROMPT.format(text), "delta": codes, "fields": "[instruction],[vision],delta"}

    def _finetune(self, i: int, text: str) -> dict:
        answer = {"from": "gpt", "raw_actions": self.shards.array(i, "action").tolist()}
        if self.shards.has(i, "state.npy"):
            answer["states"] = _states(
                self.shards.array(i, "state").tolist(), self.shards.features["state"].get("names")
            )
        return {"conversations": [{"from": "human", "value": QUESTION.format(text)}, answer]}


def _states(values: list[float], names: Sequence[str] | None) -> dict[str, list[float] | float]:
    """The vectors that a state was put together from, by names like "eef_pos.0"; one where the names do not tell.

    A vector of one value is written as a number, as LAPA writes `gripper_state`.
    """
    if not names or len(names) != len(values):
        return {"state": values}
    vectors: dict[str, list[float]] = {}
    last = None
    for name, value in zip(names, values):
        vector = name.rpartition(".")[0] or name
        if vector in vectors and vector != last:
            return {"state": values}
        vectors.setdefault(vector, []).append(value)
        last = vector
    return {name: vector[0] if len(vector) == 1 else vector for name, vector in vectors.items()}
