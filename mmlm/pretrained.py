"""What transformers, PEFT and TRL ask of a model: to be saved and pushed, merged, checkpointed, and to show its parts.

R rows, T text tokens, D width of the decoder.
"""

import os
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from mmlm import store
from mmlm.adapter import Adapter
from mmlm.config import AdapterConfig
from mmlm.packed import Packing
from mmlm.processor import Processor
from mmlm.recompute import Recompute
from mmlm.splice import Splice
from mmlm.trained import choose_trained, fingerprints, lora_fields, tuned
from vision.encoder import VisionEncoder
from vision.ocr import engine_name


class Pretrained(PreTrainedModel, GenerationMixin):
    """One of transformers' models, made of a frozen decoder and an adapter."""

    config: AdapterConfig
    config_class = AdapterConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    decoder: PreTrainedModel
    vision: VisionEncoder
    adapter: Adapter
    processor: Processor
    splice: Splice
    packing: Packing
    recompute: Recompute
    trained: frozenset[str]
    dtypes: set[torch.dtype]

    def init_weights(self) -> None:
        """Nothing: the parts come with their weights."""

    # -- kept ---------------------------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]  # shards and variants are for larger files
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: Any = None,
        **kwargs: Any,
    ) -> None:
        """Writes what was trained (safetensors), its config and a model card; frozen parts are named, not copied.

        Args:
            is_main_process: of several processes, whether this is the one that writes.
            state_dict: where the weights are taken from instead, as `Trainer` gathers them from several devices.
            push_to_hub: upload it, too; kwargs go to `push_to_hub`, with the folder's name unless `repo_id` is given.
            max_shard_size: is not looked at: it is one file.
        """
        if not is_main_process:
            return
        if self.merged and any(".base_layer." in name and ".lora_" not in name for name in self.trained):
            raise ValueError("LoRA is merged into weights that are trained themselves: save before, or unmerge_lora()")
        places = self.saved()
        if wrapped := next(
            (name for name in places if ".modules_to_save." in name or ".original_module." in name), None
        ):
            raise ValueError(
                f"peft has wrapped the adapter ({wrapped}): save the PeftModel, or merge_and_unload() first"
            )
        weights = places if state_dict is None else {name: state_dict[name] for name in places}
        self.check_frozen()
        self.config.ocr, self.config.ocr_tokens = engine_name(self.processor.ocr), self.processor.ocr_tokens
        store.save(save_directory, self.config, weights)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def saved(self) -> dict[str, Tensor]:
        """All that `save_pretrained` writes, by name: the adapter, and what else is trained."""
        everything = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: t for name, t in everything.items() if name.startswith("adapter.") or name in self.trained}

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As transformers' `push_to_hub` uploads, but with our model card, which it has replaced by an empty one."""
        store.write_card(Path(working_dir), self.config, self.saved())
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def check_frozen(self) -> None:
        """ValueError if frozen weights are no longer those that the model was made with, on which it would be loaded.

        Those that have LoRA are not, once it was merged, and those that were cast to another dtype need not be. Those
        that are sharded over several processes are not looked at.
        """
        sharded = any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in self.parameters())
        if self.config.lora is not None or self.frozen_dtypes() != self.dtypes or sharded:
            return
        found = fingerprints(self, self.config.unfreeze)
        self.config.fingerprint = self.config.fingerprint or found  # made without weights, it has none yet
        if changed := [part for part, was in self.config.fingerprint.items() if found[part] != was]:
            raise ValueError(
                f"the {' and '.join(changed)} weights are not those the model was made with, and are not saved: to "
                "train them, give from_parts lora= or unfreeze=; what peft's merge_and_unload would merge, save before"
            )

    def frozen_dtypes(self) -> set[torch.dtype]:
        """The dtypes of decoder and vision."""
        return {p.dtype for part in (self.decoder, self.vision) for p in part.parameters()}

    # -- what is trained ----------------------------------------------------------------------------------------------

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Puts LoRA into the frozen parts, beside the adapter that is trained anyway: `from_parts(lora=...)`, later.

        Args:
            adapter_config: a `peft.LoraConfig`; its target_modules match names such as "decoder.model.layers.0...".
        """
        if self.config.lora is not None or (adapter_name or "default") != "default":
            raise ValueError("add_adapter: there can be one LoRA, named 'default'; take get_peft_model for more")
        config = copy(self.config)
        config.lora = lora_fields(adapter_config)
        self.trained = choose_trained(self, config)
        self.config.lora = config.lora

    @property
    def merged(self) -> bool:
        """Is LoRA part of the weights that it is for?"""
        return self.config.lora is not None and any(layer.merged for _, layer in tuned(self))

    def merge_lora(self) -> None:
        """Adds LoRA to the weights that it is for: nothing is left to compute. It can be saved as before."""
        for _, layer in tuned(self):
            layer.merge()
        self.packing.forget()

    def unmerge_lora(self) -> None:
        """Takes LoRA out of the weights again, which are then what they were but for rounding."""
        for _, layer in tuned(self):
            layer.unmerge()
        self.packing.forget()

    # -- trained with less memory -------------------------------------------------------------------------------------

    def gradient_checkpointing_enable(  # type: ignore[override]  # which takes any kwargs
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """From now on backward computes activations again: a layer's memory, for about a third more time.

        Args:
            gradient_checkpointing_kwargs: of transformers' method, for those who pass them; none is needed.
            every_n_layers: leave out all but every so many-th layer.

        Raises ValueError for `offload`, which there is not.
        """
        if offload:
            raise ValueError("offload=True: activations are computed again, not moved; leave it out")
        self.recompute.enable(every_n_layers)

    def gradient_checkpointing_disable(self) -> None:
        """Activations are kept again."""
        self.recompute.disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.recompute.on

    # -- its parts ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.adapter.media.slot.device

    def to(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in torch. ValueError for a decoder that its device_map has spread over several devices."""
        if len(set((spread := getattr(self, "hf_device_map", {})).values())) > 1:
            raise ValueError(f"to{args}: device_map has put the decoder on {spread}; load it without one to move it")
        self.packing.forget()
        return super().to(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.dtype

    @property
    def base_model(self) -> "Headless":  # type: ignore[override]
        """The model without its vocabulary: what it gives has `last_hidden_state` [R, T, D]."""
        return Headless(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def resize_token_embeddings(  # type: ignore[override]  # which takes more
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """The embeddings, where so many are asked for as there are. ValueError otherwise: they are frozen."""
        embeddings = self.get_input_embeddings()
        count = len(embeddings.weight)  # type: ignore[arg-type]
        if new_num_tokens not in (None, count):
            raise ValueError(
                f"resize_token_embeddings({new_num_tokens}): the decoder is frozen, with {count} of them; resize and "
                "save it first, then from_parts(decoder=...)"
            )
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    @property
    def generation_config(self) -> GenerationConfig:
        """The decoder's."""
        return self.decoder.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if "decoder" in self._modules:  # transformers sets one of its own before there is any
            self.decoder.generation_config = value

    def setting(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """A setting of generate: of its keyword arguments, of the generation_config among them, or of the decoder's."""
        config = kwargs.get("generation_config") or self.generation_config
        return kwargs.get(name, getattr(config, name, None))


class Headless:
    """A model up to its last hidden states, for those who have a vocabulary of their own: TRL's losses do."""

    def __init__(self, model: Any) -> None:  # a MultimodalLM, which is not made yet
        self.model = model

    def __call__(self, **kwargs: Any) -> Any:
        decoder, splice = self.model.decoder, self.model.splice
        with self.model.looking(kwargs):
            splice.start(decoder, (), kwargs)  # whose hook is on the whole decoder
            return decoder.base_model(**kwargs)
