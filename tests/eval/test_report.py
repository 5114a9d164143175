"""The report: one file, images and all, in which nothing that a model says is taken for HTML."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from eval.report import THUMBNAIL, Card, thumbnail, write_report
from mmlm.samples import Sample

NASTY = "<script>alert('1')</script> & \"two\" <img src=x onerror=y>"


class Reader(HTMLParser):
    """Collects tags and text, and holds that tags close as they open."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        self.text += data


def written(path, *args):
    write_report(path, *args)
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture
def cards(picture):
    return [
        Card(Sample.pair("a", (picture(0, (900, 300)),), "what is it?", "a cat", ("a cat", "one cat")), "a cat", True),
        Card(Sample.pair("b", (lambda: picture(1),), "and this?", "a dog"), "", False),
        Card(Sample.pair("c", (picture(2), picture(3)), NASTY, NASTY, (NASTY,)), NASTY, False),
        Card(Sample.pair("d", (), "no image?", "ünïcödé ✓"), "ünïcödé ✓", True),
    ]


def test_everything_is_in_one_file(tmp_path, cards):
    reader = written(tmp_path / "report.html", "run", "about", [("accuracy", "0.5")], cards)
    assert reader.tags.count("figure") == 4
    assert reader.tags.count("img") == 4 and len(reader.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert "http" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_was_said_stands_beside_what_is_right(tmp_path, cards):
    reader = written(tmp_path / "report.html", "the run", "about it", [("accuracy", "0.5"), ("n", "4")], cards)
    for said in ("the run", "about it", "accuracy", "0.5", "a cat · one cat", "(nothing)", "a dog", "ünïcödé ✓"):
        assert said in reader.text
    order = [reader.text.index(question) for question in ("what is it?", "and this?", "no image?")]
    assert order == sorted(order)


def test_right_and_wrong_are_told_apart(tmp_path, cards):
    write_report(tmp_path / "report.html", "run", "", [], cards)
    assert re.findall(r"<div class=(right|wrong)>", (tmp_path / "report.html").read_text(encoding="utf-8")) == [
        *("right", "wrong", "wrong", "right")
    ]


def test_words_are_no_html(tmp_path, cards):
    reader = written(tmp_path / "report.html", NASTY, NASTY, [(NASTY, NASTY)], cards)
    assert "script" not in reader.tags and reader.tags.count("img") == 4
    assert reader.text.count(NASTY) == 8  # title, heading, about, row twice, question, said, reference


@pytest.mark.parametrize(("size", "shown"), [((900, 300), (320, 107)), ((60, 40), (60, 40)), ((10, 2000), (2, 320))])
def test_thumbnails_are_small_pngs(size, shown, picture):
    address = thumbnail(picture(0, size))
    image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"), validate=True)))
    assert image.format == "PNG" and image.size == shown and max(image.size) <= THUMBNAIL


def test_the_images_shown_are_left_as_they_were(picture):
    image = picture(0, (900, 300))
    thumbnail(image)
    assert image.size == (900, 300)
