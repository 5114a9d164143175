"""The gated block: cross-attention and a feed-forward, each behind a tanh gate that starts shut.

Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", arXiv:2204.14198, section 2.2; queries
and keys are RMS-normed (Henry et al. 2020, arXiv:2010.04245), keys and values may have fewer heads than queries
(Ainslie et al. 2023, arXiv:2305.13245), and the feed-forward is a SwiGLU (Shazeer 2020, arXiv:2002.05202).

B rows, T text tokens, S media embeddings of a row, D width of the decoder, M width of the media, H query heads, K key
heads, G = H / K, d width of a head, F width inside the feed-forward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from mmlm.config import AdapterConfig
from mmlm.packed import Fixed
from mmlm.rms import EPS, rms
from mmlm.weights import State, is_plain

SCORES = 2**18  # of a head, up to which they are made on a CPU in training; beyond it torch's fused kernel is faster


def at_least_fp32(x: Tensor) -> Tensor:
    """x, but for 16 bits; float64 stays what it is."""
    return x if x.dtype.itemsize > 2 else x.float()


def to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As `x.to`: which takes microseconds where there is nothing to do, and a block makes many for a token."""
    return x if x.dtype == dtype else x.to(dtype)


class RMSNorm(nn.Module):
    """RMS norm in fp32 whatever comes in, but for weights in float64; Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """x [..., width] -> the same, times `scale`."""
        fp32 = at_least_fp32(self.weight)
        return rms(x.to(fp32.dtype), fp32 * scale)


class Whiten(nn.Module):
    """RMS norm in fp32, then a fixed rotation and scaling that can be fitted to data, then a trained scale and shift.

    Not fitted, it is an RMS norm.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.rotation: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rotation", torch.eye(width))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.centred(x)
        weight, bias = at_least_fp32(self.weight), at_least_fp32(self.bias)
        return torch.addcmul(bias, (x @ self.rotation).to(x.dtype), weight)

    def centred(self, x: Tensor) -> Tensor:
        """What is rotated."""
        mean = at_least_fp32(self.mean)
        return rms_norm(x.to(mean.dtype), mean.shape, eps=EPS) - mean

    @torch.no_grad()
    def fit(self, samples: Tensor, shrink: float = 0.1) -> None:
        """Samples [N, width] come out with mean 0 and, but for the shrinkage, the identity as covariance.

        Args:
            shrink: share of the mean variance added to that of every direction, so that directions of which the samples
                say nothing are not blown up.
        """
        normed = rms_norm(samples.float(), self.weight.shape, eps=EPS)
        self.mean.copy_(normed.mean(0))
        centred = (normed - self.mean).double()
        variance, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        variance = variance.clamp_min(0) + shrink * variance.clamp_min(0).mean()
        self.rotation.copy_((directions * variance.rsqrt()) @ directions.T)


class GatedBlock(nn.Module):
    """x + tanh(gate) * attention(x, media), then x + tanh(gate) * feed-forward(x), for tokens that see an image."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        D, M, H, K, d = config.hidden, config.media_dim, config.heads, config.kv_heads, config.head_dim
        inner = round(config.ff_factor * D)
        self.K, self.d = K, d
        self.norm = Whiten(D)
        self.q = nn.Linear(D, H * d, bias=False)
        self.k = nn.Linear(M, K * d, bias=False)
        self.v = nn.Linear(M, K * d, bias=False)
        self.o = nn.Linear(H * d, D, bias=False)
        self.q_norm, self.k_norm = RMSNorm(d), RMSNorm(d)
        self.ff_norm = Whiten(D)
        self.gate = nn.Linear(D, inner, bias=False)
        self.up = nn.Linear(D, inner, bias=False)
        self.down = nn.Linear(inner, D, bias=False)
        self.scale: Tensor  # deviation of each channel of the decoder's hidden states: the unit of what is added
        self.register_buffer("scale", torch.ones(D))
        self.attention_gate = nn.Parameter(torch.zeros(1))  # sharding takes no scalars
        self.ff_gate = nn.Parameter(torch.zeros(1))
        self.kept: Folded | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not what is folded, which follows from it."""
        return {**super().__getstate__(), "kept": None}

    def keys_values(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What k and v make of media embeddings, each [N, K*d], -> keys and values, each [N, K, d]."""
        k, v = (x.unflatten(-1, (self.K, self.d)) for x in (k, v))
        return self.k_norm(k).to(v.dtype), v

    def forward(self, hidden: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees: Tensor | None) -> Tensor:
        """hidden [B, T, D]; k, v [B, K, S, d]; mask bool [B, T, S] or None (all); sees bool [B, T] or None (all).

        Tokens that see nothing come out bit for bit as they went in.
        """
        self.kept = None  # in training it would be out of date after every step
        x = at_least_fp32(hidden)
        opened, ff_opened = (torch.tanh(gate) * self.scale for gate in (self.attention_gate, self.ff_gate))
        x = torch.addcmul(x, opened, at_least_fp32(self.attention(self.norm(x), k, v, mask)))
        x = torch.addcmul(x, ff_opened, at_least_fp32(self.feed_forward(self.ff_norm(x)))).to(hidden.dtype)
        return x if sees is None else torch.where(sees[..., None], x, hidden)

    def feed_forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]. The gating multiplies what the text asks for with what the image shows."""
        return self.down(silu(self.gate(x)) * self.up(x))

    def attention(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        q = self.q_norm(self.q(x).unflatten(-1, (-1, self.d)), self.d**-0.5).to(v.dtype)  # [B, T, H, d]
        return self.o(look(q, k, v, mask))

    @property
    def plain(self) -> bool:
        """Are its products of their weights alone? With LoRA around one of them they cannot be folded."""
        return all(map(is_plain, (self.q, self.o, self.gate, self.up, self.down)))

    @torch.no_grad()
    def folded(self, dtype: torch.dtype) -> "Folded":
        """The block as it is now, for calls without gradients, multiplying in `dtype`. Kept while its weights last."""
        weights = [*self.parameters(), *self.buffers()]
        kept, state = self.kept, State(weights, dtype)  # another thread may write self.kept at any moment
        if kept is None or kept.state != state:
            kept = self.kept = None  # its memory before that of the new one
            kept = self.kept = Folded(self, dtype, state)
        return kept


class Folded:
    """A block for calls without gradients: weights that follow each other, multiplied with each other beforehand.

    The rotation and scale of a `Whiten` go into the product after it, gate and up are one product, all is cast once.
    Its mean is taken off in fp32 as ever, since in 16 bits little would be left of the difference. The tanh of a gate
    stays where it is: in the product before it, it would save a call in fp32, and be lost in fp16.
    """

    def __init__(self, block: GatedBlock, dtype: torch.dtype, state: "State") -> None:
        self.state, self.q_norm = state, at_least_fp32(block.q_norm.weight) * block.d**-0.5
        self.eps = torch.full_like(self.q_norm[:1], EPS)
        self.shift, self.ff_shift = (-at_least_fp32(norm.mean) for norm in (block.norm, block.ff_norm))
        self.q = fold(block.norm, block.q.weight, dtype)
        gate_up = torch.cat([block.gate.weight, block.up.weight])  # [2F, D]
        self.gate_up = fold(block.ff_norm, gate_up, dtype)
        self.o, self.down = (Fixed(product.weight.detach().to(dtype)) for product in (block.o, block.down))
        self.opened, self.ff_opened = (torch.tanh(g) * block.scale for g in (block.attention_gate, block.ff_gate))

    def __call__(self, hidden: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sees: Tensor | None) -> Tensor:
        """As `GatedBlock.forward`, to rounding. Tokens that see nothing come out bit for bit as they went in."""
        B, T, D = hidden.shape
        x = at_least_fp32(hidden).reshape(-1, D)
        q = self.q(to(torch.addcmul(self.shift, x, self.rms(x)), v.dtype)).view(B, T, -1, v.shape[-1])
        y = look(to(self.rms(q) * q * self.q_norm, v.dtype), k, v, mask).view(len(x), -1)
        x = torch.addcmul(x, self.opened, self.o(y))
        gate, up = self.gate_up(to(torch.addcmul(self.ff_shift, x, self.rms(x)), v.dtype)).chunk(2, 1)
        x = torch.addcmul(x, self.ff_opened, self.down(silu(gate) * up))
        x = to(x, hidden.dtype).view(hidden.shape)
        return x if sees is None else torch.where(sees[..., None], x, hidden)

    def rms(self, x: Tensor) -> Tensor:
        """What an RMS norm multiplies x [..., width] with, in fp32 [..., 1]: on a CPU a third of torch's own calls."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


def fold(norm: Whiten, weight: Tensor, dtype: torch.dtype) -> Fixed:
    """A product that does what the rotation, scale and shift and then that of `weight` [F, D] do."""
    with torch.autocast(weight.device.type, enabled=False):
        weight, scale, rotation, bias = map(at_least_fp32, (weight, norm.weight, norm.rotation, norm.bias))
        return Fixed(((weight * scale) @ rotation.T).to(dtype), (weight @ bias).to(dtype))


def look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, T, H, d], which is divided by sqrt(d) -> [B, T, H*d].

    The G query heads of a key head are folded into its queries.
    """
    B, T = q.shape[:2]
    if T == 1:  # as most calls are, when nothing need be put in another order
        mask = None if mask is None else mask[:, None]
        return attend(q.reshape(B, k.shape[1], -1, q.shape[3]), k, v, mask).reshape(B, 1, -1)
    q = q.unflatten(2, (k.shape[1], -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, K, G*T, d]
    if mask is not None:
        mask = mask[:, None].repeat(1, 1, q.shape[2] // T, 1)  # [B, 1, G*T, S]
    return attend(q, k, v, mask).unflatten(2, (-1, T)).permute(0, 3, 1, 2, 4).reshape(B, T, -1)  # of [B, T, K, G, d]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T) v.

    In training on a CPU in plain products while a head's scores are few: the fused kernel's backward is up to twice as
    slow then, and up to three times as fast where they are many.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled() or q.shape[-2] * k.shape[-2] > SCORES:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    scores = at_least_fp32(q @ k.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v
