import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import xxhash

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.files import arrays_on_disk, atomic_folder, atomic_path, read_json, write_json
from lapa_jax.core.metrics import MetricsWriter, read_metrics


def test_atomic_path_leaves_nothing_on_error(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "half").write_text("half")
        assert not target.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    with atomic_folder(target) as temporary:
        (temporary / "whole").write_text("whole")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/whole"]
    with pytest.raises(UserError, match="out exists and is not an empty folder"), atomic_folder(target):
        pytest.fail("it was entered")


KILLED = """
import os, signal, sys
from lapa_jax.core.files import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "first").write_text("written")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_no_folder_of_that_name(root, tmp_path):
    done = subprocess.run([sys.executable, "-B", "-c", KILLED, tmp_path / "out"], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    assert all(p.name.startswith(".out.") and p.name.endswith(".tmp") for p in tmp_path.iterdir())
    with atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


def test_equal_values_give_equal_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(tmp_path / "x.json") == {"a": "\u00e9"}


def test_damaged_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="x.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_metrics_after_the_resume_step_are_dropped(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    for step in (10, 20, 30):
        writer.write(step, {"train/loss": step / 7, "train/bad": math.nan})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "tra')  # a kill in the middle of a line
    MetricsWriter(tmp_path, resume_step=20).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20] and lines[0]["train/bad"] is None
    assert lines == read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 10}\n')
    MetricsWriter(tmp_path, resume_step=0).close()
    assert read_metrics(tmp_path) == [], "a run that begins keeps nothing of one that was there"


def test_a_flipped_byte_costs_its_own_line_alone(tmp_path, caplog):
    rows = [json.dumps({"step": step, "train/loss": step / 7}) for step in (1, 2, 3, 4)]
    rows[1] = rows[1].replace("step", "stfp")
    rows.insert(2, 100_000 * "[")
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join([*rows, ""]).encode().replace(b'"step": 3', b'"step": \xff3'))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 4]
    MetricsWriter(tmp_path, resume_step=4).close()
    assert [json.loads(row) for row in path.read_text().splitlines()] == [json.loads(rows[0]), json.loads(rows[4])]
    assert len((tmp_path / "metrics.damaged.jsonl").read_text().splitlines()) == 3
    assert "3 line(s) cannot be read" in caplog.text


def test_lines_that_are_missing_or_changed_since_a_checkpoint_are_told(tmp_path, caplog):
    path, writer = tmp_path / "metrics.jsonl", MetricsWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": step / 7})
    sealed = json.loads(json.dumps(writer.seal()))
    writer.write(3, {"val/psnr": 1.0})  # the evaluation of a step that was saved before
    writer.write(4, {"train/loss": 0.1})
    writer.close()
    whole = path.read_text()
    rows = whole.splitlines(keepends=True)
    assert sealed["lines"] == 3 and sealed["xxh3"] == xxhash.xxh3_64("".join(rows[:3]).encode()).hexdigest()
    damaged = {"": True, "".join(rows[:2]): True, "".join(rows[1:]): True, whole.replace("0.1428", "0.1429"): True,
               whole: False, "".join(rows[:3]): False}  # fmt: skip
    for text, told in damaged.items():
        caplog.clear()
        path.write_text(text)
        MetricsWriter(tmp_path, resume_step=3, sealed=sealed).close()
        assert ("is not as it was when step 3 was saved" in caplog.text) == told, text
        writer = MetricsWriter(tmp_path, resume_step=3)
        assert writer.seal()["lines"] == len(path.read_text().splitlines())
        writer.close()


def test_the_scalars_of_a_run_that_begins_again_stand_in_tensorboard_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for _ in range(2):
        writer = MetricsWriter(tmp_path, resume_step=0, trackers=["tensorboard"])
        writer.write(0, {"val/psnr": 1.0})
        writer.close()
    starts = []
    for path in (tmp_path / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            if event.session_log.status == SessionLog.START:
                starts.append(event.step)
            content = content[16 + size :]
    assert starts and set(starts) == {0}, "what was there from step 0 on is purged"


def test_user_errors_end_in_one_line_and_exit_code_2(capsys):
    def main(argv):
        raise UserError("no such thing; do that")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: no such thing; do that\n"


def test_arrays_on_disk_are_forgotten_by_memory_and_come_back(tmp_path):
    dtypes = {"a": np.float32, "b": np.float64}
    with arrays_on_disk(tmp_path / "new", {"a": (3, 5000), "b": ()}, dtypes) as arrays:
        assert {name: array.dtype for name, array in arrays.items()} == dtypes
        arrays["a"][1], arrays["b"][()] = np.arange(5000), 7
        arrays.forget()
        np.testing.assert_array_equal(arrays["a"][1], np.arange(5000))
        assert arrays["b"] == 7 and not arrays["a"][0].any()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_made_for_arrays_goes_where_writing_fails(tmp_path):
    def fail(folder, *files):
        with pytest.raises(RuntimeError), arrays_on_disk(folder, {"a": (3,)}, np.float32):
            for name in files:
                (folder / name).write_text("kept")
            raise RuntimeError

    fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    fail(tmp_path / "filled", "note.txt")
    (tmp_path / "old").mkdir()
    fail(tmp_path / "old")
    assert (tmp_path / "filled" / "note.txt").exists() and (tmp_path / "old").exists()
