"""The model: a frozen decoder, a frozen vision encoder and the adapter that joins them.

R rows, T text tokens, V vocabulary.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mmlm import store, zoo
from mmlm.adapter import Adapter
from mmlm.assist import drafting, media_for
from mmlm.block import at_least_fp32
from mmlm.chat import Chat
from mmlm.config import AdapterConfig, fit_config
from mmlm.decoder import find_layers, home
from mmlm.media import EYES, KEYS, View, casting
from mmlm.messages import Message, Text, is_one
from mmlm.packed import Packing
from mmlm.parts import Eyes, backbones_of, decoder_of, for_decoder, quantization_of, several
from mmlm.pretrained import Pretrained
from mmlm.processor import Processor
from mmlm.recompute import Recompute
from mmlm.splice import Splice
from mmlm.stream import pieces
from mmlm.trained import choose_trained, fingerprints, train_tuned
from mmlm.turns import asking
from vision.backbone import MODULE
from vision.encoder import VisionEncoder
from vision.images import Source
from vision.ocr import Engine, engine_name, find_engine

IDS = ("input_ids", "inputs", "inputs_embeds")  # as transformers' generate calls its prompt
NEW_TOKENS = 64  # of an answer, unless generate's keyword arguments say otherwise


class MultimodalLM(Pretrained):
    """A text decoder with eyes. Make one with `from_parts` (new) or `from_pretrained` (saved).

    Only `adapter` is trained, unless the config's `unfreeze` or `lora` says more. `decoder` and `vision` stay in eval
    mode under `train()`. It is one of transformers' models: `Trainer`, `pipeline`, PEFT and the auto classes take it.
    """

    def __init__(
        self,
        config: AdapterConfig,
        decoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vision: VisionEncoder,
        ocr: str | Engine | None = None,
    ) -> None:
        super().__init__(config)
        config.text_config, config.architectures = decoder.config, [type(self).__name__]
        if spread := getattr(decoder, "hf_device_map", None):
            self.hf_device_map = spread  # where accelerate has put it; `Trainer` then leaves it there
        device = home(decoder)
        self.decoder, self.vision = decoder, vision.to(device)
        self.adapter = Adapter(config).to(device)
        ocr = config.ocr if ocr is None else ocr
        self.processor = Processor(
            tokenizer, vision.pyramid, vision.detail, config.mark, ocr, config.ocr_tokens, config.system
        )
        layers = find_layers(decoder)
        self.splice = Splice(decoder, layers, config.layers)
        self.packing = Packing(decoder, layers)
        self.trained = choose_trained(self, config)
        """Names of the parameters that are trained, and saved."""
        if not config.fingerprint and device.type != "meta":  # of a saved adapter it is known, and has been compared
            config.fingerprint = fingerprints(self, config.unfreeze)
        self.dtypes = self.frozen_dtypes()
        # below the first block there is nothing to go back to, unless more than the adapter learns
        first = 0 if any(name.startswith("decoder.") for name in self.trained) else min(config.layers, default=None)
        self.recompute = Recompute(layers[first:] if first is not None else [], self.adapter.layers)
        self.post_init()

    # -- made and kept ----------------------------------------------------------------------------------------------

    @classmethod
    def from_parts(
        cls,
        decoder: str | os.PathLike[str] | nn.Module = zoo.DECODER,
        vision: Eyes = zoo.VISION,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        every: int | None = None,
        start: int | None = None,
        layers: list[int] | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        revision: str | None = None,
        ocr: str | Engine = "",
        decoder_kwargs: dict[str, Any] | None = None,
        **adapter: Any,
    ) -> "MultimodalLM":
        """A model with an untrained adapter, which changes nothing until it is trained: its gates are shut.

        Args:
            decoder: hub id, folder, or a built transformers module (then with its `tokenizer`). On a CPU its experts
                are run by `padded_experts`, unless another implementation than the usual one was chosen for them.
            vision: what `load_backbone` takes, as "timm/NAME", or several: a list of those.
            every, start, layers: which decoder layers get a block in front, as in `place_blocks`; by default four,
                spread over the last third.
            heads, kv_heads: of the cross-attention; by default the decoder's own, but a key head for every four query
                heads where the decoder has as many of both.
            revision: of the decoder on the hub.
            ocr: what reads the text in images, as `Processor` takes it; a callable is not saved.
            decoder_kwargs: for transformers' `from_pretrained`: dtype, device_map, quantization_config, ...
            adapter: other fields of `AdapterConfig`: attend, detail, ff_factor, media_dim, unfreeze, lora, ...

        Raises ValueError for parts that cannot be loaded, and for settings that do not fit them.
        """
        if ocr:
            find_engine(ocr)  # before what takes its time
        built, tokenizer, name = decoder_of(decoder, tokenizer, revision, decoder_kwargs or {})
        placed: dict[str, Any] = {
            "every": every,
            "start": start,
            "layers": layers,
            "heads": heads,
            "kv_heads": kv_heads,
        }
        named: dict[str, Any] = {"decoder": name, "revision": revision, "ocr": engine_name(ocr)}
        config = fit_config(built.config, len(find_layers(built)), **named, **placed, **adapter)
        backbones = backbones_of(vision)
        names = [backbone.name for backbone in backbones]
        config.vision = names if len(names) > 1 else names[0]
        config.quantization = quantization_of(decoder_kwargs or {})
        encoder = VisionEncoder(backbones, config.pyramid, config.detail)
        config.channels = encoder.channels
        return cls(config, built, tokenizer, encoder, ocr)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the frozen parts come first
        cls,
        name: str | os.PathLike[str],
        *,
        decoder: str | os.PathLike[str] | nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vision: Eyes | None = None,
        config: AdapterConfig | None = None,
        revision: str | None = None,
        ocr: str | Engine | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "MultimodalLM":
        """A saved adapter on the frozen parts that it names.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id.
            decoder, tokenizer, vision: those parts, where they are built already or have moved.
            config: the saved one with other settings, such as `detail`; that weights were made for stays.
            revision: of the adapter on the hub.
            ocr: another one than the saved: what reads the text in images, as `Processor` takes it.
            decoder_kwargs: as in `from_parts`.
            kwargs: the same, as transformers takes them: dtype, device_map, attn_implementation, quantization_config;
                token, cache_dir, local_files_only and force_download go for the adapter's files, too.

        Raises ValueError for a folder without an adapter, and for frozen weights other than those it was trained on.
        """
        kwargs = for_decoder(config, kwargs)
        saved, weights = store.load(name, revision, **store.hub_kwargs(kwargs))
        config = saved if config is None else saved.changed_to(config, str(name))
        ocr = config.ocr if ocr is None else ocr
        if ocr:
            find_engine(ocr)  # before what takes its time
        decoder = config.decoder if decoder is None else decoder
        vision = config.vision if vision is None else vision
        if decoder == "" or any(isinstance(one, str) and one.startswith(MODULE) for one in several(vision)):
            raise ValueError(
                f"{name}: this adapter was made on built parts, which its config cannot name: pass "
                f"{'decoder= and tokenizer=' if decoder == '' else 'vision='}"
            )
        said = kwargs | (decoder_kwargs or {})
        if config.quantization is not None:
            said = {"quantization_config": config.quantization} | said
        built, tokenizer, _ = decoder_of(decoder, tokenizer, config.revision, said)
        encoder = VisionEncoder(backbones_of(vision), config.pyramid, config.detail)
        found = fingerprints(nn.ModuleDict({"decoder": built, "vision": encoder}), config.unfreeze)
        store.check_fingerprint(config, found, name)
        store.check_layers(config, len(find_layers(built)), name)
        store.check_maps(config, encoder.channels, name)
        model = cls(config, built, tokenizer, encoder, ocr)
        store.fill(model.saved(), weights, name)
        model.name_or_path = config.name_or_path = str(name)
        return model.eval()

    def train(self, mode: bool = True) -> "MultimodalLM":
        """As in torch, for the adapter and LoRA alone: the frozen parts stay in eval mode.

        Training frees the weights that `generate` packed.
        """
        self.training = mode
        self.adapter.train(mode)
        train_tuned(self, mode)
        if mode:
            self.packing.forget()
        return self

    # -- from tokens to logits ----------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the decoder's own forward gives (`.logits` [R, T, V], ...) for a batch of `processor`.

        Args:
            labels: ids [R, T], -100 for those that are not learnt; then there is a `.loss`, too.
            kwargs: the batch's media, and whatever the decoder's own forward takes.

        Without media, and for every token before its row's first image, that is bit for bit the base decoder's.
        """
        if self.recompute.on and torch.is_grad_enabled():
            if kwargs.get("past_key_values") is not None:
                raise ValueError(
                    "past_key_values: layers that are computed again in backward would add to the cache twice; pass "
                    "whole texts, or call gradient_checkpointing_disable()"
                )
            kwargs["use_cache"] = False
        if labels is not None:
            kwargs["labels"] = labels
        with self.looking(kwargs):
            return self.decoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def looking(self, batch: dict[str, Any]) -> AbstractContextManager[None]:
        """A context in which `self.decoder` sees the batch's media, whose keys are taken out of `batch`."""
        media = {key: batch.pop(key) for key in KEYS if key in batch}
        return self.splice.looking(self.view(media) if media else None)

    def view(self, media: dict[str, Any], before: int = 0) -> View:
        """The media part of a batch as the gated blocks see it; `before`, how many images its row had before these."""
        values = media.get("media_values")
        if values is None:
            values = self.vision(*(media[key] for key in EYES))
        dtype = self.decoder.dtype
        with casting(self.device, dtype):
            embeddings = self.adapter.media(list(map(at_least_fp32, values)), media)
        return View(self.adapter, embeddings, media, self.config.attend, dtype, before)

    # -- from images and words to words -------------------------------------------------------------------------------

    def generate(self, images: Any = None, prompt: Text | list[Text] = "", **kwargs: Any) -> Any:  # type: ignore[override]
        """Text that continues a prompt about images.

        Args:
            images: as `processor` takes them: one image, a list for one prompt, or one entry for each prompt.
            prompt: a string with `<image>` marks, taken as it is; a chat, as `messages` makes it; or a list of either.
            kwargs: of transformers' `generate` (max_new_tokens, num_beams, do_sample, stopping_criteria, ...). An
                `assistant_model` may be a MultimodalLM of the same tokenizer: it drafts with the images in sight.

        Returns a string for one prompt, a list of strings for a list; with num_return_sequences that many for each.

        With the keys of a batch of `processor` instead (`generate(**batch, ...)`, `generate(ids, ...)`) it is
        transformers' own: what comes back is what that returns, the prompt's ids before the new ones.
        """
        if isinstance(images, Tensor):  # which is no image
            kwargs["input_ids"] = images
        if not kwargs.keys().isdisjoint(IDS):
            return self.continued(kwargs)
        tokens = self.generate_tokens(self.read(images, prompt, kwargs), **kwargs)
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return texts[0] if is_one(prompt) and len(texts) == 1 else texts

    def read(self, images: Any, prompt: Text | list[Text], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch that `generate` continues; of an assistant with other eyes than ours it has the media, too."""
        batch = dict(self.processor(images, prompt).to(self.device))
        assistant = kwargs.get("assistant_model")
        return batch | (media_for(self, assistant, images, prompt) if isinstance(assistant, MultimodalLM) else {})

    def generate_tokens(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:
        """A batch of `processor` -> the ids of what was generated [rows, new tokens], the prompt not among them."""
        result = self.continued({**batch, **kwargs})
        sequences = result if isinstance(result, Tensor) else result.sequences
        return sequences[:, batch["input_ids"].shape[1] :]

    @torch.no_grad()
    def continued(self, kwargs: dict[str, Any]) -> Any:
        """What the decoder's own `generate` returns for a batch of `processor`, and its own keyword arguments."""
        kwargs = dict(kwargs)  # looking takes the media out
        if "max_length" not in kwargs and "generation_config" not in kwargs:
            kwargs.setdefault("max_new_tokens", NEW_TOKENS)
        if "pad_token_id" not in kwargs and self.decoder.generation_config.pad_token_id is None:
            kwargs["pad_token_id"] = self.processor.tokenizer.eos_token_id
        if self.setting(kwargs, "guidance_scale") not in (None, 1):
            raise ValueError("guidance_scale=: the text that is to be unguided would see the images, too; leave it out")
        if kwargs.get("stop_strings") is not None:
            kwargs.setdefault("tokenizer", self.processor.tokenizer)
        assistant = kwargs.get("assistant_model")
        helped = drafting(self, assistant, kwargs) if isinstance(assistant, MultimodalLM) else nullcontext()
        with helped, self.looking(kwargs), self.packing(self.rows_of(kwargs) if self.splice.all_see else 0):
            return self.decoder.generate(**kwargs)  # type: ignore[operator]  # of a mixin that subclasses have

    def rows_of(self, kwargs: Mapping[str, Any]) -> int:
        """Of a token that `generate` adds: of each prompt as many as there are beams, or sequences that are drawn."""
        prompts = next((kwargs[name] for name in IDS if kwargs.get(name) is not None), ())
        return len(prompts) * max(self.setting(kwargs, name) or 1 for name in ("num_beams", "num_return_sequences"))

    def stream(self, images: Any = None, prompt: Text = "", **kwargs: Any) -> Iterator[str]:
        """Yields the text of `generate` piece by piece, as it is made; when it is read no further, generation ends."""
        batch = self.read(images, prompt, kwargs)
        yield from pieces(partial(self.generate_tokens, batch), self.processor.tokenizer, kwargs)

    def ask(self, image: Source, question: str, **kwargs: Any) -> str:
        """The answer to a question about one image; of several, see `messages` and `generate`."""
        if isinstance(image, list | tuple):
            raise ValueError(f"{len(image)} images: ask and caption take one; generate takes a list")
        return str(self.generate([image], self.messages(question), **kwargs))

    def caption(self, image: Source, **kwargs: Any) -> str:
        """A description of an image."""
        return self.ask(image, self.config.caption_prompt, **kwargs)

    def chat(self, images: Source | list[Source] | None = None) -> Chat:
        """A conversation whose first question is about `images`: `model.chat("cat.jpg").ask("What colour is it?")`."""
        return Chat(self, images)

    def messages(self, question: str, images: int = 1) -> list[Message]:
        """The chat that `ask` sends: system message, images and question as the adapter was trained on them."""
        return asking(self.config, question, images)


AutoModel.register(AdapterConfig, MultimodalLM, exist_ok=True)
AutoModelForImageTextToText.register(AdapterConfig, MultimodalLM, exist_ok=True)
AutoModelForCausalLM.register(AdapterConfig, MultimodalLM, exist_ok=True)
AutoProcessor.register(AdapterConfig, Processor, exist_ok=True)
