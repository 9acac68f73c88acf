import pytest

from lapa_jax.data.shards.step_shards import StepShards


@pytest.fixture(scope="package")
def shards():
    """The held-out episodes of the sample."""
    return StepShards("sample", "val")
