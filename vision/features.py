"""The feature cache: what a frozen encoder gives for an image is computed once and kept on disk.

One safetensors file an image, named by a hash of the image's file (or of what the backbone is shown, of an image that
is no file), in a folder named by a hash of the vision settings and weights: whatever changes on the way there changes
the name. Files are written under a temporary name and renamed, so a kill or a second writer leaves whole files only.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vision.encoder import Features, Prepared, VisionEncoder, prepare
from vision.files import whole_file
from vision.images import ImageError, Lazy, Source, file_bytes, opened

FORM = 3  # of what encoders make of the same pictures; counts up when they make something else
YOUNG = 3600.0  # seconds in which a file was used that somebody may be about to read


class FeatureCache:
    """Features of images, encoded at most once.

    Args:
        encoder: what encodes them.
        folder: where they are kept; created if absent.
        limit: bytes that all in the folder may take, about: those not used for longest make room, but for what was used
            in the last minutes. None: as many as come.
    """

    def __init__(self, encoder: VisionEncoder, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        self.encoder, self.limit = encoder, limit
        self.folder = Path(folder) / settings_key(encoder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.written = 0
        """Bytes, since room was made."""
        if limit is not None:
            trim(self.folder.parent, limit)

    def add(self, image: Lazy) -> str:
        """Makes sure that the image's features are on disk, and returns the key to `load` them by.

        ImageError if it cannot be opened.
        """
        source = file_bytes(opened(image))
        if (key := self._known(source)) is not None:
            return key
        ready = prepare(source, self.encoder.pyramid, self.encoder.detail)
        return self._known(source, ready) or self._write(source, ready, self.encoder.encode_ready([ready])[0])

    def add_all(self, images: Iterable[Lazy]) -> Iterator[str | ImageError]:
        """As `add`, of many images at once: their keys in order, as they are done, an error in the place of a key."""
        files = (partial(lambda image: file_bytes(opened(image)), image) for image in images)
        return self.encoder.through(files, self._known, self._write)

    def load(self, key: str) -> Features:
        """The features of an image `add`ed before. ValueError if the file is damaged (it is then removed)."""
        path = self._path(key)
        try:
            stored = load_file(path)
        except SafetensorError as error:
            path.unlink(missing_ok=True)
            raise ValueError(f"{path}: damaged, and removed; run the same again to encode its image anew") from error
        maps = range(len(stored) // 2)
        return Features(tuple(stored[f"values{i}"] for i in maps), tuple(stored[f"places{i}"].long() for i in maps))

    def size(self, key: str) -> int:
        """Bytes on disk of an image's features: in proportion to its embeddings."""
        return self._path(key).stat().st_size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _known(self, source: Source, ready: Prepared | None = None) -> str | None:
        """The key of an image whose features are on disk; of one that is no file it is known once it is prepared."""
        if (key := key_of(source, ready)) is None:
            return None
        try:
            os.utime(self._path(key))  # used now
            return key
        except FileNotFoundError:
            return None

    def _write(self, source: Source, ready: Prepared, features: Features) -> str:
        tensors = {f"values{i}": value.cpu().contiguous() for i, value in enumerate(features.values)}
        tensors |= {f"places{i}": place.to(torch.int16) for i, place in enumerate(features.places)}
        key, data = key_of(source, ready) or ready.key, save(tensors)  # save_file would make a file for its owner alone
        with whole_file(self._path(key)) as draft:
            draft.write_bytes(data)
        self.written += len(data)
        if self.limit is not None and self.written > self.limit / 20:
            self.written = 0
            trim(self.folder.parent, self.limit)
        return key


def key_of(source: Source, ready: Prepared | None) -> str | None:
    """What an image's features are named by; None for one that is no file and not prepared yet."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).hexdigest()
    return ready.key if ready else None


def trim(folder: Path, limit: int) -> None:
    """Removes files that were not used for longest until all take no more than nine tenths of `limit` bytes, if they
    take more than `limit`. Others may write and remove meanwhile."""
    found: list[tuple[float, int, str]] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                state = os.stat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            found.append((state.st_mtime, state.st_size, os.path.join(parent, name)))
    total, now = sum(size for _, size, _ in found), time.time()
    if total <= limit:
        return
    for used, size, path in sorted(found):
        if total <= 0.9 * limit or now - used < YOUNG:
            break
        Path(path).unlink(missing_ok=True)
        total -= size


def settings_key(encoder: VisionEncoder) -> str:
    """A hash of all that features depend on beside the image: backbones, their weights and dtype, pyramid, detail."""
    digest = hashlib.blake2b(digest_size=8)
    # a built network's name and weights do not tell its strides, nor which of its maps it gives
    eyes = [[its.name, its.side, its.any_size, its.channels, its.sides] for its in encoder.backbones]
    digest.update(json.dumps([FORM, eyes, asdict(encoder.pyramid), encoder.detail]).encode())
    for backbone in encoder.backbones:
        weights = backbone.state_dict() | {"scale": backbone.scale, "shift": backbone.shift}  # of mean and std
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
