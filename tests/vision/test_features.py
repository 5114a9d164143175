"""The feature cache: encoded once, whole or not there, and never another encoder's."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vision import encoder as encoding
from vision import features
from vision.backbone import load_backbone
from vision.encoder import VisionEncoder, prepare
from vision.features import FeatureCache, settings_key
from vision.images import ImageError
from vision.pyramid import Level, Pyramid

ROOT = Path(__file__).parents[2]


class Counting(VisionEncoder):
    """An encoder that counts the images it encodes."""

    encoded = 0

    def encode_ready(self, ready):
        self.encoded += len(ready)
        return super().encode_ready(ready)


@pytest.fixture
def encoder(tiny_vision):
    return Counting(tiny_vision)


@pytest.fixture
def cache(encoder, tmp_path):
    return FeatureCache(encoder, tmp_path)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(one, other):
    assert len(one.values) == len(other.values) == len(one.places) == len(other.places)
    for mine, yours in zip(one.values + one.places, other.values + other.places, strict=True):
        assert mine.dtype == yours.dtype and mine.equal(yours)


def test_what_is_loaded_is_what_was_encoded(cache, picture):
    image = picture(size=(700, 300))
    assert_same(cache.load(cache.add(image)), cache.encoder.encode(image))


def test_an_image_is_encoded_once(cache, encoder, picture, tmp_path):
    path = tmp_path / "image.png"
    picture().save(path)
    assert cache.add(picture()) == cache.add(picture()) and encoder.encoded == 1
    keys = {cache.add(path), cache.add(str(path)), cache.add(path.read_bytes())}
    assert len(keys) == 1 and encoder.encoded == 2
    again = FeatureCache(encoder, tmp_path)
    assert again.add(path) in keys and next(again.add_all([path, picture()])) in keys and encoder.encoded == 2
    assert cache.add(picture(seed=1)) not in keys and encoder.encoded == 3


def test_a_file_that_is_known_is_not_decoded_again(cache, tmp_path, picture, monkeypatch):
    path = tmp_path / "image.png"
    picture().save(path)
    key = cache.add(path)
    monkeypatch.setattr(features, "prepare", None)
    monkeypatch.setattr(encoding, "prepare", None)
    assert cache.add(path) == key == next(cache.add_all([path]))


def test_the_key_is_of_what_the_backbone_is_shown(picture):
    def key(image, detail="high", pyramid=None):
        return prepare(image, pyramid or Pyramid(), detail).key

    image = picture(size=(600, 400))
    assert key(image) == key(image.copy()) == key(np.asarray(image))
    flat = image.copy()
    flat.putpixel((0, 0), (1, 2, 3))
    deep = Pyramid(tile=(Level(1, -1), Level(5, -1), Level(12, -1)))
    grey = [Image.new("RGB", size, (127, 127, 127)) for size in ((300, 300), (400, 400), (300, 150), (600, 300))]
    others = [key(flat), key(image, "low"), key(image, pyramid=deep), key(picture(size=(400, 600)))]
    others += [key(one) for one in (grey[0], *grey[2:])]  # of one colour with the padding
    assert len({key(image), *others}) == 8
    assert key(grey[0]) == key(grey[1])  # both fill the one picture


def test_size_grows_with_the_embeddings(cache, picture):
    small, large = (cache.size(cache.add(picture(size=size))) for size in ((300, 100), (1024, 1024)))
    assert large > 3 * small


def test_bf16_features_are_kept_as_they_are(tiny_vision, tmp_path, picture):
    backbone = copy.deepcopy(tiny_vision)
    backbone.maps.to(torch.bfloat16)
    cache = FeatureCache(VisionEncoder(backbone), tmp_path)
    assert cache.load(cache.add(picture())).values[0].dtype == torch.bfloat16


def test_other_settings_or_weights_have_another_folder(tiny_vision):
    other_weights = copy.deepcopy(tiny_vision)
    with torch.no_grad():
        next(other_weights.parameters())[0, 0, 0, 0] += 1e-3
    other_name = copy.deepcopy(tiny_vision)
    other_name.name = "timm/another"
    other_dtype = copy.deepcopy(tiny_vision)
    other_dtype.maps.to(torch.bfloat16)
    encoders = [
        VisionEncoder(tiny_vision),
        VisionEncoder(tiny_vision, detail="low"),
        VisionEncoder(tiny_vision, Pyramid(tile=(Level(1, -1), Level(5, -2), Level(12, -2)))),
        VisionEncoder(other_weights),
        VisionEncoder(other_name),
        VisionEncoder(other_dtype),
    ]
    keys = [settings_key(encoder) for encoder in encoders]
    assert len(set(keys)) == len(keys)
    assert keys[0] == settings_key(VisionEncoder(copy.deepcopy(tiny_vision)))


def test_built_networks_of_the_same_weights_that_give_other_maps_have_other_folders():
    network = timm.create_model("test_resnet")
    encoders = []
    for given in ({}, {"output_stride": 8}, {"out_indices": (2, 4)}, {"out_indices": (3, 4)}):
        other = timm.create_model("test_resnet", features_only=True, **given)
        other.load_state_dict(network.state_dict(), strict=False)
        encoders.append(VisionEncoder(load_backbone(other)))
    states = [encoder.state_dict() for encoder in encoders]
    assert all(state.keys() == states[0].keys() for state in states)
    assert len({settings_key(encoder) for encoder in encoders}) == len(encoders)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 99])
def test_a_damaged_file_is_told_and_removed(damage, cache, encoder, picture):
    key = cache.add(picture())
    (path,) = files(cache.folder)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name}: damaged, and removed; run the same again"):
        cache.load(key)
    assert not path.exists()
    assert cache.add(picture()) == key and encoder.encoded == 2
    cache.load(key)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_umasks_mode(umask, cache, picture):
    kept = os.umask(umask)
    try:
        cache.add(picture())
    finally:
        os.umask(kept)
    (path,) = files(cache.folder)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_image_that_cannot_be_opened_leaves_nothing(cache):
    with pytest.raises(ImageError):
        cache.add(b"not an image")
    assert not files(cache.folder)


def test_a_failed_write_leaves_nothing(cache, picture, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        cache.add(picture())
    assert not files(cache.folder)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy, timm, torch
    from vision import features
    from vision.backbone import load_backbone
    from vision.encoder import VisionEncoder

    def half(path, data):
        whole(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    whole, Path.write_bytes = Path.write_bytes, half
    torch.manual_seed(0)
    encoder = VisionEncoder(load_backbone(timm.create_model("test_efficientnet", features_only=True)))
    features.FeatureCache(encoder, sys.argv[1]).add(numpy.zeros((64, 96, 3), dtype=numpy.uint8))
"""


def test_a_kill_in_the_middle_leaves_nothing_taken_for_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (left,) = files(tmp_path)
    assert left.suffix == ".part"  # half a file, under a name that no key has


def test_two_writers_leave_one_whole_file(tiny_vision, tmp_path, picture):
    caches = [FeatureCache(VisionEncoder(tiny_vision), tmp_path) for _ in range(4)]
    image = picture()
    features = caches[0].encoder.encode(image)
    ready = prepare(image, Pyramid(), "high")
    key = ready.key
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda cache: cache._write(image, ready, features), caches * 8))
    assert [path.name for path in files(tmp_path)] == [f"{key}.safetensors"]
    assert_same(caches[0].load(key), features)


def test_what_was_not_used_for_longest_makes_room(encoder, tmp_path, picture):
    """But not what was used a moment ago: somebody may be about to read it."""
    cache = FeatureCache(encoder, tmp_path)
    keys = [cache.add(picture(seed)) for seed in range(6)]
    size, now = cache.size(keys[0]), time.time()
    for age, key in enumerate(keys):
        os.utime(cache._path(key), (now, now - 3600 * age))
    cache.add(picture(5))  # the oldest, used again

    FeatureCache(encoder, tmp_path, limit=7 * size)
    assert len(files(tmp_path)) == 6
    limited = FeatureCache(encoder, tmp_path, limit=4 * size)
    left = {path.stem for path in files(tmp_path)}
    assert left == {keys[0], keys[1], keys[5]}, "nine tenths of four"
    for key in keys[:2]:
        os.utime(cache._path(key), (now, now - 3600))
    limited.add(picture(6))
    assert {path.stem for path in files(tmp_path)} == left | {limited.add(picture(6))}
    limited.add(picture(7))  # two new, each more than a twentieth: room is made
    assert not {keys[0], keys[1]} <= {path.stem for path in files(tmp_path)}
    FeatureCache(encoder, tmp_path, limit=0)
    assert {path.stem for path in files(tmp_path)} >= {keys[5]}, "the young stay"
