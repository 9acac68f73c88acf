"""Success against the number of episodes: nothing of the plot is cut off."""

import numpy as np
import pytest
from PIL import Image

from lapa_jax.plots import scaling

RATE = {"success_rate": 0.5, "low": 0.3, "high": 0.7}
NAMES = ("scratch_long", "lapa_shuffled", "pseudo-actions", "actions")


@pytest.mark.parametrize("panels", [("demonstrations",), ("episodes of video", "demonstrations")])
def test_the_legend_fits_however_many_panels_there_are(tmp_path, panels):
    lines = {name: [(10, RATE), (50, RATE)] for name in NAMES}
    path = scaling.draw(tmp_path / "scaling.png", dict.fromkeys(panels, lines))
    image = np.asarray(Image.open(path).convert("RGB"))
    assert (image[:, -2:] == 255).all(), "what is cut off reaches the edge"
