"""Data sets by name: the usual split and prompt, unless others are said, and runs over small ones."""

import json
from pathlib import Path

import pytest
from layouts import LAYOUTS

from eval.benchmarks import BENCHMARKS
from eval.settings import EvalConfig
from eval.tasks import TASKS
from mmlm.data.named import SETS

SHORT = "{question}\nAnswer the question using a single word or phrase."


def test_each_data_set_has_what_is_usual():
    assert BENCHMARKS.keys() == SETS.keys()
    for name, its in BENCHMARKS.items():
        assert its.split in SETS[name].splits and its.split == LAYOUTS[name].split
        TASKS[its.task].check_prompt(its.prompt or "{question}")
        assert its.shots in SETS[name].splits if len(SETS[name].splits) > 1 else its.shots is None
        assert its.shots != its.split


@pytest.mark.parametrize(
    ("name", "split", "prompt"),
    [
        ("coco-karpathy", "test", None),
        ("nocaps", "val", None),
        ("flickr30k", "test", None),
        ("vqav2", "val", SHORT),
        ("okvqa", "val", SHORT),
        ("textvqa", "val", SHORT),
        (
            "vizwiz",
            "val",
            SHORT.replace("\n", "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"),
        ),
        ("gqa", "testdev_balanced", SHORT),
        ("easy-vqa", "test", None),
    ],
)
def test_what_is_said_stands_and_the_rest_is_usual(name, split, prompt):
    task = BENCHMARKS[name].task
    config = EvalConfig(task, "runs/mine", f"{name}:/data/some.folder")
    assert (config.split, config.prompt) == (split, prompt)
    assert config.folder == Path("runs", "eval", f"{task}-mine-{name}-{split}")
    config = EvalConfig(task, "runs/mine", f"{name}:/data", split="train", prompt="{question}?")
    assert (config.split, config.prompt) == ("train", "{question}?")
    other = ({*TASKS} - {task}).pop()
    with pytest.raises(ValueError, match=rf"{name} is not for `mmlm eval {other}`; take `mmlm eval {task}`"):
        EvalConfig(other, "runs/mine", f"{name}:/data")


@pytest.mark.parametrize(
    ("data", "more", "source", "split"),
    [
        ("vqav2:/data", {}, "vqav2:/data", "train"),
        ("gqa:/data", {"split": "val_all"}, "gqa:/data", "train_balanced"),
        ("vqav2:/data", {"shots_split": "val"}, "vqav2:/data", "val"),
        ("okvqa:/data", {"shots_from": "vqav2:/data"}, "vqav2:/data", "train"),
        ("okvqa:/data", {"shots_from": "train.jsonl"}, "train.jsonl", None),
        ("val.jsonl", {"shots_from": "vqav2:/data", "format": "jsonl"}, "vqav2:/data", "train"),
        ("owner/data", {"split": "test", "subset": "some"}, "owner/data", "test"),
    ],
)
def test_examples_are_of_the_split_to_train_on(data, more, source, split):
    examples = EvalConfig("vqa", "runs/mine", data, shots=4, **more).examples
    assert (examples.data, examples.split) == (source, split)
    assert (examples.format, examples.subset) == (None, more.get("subset"))


def test_nocaps_has_no_other_split():
    assert EvalConfig("caption", "runs/mine", "nocaps:/data", shots=4).examples.split == "val"


@pytest.mark.parametrize(
    "data", ["vqav2", "data/vqav2", "vqav2/questions.json", "https://vqav2:80/x.json", "owner/gqa"]
)
def test_other_data_have_no_usual_split(data):
    config = EvalConfig("caption", "runs/mine", data)
    assert config.split is config.prompt is None


def test_questions_are_asked_as_is_usual(evaluate, adapter, tmp_path):
    layout = LAYOUTS["vqav2"]
    evaluate("vqa", adapter, f"vqav2:{layout.write(tmp_path / 'data')}", tmp_path / "run")
    found = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_bytes().splitlines()]
    wanted = layout.samples(tmp_path / "data")
    assert [(line["id"], line["kind"], line["references"], line["images"]) for line in found] == [
        (sample.id, sample.kind, list(sample.references), list(sample.images)) for sample in wanted
    ]
    assert [line["question"] for line in found] == [SHORT.replace("{question}", sample.question) for sample in wanted]
    report = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (report["settings"]["split"], report["settings"]["prompt"]) == ("val", SHORT)
    assert report["kinds"].keys() == {"other", "yes/no"} and not report["broken"]
    evaluate("vqa", adapter, f"vqav2:{tmp_path / 'data'}", tmp_path / "run", "--resume", "--split", "val")


def test_captions_by_name(evaluate, adapter, tmp_path):
    layout = LAYOUTS["nocaps"]
    evaluate("caption", adapter, f"nocaps:{layout.write(tmp_path / 'data')}", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert report["n"] == 2 and report["kinds"].keys() == {"near-domain", "out-domain"}


def test_the_wrong_task_is_told_before_anything_is_loaded(evaluate, tmp_path, capsys):
    evaluate("caption", "nowhere/at/all", f"vqav2:{tmp_path}", tmp_path / "run", status=1)
    assert "vqav2 is not for `mmlm eval caption`; take `mmlm eval vqa`" in capsys.readouterr().err
