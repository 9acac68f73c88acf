"""`--filter` on films of which it is known where they cut, stand still, go black and come again."""

import base64
import json
import os

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.data import images
from lapa_jax.data.convert import scenes
from lapa_jax.data.convert.duplicates import Duplicates
from lapa_jax.data.convert.filter import Filter, pieces
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.video import Video
from tests.data.convert import film
from tests.killing import dies_at
from tools.torture.processes import differences

CLOSE = 3
"""Frames by which a stretch may be found beside where it was planted."""


def go(source, out, rules="all", **options):
    return convert(source, out, Options(**{"size": 96, "split": "train", "filter": rules, **options}), 0)


def found(shards) -> dict[str, list[tuple[int, int]]]:
    """{source file: [(first, end) of each piece]}, from the steps themselves."""
    result = {}
    for episode in shards.episodes:
        meta = shards.meta(episode.start)
        first = meta.get("source_step", 0)
        assert meta["length"] == episode.length
        result.setdefault(meta["source"], []).append((first, first + episode.length))
    return result


def compilation(seed: int):
    """A film of six scenes, and what is planted in it: (frames, cuts, still stretches, black stretches)."""
    rng, frames, cuts, still, black = np.random.default_rng(seed), [], [], [], []
    count = lambda: sum(map(len, frames))  # noqa: E731
    for k in range(6):
        shot = film.scene(100 * seed + k, int(rng.integers(25, 45)))
        if k and not (black and black[-1][1] == count()):
            cuts.append(count())
        if k in (1, 4):
            at = int(rng.integers(6, len(shot) - 8))
            still.append((count() + at, count() + at + 30))
            shot = film.held(shot, at, 30)
        frames.append(shot)
        if k == 2:
            black.append((count(), count() + 7))
            frames.append(film.black(7))
    return np.concatenate(frames), cuts, still, black


def check_planted(events, cuts, still, black):
    """Everything that was planted is found, nothing else, and where it was planted."""
    got = {kind: [(e[1], e[2]) for e in events if e[0] == kind] for kind in ("cut", "still", "blank")}
    for kind, planted in (("cut", [(cut, cut) for cut in cuts]), ("still", still), ("blank", black)):
        assert len(got[kind]) == len(planted), (kind, got[kind], planted)
        for (first, end), (planted_first, planted_end) in zip(got[kind], planted):
            assert abs(first - planted_first) <= CLOSE and abs(end - planted_end) <= CLOSE, (kind, got[kind], planted)


@pytest.mark.parametrize("crf", [18, 30])
@pytest.mark.parametrize("seed", range(5))
def test_what_was_planted_is_found(tmp_path, seed, crf):
    frames, cuts, still, black = compilation(seed)
    path = film.write(tmp_path / "v.mp4", frames, crf=crf)
    small = np.stack([scenes.small(frame) for frame in Video(path)])
    kept, events = pieces(Filter(), small, frames.shape[1:3], 10.0)
    check_planted(events, cuts, still, black)
    # no kept piece reaches over a planted border by more than what is allowed
    for first, end in kept:
        for a, b in [*((c, c) for c in cuts), *still, *black]:
            assert first >= a - CLOSE or end <= a + CLOSE or b <= first + CLOSE, ((first, end), (a, b))


def test_key_frames_do_not_end_a_still_stretch(tmp_path):
    """Coarse compression: at the key frame, every 250th, a still image suddenly is a little another everywhere."""
    frames = film.held(film.scene(3, 300), 180, 150)
    noise = np.random.default_rng(0).normal(0, 20, frames[0].shape)
    frames = np.clip(frames + noise, 0, 255).astype(np.uint8)  # fine texture, which coarse compression leaves out
    path = film.write(tmp_path / "v.mp4", frames, rate=30, crf=36)
    small = np.stack([scenes.small(frame) for frame in Video(path)])
    jump = np.abs(np.diff(scenes._blocks(small.astype(np.float32).mean(-1)), axis=0))[249].max()
    assert jump > 2, "there is a jump to be seen"
    (first, end), = scenes.still(small, 60, 4.0)
    assert abs(first - 180) <= CLOSE and abs(end - 330) <= CLOSE


def test_real_clips_with_planted_cuts(shared):
    """Real robot videos one after the other, two stopped in their middle; and the cuts that they hold anyway."""
    folder = shared / "data/real_clips"
    own = {"robomimic_task_can_real.gif": [51, 99], "robomimic_task_lift_real.gif": [33, 62, 91, 123]}
    frames, cuts, still = [], [], []
    for k, path in enumerate(sorted(folder.iterdir())):
        shot = np.stack([images.resize(frame, 96) for frame in Video(path)])
        small = np.stack([scenes.small(frame) for frame in shot])
        assert scenes.cuts(small, 2.0) == own.get(path.name, []), path.name
        start = sum(map(len, frames))
        cuts += [start] if k else []
        if path.name.startswith("bridge"):
            still.append((start + 10, start + 40))
            shot = film.held(shot, 10, 30)
        cuts += [start + cut for cut in own.get(path.name, [])]
        frames.append(shot)
    small = np.stack([scenes.small(frame) for frame in np.concatenate(frames)])
    _, events = pieces(Filter(), small, (96, 96), 10.0)
    check_planted(events, cuts, still, [])


@pytest.mark.parametrize("name", ["push_table", "push_table_videos", "metaworld_mt10_videos"])
def test_nothing_is_found_in_recordings(shared, name):
    paths = sorted((shared / "data" / name).glob("*/*.mp4"))
    hashes = []
    for path in paths[:: len(paths) // 12]:
        video = Video(path).open()
        small = np.stack([scenes.small(frame) for frame in video])
        assert pieces(Filter(), small, (128, 128), video.fps) == ([(0, len(small))], []), path
        hashes.append(scenes.directions(scenes.signature(small)))
    for k in range(1, len(hashes)) if name != "metaworld_mt10_videos" else ():
        # the scripts of Meta-World do the same every time: those episodes are near-duplicates
        assert scenes.distances(hashes[k], np.stack(hashes[:k])).min() > 5 * Filter().duplicates


def test_what_is_no_cut():
    still = film.scene(1, 40)
    for change in ("flash", "fade", "light"):
        shot = still.copy()
        if change == "flash":
            shot[20] = 255
        elif change == "fade":
            share = np.linspace(0, 1, 20)[:, None, None, None]
            other = film.scene(2, 40)
            shot[10:30], shot[30:] = (1 - share) * still[10:30] + share * other[10:30], other[30:]
        else:
            shot[20:] = np.clip(shot[20:].astype(int) + 4, 0, 255)
        assert scenes.cuts(np.stack([scenes.small(frame) for frame in shot]), 2.0) == [], change


def test_pieces_keep_their_steps(tmp_path):
    """Actions, states and texts go with their frames; an episode that is whole keeps its name."""
    frames = np.concatenate([film.scene(0, 20), film.scene(1, 25)])
    rng = np.random.default_rng(0)
    rows = []
    for name, shot in (("two", frames), ("one", film.scene(2, 30))):
        film.write(tmp_path / f"in/{name}.mp4", shot)
        action, state = rng.normal(size=(len(shot) - 1, 2)), rng.normal(size=(len(shot), 3))
        np.savez(tmp_path / f"in/{name}.npz", action=action.astype(np.float32), state=state.astype(np.float32))
        rows.append({"video": f"{name}.mp4", "instruction": f"do {name}", "arrays": f"{name}.npz"})
    (tmp_path / "in/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = go(tmp_path / "in", tmp_path / "out")
    shards = StepShards(tmp_path / "out")
    assert found(shards) == {"one.mp4": [(0, 30)], "two.mp4": [(0, 20), (20, 45)]}
    assert [episode.id for episode in shards.episodes] == ["one", "two--0", "two--1"]
    assert report["episodes"] == 3 and report["steps"] == 75
    assert report["filter"] == {"rules": str(Filter()), "episodes of the source": 2, "cut": 1}
    for episode in shards.episodes:
        meta = shards.meta(episode.start)
        first, name = meta.get("source_step", 0), meta["source"].removesuffix(".mp4")
        arrays = np.load(tmp_path / f"in/{name}.npz")
        for t in range(episode.length):
            i = episode.start + t
            np.testing.assert_array_equal(shards.array(i, "state"), arrays["state"][first + t])
            assert shards.text(i) == f"do {name}" and shards.meta(i)["step"] == t
            if first + t < len(arrays["action"]):
                np.testing.assert_array_equal(shards.array(i, "action"), arrays["action"][first + t])


def copies(tmp_path) -> dict[str, np.ndarray]:
    """Three films, and near-duplicates of the first: smaller, brighter, compressed more."""
    shots = {name: film.scene(seed, 60) for seed, name in enumerate(("a", "m", "z"), start=2)}
    for name, shot in shots.items():
        film.write(tmp_path / f"in/{name}.mp4", shot)
    film.write(tmp_path / "in/again_small.mp4", [images.resize_to(frame, 72, 72) for frame in shots["z"]], crf=26)
    bright = np.clip(shots["m"].astype(int) + 14, 0, 255).astype(np.uint8)
    film.write(tmp_path / "in/n_bright.mp4", bright, crf=28)
    film.write(tmp_path / "in/still.mp4", np.repeat(shots["a"][:1], 60, 0))
    return shots


def test_duplicates_are_left_out_in_the_order_of_the_plan(tmp_path):
    copies(tmp_path)
    report = go(tmp_path / "in", tmp_path / "out", "duplicates")
    names = ["a.mp4", "again_small.mp4", "m.mp4", "still.mp4"]
    assert sorted(found(StepShards(tmp_path / "out"))) == names, "the first of each, and a still of the same scene"
    assert report["filter"] == {
        "rules": "duplicates=0.02", "episodes of the source": 6, "duplicate": 2, "frames of duplicate": 120,
    }  # fmt: skip
    events = read_json(tmp_path / "out/filter.json")["events"]
    assert [(e["source"], e["words"]) for e in events] == [("n_bright.mp4", "like m"), ("z.mp4", "like again-small")]
    # over both splits: what is held out is not trained on in another dress
    go(tmp_path / "in", tmp_path / "split", "duplicates", split="auto", val_fraction=0.5)
    kept = [name for split in ("train", "val") for name in found(StepShards(tmp_path / "split", split))]
    assert sorted(kept) == names


def test_who_finishes_first_is_no_matter():
    """Decisions are those of the plan's order, however parts come in, and after a restart."""
    rng = np.random.default_rng(0)
    base = [rng.integers(-127, 128, 448).astype(np.int8) for _ in range(6)]
    hashes = [base[k].tobytes().hex() for k in (0, 1, 0, 2, 1, 3, 0)]
    ids = [f"e{k}" for k in range(len(hashes))]
    about = {"steps": 50, "instruction": "go"}
    parts = {name: {"fps": 10, "pieces": [{"id": name, "signature": bits, **about}]} for name, bits in zip(ids, hashes)}
    wanted = {"e2": {"e2": "e0"}, "e4": {"e4": "e1"}, "e6": {"e6": "e0"}}
    for seed in range(5):
        there = {}
        ledger = Duplicates(ids, 0.05, {}, there.get)
        for name in np.random.default_rng(seed).permutation(ids).tolist():
            there[name] = parts[name]
            known = {other: ledger.of(other, {}) for other in ids}
            missing = next((k for k, other in enumerate(ids) if other not in there), len(ids))
            assert known == {n: wanted.get(n, {}) if k < missing else None for k, n in enumerate(ids)}
    settled = {name: [[name, bits, 5.0, "go"]] for name, bits in zip(ids[:2], hashes)} | {"e2": [], "e3": []}
    parts["e6"] = parts["e6"] | {"fps": 10.1}
    again = Duplicates(ids, 0.05, settled, parts.get)
    assert [again.of(name, {}) for name in ids[4:]] == [{"e4": "e1"}, {}, {"e6": "e0"}]


@pytest.mark.parametrize("change", [{"steps": 52}, {"instruction": "come"}])
def test_another_length_or_instruction_is_no_duplicate(change):
    hashed = np.arange(-100, 348).astype(np.int8).tobytes().hex()
    pieces = [{"id": f"p{k}", "signature": hashed, "steps": 50, "instruction": "go"} for k in range(3)]
    pieces[1] |= change
    assert Duplicates(["e"], 0.05, {}, {"e": {"fps": None, "pieces": pieces}}.get).of("e", {}) == {"p2": "p0"}


@pytest.fixture
def source(tmp_path):
    """Compilations, duplicates and what is left out whole, in a few short files."""
    shots = [film.scene(k, 14) for k in range(4)]
    film.write(tmp_path / "source/a.mp4", np.concatenate(shots[:2]))
    film.write(tmp_path / "source/b.mp4", np.concatenate([film.held(shots[2], 6, 24), film.black(3)]))
    film.write(tmp_path / "source/c.mp4", np.concatenate([shots[3], shots[0]]))
    film.write(tmp_path / "source/d.mp4", film.black(6))
    film.write(tmp_path / "source/e.mp4", np.concatenate([shots[1], shots[3]]))
    return tmp_path / "source"


def test_every_moment_can_be_the_last(source, tmp_path, monkeypatch):
    """Stops before each rename, flush and deletion in turn, as a kill there would, and runs again."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    options = {"split": "auto", "val_fraction": 0.5, "samples_per_shard": 30}
    report = go(source, tmp_path / "whole", **options)
    assert report["filter"]["duplicate"] >= 2 and report["filter"]["cut"] >= 3 and report["filter"]["still"] == 1

    for stop in range(0, 400, 17):
        out = tmp_path / f"out{stop}"
        if not dies_at(monkeypatch, stop, lambda out=out: go(source, out, **options)):
            break
        go(source, out, **options)
        assert differences(tmp_path / "whole", out) == [], f"stopped at call {stop}"
    assert stop > 40, "the loop ended because a run was no longer hit"


def test_workers_give_the_same_bytes(source, tmp_path):
    options = Options(size=96, filter="all", samples_per_shard=30)
    for workers in (0, 2):
        convert(source, tmp_path / f"out{workers}", options, workers)
    assert differences(tmp_path / "out0", tmp_path / "out2") == []


def test_rules_belong_to_the_conversion(source, tmp_path):
    go(source, tmp_path / "out", "all,still=2")
    assert go(source, tmp_path / "out", "all")["finished"], "the same rules in other words"
    for other in ("cuts", "all,still=3", None):
        with pytest.raises(UserError, match="--filter was"):
            go(source, tmp_path / "out", other)


def test_what_it_did_is_shown(source, tmp_path):
    report = go(source, tmp_path / "out")
    told = read_json(tmp_path / "out/filter.json")
    assert {k: v for k, v in told.items() if k != "events"} == report["filter"] == read_json(
        tmp_path / "out/report.json"
    )["filter"]
    kinds = [event["kind"] for event in told["events"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        kind: count for kind, count in report["filter"].items() if kind in set(kinds)
    }
    for event in told["events"]:
        strip = images.decode(base64.b64decode(event["jpeg"]))
        assert strip.shape == (96, 96 * (4 if event["kind"] == "cut" else 3), 3)
    (black,) = [e for e in told["events"] if e["kind"] == "blank" and e["source"] == "d.mp4"]
    assert images.decode(base64.b64decode(black["jpeg"])).max() < 30


def test_without_a_filter_nothing_changes(source, tmp_path):
    report = go(source, tmp_path / "out", None)
    assert report["filter"] == {} and not (tmp_path / "out/filter.json").exists() and report["episodes"] == 5


@pytest.mark.parametrize(
    "text, expected",
    [
        ("all", Filter()),
        ("cuts", Filter(2.0, None, None, None, None, None)),
        ("all,still=3.5", Filter(still=3.5)),
        ("still=3.5, all", Filter(still=3.5)),
        ("blank,duplicates=0.1", Filter(None, None, 8.0, None, None, 0.1)),
        (None, None),
        ("none", None),
    ],
)
def test_rules_are_read(text, expected):
    rules = Filter.parse(text)
    assert rules == expected
    assert rules is None or Filter.parse(str(rules)) == rules


@pytest.mark.parametrize(
    "text, message",
    [("cut", "no rule 'cut'; did you mean 'cuts'"), ("still=0", "positive"), ("still=x", "positive"), ("", "no rule")],
)
def test_wrong_rules_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        Options(filter=text)


def test_what_it_cannot_do_is_said(tmp_path):
    film.write(tmp_path / "black/v.mp4", film.black(20))
    with pytest.raises(UserError, match="--filter leaves nothing of"):
        go(tmp_path / "black", tmp_path / "out1")
    np.savez(_folder(tmp_path / "arrays") / "a.npz", action=np.zeros((5, 2)), state=np.zeros((5, 2)))
    with pytest.raises(UserError, match="--filter looks at images"):
        go(tmp_path / "arrays", tmp_path / "out2")
    for k, frame in enumerate(film.scene(0, 5)):
        (_folder(tmp_path / "stills/e") / f"{k}.jpg").write_bytes(images.encode(frame))
    with pytest.raises(UserError, match="no frame rate, which --filter still needs"):
        go(tmp_path / "stills", tmp_path / "out3")
    assert go(tmp_path / "stills", tmp_path / "out4", fps=10.0)["episodes"] == 1
    with pytest.raises(UserError, match="--filter leaves nothing of"):
        go(tmp_path / "stills", tmp_path / "out5", "small=97")


def _folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path
