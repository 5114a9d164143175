"""The model: a frozen decoder, a frozen vision encoder and the adapter that joins them.

R rows, T text tokens, V vocabulary.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmlm import store, zoo
from mmlm.adapter import Adapter
from mmlm.chat import Chat
from mmlm.config import AdapterConfig, fit_config
from mmlm.decoder import find_layers, fingerprint, freeze, load_decoder
from mmlm.media import KEYS, View, casting
from mmlm.processor import Message, Processor, Text, is_one
from mmlm.recompute import Recompute
from mmlm.splice import Splice
from mmlm.stream import pieces
from vision.backbone import MODULE, load_backbone
from vision.encoder import VisionEncoder
from vision.images import Source

NEW_TOKENS = 64  # of an answer, unless generate's keyword arguments say otherwise


class MultimodalLM(nn.Module):
    """A text decoder with eyes. Make one with `from_parts` (new) or `from_pretrained` (saved).

    Only `adapter` is trained. `decoder` and `vision` are frozen and stay in eval mode under `train()`.
    """

    def __init__(
        self, config: AdapterConfig, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vision: VisionEncoder
    ) -> None:
        super().__init__()
        self.config = config
        device = next(decoder.parameters()).device
        self.decoder, self.vision = decoder, vision.to(device)
        freeze(decoder)
        freeze(vision)
        self.adapter = Adapter(config).to(device)
        self.processor = Processor(tokenizer, vision.pyramid, vision.detail, config.mark)
        layers = find_layers(decoder)
        self.splice = Splice(decoder, layers, config.layers)
        # below the first block there is nothing to go back to
        self.recompute = Recompute(layers[min(config.layers, default=len(layers)) :])

    # -- made and kept ----------------------------------------------------------------------------------------------

    @classmethod
    def from_parts(
        cls,
        decoder: str | os.PathLike[str] | nn.Module = zoo.DECODER,
        vision: str | os.PathLike[str] | nn.Module = zoo.VISION,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        every: int | None = None,
        start: int | None = None,
        layers: list[int] | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        revision: str | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        **adapter: Any,
    ) -> "MultimodalLM":
        """A model with an untrained adapter, which changes nothing until it is trained: its gates are shut.

        Args:
            decoder: hub id, folder, or a built transformers module (then with its `tokenizer`).
            vision: "timm/NAME", a folder, or a timm module made with features_only=True.
            every, start, layers: which decoder layers get a block in front, as in `place_blocks`; by default four,
                spread over the last third.
            heads, kv_heads: of the cross-attention; by default the decoder's own.
            revision: of the decoder on the hub.
            decoder_kwargs: for transformers' `from_pretrained`: dtype, device_map, quantization_config, ...
            adapter: other fields of `AdapterConfig`: attend, detail, ff_factor, media_dim, ...

        Raises ValueError for parts that cannot be loaded, and for settings that do not fit them.
        """
        built, tokenizer, name = _decoder(decoder, tokenizer, revision, decoder_kwargs or {})
        placed = {"every": every, "start": start, "layers": layers, "heads": heads, "kv_heads": kv_heads}
        config = fit_config(built.config, len(find_layers(built)), decoder=name, revision=revision, **placed, **adapter)
        encoder = _encoder(config, vision)
        config.vision, config.channels = encoder.backbone.name, encoder.channels
        return cls(config, built, tokenizer, encoder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        decoder: str | os.PathLike[str] | nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vision: str | os.PathLike[str] | nn.Module | None = None,
        revision: str | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
    ) -> "MultimodalLM":
        """A saved adapter on the frozen parts that it names.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id.
            decoder, tokenizer, vision: those parts, where they are built already or have moved.
            revision: of the adapter on the hub.
            decoder_kwargs: as in `from_parts`.

        Raises ValueError for a folder without an adapter, and for frozen weights other than those it was trained on.
        """
        config, weights = store.load(name, revision)
        decoder = config.decoder if decoder is None else decoder
        vision = config.vision if vision is None else vision
        if decoder == "" or (isinstance(vision, str) and vision.startswith(MODULE)):
            raise ValueError(
                f"{name}: this adapter was made on built parts, which its config cannot name: pass "
                f"{'decoder= and tokenizer=' if decoder == '' else 'vision='}"
            )
        built, tokenizer, _ = _decoder(decoder, tokenizer, config.revision, decoder_kwargs or {})
        encoder = _encoder(config, vision)
        store.check_fingerprint(config, _fingerprints(built, encoder), name)
        store.check_layers(config, len(find_layers(built)), name)
        model = cls(config, built, tokenizer, encoder)
        store.fill(model.adapter, weights, name)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the adapter (safetensors), its config and a model card; the frozen parts are named, not copied."""
        self.config.fingerprint = self.fingerprint()
        store.save(folder, self.config, self.adapter)

    def push_to_hub(self, repo: str, **kwargs: Any) -> str:
        """Uploads what `save_pretrained` writes to the hub, and returns the address; kwargs go to `create_repo`."""
        self.config.fingerprint = self.fingerprint()
        return store.push(repo, self.config, self.adapter, **kwargs)

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the frozen weights, by part."""
        return _fingerprints(self.decoder, self.vision)

    def train(self, mode: bool = True) -> "MultimodalLM":
        """As in torch, for the adapter alone: the frozen parts stay in eval mode."""
        self.training = mode
        self.adapter.train(mode)
        return self

    # -- from tokens to logits ----------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """What the decoder's own forward gives (`.logits` [R, T, V], ...) for a batch of `processor`.

        Without media, and for every token before its row's first image, that is bit for bit the base decoder's.
        """
        if self.recompute.on and torch.is_grad_enabled():
            if kwargs.get("past_key_values") is not None:
                raise ValueError(
                    "past_key_values: layers that are computed again in backward would add to the cache twice; pass "
                    "whole texts, or call gradient_checkpointing_disable()"
                )
            kwargs["use_cache"] = False
        with self.looking(kwargs):
            return self.decoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def looking(self, batch: dict[str, Any]) -> AbstractContextManager[None]:
        """A context in which `self.decoder` sees the batch's media, whose keys are taken out of `batch`."""
        media = {key: batch.pop(key) for key in KEYS if key in batch}
        return self.splice.looking(self.view(media) if media else None)

    def view(self, media: dict[str, Any]) -> View:
        """The media part of a batch as the gated blocks see it."""
        values = media.get("media_values")
        if values is None:
            values = self.vision(media["pixel_values"], media["media_cells"])
        dtype = self.decoder.dtype
        with casting(self.device, dtype):
            embeddings = self.adapter.media([value.float() for value in values], media["media_places"])
        return View(self.adapter, embeddings, media, self.config.attend, dtype, self.recompute.on)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """From now on backward computes activations again: a layer's memory, for about a third more time.

        Args:
            gradient_checkpointing_kwargs: of transformers' method, for those who pass them; none is needed.
        """
        self.recompute.enable()

    def gradient_checkpointing_disable(self) -> None:
        """Activations are kept again."""
        self.recompute.disable()

    @property
    def device(self) -> torch.device:
        return self.adapter.media.slot.device

    # -- from images and words to words -------------------------------------------------------------------------------

    def generate(self, images: Any = None, prompt: Text | list[Text] = "", **kwargs: Any) -> Any:
        """Text that continues a prompt about images.

        Args:
            images: as `processor` takes them: one image, a list for one prompt, or one entry for each prompt.
            prompt: a string with `<image>` marks, taken as it is; a chat, as `messages` makes it; or a list of either.
            kwargs: of transformers' `generate` (max_new_tokens, num_beams, do_sample, stopping_criteria, ...).

        Returns a string for one prompt, a list of strings for a list; with num_return_sequences that many for each.

        With the keys of a batch of `processor` instead (`generate(**batch, ...)`) it is transformers' own: what comes
        back is what that returns, the prompt's ids before the new ones.
        """
        if "input_ids" in kwargs:
            return self.continued(kwargs)
        batch = self.processor(images, prompt).to(self.device)
        tokens = self.generate_tokens(batch, **kwargs)
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return texts[0] if is_one(prompt) and len(texts) == 1 else texts

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
        with self.looking(kwargs):
            return self.decoder.generate(**kwargs)  # type: ignore[operator]  # of a mixin that subclasses have

    def stream(self, images: Any = None, prompt: Text = "", **kwargs: Any) -> Iterator[str]:
        """Yields the text of `generate` piece by piece, as it is made; when it is read no further, generation ends."""
        batch = self.processor(images, prompt).to(self.device)
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
        """A conversation; its first question is about `images`: `model.chat("cat.jpg").ask("What colour is it?")`."""
        return Chat(self, images)

    def messages(self, question: str, images: int = 1) -> list[Message]:
        """The chat that `ask` sends: system message, images and question as the adapter was trained on them."""
        if not question.strip():
            raise ValueError("the question is empty: say what to do with the image, as in 'Describe the image.'")
        shown: list[Message] = [{"type": "image"}] * images
        words: list[Message] = [{"type": "text", "text": question}]
        content = words + shown if self.config.image_last else shown + words
        system = [] if self.config.system is None else [{"role": "system", "content": self.config.system}]
        return [*system, {"role": "user", "content": content}]


def _decoder(
    decoder: str | os.PathLike[str] | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    kwargs: dict[str, Any],
) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Decoder, tokenizer and the decoder's name, whatever form it came in."""
    if isinstance(decoder, nn.Module):
        if tokenizer is None:
            raise ValueError("decoder= is a built module: give its tokenizer too, tokenizer=")
        return decoder, tokenizer, str(getattr(decoder, "name_or_path", ""))
    if str(decoder) == zoo.DECODER:
        built, own = zoo.load_default_decoder(**kwargs)
    else:
        built, own = load_decoder(decoder, revision=revision, **kwargs)
    return built, tokenizer or own, str(decoder)


def _fingerprints(decoder: nn.Module, vision: VisionEncoder) -> dict[str, str]:
    return {"decoder": fingerprint(decoder), "vision": fingerprint(vision)}


def _encoder(config: AdapterConfig, vision: str | os.PathLike[str] | nn.Module) -> VisionEncoder:
    """The frozen eyes that the config describes, around the backbone named or given."""
    backbone = zoo.load_default_backbone() if vision == zoo.VISION else load_backbone(vision)
    return VisionEncoder(backbone, config.pyramid, config.detail)
