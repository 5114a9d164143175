"""How a data set is read: fields of configs, options of the command line, arguments of `open_data`."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmlm.data.rows import Rows


@dataclass(kw_only=True)
class Source:
    """What may be said of a data set beside what holds it."""

    split: str | None = None
    """Of a data set that has several."""
    format: str | None = None
    """Where looking at it does not tell: "jsonl", "tars", ..."""
    images: str | None = None
    """Folder that relative paths of images are relative to, where it is not the file's own."""
    annotations: str | None = None
    """Of VQAv2's questions, where they are not beside them."""
    subset: str | None = None
    """Of a data set of the hub that has several."""
    urls: bool = False
    """May images be fetched whose URLs are in rows?"""

    def open(self, data: str, prompt: str) -> "Rows":
        """The data set; errors as `open_data` has them. `prompt` asks for a caption."""
        from mmlm.data.open import open_data  # here, since settings are read before anything heavy is imported

        return open_data(data, prompt=prompt, **{entry.name: getattr(self, entry.name) for entry in fields(Source)})
