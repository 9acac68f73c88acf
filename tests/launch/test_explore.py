"""`launch/explore.py` as a user runs it: says where the page is, answers, and ends at Ctrl-C."""

import os
import re
import signal
import subprocess
import sys

from tests.explore.serving import ask, get
from tests.inference import small_run


def test_it_says_ready_answers_and_stops(root, tmp_path):
    run = small_run.write(tmp_path / "laq", root, "sample", steps=(1,))
    command = [sys.executable, "-B", root / "launch/explore.py", "--run", run, "--pairs", "9", "--port", "0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        address = re.fullmatch(r"ready: http://(127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", process.stdout.readline())[1]
        assert b"<title>" in get(address, "/")[2]
        assert ask(address, "about")["pairs"] == {"encoded": 9, "all": 69}
        assert get(address, "/", Host="evil.example")[0] == 403
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and printed == "stopped\n"
    assert "exploring" in said.splitlines()[0] and "9 of 69 pairs encoded" in said
    assert "Traceback" not in said
