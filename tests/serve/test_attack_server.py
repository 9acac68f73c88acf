"""tools/attack_server.py: the server and its clients have cores of their own."""

import os
import subprocess
import sys

import pytest

from tools import attack_server

SHOW = "import os; print(sorted(os.sched_getaffinity(0)))"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are put on cores on Linux only")
def test_the_server_and_its_clients_share_no_core_where_there_are_two():
    own = os.sched_getaffinity(0)
    server, clients = attack_server.halves()
    assert server | clients == own and (not server & clients or len(own) == 1)
    for cores in (server, clients):
        with attack_server.on_cores(cores):
            shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
        assert shown.strip() == str(sorted(cores))
    assert os.sched_getaffinity(0) == own


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are put on cores on Linux only")
def test_a_single_core_is_for_both():
    own = os.sched_getaffinity(0)
    with attack_server.on_cores({min(own)}):
        assert attack_server.halves() == ({min(own)}, {min(own)})
