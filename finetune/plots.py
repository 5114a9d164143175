"""Pictures of a run."""

import json
from pathlib import Path

from eval.plots import check_matplotlib


def plot_loss(metrics: Path, picture: Path) -> None:
    """metrics.jsonl -> the loss over steps, and how far the gates opened, as a PNG."""
    check_matplotlib()
    from matplotlib import pyplot

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]  # not of scores
    steps = [line["step"] for line in lines]
    figure, (loss, gates) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    loss.plot(steps, [line["loss"] for line in lines], color="0.8", linewidth=1)
    loss.plot(steps, [line["loss_smooth"] for line in lines], color="C0")
    loss.set(xlabel="step", ylabel="loss per learnt token", yscale="log")
    for name in lines[0]["gates"] if lines else ():
        style = "-" if name.endswith("attention") else "--"
        gates.plot(steps, [line["gates"][name] for line in lines], style, label=name)
    gates.set(xlabel="step", ylabel="tanh(gate)")
    gates.legend(fontsize=7, ncols=2)
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
