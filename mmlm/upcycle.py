"""Sparse upcycling: a dense decoder into a Mixture-of-Experts whose experts all start as copies of its feed-forward.

Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv:2212.05055. The chosen experts' weights add up to 1 and the experts
are equal, so that the logits stay the dense decoder's whatever the router says.
"""

import os
from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from mmlm.decoder import load_decoder
from mmlm.files import new_folder

KEPT = (
    *(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    *("head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "initializer_range"),
)
TOLERANCE = 1e-3  # of the logits, in fp32
DENSE = ("llama", "mistral")


@torch.no_grad()
def upcycle(dense: PreTrainedModel, experts: int = 8, top_k: int = 2, seed: int = 0) -> MixtralForCausalLM:
    """A Mixtral whose every expert is the dense decoder's feed-forward, in fp32. Routers are small and random.

    Args:
        dense: a Llama-like decoder (Llama, Mistral, SmolLM2, ...) without biases, in fp32.
        experts, top_k: experts of each layer, and how many of them a token goes through.
        seed: of the routers.

    Raises ValueError for other architectures and impossible numbers, and if the logits differ by over 1e-3.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k={top_k}, experts={experts}: a token goes through 1 to {experts} experts")
    source = dense.config
    if source.model_type not in DENSE or getattr(source, "attention_bias", False) or getattr(source, "mlp_bias", False):
        raise ValueError(
            f"a {source.model_type!r} decoder cannot be upcycled to Mixtral exactly: it must be Llama-like "
            f"({', '.join(DENSE)}) and without biases"
        )
    values: dict[str, Any] = {name: getattr(source, name) for name in KEPT if hasattr(source, name)}
    config = MixtralConfig(
        **values,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        sliding_window=getattr(source, "sliding_window", None),
        dtype=torch.float32,
    )
    sparse = MixtralForCausalLM(config).eval()
    given = dense.state_dict()
    random = torch.Generator().manual_seed(seed)
    for name, tensor in sparse.state_dict().items():
        mlp = name.partition("mlp.")[0] + "mlp."
        if name in given:
            tensor.copy_(given[name])
        elif name.endswith("experts.gate_up_proj"):
            tensor.copy_(torch.cat([given[mlp + "gate_proj.weight"], given[mlp + "up_proj.weight"]]).expand_as(tensor))
        elif name.endswith("experts.down_proj"):
            tensor.copy_(given[mlp + "down_proj.weight"].expand_as(tensor))
        else:
            assert name.endswith("mlp.gate.weight"), name
            tensor.copy_(draw_router(tensor.shape, random))
    sparse.generation_config = dense.generation_config
    check_same(dense.eval(), sparse)
    return sparse


def draw_router(shape: torch.Size, random: torch.Generator) -> Tensor:
    """Uniform of deviation 0.02, the same to the last bit on every CPU: `torch.randn` depends on its instructions."""
    return (torch.rand(shape, generator=random) - 0.5) * (0.02 * 12**0.5)


def check_same(dense: PreTrainedModel, sparse: PreTrainedModel, tokens: int = 64) -> float:
    """Largest difference of the two decoders' logits on random tokens. ValueError over 1e-3, or for another argmax."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(dense.config.vocab_size, (2, tokens), generator=random)
    one, other = dense(input_ids=ids).logits, sparse(input_ids=ids).logits
    worst = (one - other).abs().max().item()
    # where the two best logits are nearer to each other than the tolerance, either may win
    best = one.topk(2).values
    same = (one.argmax(-1) == other.argmax(-1)) | (best[..., 0] - best[..., 1] < TOLERANCE)
    if not worst < TOLERANCE or not bool(same.all()):
        raise ValueError(f"the upcycled logits differ from the dense ones by {worst:.1e}, over {TOLERANCE}: not exact")
    return worst


def upcycle_folder(source: str | os.PathLike[str], target: str | os.PathLike[str], experts: int, top_k: int) -> float:
    """Upcycles a decoder of the hub or a folder into a new folder, kept in the dtype it had.

    Returns the largest difference of the logits, in fp32. FileExistsError if the folder is there already.
    """
    with new_folder(target) as draft:
        dense, tokenizer = load_decoder(source)
        dtype = dense.dtype
        sparse = upcycle(dense.float(), experts, top_k)
        worst = check_same(dense, sparse)
        sparse.to(dtype=dtype).save_pretrained(draft)  # type: ignore[call-arg]  # transformers' wrapper hides self
        tokenizer.save_pretrained(draft)
    return worst
