"""Adapters on disk and on the hub: safetensors, a config and a model card; never a frozen weight."""

import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmlm.config import AdapterConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter.safetensors"

CARD = """\
---
library_name: mmlm
pipeline_tag: image-text-to-text
base_model: {decoder}
---

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
    """Writes config, weights and card. Each file is written under another name, then renamed; the weights last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = sum(p.numel() for p in adapter.parameters())
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    card = CARD.format(decoder=config.decoder, vision=config.vision, layers=config.layers, trained=trained)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as draft:
        config.save(Path(draft, CONFIG))
        Path(draft, "README.md").write_text(card, encoding="utf-8")
        save_file(weights, Path(draft, WEIGHTS))
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
        try:
            paths = [Path(hf_hub_download(str(name), file, revision=revision)) for file in (CONFIG, WEIGHTS)]
        except (OSError, HFValidationError) as error:
            raise ValueError(
                f"{name}: no such folder, and no adapter of that name could be fetched from the hub; "
                "`mmlm quickstart` trains one into runs/quickstart"
            ) from error
    try:
        return AdapterConfig.load(paths[0]), load_file(paths[1])
    except SafetensorError as error:
        raise ValueError(f"{paths[1]}: damaged ({error}); copy or train it anew") from error


def fill(adapter: nn.Module, weights: dict[str, Tensor], name: str | os.PathLike[str]) -> None:
    """Loads the weights into the adapter. ValueError if they are of another shape than the config says."""
    try:
        adapter.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{name}: {WEIGHTS} does not fit {CONFIG} beside it ({error}); copy both anew") from error


def check_fingerprint(config: AdapterConfig, found: dict[str, str], name: str | os.PathLike[str]) -> None:
    """ValueError if the frozen weights at hand are not those that the adapter was trained on."""
    for part, wanted in config.fingerprint.items():
        if found[part] != wanted:
            base = {"decoder": config.decoder, "vision": config.vision}[part]
            raise ValueError(
                f"{name}: trained on other {part} weights than those loaded (fingerprint {wanted[:8]}, "
                f"found {found[part][:8]}); load it with the {part} it was trained on, {base!r}"
            )


def push(repo: str, config: AdapterConfig, adapter: nn.Module, **kwargs: Any) -> str:
    """Uploads a saved adapter; returns its address."""
    api = HfApi()
    address = api.create_repo(repo, exist_ok=True, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, config, adapter)
        api.upload_folder(repo_id=repo, folder_path=folder)
    return str(address)
