"""Pixels to embeddings: images, tiles, backbones, the grid pyramid and the cache of what they give."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.backbone import Backbone as Backbone
    from vision.backbone import load_backbone as load_backbone
    from vision.encoder import Features as Features
    from vision.encoder import VisionEncoder as VisionEncoder
    from vision.features import FeatureCache as FeatureCache
    from vision.images import ImageError as ImageError
    from vision.images import open_image as open_image
    from vision.ocr import Line as Line
    from vision.ocr import describe as describe
    from vision.ocr import read_text as read_text
    from vision.pyramid import TOKENS as TOKENS
    from vision.pyramid import Level as Level
    from vision.pyramid import Pyramid as Pyramid
    from vision.tiles import TilePlan as TilePlan
    from vision.tiles import cut_tiles as cut_tiles
    from vision.tiles import plan_tiles as plan_tiles

_HOME = {
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "Features": "encoder",
    "VisionEncoder": "encoder",
    "FeatureCache": "features",
    "ImageError": "images",
    "open_image": "images",
    "Line": "ocr",
    "describe": "ocr",
    "read_text": "ocr",
    "TOKENS": "pyramid",
    "Level": "pyramid",
    "Pyramid": "pyramid",
    "TilePlan": "tiles",
    "cut_tiles": "tiles",
    "plan_tiles": "tiles",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vision' has no attribute {name!r}")
    return getattr(import_module(f"vision.{_HOME[name]}"), name)
