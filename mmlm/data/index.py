"""Where rows are in a file, found once and kept in the cache folder for as long as the file is what it was."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmlm.names import home
from vision.files import whole_file

FORM = 1  # of these files; counts up when what is in them changes

Arrays = dict[str, NDArray[Any]]


def remembered(path: Path, kind: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives for the file, a `kind` of index; not asked again before the file changes."""
    state = path.stat()
    known = json.dumps([FORM, kind, str(path.resolve()), state.st_size, state.st_mtime_ns])
    kept = home() / "index" / f"{hashlib.blake2b(known.encode(), digest_size=16).hexdigest()}.npz"
    if not kept.exists():
        arrays = make()
        with whole_file(kept) as draft, draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return arrays
    with np.load(kept) as found:
        return {name: found[name] for name in found.files}
