"""Which networks of timm and open_clip give feature maps: a small one of each family, without weights; and a table."""

from dataclasses import dataclass
from importlib.metadata import version

import open_clip
import timm
import torch

from vision.backbone import load_backbone

CANNOT = {  # family: (what it says, why)
    "gemma4_vit": (
        "cannot be called on meta tensors",
        "reads positions off a tensor: with weights it can be, without them it cannot be built",
    ),
}
SMALL = ("test_", "atto", "femto", "pico", "nano", "xxt", "xxs", "xs", "tiny", "_ti", "small", "_t", "050", "_s", "_b0")


@dataclass(frozen=True)
class Row:
    """One family, told by one of its networks."""

    network: str
    count: int
    """How many networks the family has."""
    side: int = 0
    channels: tuple[int, ...] = ()
    cells: tuple[int, ...] = ()
    """How many cells each map has on a side."""
    parameters: int = 0
    reason: str = ""
    """Why it cannot be a backbone."""


def families():
    """timm's files and the kinds of open_clip's towers, by name: what their networks are called."""
    found = {module: names for module in timm.list_modules() if (names := timm.list_models(module=module))}
    for model in open_clip.list_models():
        cfg = open_clip.get_model_config(model)["vision_cfg"]
        if trunk := cfg.get("timm_model_name"):
            kind = next(module for module, names in found.items() if trunk in names)
        else:
            kind = "ModifiedResNet" if isinstance(cfg["layers"], list) else "VisionTransformer"
        found.setdefault(f"open_clip: {kind}", []).append(f"open_clip:{model}")
    return found


def smallest(names):
    """What by its name may be the smallest."""
    return min(names, key=lambda name: next((i for i, word in enumerate(SMALL) if word in name), len(SMALL)))


def survey():
    return {family: look(smallest(names), len(names)) for family, names in families().items()}


def look(network, count):
    with torch.device("meta"):
        try:
            backbone = load_backbone(network, pretrained=False)
        except ValueError as error:
            return Row(network, count, reason=str(error))
        cells = [one.shape[2] for one in backbone(torch.zeros(1, 3, 512, 512))]
    size = sum(parameter.numel() for parameter in backbone.parameters())
    return Row(network, count, backbone.side, tuple(backbone.channels), tuple(cells), size)


def table(found):
    """docs/backbones.md."""
    good = {family: row for family, row in found.items() if not row.reason}
    lines = [
        "# Backbones",
        "",
        f"What of timm {version('timm')} and open_clip {version('open_clip_torch')} can be a vision backbone, told by "
        "a small network of each family, built without weights; `make backbones` writes this file.",
        "",
        f"{len(good)} of {len(found)} families, {sum(row.count for row in good.values())} networks. Maps are told from "
        "the shallowest to the deepest, as channels @ cells on a side; `map=-1` is the last. A network whose picture "
        "is not 512 sees every tile resized to that; so does an MLP-Mixer with weights, which are for its own size "
        "alone.",
        "",
        "| family | networks | such as | parameters | picture | maps |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{family}` | {row.count} | `{row.network}` | {row.parameters / 1e6:.1f}M | {row.side} | {maps(row)} |"
        for family, row in good.items()
    ]
    if len(good) < len(found):
        lines += ["", "## Not these", "", "| family | networks | such as | why |", "|---|---|---|---|"]
        lines += [
            f"| `{f}` | {row.count} | `{row.network}` | {CANNOT.get(f, ('', row.reason))[1]} |"
            for f, row in found.items()
            if row.reason
        ]
    return "\n".join(lines) + "\n"


def maps(row):
    """(64, 64, 128) of (32, 32, 16) cells -> "2 x 64 @ 32, 128 @ 16"."""
    pairs = list(zip(row.channels, row.cells, strict=True))
    runs = [(pair, pairs.count(pair)) for pair in dict.fromkeys(pairs)]
    return ", ".join(f"{'' if n == 1 else f'{n} x '}{channels} @ {cells}" for (channels, cells), n in runs)
