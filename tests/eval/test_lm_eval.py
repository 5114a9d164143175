"""lm-evaluation-harness (Gao et al. 2024, doi:10.5281/zenodo.12608602): on text a model with eyes scores what its bare
decoder scores, to the last bit, whatever its adapter has learnt."""

import json
from pathlib import Path

import pytest

from mmlm.decoder import load_decoder
from mmlm.model import MultimodalLM

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm_eval is not installed here: `make harnesses` runs this where it is, in .venv-harnesses"
)
pytestmark = pytest.mark.slow

TASKS = Path(__file__).parent / "lm_tasks"
NAMES = ["mmlm_text_choice", "mmlm_text_said"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The folder of texts.jsonl: texts of several lengths and their endings."""
    folder = tmp_path_factory.mktemp("texts")
    ends = ["a cat", "two dogs and a bird", "no"]
    lines = [
        {
            "text": f"{n} birds" + " sing" * (n % 4),
            "choices": ends[n % 3 :] + ends[: n % 3],
            "label": n % 3,
            "said": "x",
        }
        for n in range(10)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluated(model, tokenizer, texts, monkeypatch):
    """Scores of both tasks, and what was found for each text."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(texts)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(texts / "hf"))
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(harness, tasks=NAMES, task_manager=manager, bootstrap_iters=0)
    return found["results"], {name: [line["resps"] for line in found["samples"][name]] for name in NAMES}


def test_scores_of_text_are_those_of_the_bare_decoder(home, adapter, saved_parts, texts, picture, monkeypatch):
    model = MultimodalLM.from_pretrained(adapter)
    assert model.ask(picture(0), "what?") != model.ask(picture(1), "what?"), "it looks"
    bare, tokenizer = load_decoder(saved_parts["decoder"])
    scores, found = evaluated(model, model.processor.tokenizer, texts, monkeypatch)
    assert (scores, found) == evaluated(bare, tokenizer, texts, monkeypatch)
    assert len({str(line) for line in found["mmlm_text_choice"] + found["mmlm_text_said"]}) == 20
