"""The client of `launch/serve.py`, where users import it from; it lies in `lapa_jax.serve.client`."""

from lapa_jax.serve.client import Client, ServerError

__all__ = ["Client", "ServerError"]
