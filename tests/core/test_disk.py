"""What a file system refuses is one line with the path, and harms nothing that was there."""

import contextlib
import errno
import resource
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import xxhash

from lapa_jax.core.errors import UserError, of_disk, run_main
from lapa_jax.core.files import atomic_folder, atomic_path, check_can_write, write_json
from lapa_jax.core.metrics import MetricsWriter
from lapa_jax.data.shards.step_shards import ShardWriter


def message(capsys, function) -> str:
    with pytest.raises(SystemExit) as end:
        run_main(lambda argv: function())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@contextlib.contextmanager
def largest_file(size: int):
    """No file may become larger, which stands for a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_with_the_path(tmp_path, capsys):
    target = tmp_path / "file.json"
    write_json(target, {"old": 1})

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            full()

    assert f"error: {target}: No space left on device; what was whole" in message(capsys, write)
    assert "old" in target.read_text() and [p.name for p in tmp_path.iterdir()] == ["file.json"]

    def write_folder():
        with atomic_folder(tmp_path / "out"):
            full()

    assert f"error: {tmp_path / 'out'}: No space left" in message(capsys, write_folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("name", ["ENOLCK", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO", "ELOOP", "ESTALE"])
def test_a_mount_that_is_gone_is_one_line_with_the_path(tmp_path, capsys, name):
    def write():
        with atomic_path(tmp_path / "file.json"):
            raise OSError(getattr(errno, name), "as the kernel says it")

    assert f"error: {tmp_path / 'file.json'}: as the kernel says it; what was whole" in message(capsys, write)


def test_a_library_that_writes_by_other_means_is_one_line_too(tmp_path, capsys):
    """safetensors writes from Rust, and its errors are none of the system."""

    def write():
        with atomic_path(tmp_path / "weights") as temporary:
            safetensors.numpy.save_file({"x": np.zeros(999)}, temporary)

    with largest_file(1000):
        with pytest.raises(safetensors.SafetensorError, match="File too large"):
            safetensors.numpy.save_file({"x": np.zeros(999)}, tmp_path / "plain")
        assert f"error: {tmp_path / 'weights'}: File too large; what was whole" in message(capsys, write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_shard_that_finds_no_room_names_its_path_and_leaves_nothing(tmp_path, capsys, size):
    """Small ones fail when they are closed: until then their bytes are in memory."""

    def write():
        with ShardWriter(tmp_path / "train-00000.tar") as writer:
            writer.add("e_000000", {"txt": bytes(size)})

    with largest_file(1000):
        assert f"error: {tmp_path / 'train-00000.tar'}: File too large; what was whole" in message(capsys, write)
    assert list(tmp_path.iterdir()) == []
    write()
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000.tar"]


def test_a_real_full_disk(tmp_path, capsys):
    """/dev/full has no room for anything."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter.__new__(MetricsWriter)
    writer._path = tmp_path / "metrics.jsonl"
    writer._file, writer._lines, writer._sum = open("/dev/full", "w"), 0, xxhash.xxh3_64()
    assert f"{tmp_path / 'metrics.jsonl'}: No space left" in message(capsys, lambda: writer.write(1, {"x": 1.0}))


def test_other_errors_keep_their_traceback():
    with pytest.raises(OSError, match="reset"):
        run_main(lambda argv: (_ for _ in ()).throw(ConnectionResetError(errno.ECONNRESET, "reset")))
    with pytest.raises(RuntimeError, match="else"):
        run_main(lambda argv: (_ for _ in ()).throw(RuntimeError("something else")))


def test_libraries_say_it_in_words():
    assert of_disk(ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: ENOSPC No space left on device]"))
    assert not of_disk(ValueError("shapes differ")) and not of_disk(TimeoutError())


def test_an_array_of_a_failed_checkpoint_that_is_written_later_has_nothing_to_say(root):
    code = """
import asyncio, tensorstore
from lapa_jax.core.errors import UserError, run_main
def main(argv):
    (promise, future), loop = tensorstore.Promise.new(), asyncio.new_event_loop()
    async def wait():
        await future
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    promise.set_result(1)
    raise UserError("no room")
run_main(main)
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=root, capture_output=True, text=True, check=False)
    # Python says of the task itself that it was left; orbax ends its own.
    said = [line for line in done.stderr.splitlines() if "Task was destroyed" not in line and "task: <Task" not in line]
    assert (done.returncode, said) == (2, ["error: no room"])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path):
    check_can_write(tmp_path)
    check_can_write(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot be written: .*file is no folder"):
            check_can_write(path)
    with pytest.raises(UserError, match="cannot be written: 'üü.*' has 300 bytes, and names in .* at most 255"):
        check_can_write(tmp_path / "runs" / (150 * "ü") / "laq")
    check_can_write(tmp_path / "runs" / (255 * "a"))


def test_a_device_that_is_not_there_is_one_line(root):
    code = "from lapa_jax.core.errors import run_main\nimport jax\nrun_main(lambda argv: jax.devices())"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=root, capture_output=True, text=True, check=False,
                          env={"JAX_PLATFORMS": "tpu", "PATH": "/usr/bin:/bin"})  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith("error: Unable to initialize backend 'tpu'") and "(JAX_PLATFORMS=tpu): install JAX" in last
