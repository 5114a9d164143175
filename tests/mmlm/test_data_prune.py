"""mmlm data prune: what is kept is worth it, reads as it was, and what is not is told with its reason."""

import io
import json
import tarfile

import open_clip
import pytest
import torch
from data_verb import run, write_lines
from PIL import Image
from torch import nn

from mmlm.data import open_data
from mmlm.data.clip import Clip
from mmlm.data.hub import Table
from mmlm.data.prune import prune
from mmlm.data.row import RowReader
from vision.images import open_image, opened

pytestmark = pytest.mark.usefixtures("here")


def left(report):
    return {name: [one["row"] for one in its] for name, its in report["left out"].items()}


def shown(sample):
    return [open_image(opened(image)).tobytes() for image in sample.images]


@pytest.fixture
def crawled(here, picture):
    """a, once smaller and once recompressed, with the same text and with another; b; a chat about both, twice."""
    large = picture(0, (320, 240))
    (here / "raw").mkdir()
    large.save(here / "raw/a.png")
    large.resize((160, 120)).save(here / "raw/small.png")
    large.save(here / "raw/a.jpg", quality=70)
    picture(1, (320, 240)).save(here / "raw/b.png")
    chat = [{"role": "user", "content": "<image> <image>?"}, {"role": "assistant", "content": "nö"}]
    return write_lines(
        here / "raw/data.jsonl",
        {"image": "a.png", "text": "an a", "id": "first"},
        {"image": "small.png", "text": "an a"},
        {"image": "a.jpg", "text": "a picture of a"},
        {"image": "b.png", "text": "an a"},
        {"image": "gone.png", "text": "an a"},
        {"images": ["a.png", "b.png"], "messages": chat},
        {"images": ["a.jpg", "b.png"], "messages": chat},
        {"images": ["b.png", "a.png"], "messages": chat},
        {"question": "1 + 1?", "answer": "2", "references": ["2", "two"], "kind": "sum"},
        {"question": "1 + 1?", "answer": "2"},
        {"image": "a.png", "text": " "},
    )


def test_what_is_there_nearly_twice_is_left_out(crawled, here):
    rows = open_data(crawled)
    report = prune(rows, "out/pruned")
    assert left(report) == {"broken": [4, 10], "near": [1, 6, 9], "clip": []}
    assert [one["of"] for one in report["left out"]["near"]] == [0, 5, 8]
    assert report == json.loads((here / "out/pruned/report.json").read_text())
    assert (report["rows"], report["kept"]) == (11, 6)
    again = open_data("out/pruned")
    wanted = [rows[number] for number in (0, 2, 3, 5, 7, 8)]
    assert [(one.id, one.turns, one.references, one.kind) for one in again] == [
        (one.id, one.turns, one.references, one.kind) for one in wanted
    ]
    assert [shown(one) for one in again] == [shown(one) for one in wanted]
    assert json.loads((here / "out/pruned/data.jsonl").read_text().splitlines()[0])["images"] == ["../../raw/a.png"]
    assert "nö" in (here / "out/pruned/data.jsonl").read_text(), "as people read it"
    assert not (here / "out/pruned/images").exists(), "they are files where they are"
    assert left(prune(again, "twice")) == {"broken": [], "near": [], "clip": []}


def test_near_is_as_near_as_is_said(crawled, here):
    rows = open_data(crawled)
    assert left(prune(rows, "exactly", near=0))["near"][-1] == 9
    assert left(prune(rows, "alone", images_alone=True))["near"] == [1, 2, 6, 9], "texts about images do not count"
    with pytest.raises(ValueError, match="near=16: takes 0 to 15"):
        prune(rows, "far", near=16)


def test_images_that_are_no_files_are_copied(here, picture):
    data = {}
    for name, seed, form in (("1", 0, "PNG"), ("2", 1, "JPEG"), ("3", 0, "PNG")):
        buffer = io.BytesIO()
        picture(seed).save(buffer, form)
        data |= {f"{name}.{form.lower()}": buffer.getvalue(), f"{name}.txt": f"number {name}".encode()}
    with tarfile.open(here / "a.tar", "w") as tar:
        for name, content in data.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    rows = open_data("a.tar")
    prune(rows, "out")
    (here / "a.tar").rename(here / "gone.tar")
    again = open_data("out")
    assert [one.answer for one in again] == ["number 1", "number 2", "number 3"]
    assert [path.name for path in sorted((here / "out/images").rglob("*.*"))] == [
        "0000000.png",
        "0000001.jpeg",
        "0000002.png",
    ]
    assert (here / "out/images/0000/0000001.jpeg").read_bytes() == data["2.jpeg"], "byte for byte"


def test_images_of_tables_are_copied_once(here, picture):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    buffer = io.BytesIO()
    picture(0).save(buffer, "WEBP", lossless=True)
    picture(1).save(here / "file.png")
    images = [[{"bytes": buffer.getvalue(), "path": None}] * 2, [{"bytes": None, "path": str(here / "file.png")}]]
    features = datasets.Features(images=datasets.List(datasets.Image()), text=datasets.Value("string"))
    table = datasets.Dataset.from_dict({"images": images, "text": ["two", "one"]}, features=features)
    rows = Table("table", "table", table, RowReader(""))  # one that is saved has all bytes in it
    prune(rows, "out")
    assert [shown(one) for one in open_data("out")] == [shown(one) for one in rows]
    first, second = map(json.loads, (here / "out/data.jsonl").read_text().splitlines())
    assert first["images"] == ["images/0000/0000000.webp", "images/0000/0000001.webp"]
    assert second["images"] == ["../file.png"]


class Drawn:
    """Images that are made when they are needed, as rows."""

    name = format = "drawn"

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        return self.samples[number]

    def place(self, number):
        return f"drawn {number}"


def test_images_that_are_made_are_written_as_png(here, picture):
    from mmlm.data import Sample

    image = picture(3)
    rows = Drawn(Sample.pair("a", (lambda: image, image), "?", "x"), Sample.pair("b", (image,), "?", "y"))
    prune(rows, "out")
    assert [shown(one) for one in open_data("out")] == [[image.tobytes()] * 2, [image.tobytes()]]
    assert len([*(here / "out/images/0000").iterdir()]) == 2


def test_the_folder_is_there_whole_or_not_at_all(crawled, here, monkeypatch):
    rows = open_data(crawled)
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune(rows, "out")
    assert sorted(path.name for path in here.iterdir()) == ["raw"]
    prune(rows, "out")
    with pytest.raises(FileExistsError, match="out: exists already; name another folder"):
        prune(rows, "out")


def test_nothing_is_left(here):
    write_lines(here / "x.jsonl", {"text": ""}, {"text": " "})
    with pytest.raises(ValueError, match=r"x\.jsonl: nothing is left of 2 rows \(2 broken, 0 near, 0 clip\)"):
        prune(open_data("x.jsonl"), "out")


# -- CLIP -------------------------------------------------------------------------------------------------------------

SIZES = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}


@pytest.fixture
def clip(here, monkeypatch):
    """The name of a small random CLIP in a checkpoint."""
    config = {"embed_dim": 16, "vision_cfg": SIZES, "text_cfg": TEXT}
    (here / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(here / "tiny-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), here / "tiny.pt")
    return "open_clip:tiny-clip/tiny.pt"


def test_clip_scores_are_cosines_of_both_towers(clip, picture):
    scorer = Clip(clip)
    model, look = scorer.model, scorer.look
    assert not model.training
    images, text = [picture(0), picture(1)], "a cat"
    (both,), (one,) = (scorer.scores([[scorer.pixels(image) for image in its]], [text]) for its in (images, images[:1]))
    with torch.no_grad():
        seen = nn.functional.normalize(model.encode_image(torch.stack([look(image) for image in images])), dim=-1)
        said = nn.functional.normalize(model.encode_text(open_clip.get_tokenizer("tiny-clip")([text])), dim=-1)
    assert one == pytest.approx((seen[0] @ said[0]).item(), abs=1e-5)
    assert both == pytest.approx((seen @ said[0]).mean().item(), abs=1e-5)
    together = scorer.scores([[scorer.pixels(image)] for image in images], [text, "a dog " * 200])
    assert together[0] == pytest.approx(one, abs=1e-5), "texts that are too long are cut"


class Colors:
    """Scores by the first color word of a text, as CLIP would: 0.3 if it is the image's, else 0.1."""

    def pixels(self, image):
        return torch.tensor(image.resize((1, 1)).getpixel((0, 0)))

    def scores(self, images, texts):
        assert len(images) == len(texts) <= 64 and all(images)
        names = ["red", "green", "blue"]
        return [
            sum(0.3 if names[pixels.argmax()] in text else 0.1 for pixels in its) / len(its)
            for its, text in zip(images, texts, strict=True)
        ]


def test_text_that_does_not_fit_is_left_out(here):
    for color in ("red", "green", "blue"):
        Image.new("RGB", (40, 40), color).save(here / f"{color}.png")
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "red", "learnt": False}]
    chat += [{"role": "user", "content": "?"}, {"role": "assistant", "content": "blue"}]
    colors = ["red", "blue"] * 30
    right = [{"image": f"{color}.png", "text": f"a {color} card {n}"} for n, color in enumerate(colors)]
    rows = [*right, {"image": "red.png", "text": "a blue card"}, {"text": "no image"}]
    rows += [{"image": "red.png", "messages": chat}, {"image": "blue.png", "messages": chat}]
    rows += [{"images": ["red.png", "blue.png"], "text": "a red card"}, {"image": "red.png", "text": "blue card"}]
    write_lines(here / "x.jsonl", *rows)
    report = prune(open_data("x.jsonl"), "out", clip=Colors(), least=0.15)
    assert left(report) == {"broken": [], "near": [], "clip": [60, 62, 65]}
    assert report["left out"]["clip"][0]["score"] == 0.1 and report["settings"]["least"] == 0.15
    assert len(open_data("out")) == 63


def test_the_command(crawled, clip, here, capsys):
    assert run("prune", "raw/data.jsonl", "out", "--near", "3", "--clip", clip, "--least=-1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "raw/data.jsonl: 6 of 11 rows kept, in out"
    assert "  2 left out, broken:" in said and "  3 left out, there already:" in said
    assert said[2].startswith("    raw/data.jsonl, line 5: raw/gone.png: no such file")
    assert run("check", "out") == 0
    assert run("prune", "raw/data.jsonl", "none", "--clip", clip, "--least", "1.01") == 0, "text alone is kept"
    assert "5 left out, whose text does not fit:" in capsys.readouterr().out


def test_weights_that_are_damaged(clip, here):
    (here / "tiny.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"open_clip:tiny-clip/tiny\.pt: cannot be loaded \("):
        Clip(clip)


def test_a_model_in_a_folder(clip, here, picture):
    """As open_clip keeps those that are pushed to the hub."""
    folder = here / "folder"
    folder.mkdir()
    config = {
        "model_cfg": open_clip.get_model_config("tiny-clip"),
        "preprocess_cfg": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (here / "tiny.pt").rename(folder / "open_clip_pytorch_model.bin")
    scorer = Clip(f"open_clip:local-dir:{folder}")
    assert -1 <= scorer.scores([[scorer.pixels(picture(0))]], ["a cat"])[0] <= 1
