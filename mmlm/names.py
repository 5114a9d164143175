"""Names: of an adapter's files, of folders, of repositories on the hub, and what is said by default."""

import os
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # as transformers calls them
RUNS = "runs"  # where runs are kept, unless their names say otherwise
RUN = f"{RUNS}/quickstart"
DECODER = "mmlm/smollm2-135m-moe-4x2"  # the embedded ones
VISION = "mmlm/efficientnet-lite0"
MARK = "<image>"  # what stands for an image in a text
CAPTION_PROMPT = "Describe the image."  # what asks for a caption


def home() -> Path:
    """The cache folder: MMLM_HOME, or ~/.cache/mmlm."""
    return Path(os.environ.get("MMLM_HOME") or Path.home() / ".cache" / "mmlm")


def is_hub_id(name: str) -> bool:
    """May the name be a repository's on the hub? A folder's is not."""
    from huggingface_hub.errors import HFValidationError  # here, since `mmlm --help` need not wait for it
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not Path(name).exists()


def check_adapter(name: str, revision: str | None = None) -> None:
    """ValueError if no adapter can have this name: no folder has it, and it is no repository's of an owner on the hub.

    Where "mine" is a folder, "mine/quikstart" is a mistyped path: the hub, which has revisions, is not asked without
    one, since it takes half a minute to fail.
    """
    path = Path(name)
    if path.is_dir():
        return
    reason = ""
    if is_hub_id(name) and "/" in name:
        if path.parent.name != RUNS and (revision or not path.parent.exists()):
            return
        reason = f", and the hub was not asked, since {path.parent} is where folders are"
    raise ValueError(f"{name}: no such folder{reason}; `mmlm quickstart` trains an adapter into {RUN}")
