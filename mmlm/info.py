"""What a model is made of, told from its configs alone: no weights are read, so the largest takes seconds.

Decoder, backbone and adapter are built on torch's meta device, where a tensor has a shape and no bytes.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from mmlm import zoo
from mmlm.adapter import Adapter
from mmlm.config import AdapterConfig, fit_config
from mmlm.decoder import active_parameters, expert_counts, find_layers
from mmlm.names import CONFIG
from vision.backbone import load_backbone
from vision.tiles import plan_tiles

BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
TRAINING = 16  # bytes of a trained parameter: fp32, its gradient, AdamW's two moments
SIZES = ((512, 512), (1024, 1024), (1920, 1080), (2048, 4096))


@dataclass(frozen=True)
class Info:
    """A model's parts, counted."""

    config: AdapterConfig
    decoder: nn.Module
    backbone: nn.Module
    adapter: Adapter

    @property
    def total(self) -> int:
        return sum(map(count, (self.decoder, self.backbone, self.adapter)))

    @property
    def active(self) -> int:
        """Parameters that a token goes through, those of the backbone left out: they see an image, not a token."""
        return active_parameters(self.decoder) + count(self.adapter)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shipped() -> dict[str, Path]:
    """Decoder configurations that come with mmlm, by name."""
    return {Path(str(path)).stem: Path(str(path)) for path in resources.files("mmlm").joinpath("configs").iterdir()}


def decoder_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """The config of a decoder: a shipped name, a folder or a hub id. ValueError, with the mend, if there is none."""
    if name in shipped():
        values = json.loads(shipped()[name].read_text(encoding="utf-8"))
        return AutoConfig.for_model(**values)
    if name == zoo.DECODER:
        zoo.ensure_decoder()
        name = str(zoo.decoder_folder())
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: no config of a decoder ({reason}); give a hub id, a folder with a config.json, "
            f"or one of {', '.join(shipped())}"
        ) from error


def inspect(name: str, vision: str = zoo.VISION, **settings: Any) -> Info:
    """The parts of a saved adapter (folder), or those that `from_parts(name, vision, **settings)` would join."""
    saved = Path(name, CONFIG)
    if saved.is_file():
        if given := [key for key, value in {"vision": vision != zoo.VISION, **settings}.items() if value]:
            raise ValueError(f"{name}: a saved adapter has its own {', '.join(given)}; leave them out")
        config = AdapterConfig.load(saved)
        decoder = empty_decoder(decoder_config(config.decoder, config.revision))
    else:
        decoder = empty_decoder(decoder_config(name))
        config = fit_config(decoder.config, len(find_layers(decoder)), decoder=name, vision=vision, **settings)
    with torch.device("meta"):
        backbone = load_backbone(zoo.TIMM if config.vision == zoo.VISION else config.vision, pretrained=False)
        if not config.channels:
            config.channels = [backbone.channels[source] for source in config.pyramid.maps]
        return Info(config, decoder, backbone, Adapter(config))


def empty_decoder(config: PretrainedConfig) -> nn.Module:
    """The decoder that a config describes, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def report(info: Info) -> str:
    """What `mmlm info` prints."""
    text, config = info.decoder.config.get_text_config(), info.config
    blocks, layers = config.layers, len(find_layers(info.decoder))
    experts, picked = expert_counts(info.decoder.config)
    lines = [
        f"decoder    {config.decoder} ({type(info.decoder).__name__}), frozen",
        f"           {layers} layers of width {text.hidden_size}, {text.num_attention_heads} heads"
        f" ({getattr(text, 'num_key_value_heads', None) or text.num_attention_heads} for keys and values)",
        f"           {experts} experts, {picked} to a token" if experts else "           dense: no experts",
        f"           context {getattr(text, 'max_position_embeddings', 'unknown')} tokens, vocabulary {text.vocab_size}",
        f"vision     {config.vision}, frozen",
        f"adapter    trained: {len(blocks)} gated blocks before layers {', '.join(map(str, blocks))}",
        f"           {config.heads} heads of {config.head_dim} ({config.kv_heads} for keys and values), feed-forward "
        f"{config.ff_factor:g} x {config.hidden}",
        "exact      blind: without an image the logits are bit for bit the decoder's",
        "",
        f"{'parameters':12}{'total':>10}{'per token':>12}{'trained':>10}",
        f"{'decoder':12}{short(count(info.decoder)):>10}{short(active_parameters(info.decoder)):>12}{'0':>10}",
        f"{'vision':12}{short(count(info.backbone)):>10}{'':>12}{'0':>10}",
        f"{'adapter':12}{short(count(info.adapter)):>10}{short(count(info.adapter)):>12}"
        f"{short(count(info.adapter)):>10}",
        f"{'in all':12}{short(info.total):>10}{short(info.active):>12}{short(count(info.adapter)):>10}",
        "",
        f"{'bytes':12}" + "".join(f"{dtype:>10}" for dtype in BYTES),
        f"{'frozen':12}"
        + "".join(f"{size(each * (count(info.decoder) + count(info.backbone))):>10}" for each in BYTES.values()),
        f"{'adapter':12}{size(4 * count(info.adapter)):>10}   on disk; {size(TRAINING * count(info.adapter))} in training",
        "",
        "image          embeddings   keys and values in 16 bits",
    ]
    for width, height in SIZES:
        embeddings = plan_tiles(width, height, config.detail).embeddings
        cost = embeddings * len(blocks) * 2 * config.kv_heads * config.head_dim * 2
        lines.append(f"{f'{width}x{height}':15}{embeddings:>10}   {size(cost)}")
    return "\n".join(lines)


def short(number: float) -> str:
    """1234567 -> "1.23M"."""
    return scaled(number, ("", "K", "M", "B", "T"))


def size(number: float) -> str:
    """Bytes: 1234567 -> "1.23 MB"."""
    return scaled(number, (" B", " kB", " MB", " GB", " TB"))


def scaled(number: float, units: tuple[str, ...]) -> str:
    """Three digits, with the least unit of which there are fewer than a thousand."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g}{units[power]}"
