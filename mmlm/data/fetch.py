"""A URL as a file in the cache folder: whole, or not at all."""

import hashlib
import re
import shutil
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm import tqdm

from mmlm.names import home
from vision.files import whole_file
from vision.images import URL_SECONDS, ImageError

LARGE = 16 * 2**20  # bytes from which on a progress bar is shown


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def fetch(url: str) -> Path:
    """The file at a URL, downloaded if the cache folder does not have it; what is there is not asked for again.

    ValueError, with the mend, if it cannot be had whole.
    """
    path = home() / "fetched" / f"{hashlib.blake2b(url.encode(), digest_size=8).hexdigest()}-{file_name(url)}"
    if path.exists():
        return path
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mmlm"})
        with urllib.request.urlopen(request, timeout=URL_SECONDS) as answer, whole_file(path) as draft:
            wanted = int(answer.headers.get("Content-Length") or 0)
            hidden = wanted < LARGE
            with (
                tqdm.wrapattr(answer, "read", total=wanted, desc=file_name(url), disable=hidden) as body,
                draft.open("wb") as file,
            ):
                shutil.copyfileobj(body, file, 2**20)
            if wanted and draft.stat().st_size != wanted:
                raise ValueError(f"{draft.stat().st_size:,} of {wanted:,} bytes came")
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, its socket still open
        raise ValueError(
            f"{url}: cannot be fetched ({error}); check the address, or download it and name the file"
        ) from error
    return path


def file_name(url: str) -> str:
    """What a URL's file is called, as far as all file systems allow."""
    return re.sub(r"[^\w.-]", "_", urlsplit(url).path.rpartition("/")[2])[-80:] or "file"


@dataclass(frozen=True)
class Remote:
    """An image at a URL, fetched into the cache folder when it is needed."""

    url: str

    def __call__(self) -> str:
        try:
            return str(fetch(self.url))
        except ValueError as error:
            raise ImageError(str(error)) from error
