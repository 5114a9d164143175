"""Which scores a run has, and by what they are computed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.clipscore import clip_score_each
from eval.java import java_how
from eval.metrics import ClipScore, metrics_for
from eval.tasks import TASKS
from mmlm.data import Sample
from mmlm.data.clip import Clip


def test_captions_are_scored_by_clip_if_asked_for(evaluate, adapter, captions, nano_clip, tmp_path):
    out = tmp_path / "run"
    evaluate("caption", adapter, captions, out, "--clip", nano_clip, "--prompt", "What is it?")
    report = json.loads((out / "scores.json").read_text())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_bytes().splitlines()]
    for way, said in (("true", "said"), ("shuffled", "said_shuffled"), ("blind", "said_blind")):
        args = ([line["images"][0] for line in lines], [line[said] for line in lines])
        wanted = clip_score_each(Clip(nano_clip), *args, [line["references"] for line in lines])
        for name, its in wanted.items():
            assert report["scores"][name][way]["value"] == pytest.approx(sum(its) / len(its), abs=1e-6)
    assert report["metrics"]["clip_score"] == report["settings"]["clip"] == nano_clip
    assert report["metrics"]["cider"] == "mmlm" and report["metrics"].items() >= java_how().items()
    page = (out / "report.html").read_text()
    assert nano_clip in page and "clip_score by" in page and "meteor by" in page


def test_of_several_images_the_mean_counts(nano_clip, shapes):
    clip, (one, other) = Clip(nano_clip), [str(path) for path, *_ in shapes[:2]]
    apart = clip_score_each(clip, [one, other], ["a cat"] * 2, ["a cat"] * 2)["clip_score"]
    both = ClipScore(clip)(["a cat"], [Sample.pair("1", (one, other), "?", "a cat")])["clip_score"]
    assert both.value == pytest.approx(sum(apart) / 2, abs=1e-6)


def test_samples_of_one_id_are_seen_by_their_own_images(nano_clip, shapes):
    clip, paths, said = Clip(nano_clip), [str(path) for path, *_ in shapes[:2]], ["a cat", "a dog"]
    samples = [Sample.pair("same", (path,), "?", "a cat") for path in paths]
    its = ClipScore(clip)(said, samples)["clip_score"]
    wanted = clip_score_each(clip, paths, said)["clip_score"]
    assert its.each == pytest.approx(wanted, abs=1e-6) and wanted[0] != wanted[1]


def test_a_sample_that_clip_cannot_see_is_refused_before_anything_is_asked(
    evaluate, adapter, captions, nano_clip, tmp_path, capsys
):
    rows = captions.with_name("unseen.jsonl")
    rows.write_text(captions.read_text() + json.dumps({"id": "words", "text": "a cat"}) + "\n")
    evaluate("caption", adapter, rows, tmp_path / "run", "--clip", nano_clip, status=1)
    assert "sample 'words': CLIPScore needs an image; leave --clip out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_answers_have_no_scores_of_captions():
    assert metrics_for(TASKS["vqa"]).how == {} and not metrics_for(TASKS["vqa"]).more


@pytest.mark.slow
def test_of_several_processes_the_main_one_loads_clip_and_all_end_where_it_cannot(nano_clip, tmp_path):
    config = Path(nano_clip.partition("/")[2]).with_name("nano-clip.json")
    script = tmp_path / "script.py"
    script.write_text(f"""
from pathlib import Path
import open_clip
from accelerate import PartialState
from eval.metrics import metrics_for
from eval.tasks import TASKS
from mmlm.ranks import joined, meet

open_clip.add_model_config(Path({str(config)!r}))
with joined():
    meet()
    try:
        metrics_for(TASKS["vqa"], "open_clip:none/none")
    except (ValueError, SystemExit) as error:
        ended = type(error).__name__
    its = metrics_for(TASKS["vqa"], {nano_clip!r})
    rank = PartialState().process_index
    (Path({str(tmp_path)!r}) / str(rank)).write_text(f"{{ended}} {{len(its.more)}} {{','.join(its.how)}}")
""")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(launch, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "0").read_text() == "ValueError 1 clip_score,ref_clip_score"
    assert (tmp_path / "1").read_text() == "SystemExit 0 clip_score,ref_clip_score"
