"""`launch/serve.py` as a user runs it: an exported policy, asked by our client, stopped by a signal."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax.data import images
from lapa_jax.serve.client import Client
from launch import serve
from tests.commands import refusal
from tests.serve import served


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "policy"
    served.policy().save_pretrained(folder)
    return folder


def start(root, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-B", str(root / "launch" / "serve.py"), *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_ready_answers_and_stops_at_a_signal(root, run, tmp_path, number):
    (tmp_path / "token").write_text("secret\n")
    process = start(root, "--run", run, "--port", 0, "--batch", 1, "--token_file", tmp_path / "token")
    try:
        address = re.match(r"listening on (127\.0\.0\.1:\d+), compiling", process.stdout.readline()).group(1)
        assert process.stdout.readline().startswith(f"ready: ws://{address} and http://{address}/act (batches of 1 ")
        with Client(address, token="secret", timeout=300) as client:
            found = client.chunk(served.picture(), "push")
            expected = served.policy().chunk(images.resize(served.picture(), served.SIDE), "push")
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            assert client.metadata["run"] == "policy" and client.metadata["step"] == 7
            process.send_signal(number)
            told, errors = process.communicate(timeout=120)
        # Nothing but the word that an image that is not square was squashed: the policy's data name no mode.
        (warning, *_) = re.findall(r"UserWarning: (.*)", errors)
        assert process.returncode == 0 and warning.startswith("image is 30 x 20 pixels and is squashed"), errors
        assert len(re.findall(r"Warning|Error|Traceback", errors)) == 1, errors
        assert told.splitlines() == ["stopping: answering what is in flight", "stopped"]
    finally:
        process.kill()


def test_bad_arguments_end_in_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").write_text(" \n")
    cases = (
        (("--run", tmp_path / "nowhere"), "does not exist; give a run folder"),
        (("--run", run, "--rename", "x=imag"), "did you mean 'image'"),
        (("--run", run, "--host", "192.0.2.1"), "cannot listen on 192.0.2.1:8000"),
        (("--run", run, "--port", 70000), "--port 70000 is no port"),
        (("--run", run, "--token_file", tmp_path / "empty"), "must hold one word"),
        (("--run", run, "--token_file", run / "model.safetensors"), "must hold one word"),
        (("--run", run, "--rename", "wrist"), "--rename wrist is not KEY=NAME"),
        (("--run", run, "--rate", 0), "--rate 0.0 must be more than 0"),
        (("--run", run, "--message_mb", "nan"), "--message_mb nan is no size"),
        (("--run", run, "--message_mb", "inf"), "--message_mb inf is no size"),
    )
    for arguments, words in cases:
        assert words in refusal(serve.main, arguments, capsys)


def test_a_port_in_use_and_a_run_that_is_not_served_are_refused_before_anything_is_loaded(
    root, run, tmp_path, capsys
):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        _, errors = start(root, "--run", run, "--port", other.getsockname()[1]).communicate(timeout=300)
        # So early that not even the first line has come.
        assert errors.startswith("error: cannot listen on 127.0.0.1:") and errors.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "tokenizers.laq"}}))
    words = "holds a tokenizer of frame pairs, which does not act on images and instructions"
    assert words in refusal(serve.main, ["--run", tmp_path, "--port", 0], capsys)
