"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside `path` that becomes it if the block ends well, and is removed if it does not.

    A kill or a second writer leaves whole files only; the folder is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{uuid4().hex}.part")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A value as JSON that people can read, as `whole_file` writes."""
    with whole_file(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
