"""Data sets by name: official files, small and written by hand, are read from where archives leave them."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data_verb import run
from layouts import LAYOUTS, captions

from mmlm.data import SampleError, open_data
from mmlm.data.named import SETS
from mmlm.data.official import kind_of
from vision.images import open_image

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(params=LAYOUTS)
def known(request, here):
    """The name of a data set, and its split, which is here."""
    layout = LAYOUTS[request.param]
    return f"{request.param}:{layout.write(here)}", layout


def test_each_is_known_and_tried():
    assert LAYOUTS.keys() == SETS.keys()


def test_official_files_are_read(known, here):
    source, layout = known
    rows = open_data(source, split=layout.split)
    wanted = layout.samples(here)
    assert list(rows) == wanted and rows.name == source
    assert len({sample.id for sample in wanted}) == len(wanted)
    assert {open_image(image).height for sample in wanted for image in sample.images} == {24}


def test_the_folder_may_be_named_from_here_or_from_home(known, here, monkeypatch):
    (name, _, _), layout = known[0].partition(":"), known[1]
    assert list(open_data(f"{name}:.", split=layout.split)) == layout.samples(Path())
    monkeypatch.setenv("HOME", str(here))
    assert list(open_data(f"{name}:~", split=layout.split)) == layout.samples(here)


def test_images_may_be_elsewhere(known, here, tmp_path_factory):
    source, layout = known
    other = tmp_path_factory.mktemp("other")
    for name in layout.images:
        shutil.move(name, other)
    shutil.rmtree(Path(layout.images[0]).parent)
    with pytest.raises(FileNotFoundError, match="not there"):
        open_data(source, split=layout.split)
    rows = open_data(source, split=layout.split, images=other)
    wanted = [str(other / Path(*sample.images).name) for sample in layout.samples(here)]
    assert [image for sample in rows for image in sample.images] == wanted


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("coco-karpathy", {"dataset_coco.json": "caption_datasets/dataset_coco.json", "val2014": "images/val2014"}),
        ("nocaps", {"validation": "images"}),
        ("nocaps", {"validation": "val"}),
        ("nocaps", {"validation": "images/val"}),
        ("flickr30k", {"flickr30k-images": "flickr30k_images"}),
        (
            "vqav2",
            {
                "v2_mscoco_val2014_annotations.json": "annotations/v2_mscoco_val2014_annotations.json",
                "val2014": "images/val2014",
            },
        ),
        ("textvqa", {"train_images": "images/train_images"}),
        ("vizwiz", {"Annotations/val.json": "val.json", "val": "images/val"}),
        ("gqa", {"testdev_balanced_questions.json": "questions1.2/testdev_balanced_questions.json"}),
        ("gqa", {"images": "allImages/images"}),
        ("easy-vqa", {"data": "easy_vqa/data"}),
        ("easy-vqa", {"data/test": "test"}),
    ],
)
def test_they_may_be_unpacked_in_other_ways(name, moved, here):
    layout = LAYOUTS[name]
    layout.write(here)
    wanted = [(sample.id, Path(*sample.images).name) for sample in layout.samples(here)]
    for old, new in moved.items():
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        os.rename(old, new)
    rows = open_data(f"{name}:{here}", split=layout.split)
    assert [(sample.id, Path(*sample.images).name) for sample in rows] == wanted
    assert all(Path(*sample.images).is_file() for sample in rows)


def test_what_is_lacking_is_told_at_once_with_where_it_comes_from(known, here):
    source, layout = known
    name = source.partition(":")[0]
    files = [*layout.files, os.path.dirname(layout.images[0])]
    assert len(files) == len(layout.archives)
    for file, archive in zip(files, layout.archives, strict=True):
        os.rename(file, "away")
        with pytest.raises(FileNotFoundError) as raised:
            open_data(source, split=layout.split)
        said = str(raised.value)
        assert said.startswith(f"{source}: not there: {here}") and said.count("(from ") == 1
        assert f"{here / file}" in said and f"(from {archive})" in said and SETS[name].page in said
        os.rename("away", file)
    for number, file in enumerate(files):
        os.rename(file, f"away{number}")
    with pytest.raises(FileNotFoundError) as raised:
        open_data(source, split=layout.split)
    assert all(f"(from {archive})" in str(raised.value) for archive in layout.archives)


def test_a_split_is_to_be_said(known):
    source, layout = known
    there = ", ".join(map(repr, SETS[source.partition(":")[0]].splits))
    with pytest.raises(ValueError, match=rf": which split is meant\? there are {there}: split= \(--split\)"):
        open_data(source)
    with pytest.raises(ValueError, match=rf": split='tset' is not there; there are {there}: split= \(--split\)"):
        open_data(source, split="tset")
    assert repr(layout.split) in there


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, its in SETS.items() for split in its.hidden])
def test_a_split_with_hidden_answers_is_refused(name, split, here):
    there = list(SETS[name].splits)
    with pytest.raises(ValueError, match=rf"split='{split}' has no answers, .* there are .*'{there[-1]}'"):
        open_data(f"{name}:{here}", split=split)


@pytest.mark.parametrize("option", ["format", "annotations", "subset"])
def test_what_a_name_says_is_not_said_again(option, known):
    with pytest.raises(ValueError, match=rf"known by its name; leave {option}= \(--{option}\) out"):
        open_data(known[0], **{"split": known[1].split, option: "json"})


def test_a_missing_image_is_told_when_it_is_read(known, here):
    source, layout = known
    os.remove(layout.images[0])
    rows = open_data(source, split=layout.split)
    (first,) = rows[0].images
    with pytest.raises(ValueError, match=Path(layout.images[0]).name):
        open_image(first)
    assert len(rows) == len(layout.rows)


def test_a_damaged_file_is_named(known):
    source, layout = known
    for file in layout.files:
        whole = Path(file).read_bytes()
        for text, why in ((whole[:-2], "not JSON"), (b'{"a": 1}', "no "), (b"7", "no ")):
            Path(file).write_bytes(text)
            with pytest.raises(ValueError, match=rf"{Path(file).name}.*: .*{why}"):
                open_data(source, split=layout.split)
        Path(file).write_bytes(whole)


def test_karpathys_rest_of_the_validation_images_is_for_training(here):
    layout = LAYOUTS["coco-karpathy"]
    layout.write(here)
    source = f"coco-karpathy:{here}"
    with pytest.raises(FileNotFoundError, match=r"train2014 .*\(from train2014.zip\)"):
        open_data(source, split="train")
    (here / "train2014").mkdir()
    wanted = captions("train2014/COCO_train2014_000000000002.jpg", 2, "A train.")
    wanted += captions("val2014/COCO_val2014_000000000003.jpg", 3, "Two dogs.", "Dogs run.")
    assert list(open_data(source, split="train")) == replace(layout, rows=wanted).samples(here)
    assert [sample.answer for sample in open_data(source, split="val")] == ["A bowl."]


def test_a_split_without_a_row_is_told(here):
    LAYOUTS["flickr30k"].write(here)
    with pytest.raises(ValueError, match="empty, not one row"):
        open_data(f"flickr30k:{here}", split="val")


def test_a_broken_question_is_a_broken_row(here):
    layout = LAYOUTS["gqa"]
    ((file, whole),) = layout.files.items()
    layout.write(here)
    for field, said in (("imageId", "image: '' names no image"), ("answer", "without an answer"), ("question", "said")):
        broken = {name: value for name, value in whole["201307251"].items() if name != field}
        replace(layout, files={file: whole | {"201307251": broken}}).write(here)
        rows = open_data(f"gqa:{here}", split="testdev_balanced")
        with pytest.raises(SampleError, match=rf"testdev_balanced_questions\.json, question 201307251: .*{said}"):
            rows[0]
        assert rows[1].answer == "woman"


def test_easy_vqa_is_in_its_package():
    package = pytest.importorskip("easy_vqa")
    for split, questions, paths in (
        ("train", package.get_train_questions(), package.get_train_image_paths()),
        ("test", package.get_test_questions(), package.get_test_image_paths()),
    ):
        rows = open_data("easy-vqa:", split=split)
        assert len(rows) == len(questions[0])
        for number in range(0, len(rows), 997):
            question, answer, image = (column[number] for column in questions)
            sample = rows[number]
            assert (sample.question, sample.answer, sample.images) == (question, answer, (paths[image],))
    assert [kind_of(answer) for answer in ("no", "triangle", "teal")] == ["yes/no", "shape", "color"]


def test_without_its_package_easy_vqa_tells_the_mend(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, "easy_vqa", raising=False)
    with pytest.raises(ImportError, match=r"easy-vqa comes with an extra: pip install"):
        open_data("easy-vqa:", split="test")


def test_folders_and_names_that_are_not_there_are_told(here):
    with pytest.raises(ValueError, match=r"vqav2:: its folder is not named; say vqav2:FOLDER"):
        open_data("vqav2:", split="val")
    with pytest.raises(FileNotFoundError, match=r"vqav2:nowhere: no such folder as nowhere"):
        open_data("vqav2:nowhere", split="val")
    with pytest.raises(
        FileNotFoundError, match=r"vqa2:.*: no such file or folder; check the path, or the name, of coco-"
    ):
        open_data(f"vqa2:{here}", split="val")


def test_data_by_name_are_checked_and_pruned(here, capsys):
    LAYOUTS["vizwiz"].write(here)
    assert run("check", f"vizwiz:{here}") == 1
    assert "which split is meant? there are 'train', 'val'" in capsys.readouterr().err
    assert run("check", f"vizwiz:{here}", "--split", "val") == 0
    assert run("prune", f"vizwiz:{here}", "out", "--split", "val") == 0
    assert [(one.id, one.kind, one.references) for one in open_data("out")] == [
        (sample.id, sample.kind, sample.references) for sample in LAYOUTS["vizwiz"].samples(here)
    ]
