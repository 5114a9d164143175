"""mmlm: eyes for a frozen Mixture-of-Experts text decoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlm.best import ClipVerifier as ClipVerifier
    from mmlm.best import best_of as best_of
    from mmlm.config import AdapterConfig as AdapterConfig
    from mmlm.model import MultimodalLM as MultimodalLM
    from mmlm.processor import Processor as Processor

_HOME = {
    "AdapterConfig": "config",
    "ClipVerifier": "best",
    "MultimodalLM": "model",
    "Processor": "processor",
    "best_of": "best",
}


def __getattr__(name: str) -> Any:
    # torch and transformers are imported when the first of these is asked for, so that `mmlm --help` need not wait
    if name not in _HOME:
        raise AttributeError(f"module 'mmlm' has no attribute {name!r}")
    return getattr(import_module(f"mmlm.{_HOME[name]}"), name)
