"""Data as people have it, read as it is: every format becomes a `Rows` of `Sample`s, read row by row."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlm.data.open import open_data as open_data
    from mmlm.data.rows import Rows as Rows
    from mmlm.data.rows import SampleError as SampleError
    from mmlm.data.sample import Sample as Sample
    from mmlm.data.sample import Turn as Turn

_HOME = {"open_data": "open", "Rows": "rows", "SampleError": "rows", "Sample": "sample", "Turn": "sample"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmlm.data' has no attribute {name!r}")
    return getattr(import_module(f"mmlm.data.{_HOME[name]}"), name)
