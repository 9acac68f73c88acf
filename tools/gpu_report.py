"""Measures this project on the GPU at hand, within minutes: python tools/gpu_report.py, see `tools/gpu/command.py`."""

import pathlib
import sys

from lapa_jax.core.errors import run_main

if __name__ == "__main__":
    # The parts lie in a package, which is found as tests find it; this script is run from wherever.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from tools.gpu.command import main

    run_main(main)
