"""What is trained: the adapter always; besides it what a pattern unfreezes, and low-rank adapters of the frozen parts.

LoRA: Hu et al. 2021, arXiv:2106.09685, by peft.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmlm.config import AdapterConfig
from mmlm.decoder import base_name, fingerprint, freeze
from vision.fold import ConvReLU6

STARTS = (True, False, "gaussian", "orthogonal")  # of init_lora_weights those that leave the weights it is for alone
ATTENTION = ("attn", "attention")  # in the names of modules that hold a layer's projections


def choose_trained(model: nn.Module, config: AdapterConfig) -> frozenset[str]:
    """Freezes the model but for what is trained, whose names it returns, and injects what the config's `lora` says.

    Args:
        model: with `adapter`, `decoder` and `vision` in it.

    Raises ValueError for a pattern that no parameter's name matches, and for LoRA settings that peft refuses.
    """
    freeze(model.get_submodule("decoder"))
    freeze(model.get_submodule("vision"))
    if config.lora is not None:
        inject(model, config.lora)
    model.get_submodule("adapter").requires_grad_(True)  # peft freezes all but its own
    for pattern in config.unfreeze:
        if not (names := unfrozen(model, [pattern])):
            every, part = [name for name, _ in model.named_parameters()], pattern.partition(".")[0]
            raise ValueError(
                f"unfreeze: {pattern!r} matches no parameter; patterns are such as 'vision.*', 'decoder.*norm*' or '*' "
                f"and parameters have names such as {next((name for name in every if name.startswith(part)), every[0])}"
            )
        for name, parameter in model.named_parameters():
            if base_name(name) in names:
                if not parameter.is_floating_point():
                    raise ValueError(f"unfreeze: {pattern!r} matches {name}, which is quantized: take lora= for it")
                parameter.requires_grad_(True)
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def unfrozen(module: nn.Module, patterns: Sequence[str], prefix: str = "") -> set[str]:
    """Names of the module's parameters that any of the patterns matches, as they were before LoRA.

    Tied weights have several names: with one of them the others are unfrozen.
    """
    named = [(base_name(name), weight) for name, weight in module.named_parameters(prefix, remove_duplicate=False)]
    chosen = {id(weight) for name, weight in named if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return {name for name, weight in named if id(weight) in chosen}


def fingerprints(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Hashes of the frozen weights of a model, or of a dictionary of its parts: those that no pattern unfreezes."""
    hashes = {}
    for part in ("decoder", "vision"):
        module = model.get_submodule(part)
        hashes[part] = fingerprint(module, {name.removeprefix(f"{part}.") for name in unfrozen(module, patterns, part)})
    return hashes


def inject(model: nn.Module, lora: dict[str, Any]) -> None:
    """Puts low-rank adapters into the model.

    ValueError if the settings do not fit it, would not merge, or would change or train weights that are not saved.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here, since without LoRA nobody need wait for it

    try:
        settings = LoraConfig(**lora)
        if settings.bias != "none" or settings.modules_to_save or settings.trainable_token_indices:
            raise ValueError(
                "bias, modules_to_save and trainable_token_indices: name what they would train in unfreeze="
            )
        if settings.init_lora_weights not in STARTS:
            raise ValueError(f"init_lora_weights changes the frozen weights; there are {', '.join(map(str, STARTS))}")
        if settings.target_modules is None and not settings.target_parameters:
            settings.target_modules = list(attention(model))
        inject_adapter_in_model(settings, model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lora={lora}: {error}") from error
    for name, parameter in model.named_parameters():
        if ".lora_" in name and parameter.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()  # as get_peft_model does: in 16 bits small steps are lost
    for name, layer in tuned(model):
        if isinstance(layer.get_base_layer(), ConvReLU6):
            raise ValueError(
                f"lora={lora}: {name} holds an activation, behind which nothing merges; name others, as "
                r"target_modules='vision\..*conv_pwl'"
            )


def attention(model: nn.Module) -> Iterator[str]:
    """Names of the projections in the decoder's attention."""
    for name, module in model.get_submodule("decoder").named_modules(prefix="decoder"):
        inside = name.rpartition(".")[0]
        if isinstance(module, nn.Linear | Conv1D) and any(word in inside for word in ATTENTION):
            yield name


def tuned(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers that have low-rank adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


def train_tuned(model: nn.Module, mode: bool) -> None:
    """Low-rank adapters drop out in training, and not in eval mode; the layers that they are for are in eval mode."""
    for module in model.modules():  # not `tuned`: without LoRA nobody need wait for peft
        if hasattr(module, "get_base_layer"):
            module.train(mode)
            module.get_submodule("base_layer").eval()


def lora_fields(settings: Any) -> dict[str, Any]:
    """What of a `peft.LoraConfig` is not its default, in plain values that JSON can hold."""
    usual = type(settings)().to_dict()
    said = {name: value for name, value in settings.to_dict().items() if value != usual[name]}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in said.items()}
