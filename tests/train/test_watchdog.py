import threading
import time

import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import EXIT_HANGS
from lapa_jax.train import watchdog
from lapa_jax.train.watchdog import Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE", 0.2)


def a_function_that_waits(event):
    event.wait()


def test_where_nothing_moves_all_threads_are_written_down_and_the_run_ends(tmp_path, caplog):
    codes, ended, waits = [], threading.Event(), threading.Event()
    threading.Thread(target=a_function_that_waits, args=(waits,), daemon=True).start()
    dog = Watchdog(0.2 / 60, tmp_path, lambda code: (codes.append(code), ended.set()))
    dog.start()
    assert ended.wait(10) and codes == [EXIT_HANGS] == [75]
    waits.set()
    dog.close()
    (report,) = tmp_path.glob("hang-*-host0.txt")
    text = report.read_text()
    assert "a_function_that_waits" in text and "test_where_nothing_moves" in text
    assert "ending with code 75" in caplog.text and report.name in caplog.text


def test_progress_keeps_it_quiet_and_without_minutes_it_never_looks(tmp_path):
    codes = []
    dog, off = Watchdog(0.3 / 60, tmp_path, codes.append), Watchdog(None, tmp_path, codes.append)
    dog.start()
    off.start()
    for _ in range(12):
        time.sleep(0.05)
        dog.progress()
    dog.close()
    off.close()
    assert codes == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("minutes", [0, -1, True, "5"])
def test_minutes_that_are_none_are_refused(tmp_path, minutes):
    with pytest.raises(ConfigError, match="hang_minutes is .*; give a number of minutes above 0, or None"):
        Watchdog(minutes, tmp_path)
