"""The frozen decoder: loaded as transformers loads it, never changed."""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mmlm.experts import use_padded_experts

SAMPLES = 1024  # values of each tensor that go into a fingerprint
# As configs name how many layers a decoder has: where there is an encoder, too, num_hidden_layers is of that; where
# layers have halves (LongCat), of those.
LAYERS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # as configs name how many
PICKED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")
SHARED = ("trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")  # by decoder and tokenizer


def load_decoder(
    name: str | os.PathLike[str], *, revision: str | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Decoder and tokenizer of a hub id or folder; kwargs go to `AutoModelForCausalLM.from_pretrained`.

    Those that say where and how to find files go to the tokenizer too.

    On a CPU its experts are run by `padded_experts`, unless kwargs name an `experts_implementation`: transformers' own
    kernels give a token other last bits when other tokens are routed otherwise, and so break "blind is exact" in rows
    that have an image.

    ValueError, with the mend, if there is none, or a file of it is damaged.
    """
    kwargs.setdefault("dtype", "auto")
    tokenizer = load_tokenizer(name, revision, **{key: kwargs[key] for key in SHARED if key in kwargs})
    with refusing(name):
        decoder = AutoModelForCausalLM.from_pretrained(name, revision=revision, **kwargs)
    if home(decoder).type == "cpu" and "experts_implementation" not in kwargs:
        use_padded_experts(decoder)
    return decoder, tokenizer


def load_tokenizer(name: str | os.PathLike[str], revision: str | None = None, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder. ValueError, with the mend, if there is none."""
    with refusing(name):
        return AutoTokenizer.from_pretrained(name, revision=revision, **kwargs)


@contextmanager
def refusing(name: str | os.PathLike[str]) -> Iterator[None]:
    """Within it what cannot be loaded is a ValueError that says how to name a decoder."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"decoder={str(name)!r} cannot be loaded ({reason}); give a hub id, a folder that transformers' "
            "save_pretrained wrote, or a built module with its tokenizer"
        ) from error


def freeze(module: nn.Module) -> None:
    """Eval mode and no gradients, for good: `MultimodalLM.train` leaves it out."""
    module.eval().requires_grad_(False)


def home(decoder: nn.Module) -> torch.device:
    """Where the decoder takes its inputs; accelerate may have spread it over devices, and put parts of it away."""
    device = getattr(getattr(decoder, "_hf_hook", None), "execution_device", None)
    return next(decoder.parameters()).device if device is None else torch.device(device)


def find_layers(decoder: nn.Module) -> nn.ModuleList:
    """The list of the decoder's layers: the outermost ModuleList as long as its config says.

    ValueError for a module that is no transformers decoder, or keeps its layers in pieces: a list of all attentions,
    a list of all feed-forwards.
    """
    config = getattr(decoder, "config", None)
    config = config.get_text_config(decoder=True) if isinstance(config, PretrainedConfig) else None
    counts = [count for name in LAYERS if (count := getattr(config, name, None))]
    text = [decoder.get_decoder()] if isinstance(decoder, PreTrainedModel) else []  # of a model with other parts, too
    for count in counts:
        for module in chain.from_iterable(root.modules() for root in (*text, decoder)):
            lists = [part for part in module.children() if isinstance(part, nn.ModuleList) and len(part) == count]
            if len(lists) == 1:
                return lists[0]
    many = " or ".join(map(str, counts)) or "its"
    raise ValueError(
        f"{type(decoder).__name__} has no list of {many} layers to put gated blocks in front of; "
        "decoder= must be a causal language model of transformers"
    )


def expert_counts(config: PretrainedConfig) -> tuple[int, int]:
    """(experts of a layer, how many of them a token goes through); (0, 0) for a dense decoder."""
    text = config.get_text_config(decoder=True)

    def first(names: tuple[str, ...]) -> int:
        holders = (text, getattr(text, "ffn_config", None))  # DBRX has one for its experts
        values = [getattr(holder, name, None) for holder in holders for name in names]
        values = [max(value) if isinstance(value, list) else value for value in values]  # one for each layer
        return next((value for value in values if type(value) is int), 0)

    experts, picked = first(EXPERTS), first(PICKED)
    return (experts, picked) if experts > 1 and picked else (0, 0)


def active_parameters(decoder: PreTrainedModel) -> int:
    """Parameters that one token goes through: of a layer's experts only as many as the router picks."""
    experts, picked = expert_counts(decoder.config)
    total = 0
    for name, parameter in decoder.named_parameters():
        size = parameter.numel()
        # one of a list of experts, or all of them in one tensor
        routed = ".experts." in name or (parameter.dim() == 3 and len(parameter) == experts)
        total += size * picked // experts if experts and routed else size
    return total


@torch.no_grad()
def fingerprint(module: nn.Module, leave_out: Collection[str] = ()) -> str:
    """A hash of a module's weights: of names, shapes and `SAMPLES` evenly spaced values of each tensor.

    Args:
        leave_out: names of weights that do not count; low-rank adapters never do.

    Values are rounded to bf16 and then to fp16 first, so that weights kept in 16 bits are the same in whatever floating
    dtype they are loaded. Weights kept in fp32 are the same in fp32 and bf16, not in fp16; quantized ones never are.
    Those that accelerate has put away, on a disk or elsewhere, are fetched one by one; those that several processes
    share are gathered one by one, in all of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    weights = {base_name(name): tensor for name, tensor in module.state_dict().items() if ".lora_" not in name}
    for name, tensor in sorted(weights.items()):
        if not tensor.is_floating_point() or name in leave_out:
            continue
        if tensor.is_meta:
            owner, _, leaf = name.rpartition(".")
            with align_module_device(module.get_submodule(owner)):
                tensor = getattr(module.get_submodule(owner), leaf)
        tensor = gathered(tensor)
        if type(tensor).__module__.startswith("torchao"):
            tensor = tensor.dequantize()  # torch's own operations on it are few
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        picks = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLES, len(flat)), dtype=torch.float64).long()
        values = flat[picks.to(flat.device)].cpu().bfloat16().half()
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, parts of which may lie in several processes; then to be called in all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def base_name(name: str) -> str:
    """What a weight is called where peft has put no low-rank adapter around its layer."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def fast_dtype() -> torch.dtype:
    """bf16 where this machine multiplies it faster than fp32 (most GPUs, CPUs with bf16 instructions), else fp32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") else torch.float32


def fast_device() -> torch.device:
    """Where `fast_dtype` is fast: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
