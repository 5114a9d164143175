"""Who takes part in `benchmarks/peers.py`: mmlm and its peers, each on the same plain decoder, media and learnt tokens.

Each is made as its own code makes it, with gates half open where they can be set, frozen where its recipe freezes, and
AdamW on the rest. Random weights. A peer that is not installed here says so.

R rows, T text tokens, S media embeddings, C their width, D the decoder's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from generation import GATE, SMALL, byte_tokenizer, open_gates, plain_mixtral, small_llama
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from mmlm.decoder import fast_device

WIDTH, LAYERS, HEADS = (SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
VOCABULARY, EVERY = SMALL["vocab_size"], 2  # a block in front of every second layer
MEDIA = 512  # width of what eyes give
CELLS = 170  # embeddings of a tile
IGNORED = -100
DENSE = 1376  # channels of a feed-forward


@dataclass(frozen=True)
class Work:
    """What all do."""

    decoder: str
    """ "llama" or "mixtral" (16 experts, of which a token takes 2)."""
    dtype: torch.dtype
    rows: int
    tokens: int
    """Of a row's text; when training, a quarter of them is learnt."""
    tiles: int
    new: int
    """Tokens that are generated for each row."""
    width: int = MEDIA
    """Of media."""
    device: torch.device = field(default_factory=fast_device)

    @property
    def ids(self) -> Tensor:
        return torch.randint(100, VOCABULARY, (self.rows, self.tokens), generator=torch.manual_seed(0)).to(self.device)

    @property
    def labels(self) -> Tensor:
        """What is learnt, at its own place, as transformers takes it [R, T]: the last quarter."""
        labels = self.ids.clone()
        labels[:, : self.tokens - self.tokens // 4] = IGNORED
        return labels

    @property
    def media(self) -> Tensor:
        """[R, tiles, 170, C]"""
        shape = self.rows, self.tiles, CELLS, self.width
        return torch.randn(shape, generator=torch.manual_seed(1)).to(self.device)

    @property
    def speaking(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        ids = self.ids
        how = {"max_new_tokens": self.new, "min_new_tokens": self.new, "do_sample": False, "pad_token_id": 0}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **how}


@dataclass(frozen=True)
class Contender:
    """What is timed of one of them."""

    train: Callable[[], Any] | None
    """A whole step: forward, backward, optimizer."""
    speak: Callable[[], Any] | None
    trained: int = 0
    """Parameters that learn."""


@dataclass(frozen=True)
class Peer:
    """A peer's model, on whatever text and media."""

    learning: list[nn.Parameter]
    """What of it is trained."""
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """Of ids, labels at their own places and mask [R, T], and media [R, tiles, S, C]. A row's first token stands for
    its image."""
    speak: Callable[..., Any]
    """Of media, and keyword arguments of `generate`."""


def plain(work: Work) -> PreTrainedModel:
    """The text decoder, frozen."""
    torch.manual_seed(0)
    decoder = small_llama() if work.decoder == "llama" else plain_mixtral()
    return decoder.to(work.device, work.dtype).eval().requires_grad_(False)


def step_of(peer: Peer) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A training step as a plain loop has it, of what `Peer.loss` takes; it gives the loss."""
    optimizer = torch.optim.AdamW(peer.learning, lr=1e-4)

    def step(*batch: Tensor) -> Tensor:
        loss = peer.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def at_work(make: Callable[[Work], Peer]) -> Callable[[Work], Contender]:
    """A peer, and what of it is timed."""

    def made(work: Work) -> Contender:
        peer, ids, media = make(work), work.ids, work.media.to(work.dtype)
        train = partial(step_of(peer), ids, work.labels, torch.ones_like(ids), media)
        return Contender(train, partial(peer.speak, media, **work.speaking), count(peer.learning))

    return made


def text(work: Work) -> Contender:
    """The plain decoder by itself: its forward, and the gradient to its inputs. The unit of all others."""
    decoder = plain(work)
    given = decoder.get_input_embeddings()(work.ids).detach().requires_grad_()

    def train() -> None:
        decoder(inputs_embeds=given, labels=work.labels, use_cache=False).loss.backward()
        given.grad = None

    return Contender(train, partial(decoder.generate, **work.speaking))


def mllama(work: Work) -> Peer:
    """transformers' Mllama (Llama 3.2 Vision): its cross-attention layers between those of a Llama of our size."""
    from transformers import MllamaForCausalLM
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    class OfImages(MllamaForCausalLM):
        """As Mllama's own outer class, which has them from pixels, it shows images to the first step alone."""

        def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> Any:
            inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
            if not is_first_iteration:
                inputs["cross_attention_states"] = None
            return inputs

    torch.manual_seed(0)
    crossed = list(range(0, LAYERS + LAYERS // EVERY, EVERY + 1))
    sizes = SMALL | {"bos_token_id": 0, "num_hidden_layers": LAYERS + len(crossed), "cross_attention_layers": crossed}
    model = OfImages(MllamaTextConfig(**sizes, intermediate_size=DENSE, rope_parameters={"rope_type": "default"}))
    model.to(work.device, work.dtype).eval().requires_grad_(False)
    project = nn.Linear(work.width, WIDTH).to(work.device, work.dtype)  # which is the outer class's, too
    learning = [*project.parameters()]
    for place in crossed:
        layer = model.model.layers[place].requires_grad_()
        layer.cross_attn_attn_gate.data.fill_(GATE)
        layer.cross_attn_mlp_gate.data.fill_(GATE)
        learning += layer.parameters()

    def loss(ids: Tensor, labels: Tensor, mask: Tensor, media: Tensor) -> Tensor:
        seen = {"cross_attention_states": project(media.flatten(1, 2)), "use_cache": False}
        return model(input_ids=ids, attention_mask=mask, labels=labels, **seen).loss

    @torch.no_grad()
    def speak(media: Tensor, **speaking: Any) -> Any:
        return model.generate(**speaking, cross_attention_states=project(media.flatten(1, 2)))

    return Peer(learning, loss, speak)


def idefics(work: Work) -> Peer:
    """transformers' IDEFICS (the first): gated cross-attention in front of every other layer of a Llama of its own."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    torch.manual_seed(0)
    eyes = {
        "embed_dim": work.width,
        "image_size": 32,
        "patch_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
    }
    sizes = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = IdeficsConfig(
        **sizes,
        intermediate_size=DENSE,
        additional_vocab_size=0,
        cross_layer_interval=EVERY,
        alpha_initializer="ones",
        vision_config=eyes | {"num_attention_heads": HEADS},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = IdeficsForVisionText2Text(config).to(work.device, work.dtype).eval().requires_grad_(False)
    blocks = model.model.gated_cross_attn_layers.requires_grad_()
    for block in blocks:
        block.alpha_cross_attn.data.fill_(GATE)
        block.alpha_dense.data.fill_(GATE)

    def seen(ids: Tensor, media: Tensor) -> Tensor:
        return torch.ones(*ids.shape, media.shape[1], dtype=torch.int64, device=ids.device)

    def loss(ids: Tensor, labels: Tensor, mask: Tensor, media: Tensor) -> Tensor:
        shown = {"image_encoder_embeddings": media, "image_attention_mask": seen(ids, media), "use_cache": False}
        return model(input_ids=ids, attention_mask=mask, labels=labels, **shown).loss

    @torch.no_grad()
    def speak(media: Tensor, **speaking: Any) -> Any:
        # in generate its name for what eyes gave already is another
        shown = {"image_attention_mask": seen(speaking["input_ids"], media), "image_hidden_states": media}
        return model.generate(**speaking, **shown)

    return Peer(list(blocks.parameters()), loss, speak)


def open_flamingo(work: Work) -> Peer:
    """OpenFlamingo 2.0.1: its Perceiver of 64 latents and its gated layers around those of our decoder."""
    from open_flamingo.src.flamingo import Flamingo
    from open_flamingo.src.flamingo_lm import FlamingoLMMixin
    from open_flamingo.src.utils import extend_instance

    decoder = plain(work)

    class Masked(FlamingoLMMixin):
        """generate leaves a mask of ones out, which the original's forward asks for."""

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            return super().forward(input_ids, attention_mask, **kwargs)

    extend_instance(decoder, Masked)
    decoder.set_decoder_layers_attr_name("model.layers")

    class Given(nn.Module):
        """Eyes whose features are ready: what looks like pixels is they."""

        def visual(self, shown: Tensor) -> tuple[None, Tensor]:
            return None, shown.flatten(1, 2)

    torch.manual_seed(0)
    mark = VOCABULARY - 1
    model = Flamingo(Given(), decoder, mark, mark, vis_dim=work.width, cross_attn_every_n_layers=EVERY)
    model.perceiver.to(work.device, work.dtype)
    blocks = decoder.gated_cross_attn_layers.to(work.device, work.dtype)
    for block in blocks:
        if block is not None:
            block.attn_gate.data.fill_(GATE)
            block.ff_gate.data.fill_(GATE)
    learning = [*model.perceiver.requires_grad_().parameters(), *blocks.requires_grad_().parameters()]

    def shown(media: Tensor) -> Tensor:
        """A row's tiles are one image to it, of so many features [R, 1, 1, 1, S, C]."""
        return media.flatten(1, 2)[:, None, None, None]

    def loss(ids: Tensor, labels: Tensor, mask: Tensor, media: Tensor) -> Tensor:
        return model(shown(media), marked(ids, mark), attention_mask=mask, labels=labels).loss

    @torch.no_grad()
    def speak(media: Tensor, input_ids: Tensor, **speaking: Any) -> Any:
        return model.generate(shown(media), marked(input_ids, mark), eos_token_id=None, **speaking)

    return Peer(learning, loss, speak)


def marked(ids: Tensor, mark: int) -> Tensor:
    """The texts [R, T], which begin with the token of an image."""
    return torch.cat([torch.full_like(ids[:, :1], mark), ids[:, 1:]], 1)


def flamingo_pytorch(work: Work) -> Peer:
    """flamingo-pytorch 0.1.2: a PaLM of its own, of our width and depth, without a cache to generate with."""
    from flamingo_pytorch import FlamingoPaLM

    torch.manual_seed(0)
    model = FlamingoPaLM(
        dim=WIDTH,
        num_tokens=VOCABULARY,
        depth=LAYERS,
        dim_head=WIDTH // HEADS,
        heads=HEADS,
        cross_attn_every=EVERY,
        img_encoder=nn.Identity(),
        media_token_id=VOCABULARY - 1,
    ).to(work.device, work.dtype)
    learning = [*model.perceiver_resampler.parameters()]
    for _, block in model.layers:
        if block is not None:
            block.attn_gate.data.fill_(GATE)
            block.ff_gate.data.fill_(GATE)
            learning += block.parameters()
    mark = VOCABULARY - 1

    def loss(ids: Tensor, labels: Tensor, mask: Tensor, media: Tensor) -> Tensor:
        logits = model(marked(ids, mark), images=media.flatten(1, 2)[:, None])
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def speak(media: Tensor, input_ids: Tensor, max_new_tokens: int, **_: Any) -> Any:
        said = marked(input_ids, mark)
        for _ in range(max_new_tokens):
            said = torch.cat([said, model(said, images=media.flatten(1, 2)[:, None])[:, -1:].argmax(-1)], 1)
        return said

    return Peer(learning, loss, speak)


def ours(work: Work, kv_heads: int | None = None) -> Contender:
    """mmlm: a step of `mmlm finetune` whose features are in the cache and whose texts are new; and `generate`.

    Args:
        kv_heads: of the blocks; by default a quarter of the decoder's, if that has as many of them as of query heads.
    """
    import timm
    import training

    from finetune.checkpoint import learning
    from mmlm.experts import use_padded_experts
    from mmlm.media import collate, to_device
    from mmlm.model import MultimodalLM

    decoder = plain(work)
    if work.decoder == "mixtral":
        use_padded_experts(decoder)  # as from_parts does with one that it loads
    sizes = {"embed_dim": MEDIA, "depth": 3, "num_heads": HEADS, "img_size": 512}
    eyes = timm.create_model("vit_tiny_patch16_224", features_only=True, **sizes)
    torch.manual_seed(0)
    model = MultimodalLM.from_parts(decoder, eyes, tokenizer=byte_tokenizer(), every=EVERY, start=0, kv_heads=kv_heads)
    model.train()
    open_gates(model)
    labels = work.labels.roll(-1, 1)  # what a token foretells
    labels[:, -1] = IGNORED
    rows = [[row] for row in range(work.rows)]
    media = collate(
        [features(model, its) for its in work.media], rows, torch.zeros_like(work.ids), model.vision.pyramid
    )
    media = {key: to_device(value, model.device) for key, value in media.items()}
    batch = {"input_ids": work.ids, "attention_mask": torch.ones_like(work.ids), **media}
    train = training.step_of(model, batch | {"labels": labels, "below": None})
    return Contender(
        train, lambda: model.generate(**media, **work.speaking), count([its for _, its in learning(model)])
    )


def features(model: Any, media: Tensor) -> Any:
    """Features of tiles [tiles, 170, C] as our eyes give them, without those of an overview, which others lack."""
    from PIL import Image

    from mmlm.model import MultimodalLM
    from vision.encoder import Features

    assert isinstance(model, MultimodalLM)
    its = model.vision.encode(Image.new("RGB", (512 * len(media), 512)))
    keep = [places[:, 0] >= 85 for places in its.places]
    flat = media.flatten(0, 1)
    assert sum(int(one.sum()) for one in keep) == len(flat)
    values = flat.split([int(one.sum()) for one in keep])
    return Features(values, tuple(places[one] for places, one in zip(its.places, keep, strict=True)))


def count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@dataclass(frozen=True)
class Entry:
    """Who may take part."""

    make: Callable[[Work], Contender]
    decoders: tuple[str, ...] = ("llama", "mixtral")
    """That it can have; others have one of their own, which stands beside the plain llama."""
    package: str = "transformers"
    """That it comes with."""

    def lacks(self, work: Work) -> str:
        """Why it cannot take part in a kind of work; "" if it can."""
        if find_spec(self.package) is None:
            return f"{self.package} is not installed (benchmarks/README.md)"
        return "" if work.decoder in self.decoders else "has a decoder of its own and no other"


CONTENDERS = {
    "text": Entry(text),
    "mmlm": Entry(ours),
    "mmlm_wide": Entry(partial(ours, kv_heads=HEADS)),  # as many key heads as the peers'
    "mllama": Entry(at_work(mllama), ("llama",)),
    "idefics": Entry(at_work(idefics), ("llama",)),
    "open_flamingo": Entry(at_work(open_flamingo), package="open_flamingo"),
    "flamingo_pytorch": Entry(at_work(flamingo_pytorch), ("llama",), "flamingo_pytorch"),
}
