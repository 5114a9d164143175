"""Data sets that are known by name: "vqav2:/data/vqa" is VQAv2, its official files unpacked in a folder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmlm.data.official import Official, easy_vqa, gqa, karpathy, nocaps, textvqa, vizwiz, vqa
from mmlm.data.row import RowReader
from mmlm.data.rows import Rows


@dataclass(frozen=True)
class Named:
    """A data set: what its files are called, where they come from, and what reads them.

    In names {split} stands for the split, {Split} for it with a capital, {part} for a folder of its images.
    """

    page: str
    """Where all comes from."""
    splits: Mapping[str, tuple[str, ...]]
    """Those with answers, and the folders of images that each takes."""
    files: Mapping[str, str]
    """Files, and what each is unpacked from."""
    archive: str
    """That a folder of images is unpacked from."""
    read: Callable[[Official], Rows]
    places: tuple[str, ...] = ("", "annotations")
    """Folders that files may be in."""
    images: tuple[str, ...] = ("{part}", "images/{part}")
    """What a folder of images may be."""
    hidden: tuple[str, ...] = ()
    """Splits whose answers only their authors know."""
    package: str = ""
    """That has the files in it, where no folder is named."""


COCO = {"train": ("train2014",), "val": ("val2014",)}
GQA = ("train_balanced", "val_balanced", "val_all", "testdev_balanced", "testdev_all")
SETS = {
    "coco-karpathy": Named(
        page="cs.stanford.edu/people/karpathy/deepimagesent and cocodataset.org",
        splits={"train": ("train2014", "val2014"), "val": ("val2014",), "test": ("val2014",)},
        files={"dataset_coco.json": "caption_datasets.zip"},
        archive="{part}.zip",
        read=karpathy,
        places=("", "caption_datasets", "annotations"),
    ),
    "nocaps": Named(
        page="nocaps.org and Open Images V4 (storage.googleapis.com/openimages)",
        splits={"val": ("validation",)},
        files={"nocaps_val_4500_captions.json": "nocaps.s3.amazonaws.com"},
        archive="validation.tar.gz",
        read=nocaps,
        images=("{part}", "images/{part}", "val", "images/val", "images"),
        hidden=("test",),
    ),
    "flickr30k": Named(
        page="cs.stanford.edu/people/karpathy/deepimagesent and shannon.cs.illinois.edu/DenotationGraph",
        splits=dict.fromkeys(("train", "val", "test"), ("flickr30k-images",)),
        files={"dataset_flickr30k.json": "caption_datasets.zip"},
        archive="{part}.tar.gz",
        read=karpathy,
        places=("", "caption_datasets", "annotations"),
        images=("{part}", "flickr30k_images", "images"),
    ),
    "vqav2": Named(
        page="visualqa.org/download.html",
        splits=COCO,
        files={
            "v2_OpenEnded_mscoco_{part}_questions.json": "v2_Questions_{Split}_mscoco.zip",
            "v2_mscoco_{part}_annotations.json": "v2_Annotations_{Split}_mscoco.zip",
        },
        archive="{part}.zip",
        read=vqa,
        hidden=("test", "test-dev"),
    ),
    "okvqa": Named(
        page="okvqa.allenai.org/download.html",
        splits=COCO,
        files={
            "OpenEnded_mscoco_{part}_questions.json": "OpenEnded_mscoco_{part}_questions.json.zip",
            "mscoco_{part}_annotations.json": "mscoco_{part}_annotations.json.zip",
        },
        archive="{part}.zip",
        read=vqa,
    ),
    "textvqa": Named(
        page="textvqa.org/dataset",
        splits=dict.fromkeys(("train", "val"), ("train_images",)),
        files={"TextVQA_0.5.1_{split}.json": "dl.fbaipublicfiles.com/textvqa/data"},
        archive="train_val_images.zip",
        read=textvqa,
        hidden=("test",),
    ),
    "vizwiz": Named(
        page="vizwiz.org/tasks-and-datasets/vqa",
        splits={"train": ("train",), "val": ("val",)},
        files={"{split}.json": "Annotations.zip"},
        archive="{part}.zip",
        read=vizwiz,
        places=("Annotations", "annotations", ""),
        hidden=("test",),
    ),
    "gqa": Named(
        page="cs.stanford.edu/people/dorarad/gqa/download.html",
        splits=dict.fromkeys(GQA, ("images",)),
        files={"{split}_questions.json": "questions1.2.zip"},
        archive="images.zip",
        read=gqa,
        places=("", "questions1.2", "questions"),
        images=("{part}", "allImages/{part}"),
        hidden=("test_balanced", "test_all", "challenge_balanced", "challenge_all", "submission_all"),
    ),
    "easy-vqa": Named(
        page="github.com/vzhou842/easy-VQA",
        splits={"train": ("train/images",), "test": ("test/images",)},
        files={"{split}/questions.json": "its folder easy_vqa/data"},
        archive="its folder easy_vqa/data",
        read=easy_vqa,
        places=("", "data", "easy_vqa/data"),
        images=("{part}", "data/{part}", "easy_vqa/data/{part}"),
        package="easy_vqa",
    ),
}
"""By name."""


def is_named(source: str) -> bool:
    """Is it the name of one, a colon, and a folder?"""
    name, colon, _ = source.partition(":")
    return bool(colon) and name in SETS


def open_named(
    source: str, split: str | None, images: str | os.PathLike[str] | None, read_by: Callable[[str], RowReader]
) -> Rows:
    """One split of a data set that is known by name.

    Args:
        images: folder that the official folders of images are in, or the images themselves.
        read_by: the reader of rows whose images are relative to a folder.

    ValueError, naming the splits there are, for another, or none: which of them is learnt is to be said.
    FileNotFoundError, naming all that is lacking and where it comes from; ImportError for a package that is.
    """
    its = SETS[source.partition(":")[0]]
    if split is None or split not in its.splits:
        asked = f"split={split!r} is not there;" if split else "which split is meant?"
        if split in its.hidden:
            asked = f"split={split!r} has no answers, which only its authors know;"
        raise ValueError(f"{source}: {asked} there are {', '.join(map(repr, its.splits))}: split= (--split)")
    folder, parts, lacking = home_of(source, its), its.splits[split], list[str]()

    def first(there: Callable[[Path], bool], paths: list[Path], archive: str) -> Path:
        if found := [path for path in paths if there(path)]:
            return found[0]
        lacking.append(f"{' or '.join(map(str, paths))} (from {archive})")
        return paths[0]

    said = {"split": split, "Split": split.capitalize(), "part": parts[0]}
    files = tuple(
        first(Path.is_file, [folder / place / name.format(**said) for place in its.places], archive.format(**said))
        for name, archive in its.files.items()
    )
    folders = {
        part: first(
            Path.is_dir,
            [folder / one.format(part=part) for one in its.images]
            if images is None
            else [Path(images, part), Path(images)],
            its.archive.format(part=part),
        )
        for part in parts
    }
    if lacking:
        raise FileNotFoundError(
            f"{source}: not there: {'; '.join(lacking)}; fetch them from {its.page}, or say where else the images are, "
            "images= (--images)"
        )
    return its.read(Official(source, split, files, folders, read_by))


def home_of(source: str, its: Named) -> Path:
    """The folder that a source names, or that of the data set's package."""
    name, _, folder = source.partition(":")
    if folder:
        path = Path(os.path.expanduser(folder))  # a shell does so only where a word begins
        if not path.is_dir():
            raise FileNotFoundError(f"{source}: no such folder as {path}; check the path")
        return path
    if not its.package:
        raise ValueError(f"{source}: its folder is not named; say {name}:FOLDER, with what {its.page} has in it")
    found = find_spec(its.package)
    if found is None or not found.submodule_search_locations:
        from mmlm.zoo import EXTRA  # here, since it imports torch

        raise ImportError(f"{name} {EXTRA}")
    return Path(found.submodule_search_locations[0])
