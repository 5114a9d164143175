"""`mmlm finetune` on real files: from a folder of pairs to an adapter, whatever happens on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS
from quantized import INT4, INT8, PLAIN
from safetensors.torch import load_file

import mmlm
from finetune import loop
from finetune.checkpoint import checkpoints, read, step_of
from finetune.folder import METRICS
from mmlm import cli

ROOT = Path(__file__).parents[2]


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_from_a_folder_of_pairs_to_an_adapter(write, pairs, tmp_path, capsys):
    held = {"every": 4, "samples": 5, "cards": 3}
    assert cli.main(["finetune", *write(held_out=str(pairs), score=held)]) == 0
    run, said = tmp_path / "run", capsys.readouterr()
    assert f"{pairs}: 12 samples\n" in said.err and f"mmlm caption IMAGE --model {run}" in said.out
    scored = [line for line in lines(run) if "score" in line]
    assert [line["step"] for line in scored] == [4, 8]
    assert all(line["score"] == -line["held_out_loss"] and "held_out_loss_shuffled" in line for line in scored)
    assert (run / "samples.html").read_text().count("<figure>") == 3
    model = mmlm.MultimodalLM.from_pretrained(run)
    assert model.config.data == [str(pairs)] and model.config.scores.keys() == scored[-1].keys() - {"step", "score"}
    assert isinstance(model.caption(pairs / "00.png", max_new_tokens=3), str)
    assert cli.main(["finetune", *write()]) == 1
    assert "a run is there already; --resume goes on with it" in capsys.readouterr().err


def test_data_by_name_are_learnt_from_the_split_that_is_said(write, tmp_path, capsys):
    source = f"vizwiz:{LAYOUTS['vizwiz'].write(tmp_path / 'data')}"
    assert cli.main(["finetune", *write(data=[{"path": source, "split": "val"}], steps=2)]) == 0
    assert f"{source}: 2 samples\n" in capsys.readouterr().err
    assert mmlm.MultimodalLM.from_pretrained(tmp_path / "run").config.data == [source]
    assert cli.main(["finetune", *write(data=source, steps=2), "--overwrite"]) == 1
    assert f"{source}: which split is meant? there are 'train', 'val'" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["caption", "vqa"])
def test_scores_of_choice(by, write, pairs, tmp_path):
    score = {"every": 2, "by": by, "samples": 4, "cards": 0, "take": "best"}
    assert cli.main(["finetune", *write(held_out=str(pairs), score=score, steps=4)]) == 0
    name = {"caption": "cider", "vqa": "vqa_accuracy"}[by]
    (first, last) = [line for line in lines(tmp_path / "run") if "score" in line]
    assert first.keys() == last.keys() == {"step", "score", name, f"{name}_shuffled"}
    assert not (tmp_path / "run" / "samples.html").exists()


def test_the_best_weights_are_saved_if_asked_for(write, pairs, tmp_path):
    """With their scores. What is held out is so unlike what is learnt that it gets worse."""
    score = {"every": 1, "samples": 4, "cards": 0, "take": "best"}
    row = {"image": str(pairs / "00.png"), "text": "~~||^^{}{}"}
    (tmp_path / "held.jsonl").write_text(json.dumps(row))
    held = str(tmp_path / "held.jsonl")
    words = write(held_out=held, score=score, steps=5, save_every=1, keep=9, optim={"lr": 0.05, "warmup": 1})
    assert cli.main(["finetune", *words]) == 0
    run = tmp_path / "run"
    scored = [line for line in lines(run) if "score" in line]
    best = max(scored, key=lambda line: line["score"])
    assert best["step"] < 5, "else it tells nothing"
    (path,) = [path for path in checkpoints(run) if step_of(path) == best["step"]]
    saved = load_file(run / "model.safetensors")
    assert all(saved[name].equal(value) for name, value in read(path)["trained"].items())
    config = mmlm.MultimodalLM.from_pretrained(run).config
    assert config.scores == {name: best[name] for name in ("held_out_loss", "held_out_loss_shuffled")}
    (run / "model.safetensors").unlink()
    assert cli.main(["finetune", *words, "--resume"]) == 0
    assert mmlm.MultimodalLM.from_pretrained(run).config.scores == config.scores, "resumed, nothing was scored again"


def test_texts_alone_are_each_shown_by_themselves(write, pairs, tmp_path):
    rows = [{"question": f"what is {n}?", "answer": "a number"} for n in range(9)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = write(data=[str(pairs), str(tmp_path / "texts.jsonl")], steps=0, epochs=1)
    assert cli.main(["finetune", *words]) == 0
    assert lines(tmp_path / "run")[-1]["step"] == 3 + 3


def test_what_cannot_be_leaves_an_earlier_run_alone(write, pairs, tmp_path, capsys):
    assert cli.main(["finetune", *write(steps=2)]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.png").write_bytes(b"no image")
    (tmp_path / "held" / "a.txt").write_text("a thing")
    for words in (
        ["--trackers", "tensorbord"],
        ["--held_out", str(tmp_path / "held")],
        ["--batch.passes", "9"],
        ["--longest", "2"],
        ["--score.take", "best"],
        ["--model.unfreeze", "['vision.*']"],
    ):
        assert cli.main(["finetune", *write(steps=2), *words, "--overwrite"]) == 1, words
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_several_data_sets_in_their_shares(write, pairs, tmp_path, capsys):
    rows = [{"image": str(pairs / f"{n:02}.png"), "question": "what is it?", "answer": "a shape"} for n in range(4)]
    rows += [{"image": "nowhere.png", "question": "what is it?", "answer": "a shape"}, {"image": "a.png"}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"path": str(pairs), "weight": 3}, str(tmp_path / "more.jsonl")]
    assert cli.main(["finetune", *write(data=data, steps=0, epochs=2)]) == 0
    said = capsys.readouterr().err
    assert f"{pairs}: 12 samples\n" in said
    assert re.search(r"more.jsonl: 4 samples, 2 left out:\n  \S+more.jsonl, line 5: .*nowhere.png: no such file", said)
    assert lines(tmp_path / "run")[-1]["step"] == 2 * (3 + 1), "of four images a batch"


@pytest.mark.parametrize(("how", "others"), [(INT8, [PLAIN, INT4]), (INT4, [PLAIN, INT8])], ids=["int8", "int4"])
def test_an_adapter_of_a_quantized_decoder_fits_that_alone(how, others, write, parts, pairs, tmp_path, capsys):
    pytest.importorskip("torchao")
    assert cli.main(["finetune", *write(steps=4, model=parts | {"decoder_kwargs": how})]) == 0
    run = tmp_path / "run"
    for other in others:
        with pytest.raises(ValueError, match="other decoder weights than those loaded"):
            mmlm.MultimodalLM.from_pretrained(run, decoder_kwargs=other)
    model = mmlm.MultimodalLM.from_pretrained(run)
    assert type(model.decoder.model.layers[1].self_attn.q_proj.weight).__module__.startswith("torchao")
    assert isinstance(model.caption(pairs / "00.png", max_new_tokens=3), str)
    assert cli.main(["caption", str(pairs / "00.png"), "--model", str(run), "--max-new-tokens", "3"]) == 0
    further = {"adapter": str(run)}
    assert cli.main(["finetune", *write("further", steps=2, model=further, calibrate=0)]) == 0
    assert cli.main(["finetune", *write("other", model=further | {"decoder_kwargs": PLAIN})]) == 1
    assert "other decoder weights than those loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({"data": []}, [], "data: nothing to learn from; name a folder"),
        ({"data": [{"weight": 2}]}, [], "data[0]: a data set without its path"),
        ({"data": [{"path": "a", "wait": 2}]}, [], "unknown config field 'data[0].wait'; did you mean data[0].weight?"),
        ({"data": "nowhere/at/all"}, [], "nowhere/at/all"),
        ({"steps": "many"}, [], "config field 'steps' takes int, not 'many'"),
        ({}, ["--resume"], "no run is there to go on with"),
        ({}, ["--trouble", "look away"], "config field 'trouble' is stop or skip, not 'look away'"),
        ({}, ["--model.decoder", "nowhere/at-all/x"], "nowhere/at-all/x"),
        ({"model": {"adapter": "a/b", "start": 3}}, [], "model.start: of the saved adapter a/b it is what it was"),
        ({"held_out": [{"path": "a", "weight": 2}]}, [], "held_out[0].weight: held-out samples are drawn alike"),
        ({"denoise": {"r": 0, "x": 0, "s": 0}}, ["--denoise.share", "0.5"], "denoise.share: 0.5, and r, x and s are 0"),
        (
            {"model": {"tensor_parallel": 2}},
            [],
            "model.tensor_parallel: 2 of 1 processes: launch 2, or a multiple of it",
        ),
        ({"longest": 3}, [], "none of its 12 rows can be learnt from; the first: "),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(settings, words, message, write, tmp_path, capsys):
    assert cli.main(["finetune", *write(**settings), *words]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mmlm: ") and message in said
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_settings_and_data(write, pairs, tmp_path, capsys):
    data = tmp_path / "mine"
    data.mkdir()
    for path in pairs.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    words = write(data=str(data))
    assert cli.main(["finetune", *words]) == 0
    wanted = weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert cli.main(["finetune", *words, "--resume", "auto", "--log_every", "1"]) == 0
    assert weights(tmp_path / "run") == wanted
    assert cli.main(["finetune", *words, "--resume", "--optim.lr", "1"]) == 1
    assert "--optim.lr is 0.001" in capsys.readouterr().err
    (data / "00.png").unlink()
    assert cli.main(["finetune", *words, "--resume"]) == 1
    assert f"{data}: 11 rows, and 12 when the run began; put back what it was" in capsys.readouterr().err


@pytest.mark.slow
def test_captions_are_denoised_if_asked_for(write, tmp_path, capsys, monkeypatch):
    """It learns, otherwise than without, and stopped it goes on to the same bytes."""
    settings = {"steps": 40, "save_every": 20, "log_every": 1, "optim": {"lr": 5e-3}}
    assert cli.main(["finetune", *write("plain", **settings)]) == 0
    words = ["--denoise.share", "1", "--denoise.x", "0.5"]
    assert cli.main(["finetune", *write("whole", **settings), *words]) == 0
    losses = [line["loss"] for line in lines(tmp_path / "whole")]
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8]), losses
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")

    own, steps = loop.learnt_loss, []

    def learnt_loss(*args):
        steps.append(1)
        if len(steps) == 27:
            raise KeyboardInterrupt
        return own(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "learnt_loss", learnt_loss)
        assert cli.main(["finetune", *write("stopped", **settings), *words]) != 0
    assert cli.main(["finetune", *write("stopped", **settings), "--resume"]) == 1
    assert "--denoise.share is 1.0 in" in capsys.readouterr().err
    assert cli.main(["finetune", *write("stopped", **settings), *words, "--resume"]) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_an_adapter_is_trained_further(write, tmp_path):
    assert cli.main(["finetune", *write(steps=2)]) == 0
    assert (
        cli.main(["finetune", *write("further", steps=2, model={"adapter": str(tmp_path / "run")}, calibrate=0)]) == 0
    )
    first, then = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "further"))
    moved = [name for name in first if not first[name].equal(then[name])]
    assert moved and all((first[name] - then[name]).abs().max() < 0.05 for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes", "steps"), [(20, 1, 260), (5, 2, 60)])
def test_a_run_that_is_killed_ends_as_one_that_was_not(kills, processes, steps, write, tmp_path):
    """SIGKILL, at random and amid the writing of checkpoints; over many epochs of three batches."""
    ends = []
    for count in (0, kills):
        settings = {"steps": steps, "save_every": 1, "optim": {"lr": 3e-3}}
        words = [*write(f"killed {count}", **settings), "--resume", "auto"]
        folder = tmp_path / f"killed {count}"
        given = map(json.dumps, (words, str(folder), count, processes))
        killing = [sys.executable, ROOT / "tests/finetune/killing.py", *given]
        done = subprocess.run(killing, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        killed, halves = json.loads(done.stdout)
        assert killed == count and halves >= count // 4
        ends.append((weights(folder), [line | UNTOLD for line in lines(folder)]))
    assert ends[0] == ends[1]


UNTOLD = {"learnt_tokens_per_second": 0, "waiting": 0, "memory_gb": 0}  # of a line: what depends on the hour


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@contextmanager
def torchrun(words, processes, *options, script=("-m", "--", "finetune")):
    """A run under torch's launcher, which has ended with the block."""
    command = [*LAUNCHER, str(processes), *options, *script, *words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("further", [False, True])
def test_a_sharded_model_takes_the_steps_of_a_whole_one(further, write, pairs, tmp_path):
    """Two processes, torch's fully_shard; parts of some steps show nothing. Gradients within 1e-6."""
    data = tmp_path / "data.jsonl"
    shown = [{"image": str(path), "text": path.with_suffix(".txt").read_text()} for path in sorted(pairs.glob("*.png"))]
    told = [{"question": f"what is {number}?", "answer": "no picture"} for number in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in (*shown[:6], *told)))
    scored = {"held_out": str(pairs), "score": {"every": 3, "cards": 0, "samples": 6}}
    settings = {"data": str(data), "optim": {"lr": 0.01}, "save_every": 1, "keep": 9} | scored
    if further:
        assert cli.main(["finetune", *write("begun", **settings)]) == 0
        settings |= {"model": {"adapter": str(tmp_path / "begun")}, "recompute": True}
    assert cli.main(["finetune", *write("whole", **settings)]) == 0
    words = write("sharded", **settings)
    launched = [*LAUNCHER, "2", "--", ROOT / "tests/finetune/sharded.py", *words]
    done = subprocess.run(launched, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, other = (tmp_path / name for name in ("whole", "sharded"))
    if further:  # a fresh adapter is fitted to the decoder in another order of sums
        wanted, got = (gradients_at(folder, 1) for folder in (one, other))
        assert sum(bool(gradient.abs().max() > 1e-4) for gradient in wanted.values()) > 0.8 * len(wanted)
        for name, gradient in wanted.items():
            torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-6, msg=name)
    known = ("loss", "held_out_loss", "held_out_loss_shuffled")
    for line, its in zip(lines(one), lines(other), strict=True):
        for name in line.keys() & known:
            assert its[name] == pytest.approx(line[name], rel=2e-2 if further else 1e-1), (line["step"], name)
    assert mmlm.MultimodalLM.from_pretrained(other).config.layers == [3, 5]
    (other / "model.safetensors").unlink()  # its checkpoint is good for one process
    assert cli.main(["finetune", *words, "--resume"]) == 0
    assert (other / "model.safetensors").exists()


@pytest.mark.slow
def test_processes_and_passes_take_the_same_step(write, tmp_path):
    """Of the same samples, some denoised: 1 process with 1 pass and with 8, 2 with 4. Gradients within 1e-6."""
    assert cli.main(["finetune", *write("begun", optim={"lr": 0.01})]) == 0
    settings = {"steps": 1, "model": {"adapter": str(tmp_path / "begun")}, "batch": {"images": 8}}
    settings |= {"denoise": {"share": 0.6}}
    assert cli.main(["finetune", *write("1", **settings)]) == 0
    assert cli.main(["finetune", *write("1 x 8", **settings), "--batch.passes", "8"]) == 0
    with torchrun([*write("2 x 4", **settings), "--batch.passes", "4"], 2) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    one, *others = (gradients(tmp_path / name) for name in ("1", "1 x 8", "2 x 4"))
    assert sum(bool(gradient.abs().max() > 1e-4) for gradient in one.values()) > 0.8 * len(one)
    for other in others:
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6, msg=name)


def gradients(folder):
    """Those of the one step of a run, from what Adam remembers of them."""
    return gradients_at(folder, 1)


def gradients_at(folder, step):
    """Those of the first step of a run."""
    (path,) = (path for path in checkpoints(folder) if step_of(path) == step)
    return {name: state["exp_avg"] / 0.1 for name, state in read(path)["optimizer"].items()}


@pytest.mark.slow
def test_teams_that_share_a_decoder_take_the_same_step(write, tmp_path):
    """Two teams of two processes, each with half of every layer; images are too few for four. Gradients within 1e-5."""
    assert cli.main(["finetune", *write("begun", optim={"lr": 0.01})]) == 0
    settings = {"steps": 1, "model": {"adapter": str(tmp_path / "begun")}, "batch": {"images": 4, "passes": 2}}
    assert cli.main(["finetune", *write("1", **settings)]) == 0
    with torchrun([*write("2 x 2", **settings), "--model.tensor_parallel", "2"], 4) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    one, other = (gradients(tmp_path / name) for name in ("1", "2 x 2"))
    assert sum(bool(gradient.abs().max() > 1e-4) for gradient in one.values()) > 0.8 * len(one)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_team_learns_as_one_process_does_which_goes_on_with_its_run(write, pairs, tmp_path):
    """A decoder in two halves, from the fitting of the adapter to captions; images are too few for two processes."""
    score = {"every": 4, "by": "caption", "samples": 4, "cards": 2}
    often = {"save_every": 2, "log_every": 1, "batch": {"images": 4, "passes": 4}}
    settings = {"steps": 4, "held_out": str(pairs), "score": score, **often}
    one, team = tmp_path / "one", tmp_path / "team"
    assert cli.main(["finetune", *write("one", **settings)]) == 0
    words = write("team", **settings)
    with torchrun([*words, "--model.tensor_parallel", "2"], 2) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    wanted = [pytest.approx(line, rel=1e-3) for line in map(flat, lines(one))]
    assert list(map(flat, lines(team))) == wanted
    mmlm.MultimodalLM.from_pretrained(team)  # whose decoder has the fingerprint of a whole one
    (team / "model.safetensors").unlink()
    checkpoints(team)[0].unlink()
    assert cli.main(["finetune", *words, "--resume"]) == 0
    assert list(map(flat, lines(team))) == wanted
    assert mmlm.MultimodalLM.from_pretrained(team).caption(pairs / "00.png", max_new_tokens=3)


def flat(line):
    """A line of metrics, its gates one by one, without what depends on the hour."""
    return line.pop("gates", {}) | line | UNTOLD


@pytest.mark.slow
def test_terminated_it_saves_and_ends_well_and_one_process_goes_on_for_two(write, tmp_path):
    whole, words = write("whole", steps=30), write("stopped", steps=30, save_every=1000)
    assert cli.main(["finetune", *whole]) == 0
    run = tmp_path / "stopped"
    with torchrun(words, 2) as process:
        wait_for(lambda: (run / METRICS).exists() and len(lines(run)) > 2, process)
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "stopped, as asked; --resume goes on with" in said
    (left,) = checkpoints(run)
    assert 4 < step_of(left) < 30 and not (run / "model.safetensors").exists()
    assert cli.main(["finetune", *words, "--resume"]) == 0
    known = ("step", "loss", "lr")
    assert [[line[name] for name in known] for line in lines(run)] == [
        [pytest.approx(line[name], rel=2e-2) for name in known] for line in lines(tmp_path / "whole")
    ], "it saw the same samples"


@pytest.mark.slow
def test_the_launcher_starts_anew_what_was_killed(write, tmp_path):
    """One of two processes killed: both go on from the last checkpoint, by themselves, to the same bytes."""
    settings = {"steps": 40, "save_every": 1}
    with torchrun(write("whole", **settings), 2) as process:
        process.communicate(timeout=300)
    words = [*write("elastic", **settings), "--resume", "auto"]
    # gloo may look for a process where the killed one was: those that do not meet are started once more, and soon
    meeting = ("--", str(ROOT / "tests/finetune/meeting.py"))
    with torchrun(words, 2, "--max-restarts", "9", script=meeting) as process:
        wait_for(lambda: len(checkpoints(tmp_path / "elastic")) > 1, process)
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert weights(tmp_path / "elastic") == weights(tmp_path / "whole")


def wait_for(there, process):
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def workers(launcher):
    """Ids of the processes that the launcher has started, in their order."""
    return [int(one) for one in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
