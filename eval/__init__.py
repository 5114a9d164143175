"""Measuring: caption and VQA metrics, runs over data sets, reports."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.captions import caption_scores as caption_scores
    from eval.vqa import vqa_accuracy as vqa_accuracy

_HOME = {"caption_scores": "captions", "vqa_accuracy": "vqa"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eval' has no attribute {name!r}")
    return getattr(import_module(f"eval.{_HOME[name]}"), name)
