"""What an adapter is made of, and what it was made for: all that is saved beside its weights."""

import json
from collections.abc import Iterable
from dataclasses import field
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mmlm.kinds import fits
from mmlm.names import CAPTION_PROMPT, MARK
from vision.ocr import check_name
from vision.pyramid import Pyramid, parse_tokens

FORMAT = 5
FOUND = (
    "quantization",
    "fingerprint",
    "weights",
    "hidden",
    "channels",
    "format",
)  # no settings: they follow from the parts, or saving
# Of any weights:
FREE = ("detail", "system", "caption_prompt", "mark", "image_last", "ocr", "ocr_tokens", "data", "scores")
RESAMPLER_LAYERS = 2  # unless the config says otherwise
WRITTEN = ("architectures", "model_type", "transformers_version")  # into its file, for transformers' auto classes


class AdapterConfig(PreTrainedConfig):
    """The shape of an adapter and the frozen parts it belongs to.

    For transformers' sake one of its configs: the auto classes, `Trainer` and PEFT ask for that. Only the fields below
    are ours, and only they are written.
    """

    model_type = "mmlm"
    attribute_map = {"hidden_size": "hidden"}  # noqa: RUF012  # as transformers has it
    auto_map = {}  # type: ignore[var-annotated]  # noqa: RUF012  # no remote code: TRL asks

    decoder: str = ""
    """Hub id, folder or embedded name of the frozen decoder."""
    vision: str | list[str] = ""
    """Name of the frozen vision backbone, as `vision.load_backbone` takes it, or an embedded name; or several."""
    revision: str | None = None
    """Revision of the decoder on the hub."""
    quantization: dict[str, Any] | None = None
    """How the decoder is quantized when it is loaded: transformers' `quantization_config`, in plain values."""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Hashes of the frozen weights, by part; loading onto others is refused."""
    weights: str = ""
    """Hash of the adapter's own weights, as they lie beside this config; others are refused."""
    layers: list[int] = field(default_factory=list)
    """Decoder layers that have a gated block in front, counted from 0."""
    hidden: int = 64
    """Width of the decoder's hidden states."""
    heads: int = 1
    """Query heads of the cross-attention."""
    kv_heads: int = 1
    """Key and value heads of the cross-attention; 1 is multi-query attention."""
    head_dim: int = 64
    """Width of one head."""
    ff_factor: float = 1.5
    """Width of a block's feed-forward over the decoder's width. What it weighs is read again for every token."""
    media_dim: int = 64
    """Width of a media embedding after projection."""
    attend: str = "latest"
    """What a text token sees: the "latest" image before it (Flamingo), or "all" before it, which then know their place
    in the row."""
    detail: str = "high"
    """Tiling: "high" (85 + 170 per tile), "low" (85), or "auto"."""
    tokens: str | dict[str, list[list[int]]] = "pyramid"
    """What the 85 and 170 embeddings are made of: a name of `vision.TOKENS`, or grids of one's own in the same form."""
    resampler_layers: int | None = None
    """Layers of tokens="resampler", 1 or more; None is 2, and all that other tokens take: they have no resampler."""
    channels: list[int] = field(default_factory=list)
    """Channels of each feature map that is pooled, by backbone and the deepest first."""
    system: str | None = None
    """System message of `ask` and `caption`; None leaves it to the decoder's chat template, "" sends an empty one."""
    caption_prompt: str = CAPTION_PROMPT
    """What `caption` asks."""
    mark: str = MARK
    """What stands for an image in a prompt. It is removed before tokenization and never becomes a token."""
    image_last: bool = False
    """Where `ask` and `caption` put the image: after the question (True) or before it."""
    ocr: str = ""
    """What reads the text in an image, which the decoder is then told after the image's mark: "rapidocr"; "": none."""
    ocr_tokens: int = 256
    """Most tokens of the text that is read in one image."""
    unfreeze: list[str] = field(default_factory=list)
    """Patterns of what is trained besides the adapter, by parameter name: "vision.*", "decoder.*norm*", "*"."""
    lora: dict[str, Any] | None = None
    """Low-rank adapters besides: fields of `peft.LoraConfig`; without target_modules on the decoder's attention."""
    data: list[str] = field(default_factory=list)
    """What it was trained on, for the model card."""
    scores: dict[str, float] = field(default_factory=dict)
    """What it was found to reach, for the model card."""
    format: int = FORMAT
    """Version of this file's layout."""

    def __post_init__(self, **more: Any) -> None:
        super().__post_init__(**more)
        for name, type_ in FIELDS.items():
            if not fits(value := getattr(self, name), type_):
                kind = type_.__name__ if isinstance(type_, type) else type_
                raise ValueError(f"{name}={value!r}: takes {kind}")
        for name in ("hidden", "heads", "kv_heads", "head_dim", "ff_factor", "media_dim", "ocr_tokens"):
            if not 0 < (number := getattr(self, name)) < inf:
                raise ValueError(f"{name}={number}: must be above 0")
        if self.attend not in ("latest", "all"):
            raise ValueError(f"attend={self.attend!r}: 'latest' or 'all'")
        if self.detail not in ("high", "low", "auto"):
            raise ValueError(f"detail={self.detail!r}: 'high', 'low' or 'auto'")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
        if not self.mark:
            raise ValueError("mark='': takes what stands for an image in a prompt, as '<image>'")
        if self.ocr:
            check_name(self.ocr)
        if self.layers != sorted(set(self.layers)) or min(self.layers, default=0) < 0:
            raise ValueError(f"layers={self.layers}: must be in order, each once, from 0")
        if min(self.channels, default=1) < 1:
            raise ValueError(f"channels={self.channels}: must be above 0")
        resampled = self.pyramid.resampled
        if self.resampler_layers is None:
            self.resampler_layers = RESAMPLER_LAYERS if resampled else None
        elif not resampled:
            raise ValueError(
                f"resampler_layers={self.resampler_layers}: tokens={self.tokens!r} has no resampler; leave it out, or "
                "take tokens='resampler'"
            )
        elif self.resampler_layers < 1:
            raise ValueError(f"resampler_layers={self.resampler_layers}: must be 1 or more")

    @property
    def pyramid(self) -> Pyramid:
        """The grids that `tokens` names. ValueError if they do not add up to 85 and 170."""
        return parse_tokens(self.tokens, len(self.eyes))

    @property
    def eyes(self) -> list[str]:
        """Names of the vision backbones, one or several."""
        return [self.vision] if isinstance(self.vision, str) else self.vision

    def changed_to(self, given: "AdapterConfig", name: str) -> "AdapterConfig":
        """This saved config with the settings of a `given` one. ValueError where its weights fit no other."""
        mine, other = ({key: getattr(config, key) for key in FIELDS} for config in (self, given))
        if wrong := next((key for key in FIELDS if key not in FREE and mine[key] != other[key]), None):
            raise ValueError(
                f"{name}: config= has {wrong}={other[wrong]!r}, but its weights were saved with {mine[wrong]!r}; of a "
                f"saved adapter {', '.join(FREE)} can be set"
            )
        return AdapterConfig(**other)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The decoder's config, once a model has been made of it."""
        return getattr(self, "text_config", self)

    def to_dict(self) -> dict[str, Any]:
        """What is written: our fields, and what transformers' auto classes look for."""
        whole = super().to_dict()
        return {name: whole[name] for name in (*FIELDS, *WRITTEN) if name in whole}

    def save(self, path: Path) -> None:
        """Writes the config as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "AdapterConfig":
        """Reads a config written by `save`. ValueError, naming the file, if it is none, damaged, or of a newer mmlm."""
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            kind, made_by = values.get("model_type"), values.get("format")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(f"{path}: not a saved adapter's config ({error})") from error
        if kind != cls.model_type:
            raise ValueError(f"{path}: not a saved adapter's config, but that of a model of the type {kind!r}")
        unknown = sorted(values.keys() - FIELDS.keys() - set(WRITTEN))
        if made_by != FORMAT or unknown:
            what = f"fields {unknown}" if unknown else f"format {made_by}"
            raise ValueError(f"{path}: {what} unknown to this mmlm; it was saved by another version: upgrade mmlm")
        try:
            return cls(**{name: value for name, value in values.items() if name in FIELDS})
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}); copy it anew") from error


FIELDS: dict[str, Any] = dict(AdapterConfig.__annotations__)
"""The type of each field, by name."""


def fit_config(
    text_model: Any,
    count: int,
    *,
    every: int | None = None,
    start: int | None = None,
    layers: list[int] | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    **settings: Any,
) -> AdapterConfig:
    """The config of a new adapter: what is not said follows from the decoder's.

    Args:
        text_model: config of a transformers decoder.
        count: of its layers.
        every, start, layers: as in `place_blocks`.
        heads, kv_heads: of the cross-attention; by default the decoder's own, but a key head for every four query heads
            where the decoder has as many of both.
        settings: other fields of `AdapterConfig`.

    Raises ValueError for settings that there are not, that make no sense, or that do not fit the decoder.
    """
    known = [name for name in FIELDS if name not in FOUND]
    for key in settings:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise ValueError(f"from_parts: no setting {key!r}{hint}")
    text = text_model.get_text_config(decoder=True)
    own = getattr(text, "num_attention_heads", None) or max(1, text.hidden_size // 64)  # Mamba and RWKV have none
    heads = own if heads is None else heads
    kv_heads = key_heads(text, own, heads) if kv_heads is None else kv_heads
    try:
        width = getattr(text, "head_dim", None)
    except RuntimeError:  # of a decoder whose layers differ in it
        width = None
    width = width or text.hidden_size // own
    return AdapterConfig(
        layers=place_blocks(count, every, start, layers),
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        **({"head_dim": width, "media_dim": text.hidden_size} | settings),
    )


def key_heads(text: Any, own: int, heads: int) -> int:
    """Key and value heads for so many query heads: as many as the decoder has, if it has fewer of them than queries.

    Else one for every four, or for fewer where four do not divide them: four fifths of what a tile costs are keys and
    values, and with a quarter of them attention is hardly the worse (Ainslie et al. 2023, arXiv:2305.13245;
    docs/findings.md has short runs of ours, which saw no cost).

    Args:
        own: query heads of the decoder.
    """
    fewer = getattr(text, "num_key_value_heads", None) or own
    return fewer if fewer < own else next(n for n in range(-(-heads // 4), heads + 1) if heads % n == 0)


def place_blocks(count: int, every: int | None, start: int | None, layers: list[int] | None) -> list[int]:
    """The decoder layers that get a block in front: the list given, or every `every`-th from `start`.

    Args:
        count: layers of the decoder.
        every, start: as in DESIGN; without them (and without `layers`) four blocks, evenly spread over the last third.
        layers: an explicit list instead.

    Raises ValueError for layers that are not there.
    """
    if layers is not None:
        chosen = list(layers) if isinstance(layers, Iterable) else []
        if not chosen or not all(type(layer) is int and 0 <= layer < count for layer in chosen):
            raise ValueError(f"layers={layers!r}: the decoder has layers 0 to {count - 1}; name some of them in a list")
        return sorted(set(chosen))
    if every is None and start is None:
        first = count - max(1, round(count / 3))
        spread = min(4, count - first)
        return sorted({first + round(i * (count - 1 - first) / max(1, spread - 1)) for i in range(spread)})
    every, start = 4 if every is None else every, 0 if start is None else start
    if type(every) is not int or type(start) is not int or every < 1 or not 0 <= start < count:
        raise ValueError(
            f"every={every!r}, start={start!r}: whole numbers, every at least 1, start from 0 to {count - 1}"
        )
    return list(range(start, count, every))


AutoConfig.register(AdapterConfig.model_type, AdapterConfig, exist_ok=True)
