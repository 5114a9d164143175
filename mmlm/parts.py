"""The frozen parts of a model, whatever form they came in: decoder and tokenizer, vision backbones."""

import os
from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm import zoo
from mmlm.config import AdapterConfig
from mmlm.decoder import home, load_decoder
from mmlm.experts import use_padded_experts
from vision.backbone import Backbone, load_backbone

Eye = str | os.PathLike[str] | nn.Module
Eyes = Eye | Sequence[Eye]


def decoder_of(
    decoder: str | os.PathLike[str] | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    kwargs: dict[str, Any],
) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Decoder, tokenizer and the decoder's name. ValueError for a built one without its tokenizer."""
    if isinstance(decoder, nn.Module):
        if tokenizer is None:
            raise ValueError("decoder= is a built module: give its tokenizer too, tokenizer=")
        by_default = getattr(getattr(decoder, "config", None), "_experts_implementation", None) == "grouped_mm"
        if by_default and home(decoder).type == "cpu":
            use_padded_experts(cast("PreTrainedModel", decoder))
        return decoder, tokenizer, str(getattr(decoder, "name_or_path", ""))
    if str(decoder) == zoo.DECODER:
        built, own = zoo.load_default_decoder(**kwargs)
    else:
        built, own = load_decoder(decoder, revision=revision, **kwargs)
    return built, tokenizer or own, str(decoder)


def for_decoder(config: AdapterConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments as an auto class hands them on, two of them in its config -> those of the decoder's own."""
    names = ("attn_implementation", "experts_implementation")
    moved = {name: value for name in names if (value := getattr(config, f"_{name}", None)) is not None}
    return moved | {key: value for key, value in kwargs.items() if key not in ("_from_auto", "adapter_kwargs")}


def quantization_of(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The `quantization_config` among the decoder's keyword arguments, if there is one, in plain values."""
    given = kwargs.get("quantization_config")
    return given if given is None or isinstance(given, dict) else given.to_dict()


def several(vision: Eyes) -> Sequence[Eye]:
    """One or several, as several."""
    return vision if isinstance(vision, list | tuple) else [cast("Eye", vision)]


def backbones_of(vision: Eyes) -> list[Backbone]:
    """The frozen backbones, named or given. ValueError for none."""
    if not several(vision):
        raise ValueError("vision=[]: takes a backbone, as 'timm/NAME', or a list of some")
    return [zoo.load_default_backbone() if one == zoo.VISION else load_backbone(one) for one in several(vision)]
