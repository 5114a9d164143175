"""Every family of causal language models that the installed transformers has, small and random.

Found by walking transformers' own mapping, so that a new family is tested the day it appears. A family is a model
class: several model types may share one.
"""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmlm.decoder import expert_counts

VOCABULARY = 259  # of the tests' tokenizer
LARGEST = 12_000_000  # parameters, or it is none of the small ones

# How large ours are, by the names that configs have for it; what a family does not know it is not told.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCABULARY),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd"], 64),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "decoder_ffn_dim"], 96),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "n_layer", "num_layers", "decoder_layers"], 4),
    **dict.fromkeys(["num_attention_heads", "n_heads", "n_head", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_global_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "global_head_dim", "v_head_dim"], 16),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"], 1),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], 1),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "mamba_d_state", "ssm_state_size"], 8),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 2),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 512),
    **dict.fromkeys(["sliding_window", "attention_chunk_size"], 64),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "initializer_range": 0.2,  # wide, so that tokens attend to each other and the logits are far apart
}

HYBRID = ["linear_attention", "full_attention"] * 2

# What the sizes above do not say, by model type.
MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "longcat_flash": {"head_dim": 8},  # of what turns, it means
    "kimi_linear": {"layer_types": HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen4_exp": (
        qsa := {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 32,
            "indexer_compress_ratio": 4,
        }
    ),
    "qwen4_exp_text": qsa,
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layer_types": HYBRID},
}


def types() -> dict[str, str]:
    """A model type of each family, by the name of its class."""
    found: dict[str, str] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found.setdefault(name, kind)
    return dict(sorted(found.items()))


def small_config(kind: str) -> PretrainedConfig:
    """The text model's config of a model type, in our sizes."""
    whole = CONFIG_MAPPING[kind]()
    text = whole.get_text_config(decoder=True)
    known, alias = set(text.to_dict()), getattr(text, "attribute_map", {})
    sizes = SIZES | MORE.get(kind, {})
    if "qk_rope_head_dim" in known:  # latent attention: a head's width follows from its parts, and all heads have keys
        sizes |= {"num_key_value_heads": sizes["num_attention_heads"]}
        sizes = {name: size for name, size in sizes.items() if name != "head_dim" or name in MORE.get(kind, {})}
    given = {alias.get(name, name): size for name, size in sizes.items()}
    return type(text)(**{name: size for name, size in given.items() if name in known})


def small(kind: str, seed: int = 0) -> PreTrainedModel:
    """A small random decoder of a model type, in fp32."""
    config = small_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters in our sizes")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def is_moe(kind: str) -> bool:
    """Is it a Mixture of Experts, by its config?"""
    try:
        return expert_counts(small_config(kind)) != (0, 0)
    except Exception:  # of one that cannot be built, which `CANNOT` tells of
        return False


# The dense decoders that most people have; the others' tests are slow ones.
CORE = (
    "CohereForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MptForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)

# Families that cannot be built in our sizes or cannot be given eyes: what the error says, and why.
STREAMS = "several residual streams, mixed in every layer (hyper-connections): a block takes one"
ASSISTANT = "drafts for a larger Gemma 4 from that one's hidden states: no decoder by itself"
HALF = "the decoding half of an encoder-decoder: its config counts the encoder's layers"
WIDE = "keeps a size of its own that has no common name: too large here"
SIZED = "our sizes do not fit together in it"
PART = "transformers' mapping names it, and AutoModelForCausalLM does not take its text config"
CANNOT: dict[str, tuple[str, str]] = {
    "BartForCausalLM": ("has no list of", HALF),
    "BigBirdPegasusForCausalLM": ("has no list of", HALF),
    "BlenderbotForCausalLM": ("parameters in our sizes", HALF),
    "BlenderbotSmallForCausalLM": ("has no list of", HALF),
    "BltForCausalLM": ("parameters in our sizes", WIDE),
    "CohereCompassForCausalLM": ("full_attention", SIZED),
    "DeepseekV4ForCausalLM": ("too many values to unpack", STREAMS),
    "Emu3ForCausalLM": ("Unrecognized configuration class", PART),
    "FalconH1ForCausalLM": ("dimensions for the Mamba head state", SIZED),
    "Gemma3nForCausalLM": ("set of layer types producing a cache", SIZED),
    "Gemma3nForConditionalGeneration": ("set of layer types producing a cache", SIZED),
    "Gemma4AssistantForCausalLM": ("hidden_size_per_layer_input must be 0", ASSISTANT),
    "GitForCausalLM": ("parameters in our sizes", WIDE),
    "HYV4ForCausalLM": ("too many values to unpack", STREAMS),
    "HrmTextForCausalLM": ("has no list of", "its layers are run several times over, in two lists"),
    "MBartForCausalLM": ("has no list of", HALF),
    "Mamba2ForCausalLM": ("Inconsistent configuration", SIZED),
    "MarianForCausalLM": ("has no list of", HALF),
    "MllamaForCausalLM": ("Unrecognized configuration class", PART),
    "MusicgenForCausalLM": ("Unrecognized configuration class", PART),
    "MusicgenMelodyForCausalLM": ("Unrecognized configuration class", PART),
    "MvpForCausalLM": ("has no list of", HALF),
    "PLBartForCausalLM": ("embed_dim must be divisible", HALF),
    "PegasusForCausalLM": ("has no list of", HALF),
    "Phi4MultimodalForCausalLM": ("parameters in our sizes", WIDE),
    "ProphetNetForCausalLM": ("", HALF),
    "Qwen4ExpForCausalLM": ("Given normalized_shape", STREAMS),
    "ReformerModelWithLMHead": ("axial_pos_embds", SIZED),
    "RoCBertForCausalLM": ("parameters in our sizes", WIDE),
    "WhisperForCausalLM": ("embed_dim must be divisible", HALF),
    "XLNetLMHeadModel": ("", "hidden states have the text along their first side"),
    "XmodForCausalLM": ("Input language unknown", "asks for a language before it says anything"),
    "Zamba2ForCausalLM": ("Cannot get conv state", SIZED),
    "ZambaForCausalLM": ("tie_weights_keys", SIZED),
}

# What single families do not hold: the reason, by (family, check).
UNLIKE: dict[tuple[str, str], str] = {}
