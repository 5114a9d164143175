"""Folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft folder that becomes `target` if the block ends well, and is removed if it does not.

    FileExistsError if `target` is there already, or is when the block ends, made by another process.
    """
    target = Path(target)
    taken = FileExistsError(f"{target}: exists already; name another folder, or remove it")
    if target.exists():
        raise taken
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    draft.chmod(0o755)  # mkdtemp makes it for its owner alone
    try:
        yield draft
        try:
            os.replace(draft, target)
        except OSError as error:
            if target.exists():
                raise taken from error
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
