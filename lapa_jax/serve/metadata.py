"""What a served policy needs and gives: the metadata that clients get."""

from collections.abc import Mapping

import lapa_jax
from lapa_jax.data import images
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.inference.policies import Policy


def cameras(policy: Policy) -> tuple[str, ...]:
    """The names of the policy's cameras in the order of its training: "image", "image_wrist"."""
    named = policy.config.get("data", {}).get("camera") or "image"
    return (named,) if isinstance(named, str) else tuple(named)


def metadata(policy: Policy, run: str, keys: Mapping[str, list[str]]) -> dict:
    """What a client is told, of plain values.

    Args:
      policy: the policy. run: its name. keys: {what: accepted keys of a message}.
    """
    model = policy.model
    return {
        "server": "lapa_jax",
        "version": lapa_jax.__version__,
        "run": run,
        "step": policy.step,
        "chunk_length": model.chunk_length,
        "action_dim": model.action_dim,
        "state_dim": model.state_dim,
        "cameras": list(cameras(policy)),
        "image_size": model.image_size,
        "text_tokens": model.text_length,
        "instructed": "text" in (policy.config.get("data", {}).get("fields") or ()),
        "units": "those of the data set: see min and max",
        "datasets": {name: _dataset(policy, name) for name in policy.datasets},
        "keys": {name: list(accepted) for name, accepted in keys.items()},
    }


def _dataset(policy: Policy, name: str) -> dict:
    about = policy.datasets[name]
    columns = ("action", "state") if policy.model.state_dim else ("action",)
    resize = images.stored_mode(about.get("features") or {})
    return {"fps": about.get("fps"), "resize": resize, **{column: _column(policy, name, column) for column in columns}}


def _column(policy: Policy, dataset: str, column: str) -> dict:
    about, width = policy.datasets[dataset], policy.width_of(dataset, column)
    summary = about["statistics"].get(column, {})
    description = {"names": dimension_names(about.get("features", {}).get(column, {}), width)}
    return description | {key: [float(x) for x in summary[key]] for key in ("min", "max") if key in summary}
