"""The picture of a run."""

import json

import pytest
from PIL import Image

from finetune.plots import plot_loss


@pytest.mark.parametrize("steps", [1, 20])
def test_the_loss_is_drawn(steps, tmp_path):
    pytest.importorskip("matplotlib")
    gates = {"0.attention": 0.1, "0.ff": -0.2}
    lines = [{"step": s, "loss": 1 / s, "loss_smooth": 2 / s, "gates": gates} for s in range(1, steps + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**20)) > 20
