"""An adapter on disk that looks, and data about drawn shapes."""

import json

import open_clip
import pytest
import torch

from mmlm import cli
from mmlm.model import MultimodalLM


@pytest.fixture(scope="module")
def adapter(home, tmp_path_factory, saved_parts, open_gates):
    """A saved adapter of random weights, open gates and small parts."""
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultimodalLM.from_parts(**saved_parts, layers=[1, 3, 5])
    open_gates(model, 1.5).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="session")
def nano_clip(tmp_path_factory):
    """The name of a small CLIP of random weights in a folder, as open_clip keeps those of the hub."""
    folder = tmp_path_factory.mktemp("clip")
    eyes = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": eyes, "text_cfg": text}
    look = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": look}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.CLIP(16, eyes, text).state_dict()
    wide = {name: 8 * its if "visual" in name else its for name, its in weights.items()}  # images are far apart
    torch.save(wide, folder / "open_clip_pytorch_model.bin")
    return f"open_clip:local-dir:{folder}"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory, draw_shapes):
    """A folder of twelve drawn shapes of several sizes, and what each shows: (path, color, shape)."""
    return draw_shapes(tmp_path_factory.mktemp("shapes"), 300)


@pytest.fixture(scope="session")
def questions(shapes):
    """A JSONL file of two questions about each shape, in kinds."""
    path = shapes[0][0].parent / "questions.jsonl"
    rows = [
        {"id": f"{n}-{kind}", "image": image.name, "question": asks, "answers": [answer] * 10, "kind": kind}
        for n, (image, color, shape) in enumerate(shapes)
        for kind, asks, answer in (("color", "what color is it?", color), ("shape", "which shape is shown?", shape))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def captions(shapes):
    """A JSONL file of two captions of each shape, in rows of their own."""
    path = shapes[0][0].parent / "captions.jsonl"
    pairs = [(image, f"{a} {color} {shape}") for a in ("a", "one") for image, color, shape in shapes]
    path.write_text("".join(json.dumps({"image": image.name, "text": text}) + "\n" for image, text in pairs))
    return path


@pytest.fixture(scope="module")
def evaluate(home):
    """Runs `mmlm eval TASK ADAPTER DATA --out OUT WORDS...`, which is to end with a status."""

    def run(task, adapter, data, out, *words, status=0):
        short = ["--max-new-tokens", "5", "--batch", "4"]
        assert cli.main(["eval", task, str(adapter), str(data), "--out", str(out), *short, *words]) == status

    return run


@pytest.fixture(scope="module")
def finished(evaluate, adapter, questions, tmp_path_factory):
    """A run over the questions."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evaluate("vqa", adapter, questions, folder)
    return folder


@pytest.fixture(scope="module")
def answered(finished, shapes):
    """The questions, with what the adapter says as their answers: it looks."""
    path = shapes[0][0].parent / "answered.jsonl"
    lines = map(json.loads, (finished / "predictions.jsonl").read_bytes().splitlines())
    rows = [
        {"id": line["id"], "image": line["images"][0], "question": line["question"], "answer": line["said"]}
        for line in lines
        if line["said"]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
