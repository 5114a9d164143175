"""The feature cache: what a frozen encoder gives for an image is computed once and kept on disk.

One safetensors file an image, named by a hash of its pictures as the backbone is shown them, in a folder named by a
hash of the vision settings and weights: whatever changes on the way there changes the name. Files are written under a
temporary name and renamed, so a kill or a second writer leaves whole files only.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vision.encoder import Features, Prepared, VisionEncoder, prepare
from vision.files import whole_file
from vision.images import ImageError, Lazy, opened

FORM = 2  # of what encoders make of the same pictures; counts up when they make something else


class FeatureCache:
    """Features of images, encoded at most once.

    Args:
        encoder: what encodes them.
        folder: where they are kept; created if absent.
    """

    def __init__(self, encoder: VisionEncoder, folder: str | os.PathLike[str]) -> None:
        self.encoder = encoder
        self.folder = Path(folder) / settings_key(encoder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, image: Lazy) -> str:
        """Makes sure that the image's features are on disk, and returns the key to `load` them by.

        ImageError if it cannot be opened.
        """
        ready = prepare(opened(image), self.encoder.pyramid, self.encoder.detail)
        return self._known(ready) or self._write(ready, self.encoder.encode_ready([ready])[0])

    def add_all(self, images: Iterable[Lazy]) -> Iterator[str | ImageError]:
        """As `add`, of many images at once: their keys in order, as they are done, an error in the place of a key."""
        return self.encoder.through(images, self._known, self._write)

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

    def _known(self, ready: Prepared) -> str | None:
        return ready.key if self._path(ready.key).exists() else None

    def _write(self, ready: Prepared, features: Features) -> str:
        tensors = {f"values{i}": value.cpu().contiguous() for i, value in enumerate(features.values)}
        tensors |= {f"places{i}": place.to(torch.int16) for i, place in enumerate(features.places)}
        with whole_file(self._path(ready.key)) as draft:
            draft.write_bytes(save(tensors))  # save_file would make a file for its owner alone
        return ready.key


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
