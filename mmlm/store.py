"""Adapters on disk and on the hub: safetensors, a config and a model card; never a frozen weight."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mmlm.config import AdapterConfig
from mmlm.names import CONFIG, RUN, WEIGHTS, check_adapter, is_hub_id

CARD = """\
---
library_name: mmlm
pipeline_tag: image-text-to-text
{base}---

# Adapter for {decoder}

A gated cross-attention adapter made with mmlm (`pip install mmlm-adapter`). The decoder and the vision
backbone are frozen, and are not in this repository.

| | |
|---|---|
| decoder | {decoder} |
| vision | {vision} |
| gated blocks before layers | {layers} |
| parameters trained | {trained:,} |

    model = mmlm.MultimodalLM.from_pretrained("...")
    model.ask("cat.jpg", "What colour is it?")
"""


def save(folder: str | os.PathLike[str], config: AdapterConfig, adapter: nn.Module) -> None:
    """Writes config, weights and card, and notes the weights' hash in the config.

    Each file is written under another name, then renamed. Three renames are not one, but a config does not load with
    other weights than those it was saved with.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = sum(p.numel() for p in adapter.parameters())
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    data = to_bytes(weights)  # save_file would make a file for its owner alone
    config.weights = digest(data)
    card = CARD.format(
        base=f"base_model: {config.decoder}\n" if is_hub_id(config.decoder) else "",
        decoder=config.decoder or "a decoder of your own",
        vision=config.vision,
        layers=config.layers,
        trained=trained,
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as draft:
        config.save(Path(draft, CONFIG))
        Path(draft, "README.md").write_text(card, encoding="utf-8")
        Path(draft, WEIGHTS).write_bytes(data)
        for name in (CONFIG, "README.md", WEIGHTS):
            os.replace(Path(draft, name), folder / name)


def load(name: str | os.PathLike[str], revision: str | None = None) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Config and weights of a saved adapter: a folder or a hub id. ValueError if there is none, or it is damaged."""
    folder = Path(name)
    if folder.is_dir():
        paths = [folder / CONFIG, folder / WEIGHTS]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ValueError(f"{folder}: no saved adapter in it ({' and '.join(missing)} missing)")
    else:
        check_adapter(str(name), revision)
        try:
            paths = [Path(hf_hub_download(str(name), file, revision=revision)) for file in (CONFIG, WEIGHTS)]
        except OSError as error:
            raise ValueError(
                f"{name}: no such folder, and no adapter of that name could be fetched from the hub; "
                f"`mmlm quickstart` trains one into {RUN}"
            ) from error
    config, data = AdapterConfig.load(paths[0]), Path(paths[1]).read_bytes()
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


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def fill(adapter: nn.Module, weights: dict[str, Tensor], name: str | os.PathLike[str]) -> None:
    """Loads the weights into the adapter. ValueError if they are of another shape than the config says."""
    try:
        adapter.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{name}: {WEIGHTS} does not fit {CONFIG} beside it ({error}); copy both anew") from error


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


def push(repo: str, config: AdapterConfig, adapter: nn.Module, token: str | None = None, **kwargs: Any) -> str:
    """Uploads a saved adapter; returns its address. A repo without an owner is the token's."""
    api = HfApi(token=token)
    address = api.create_repo(repo, exist_ok=True, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config, adapter)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder)
    return str(address)
