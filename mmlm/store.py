"""Adapters on disk and on the hub: safetensors of what was trained, a config and a model card."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from mmlm.config import AdapterConfig
from mmlm.names import CONFIG, RUN, WEIGHTS, check_adapter, is_hub_id

CARD = "README.md"
HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
TEMPLATE = """\
---
{head}---

# Eyes for {decoder}

A gated cross-attention adapter made with mmlm (`pip install mmlm-adapter`). The decoder and the vision backbone are
frozen, and are not in this repository: what was trained is.

| | |
|---|---|
{table}

    import mmlm

    model = mmlm.MultimodalLM.from_pretrained("...")  # this folder, or this repository
    model.ask("cat.jpg", "What colour is it?")
"""


def save(folder: str | os.PathLike[str], config: AdapterConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes config, weights and card, and notes the weights' hash in the config.

    Each file is written under another name, then renamed. Three renames are not one, but a config does not load with
    other weights than those it was saved with.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # save_file would make a file for its owner alone
    data = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, {"format": "pt"})
    config.weights = digest(data)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as draft:
        config.save(Path(draft, CONFIG))
        write_card(Path(draft), config, weights)
        Path(draft, WEIGHTS).write_bytes(data)
        for name in (CONFIG, CARD, WEIGHTS):
            os.replace(Path(draft, name), folder / name)


def write_card(folder: Path, config: AdapterConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes the model card: base models and revisions, what was trained on what, and what it scored."""
    eyes = [name.removeprefix("timm/") for name in config.eyes]
    bases = [name for name in (config.decoder, *eyes) if is_hub_id(name)]
    head: dict[str, Any] = {"library_name": "mmlm", "pipeline_tag": "image-text-to-text", "tags": ["mmlm"]}
    if bases:
        head |= {"base_model": bases, "base_model_relation": "adapter"}
    rows = {
        "decoder": config.decoder or "a decoder of your own",
        "its revision": config.revision or "main",
        "vision": ", ".join(config.eyes),
        "gated blocks before layers": ", ".join(map(str, config.layers)),
        "numbers in its file": f"{sum(tensor.numel() for tensor in weights.values()):,}",
        "also trained": ", ".join(config.unfreeze + ["LoRA"] * (config.lora is not None)) or "nothing",
        "data": ", ".join(config.data) or "not noted",
        **{name: f"{score:.3f}" for name, score in config.scores.items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    text = TEMPLATE.format(head=yaml.safe_dump(head, sort_keys=False), decoder=rows["decoder"], table=table)
    (folder / CARD).write_text(text, encoding="utf-8")


def load(
    name: str | os.PathLike[str], revision: str | None = None, **hub: Any
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Config and weights of a saved adapter: a folder or a hub id. ValueError if there is none, or it is damaged."""
    paths = [find(name, file, revision=revision, **hub) for file in (CONFIG, WEIGHTS)]
    config, data = AdapterConfig.load(paths[0]), paths[1].read_bytes()
    try:
        weights = from_bytes(data)
    except SafetensorError as error:
        raise ValueError(f"{paths[1]}: damaged ({error}); copy or train it anew") from error
    if digest(data) != config.weights:
        raise ValueError(
            f"{paths[1]}: not the weights that {CONFIG} beside it was saved with: one of the two is damaged, "
            "or of another save; copy both anew, or train again"
        )
    return config, weights


def find(name: str | os.PathLike[str], file: str, *, revision: str | None = None, **hub: Any) -> Path:
    """The file of a saved adapter: in its folder, or fetched from the hub. ValueError if there is none."""
    folder = Path(name)
    if folder.is_dir():
        missing = [wanted for wanted in (CONFIG, WEIGHTS) if not (folder / wanted).is_file()]
        if missing:
            raise ValueError(f"{folder}: no saved adapter in it ({' and '.join(missing)} missing)")
        return folder / file
    check_adapter(str(name), revision)
    try:
        return Path(hf_hub_download(str(name), file, revision=revision, **hub))
    except OSError as error:
        raise ValueError(
            f"{name}: no such folder, and no adapter of that name could be fetched from the hub; "
            f"`mmlm quickstart` trains one into {RUN}"
        ) from error


def hub_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a from_pretrained's keyword arguments that say how to fetch files from the hub."""
    return {key: kwargs[key] for key in HUB if key in kwargs}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@torch.no_grad()
def fill(places: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str | os.PathLike[str]) -> None:
    """Copies the weights to their places. ValueError if they are others than the config says."""
    if why := misfit(weights, places):
        raise ValueError(f"{name}: {WEIGHTS} does not fit {CONFIG} beside it ({why}); copy both anew")
    for key, place in places.items():
        place.copy_(weights[key])


def misfit(values: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> str:
    """Why values do not fit their places, by names and shapes; "" if they do."""
    shapes, wanted = ({name: tuple(t.shape) for name, t in some.items()} for some in (values, places))
    if not (wrong := sorted(shapes.items() ^ wanted.items())):
        return ""
    name = wrong[0][0]
    return f"{len(wrong)} tensors differ, such as {name}: {shapes.get(name)}, not {wanted.get(name)}"


def check_fingerprint(config: AdapterConfig, found: dict[str, str], name: str | os.PathLike[str]) -> None:
    """ValueError if the frozen weights at hand are not those that the adapter was trained on."""
    if config.fingerprint.keys() != found.keys():
        parts = " and ".join(found)
        raise ValueError(f"{name}: {CONFIG} has no fingerprint of {parts}: it is damaged; copy or train it anew")
    for part, wanted in config.fingerprint.items():
        if found[part] != wanted:
            base = {"decoder": config.decoder, "vision": config.vision}[part]
            raise ValueError(
                f"{name}: trained on other {part} weights than those loaded (fingerprint {wanted[:8]}, "
                f"found {found[part][:8]}); load it with the {part} it was trained on, {base!r}, as it was then: other "
                "weights may come of a quantized or an fp16 one"
            )


def check_layers(config: AdapterConfig, count: int, name: str | os.PathLike[str]) -> None:
    """ValueError if the config puts a block where the decoder, of `count` layers, has none."""
    if config.layers and config.layers[-1] >= count:
        raise ValueError(
            f"{name}: {CONFIG} puts blocks before layers {config.layers}, and the decoder has layers 0 to "
            f"{count - 1}: it is damaged; copy it anew"
        )


def check_maps(config: AdapterConfig, channels: list[int], name: str | os.PathLike[str]) -> None:
    """ValueError if the backbones at hand give other maps, of the same weights: a built one may leave some out."""
    if config.channels != channels:
        raise ValueError(
            f"{name}: trained on feature maps of {config.channels} channels, and those of vision= have {channels}; "
            "build it as it was then, with the same out_indices"
        )
