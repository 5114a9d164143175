"""Every family of causal language models that the installed transformers has, small and random.

Found by walking transformers' own mapping, so that a new family is tested the day it appears. A family is a model
class: several model types may share one.
"""

from functools import cache
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmlm.decoder import expert_counts

VOCABULARY = 259  # of the tests' tokenizer
LARGEST = 12_000_000  # parameters, or it is none of the small ones

# How large ours are, by the names that configs have for it; what a family does not know it is not told.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCABULARY),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd"], 64),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dim_ff", "feed_forward_size"], 96),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 96),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["shared_experts_intermediate_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "n_layer", "num_layers"], 4),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"], 4),
    **dict.fromkeys(["num_attention_heads", "swa_num_attention_heads", "n_heads", "n_head", "num_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_encoder_attention_heads", "num_decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_global_key_value_heads", "swa_num_key_value_heads"], 2),
    **dict.fromkeys(
        ["head_dim", "global_head_dim", "swa_head_dim", "v_head_dim", "dim_head", "attention_head_size"], 16
    ),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["index_topk", "index_head_dim"], 16),
    "index_n_heads": 2,
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"], 1),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], 1),
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads", "mamba_d_state", "ssm_state_size"], 8),
    **dict.fromkeys(["linear_num_heads", "linear_num_key_heads", "linear_num_value_heads", "zero_expert_num"], 2),
    **dict.fromkeys(["linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"], 16),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 512),
    **dict.fromkeys(["sliding_window", "attention_chunk_size"], 64),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
    "is_decoder": True,
    "causal": True,
    "initializer_range": 0.2,  # wide, so that tokens attend to each other and the logits are far apart
}

HYBRID = ["linear_attention", "full_attention"] * 2
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
AUDIO = dict.fromkeys(["ext_pw_out_channel", "depthwise_separable_out_channel", "nemo_conv_channels"], 32)

# What the sizes above do not say, by model type.
MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 50}
    | dict.fromkeys(["patcher_config", "encoder_config", "decoder_config", "global_config"], TINY),
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"head_dim": 32, "o_groups": 2, "o_lora_rank": 16, "num_key_value_heads": 1},
    "dots3_note": {
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "head_dim": 16,
        **{f"swa_{name}": SIZES[name] for name in ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "head_dim")},
        **{"swa_num_key_value_heads": 4, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 16},
    },
    "doge": {"is_moe": True, "num_experts": 16},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n": (shared := {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3n_text": shared,
    "gemma4": (mixed := {"enable_moe_block": True}),
    "gemma4_text": mixed,
    "git": {"vision_config": TINY},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "longcat_flash": {"head_dim": 8},  # of what turns, it means
    "kimi_linear": {"layer_types": HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16, "num_heads": 8, "n_groups": 1},
    "phi4_multimodal": {"vision_config": TINY, "audio_config": TINY | AUDIO | {"num_blocks": 1}},
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
    "reformer": {
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_embds_dim": [16, 48],
        "axial_pos_shape": [16, 32],
        "num_buckets": 4,
    },
    "roc_bert": dict.fromkeys(["shape_vocab_size", "pronunciation_vocab_size"], 50)
    | dict.fromkeys(["shape_embed_dim", "pronunciation_embed_dim"], 16),
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba": {"layer_types": ["linear_attention", "hybrid"] * 2, "head_dim": 32, "num_key_value_heads": 4},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


# Eyes and ears that a family brings along, unused here: as small as they can be.
SENSES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vision_config": TINY | {"model_type": "siglip_vision_model", "image_size": 32},
        "mm_tokens_per_image": 4,
    },
    "got_ocr2": {
        "vision_config": TINY | {"mlp_dim": 32, "output_channels": 32, "image_size": 32, "global_attn_indexes": [0]}
    },
    "moss_transcribe_diarize": {"audio_config": TINY},
    "gemma3n": {
        "vision_config": {"architecture": "test_efficientnet", "hidden_size": 32},
        "audio_config": {"hidden_size": 32, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2},
    },
}


def types() -> dict[str, str]:
    """A model type of each family, by the name of its class."""
    found: dict[str, str] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found.setdefault(name, kind)
    return dict(sorted(found.items()))


def small_config(kind: str) -> PretrainedConfig:
    """The config of a model type, in our sizes: the text model's, or the whole one where the family has more parts."""
    whole = CONFIG_MAPPING[kind]()
    text = whole.get_text_config(decoder=True)
    text = whole if type(text) is type(whole) else text  # of an encoder and decoder in one config, it hides half
    known, alias, more = set(text.to_dict()), getattr(text, "attribute_map", {}), MORE.get(kind, {})
    sizes = dict(SIZES)
    if "qk_rope_head_dim" in known:  # latent attention: a head's width follows from its parts, and all heads have keys
        sizes |= {"num_key_value_heads": sizes["num_attention_heads"]}
        del sizes["head_dim"]
    given = {alias.get(name, name): size for name, size in sizes.items()}
    given = {name: size for name, size in given.items() if name in known}
    text = type(text)(**given | {alias.get(name, name): size for name, size in more.items()})
    if isinstance(text, type(whole)) or family_of(kind).config_class is type(text):
        return text
    return type(whole)(text_config=text.to_dict(), **SENSES.get(kind, {}))


def family_of(kind: str) -> type[PreTrainedModel]:
    """The class that AutoModelForCausalLM makes of a model type."""
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


@cache
def size_of(kind: str) -> int:
    """Parameters, counted before any is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in family_of(kind)._from_config(small_config(kind)).parameters())


def small(kind: str, seed: int = 0) -> PreTrainedModel:
    """A small random decoder of a model type, in fp32."""
    if (size := size_of(kind)) > LARGEST:
        raise ValueError(f"{size:,} parameters in our sizes")
    config = small_config(kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return family_of(kind)._from_config(config).eval()


@cache
def is_moe(kind: str) -> bool:
    """Is it a Mixture of Experts, by its config?"""
    try:
        return expert_counts(small_config(kind)) != (0, 0)
    except Exception:  # of one that cannot be built, which `CANNOT` tells of
        return False


# The decoders that most people have: they hold every check, none left out. Tests of the others are slow ones.
# fmt: off
CORE = [
    "MixtralForCausalLM", "OlmoeForCausalLM", "FlexOlmoForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM", "GptOssForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM",
    "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", "PhimoeForCausalLM", "JetMoeForCausalLM",
    "Glm4MoeForCausalLM", "Ernie4_5_MoeForCausalLM", "MiniMaxForCausalLM", "MiniMaxM2ForCausalLM",
    "HunYuanMoEV1ForCausalLM", "Llama4ForCausalLM", "Dots1ForCausalLM", "Cohere2MoeForCausalLM", "AfmoeForCausalLM",
    "ExaoneMoeForCausalLM", "Lfm2MoeForCausalLM", "JambaForCausalLM", "CohereForCausalLM", "FalconForCausalLM",
    "GPTNeoXForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "MptForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM", "GPT2LMHeadModel",
]
# fmt: on

# Families that cannot be built in our sizes or cannot be given eyes: what the error says, and why.
ASSISTANT = "drafts for a larger Gemma 4 from that one's hidden states: no decoder by itself"
SOUND = "its tokens are sound, four at a time"
CANNOT: dict[str, tuple[str, str]] = {
    "BltForCausalLM": ("has no list of", "three stacks in a row, the middle one of patches of bytes, not of tokens"),
    "Gemma4AssistantForCausalLM": ("hidden_size_per_layer_input must be 0", ASSISTANT),
    "Gemma4UnifiedAssistantForCausalLM": ("layer types producing a cache", ASSISTANT),
    "CpmAntForCausalLM": ("gated block takes", "its layers see 32 tokens of a prompt of its own before the text"),
    "HrmTextForCausalLM": ("has no list of", "its layers are run several times over, in two lists"),
    "MusicgenForCausalLM": ("shape '.*' is invalid", SOUND),
    "MusicgenMelodyForCausalLM": ("shape '.*' is invalid", SOUND),
    "ProphetNetForCausalLM": ("gated block takes", "its layers see a text three times over, one behind the other"),
    "ReformerModelWithLMHead": (
        "does not require grad",
        "reversible: its own backward knows nothing of what is between",
    ),
    "XLMWithLMHeadModel": (
        "has no list of",
        "keeps its layers in pieces: all attentions in one list, all norms in another",
    ),
    "XLNetLMHeadModel": ("gated block takes", "its hidden states have the text along their first side"),
    "XmodForCausalLM": ("Input language unknown", "asks for a language before it says anything"),
}

# What single families do not hold: the reason, by (family, check).
ROUTER = "its router mixes the tokens of a batch, later ones too (its own comment says so)"
UNLIKE: dict[tuple[str, str], str] = dict.fromkeys(
    [
        ("DogeForCausalLM", "blind_rows_are_exact"),
        ("DogeForCausalLM", "text_before_an_image_is_exact"),
        ("DogeForCausalLM", "cached_is_uncached"),
    ],
    ROUTER,
)
# Not strict: it holds where no other token's expert changes, which is so for some random weights and not for others.
EXPERTS = (
    "its experts are code of its own, whose last bits depend on how many tokens go the same way; ours are not used"
)
MAYBE: dict[tuple[str, str], str] = {
    (family, check): EXPERTS
    for family in ("DbrxForCausalLM", "LongcatFlashForCausalLM")
    for check in ("blind_rows_are_exact", "text_before_an_image_is_exact")
}
