"""What a model is made of, told from its configs alone: no weights are read, so the largest takes seconds.

Decoder, backbone and adapter are built on torch's meta device, where a tensor has a shape and no bytes.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mmlm import zoo
from mmlm.adapter import Adapter
from mmlm.config import AdapterConfig, fit_config
from mmlm.decoder import active_parameters, expert_counts, find_layers
from mmlm.names import CONFIG, check_adapter
from mmlm.trained import choose_trained
from vision.backbone import MODULE, load_backbone
from vision.encoder import VisionEncoder
from vision.tiles import plan_tiles

BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
TRAINING = 16  # bytes of a trained parameter: fp32, its gradient, AdamW's two moments
SIZES = ((512, 512), (1024, 1024), (1920, 1080), (2048, 4096))


@dataclass(frozen=True)
class Info:
    """A model's parts, and what of them is trained."""

    config: AdapterConfig
    parts: nn.ModuleDict
    trained: frozenset[str]

    @property
    def decoder(self) -> PreTrainedModel:
        return cast("PreTrainedModel", self.parts["decoder"])

    @property
    def total(self) -> int:
        return count(self.parts)

    @cached_property
    def per_token(self) -> dict[str, int]:
        """Parameters that a token goes through, by part; none of what sees an image, not a token: the backbones, and
        what makes embeddings of their maps.
        """
        adapter = count(self.parts["adapter"]) - count(self.parts.get_submodule("adapter.media"))
        return {"decoder": active_parameters(self.decoder), "vision": 0, "adapter": adapter}

    @property
    def active(self) -> int:
        return sum(self.per_token.values())

    @property
    def tokens(self) -> str:
        """What the embeddings are made of, in words."""
        config, pyramid = self.config, self.config.pyramid
        name = config.tokens if isinstance(config.tokens, str) else "grids of its own"
        overview, tile = (" + ".join(str(its.grid**2) for its in levels) for levels in (pyramid.overview, pyramid.tile))
        if not pyramid.resampled:
            return f"{name}: an overview has {overview}, a tile {tile}"
        layers, cost = config.resampler_layers, short(count(self.parts.get_submodule("adapter.media.resampler")))
        return (
            f"{name}: {layers} layer{'s' * (layers != 1)}, {cost} parameters; 85 read an overview's {overview} cells, "
            f"170 a tile's {tile}"
        )

    def media(self, width: int, height: int) -> tuple[int, int, int]:
        """What an image of so many pixels costs: embeddings, bytes of their keys and values in 16 bits, bytes on disk
        of the features that a feature cache keeps, in fp32. At the most: of padding there is nothing to keep.
        """
        config, pyramid, plan = self.config, self.config.pyramid, plan_tiles(width, height, self.config.detail)
        channels = dict(zip(pyramid.sources, config.channels, strict=True))
        overview, tile = (  # each cell's values, and its place in three numbers of 16 bits
            sum(level.grid**2 * (4 * channels[level.source] + 6) for level in levels)
            for levels in (pyramid.overview, pyramid.tile)
        )
        seen = plan.embeddings * len(config.layers) * 2 * config.kv_heads * config.head_dim * 2
        return plan.embeddings, seen, overview + tile * len(plan.boxes)

    @property
    def fitted(self) -> int:
        """Numbers of the adapter that are fitted before training, and saved with what is trained."""
        return sum(buffer.numel() for buffer in self.parts["adapter"].buffers())

    def learnt(self, part: str) -> int:
        """How many parameters of a part are trained."""
        return sum(p.numel() for p in self.parts[part].parameters() if p.requires_grad)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shipped() -> dict[str, Path]:
    """Decoder configurations that come with mmlm, by name."""
    return {Path(str(path)).stem: Path(str(path)) for path in resources.files("mmlm").joinpath("configs").iterdir()}


def find_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a decoder or of a saved adapter: a shipped name, folder or hub id. ValueError if there is none."""
    if name in shipped():
        return AutoConfig.for_model(**json.loads(shipped()[name].read_text(encoding="utf-8")))
    name = zoo.located(name)
    if "/" in name and not Path(name).exists():
        check_adapter(name, revision)
    try:
        found = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: no config of a decoder or a saved adapter ({reason}); give a hub id, a folder with a {CONFIG}, "
            f"or one of {', '.join(shipped())}"
        ) from error
    saved = Path(name, CONFIG)
    return AdapterConfig.load(saved) if isinstance(found, AdapterConfig) and saved.is_file() else found


def inspect(name: str, vision: str | list[str] | None = None, **settings: Any) -> Info:
    """The parts of a saved adapter, or those that `from_parts(name, vision, **settings)` would join.

    Backbones are counted without what `load_backbone` leaves out: classifiers, text towers.

    ValueError for what is neither, for settings of an adapter that is there already, and for one made on built parts.
    """
    found = find_config(name)
    if isinstance(found, AdapterConfig):
        if given := [key for key, value in {"vision": vision, **settings}.items() if value]:
            raise ValueError(f"{name}: a saved adapter has its own {', '.join(given)}; leave them out")
        if not found.decoder or any(name.startswith(MODULE) for name in found.eyes):
            raise ValueError(f"{name}: this adapter was made on built parts, of which its config does not tell")
        config, decoder = found, empty_decoder(find_config(found.decoder, found.revision))
    else:
        decoder = empty_decoder(found)
        layers = len(find_layers(decoder))
        eyes = vision[0] if isinstance(vision, list) and len(vision) == 1 else vision or zoo.VISION
        config = fit_config(decoder.config, layers, decoder=name, vision=eyes, **settings)
    with torch.device("meta"):
        names = [zoo.TIMM if name == zoo.VISION else name for name in config.eyes]
        backbones = [load_backbone(name, pretrained=False) for name in names]
        encoder = VisionEncoder(backbones, config.pyramid, config.detail)
        config.channels = encoder.channels
        parts = nn.ModuleDict({"decoder": decoder, "vision": encoder, "adapter": Adapter(config)})
        return Info(config, parts, choose_trained(parts, config))


def empty_decoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The decoder that a config describes, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def report(info: Info) -> str:
    """What `mmlm info` prints."""
    config, decoder = info.config, info.decoder
    text = decoder.config.get_text_config(decoder=True)
    experts, picked = expert_counts(decoder.config)
    heads = getattr(text, "num_attention_heads", None)
    rows = [(part, count(info.parts[part]), active, info.learnt(part)) for part, active in info.per_token.items()]
    rows.append(("in all", info.total, info.active, sum(map(info.learnt, info.parts))))
    frozen = info.total - rows[-1][-1]
    lines = [
        f"decoder     {config.decoder} ({type(decoder).__name__}), {state(info, 'decoder')}",
        f"            {len(find_layers(decoder))} layers of width {text.hidden_size}"
        + (
            f", {heads} heads ({getattr(text, 'num_key_value_heads', None) or heads} for keys and values)"
            if heads
            else ""
        ),
        f"            {experts} experts, {picked} to a token" if experts else "            dense: no experts",
        f"            context {getattr(text, 'max_position_embeddings', None) or 'unknown'} tokens,"
        f" vocabulary {text.vocab_size}",
        f"vision      {', '.join(config.eyes)}, {state(info, 'vision')}",
        f"tokens      {info.tokens}",
        f"adapter     trained: {len(config.layers)} gated blocks before layers {', '.join(map(str, config.layers))}",
        f"            {config.heads} heads of {config.head_dim} ({config.kv_heads} for keys and values),"
        f" feed-forward {config.ff_factor:g} x {config.hidden}",
        "blind       exact: without an image the logits are bit for bit the decoder's"
        if not info.learnt("decoder")
        else "blind       NOT exact: part of the decoder is trained, so its logits without an image change, too",
        "",
        f"{'parameters':12}{'total':>10}{'per token':>12}{'trained':>10}",
        *(f"{n:12}{short(all_):>10}{short(token) if token else '':>12}{short(t):>10}" for n, all_, token, t in rows),
        "",
        f"{'bytes':12}" + "".join(f"{dtype:>10}" for dtype in BYTES),
        f"{'frozen':12}"
        + "".join(f"{size(each * frozen):>10}" for each in BYTES.values())
        + "   on disk and in memory",
        f"{'trained':12}{size(4 * (rows[-1][-1] + info.fitted)):>10}   on disk, with what inputs are whitened by;"
        f" in training {size(TRAINING * rows[-1][-1])} in memory",
        "",
        "image          embeddings   keys and values in 16 bits   features on disk",
    ]
    for width, height in SIZES:
        embeddings, seen, kept = info.media(width, height)
        lines.append(f"{f'{width}x{height}':15}{embeddings:>10}   {size(seen):26}   {size(kept)}")
    return "\n".join(lines)


def state(info: Info, part: str) -> str:
    """Is the part frozen, or what of it is trained?"""
    names = [name for name in info.trained if name.startswith(f"{part}.")]
    lora = sum(".lora_" in name for name in names)
    said = [f"LoRA of rank {info.config.lora.get('r', 8)}"] if lora and info.config.lora is not None else []
    said += [f"{len(names) - lora} of its tensors unfrozen"] if len(names) > lora else []
    return f"frozen but for {' and '.join(said)}" if said else "frozen"


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
