"""`python -m lapa_jax`: the commands of this package, see `lapa_jax.commands`."""

from lapa_jax.commands import main
from lapa_jax.core.errors import run_main

run_main(main)
