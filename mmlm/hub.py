"""Names: is it a folder's, or may the hub have it?"""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_hub_id(name: str) -> bool:
    """May the name be a repository's on the hub? A folder's is not."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not Path(name).exists()


def check_adapter(name: str) -> None:
    """ValueError if no adapter can have this name: no folder has it, and no repository of an owner's on the hub may.

    Where "runs" is a folder, "runs/quikstart" is a mistyped path: the hub would take half a minute to say so.
    """
    path = Path(name)
    if not path.is_dir() and (not is_hub_id(name) or "/" not in name or path.parent.exists()):
        raise ValueError(f"{name}: no such folder; `mmlm quickstart` trains an adapter into runs/quickstart")
