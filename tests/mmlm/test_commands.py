"""The verbs on good and on bad input: an answer on stdout, or one line on stderr that says what is wrong."""

import copy
import json
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from mmlm import cli, commands
from mmlm.model import MultimodalLM

HUGE = b"P6 100000 100000 255\n"  # a header that announces more pixels than anyone has


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test starts in an empty folder, and leaves the environment as it was."""
    monkeypatch.chdir(tmp_path)
    for name in cli.ENVIRONMENT:
        monkeypatch.setenv(name, cli.ENVIRONMENT[name])


@pytest.fixture
def cat(tmp_path, picture):
    picture().save(tmp_path / "cat.png")
    return "cat.png"


@pytest.fixture
def run(tmp_path, make_model, tiny_decoder, tokenizer, open_gates, monkeypatch):
    """A saved run on a saved decoder; its backbone is the one of the tests."""
    tiny_decoder().save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    model = open_gates(make_model())
    model.config.decoder = str(tmp_path / "decoder")
    model.save_pretrained(tmp_path / "run")
    opened = MultimodalLM.from_pretrained.__func__
    backbone = copy.deepcopy(model.vision.backbones[0])
    monkeypatch.setattr(
        MultimodalLM, "from_pretrained", classmethod(lambda cls, name, **how: opened(cls, name, vision=backbone, **how))
    )
    return "run"


def one_line(capsys):
    """The one line of stderr; nothing is on stdout."""
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("mmlm: ") and said.err.count("\n") == 1, said
    assert "Traceback" not in said.err
    return said.err[len("mmlm: ") : -1]


def refused(capsys, *words):
    assert cli.main(list(words)) == 1
    return one_line(capsys)


def test_ask_prints_the_answer(run, cat, capsys):
    assert cli.main(["ask", cat, "what is it?", "--model", run, "--max-new-tokens", "5"]) == 0
    said = capsys.readouterr().out.rstrip("\n")
    model = MultimodalLM.from_pretrained(run)
    assert said.strip() == model.ask(cat, "what is it?", max_new_tokens=5, do_sample=False)


def test_caption_prints_a_line_for_each_image(run, cat, picture, capsys):
    picture(seed=1).save("dog.png")
    assert cli.main(["caption", cat, "--model", run, "--max-new-tokens", "4"]) == 0
    alone = capsys.readouterr().out
    assert cli.main(["caption", cat, "dog.png", "--model", run, "--max-new-tokens", "4"]) == 0
    both = capsys.readouterr().out
    assert both.startswith(f"cat.png: {alone}") and "dog.png: " in both


def test_the_model_is_moved_to_the_gpu_if_there_is_one(run, monkeypatch):
    """The meta device stands for it."""
    monkeypatch.setattr("mmlm.decoder.fast_device", lambda: torch.device("meta"))
    assert commands._open(Namespace(model=run, ocr=None), []).device.type == "meta"


def bad_images(folder, picture):
    picture().save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    for name, content in (
        ("empty.png", b""),
        ("truncated.png", data[: len(data) // 2]),
        ("letter.txt", b"Dear Sir or Madam"),
        ("bomb.ppm", HUGE),
        ("zero.ppm", b"P6 0 7 255\n"),
    ):
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    return ["missing.png", "empty.png", "truncated.png", "letter.txt", "bomb.ppm", "zero.ppm", "folder.png"]


def test_a_bad_image_is_told_in_one_line_that_names_it(tmp_path, picture, capsys):
    for name in bad_images(tmp_path, picture):
        for words in (["ask", name, "what is it?"], ["caption", "whole.png", name]):
            assert name in refused(capsys, *words)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question(question, cat, capsys):
    assert "QUESTION is empty" in refused(capsys, "ask", cat, question)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "cat.png", "why?", "--modle", "run"], "unknown argument '--modle', did you mean '--model'?"),
        (["quickstart", "--train.step=5"], "unknown argument '--train.step', did you mean '--train.steps'?"),
        (["upcycle", "a", "b", "--expert", "4"], "unknown argument '--expert', did you mean '--experts'?"),
        (["upcycle", "a", "b", "--experts", "four"], "argument --experts: invalid int value: 'four'"),
        (
            ["ask", "cat.png", "why?", "--max-new-tokens", "0"],
            "argument --max-new-tokens: '0' is no whole number from 1 on",
        ),
        (
            ["caption", "cat.png", "--max-new-tokens", "4.5"],
            "argument --max-new-tokens: '4.5' is no whole number from 1 on",
        ),
        (["ask", "cat.png"], "the following arguments are required: QUESTION"),
    ],
)
def test_misuse(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert one_line(capsys).startswith(message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--train.steps=many", "config field 'train.steps' takes int, not 'many'"),
        ("--train.steps=[", "--train.steps: '[' is no value: "),
        ("--seed=1.5", "config field 'seed' takes int, not 1.5"),
    ],
)
def test_a_setting_of_the_wrong_type(word, message, tmp_path, capsys):
    assert refused(capsys, "quickstart", word).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_there_is_not_touched(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    message = refused(capsys, "quickstart", "--run", "run")
    assert "run: a run is there already" in message and "--resume" in message and "--overwrite" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_no_run_yet(cat, capsys, monkeypatch):
    assert refused(capsys, "caption", cat).startswith("runs/quickstart: no such folder, and the hub was not asked")


def test_a_folder_without_an_adapter(cat, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    message = "empty: no saved adapter in it (config.json and model.safetensors missing)"
    assert refused(capsys, "ask", cat, "why?", "--model", "empty") == message
    assert "no such folder" in refused(capsys, "ask", cat, "why?", "--model", str(tmp_path / "nowhere"))


def test_a_half_copied_adapter(run, cat, tmp_path, capsys):
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors: damaged" in refused(capsys, "caption", cat, "--model", run)


def test_an_adapter_of_a_newer_mmlm(run, cat, tmp_path, capsys):
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert "format 99 unknown to this mmlm" in refused(capsys, "caption", cat, "--model", run)


def test_an_adapter_on_another_decoder(run, cat, tmp_path, tiny_decoder, capsys):
    tiny_decoder(seed=1).save_pretrained(tmp_path / "decoder")
    assert "trained on other decoder weights" in refused(capsys, "caption", cat, "--model", run)


def test_upcycle_refuses_what_is_there_and_what_is_not(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert "there: exists already" in refused(capsys, "upcycle", "decoder", "there")
    (tmp_path / "hollow").mkdir()
    assert "decoder='hollow' cannot be loaded" in refused(capsys, "upcycle", "hollow", "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new-*"))


def test_debug_shows_where(tmp_path, capsys):
    assert cli.main(["caption", "missing.png", "--debug"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n") and "ImageError" in said


def test_ctrl_c_while_answering(run, cat, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MultimodalLM, "caption", interrupted)
    assert cli.main(["caption", cat, "--model", run]) == 130
    assert capsys.readouterr().err.endswith("mmlm: interrupted: what was finished is kept\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "no.png", "why?"], "no.png: no such file; check the path"),
        (["ask", "cat.png", "why?", "--model", "runs/quikstart"], "runs/quikstart: no such folder, and the hub "),
        (["caption", "cat.png", "--model", "runs", "--ocr", "eyes"], "ocr='eyes': takes 'rapidocr', '' for none"),
    ],
)
def test_a_mistyped_name_is_told_before_torch_is_loaded(words, message, cat, tmp_path):
    (tmp_path / "runs").mkdir()
    code = f"import sys; from mmlm.cli import main; main({words}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr.startswith(f"mmlm: {message}") and done.stderr.count("\n") == 1
