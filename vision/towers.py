"""Image towers of open_clip's models, by name."""

import os

import open_clip

from vision.networks import OPEN_CLIP, Network, built_network, did_you_mean, pruned

TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 1, "context_length": 1}  # the least text tower there can be


def clip_network(name: str, pretrained: bool) -> Network:
    """The image tower of "open_clip:MODEL/TAG"; of "open_clip:hf-hub:NAME" and "open_clip:local-dir:PATH", too.

    TAG is one of open_clip's, or the path of a checkpoint; where no weights are wanted, there need be none. To load
    them, the whole model is made, as open_clip does it; all but the image tower is then dropped.

    Raises ValueError for names that open_clip does not know, and for weights that cannot be had.
    """
    model, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
    known, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(model)
    if elsewhere := ":" in model:
        model, tag = name.removeprefix(OPEN_CLIP), ""
    elif model not in known:
        raise ValueError(
            f"vision={name!r}: open_clip has no model {model!r}{did_you_mean(model, known)}; name one, as "
            "'open_clip:ViT-B-16/laion2b_s34b_b88k', 'open_clip:hf-hub:NAME' or 'open_clip:local-dir:PATH'"
        )
    elif (tag or pretrained) and not open_clip.is_pretrained_cfg(model, tag) and not os.path.isfile(tag):
        raise ValueError(
            f"vision={name!r}: no weights {tag!r} of open_clip's {model}{did_you_mean(tag, tags)}; there are "
            f"{', '.join(tags) or 'none'}, and a checkpoint of yours: 'open_clip:{model}/PATH'"
        )
    try:
        return pruned(loaded(model, tag) if pretrained else blank(model))
    except Exception as error:  # of many kinds: configs and files are the user's
        raise ValueError(
            f"vision={name!r}: {error}; fetch it where there is a network, or name a checkpoint that is here, "
            f"'open_clip:{'local-dir:' if elsewhere else f'{model}/'}PATH'"
        ) from error


def loaded(model: str, tag: str) -> Network:
    """The tower of a model with weights."""
    cfg = open_clip.get_pretrained_cfg(model, tag)  # {} if there is no such tag
    return built_network(
        open_clip.create_model(
            model,
            pretrained=open_clip.download_pretrained(cfg) or tag,
            require_pretrained=True,
            force_quick_gelu=cfg.get("quick_gelu", False),
            force_preprocess_cfg=cfg,
        )
    )


def blank(model: str) -> Network:
    """The random tower of a model of which no weights are wanted, and nothing is fetched."""
    cfg = open_clip.get_model_config(model)
    vision = cfg["vision_cfg"] | {"timm_model_pretrained": False}
    return built_network(open_clip.CustomTextCLIP(cfg["embed_dim"], vision, TEXT, cfg.get("quick_gelu", False)))
