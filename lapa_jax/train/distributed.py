"""Starting several processes as one run, from Slurm's variables or from JAX's own."""

import os

import jax

from lapa_jax.core.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Joins the other processes; does nothing in a run of one process.

    Slurm is recognised by SLURM_NTASKS > 1: with one task, an interactive shell would wait for peers that never come.
    Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who.
    """
    given = [name for name in VARIABLES if name in os.environ]
    if len(given) == len(VARIABLES):
        address, count, index = (os.environ[name] for name in VARIABLES)
        jax.distributed.initialize(address, int(count), int(index))
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        jax.distributed.initialize()
    elif "JAX_NUM_PROCESSES" in given:
        missing = [name for name in VARIABLES if name not in given]
        raise UserError(f"JAX_NUM_PROCESSES is set but {', '.join(missing)} is not; set all of {', '.join(VARIABLES)}")
