"""What is written in an image: real documents through the real engine, and any engine through the same checks."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np
import pytest
from documents import invoice, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vision import ocr
from vision.images import ImageError
from vision.ocr import HEAD, Line, Reader, describe, engine_name, find_engine, read_text

words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=12)
rows = st.lists(st.lists(words, min_size=1, max_size=3), max_size=12)


def lines_of(rows):
    """Rows of texts as lines, one row under the other."""
    return [
        Line(text, (0.2 * place, 0.05 * row, 0.2 * place + 0.1, 0.05 * row + 0.04), 1.0, row)
        for row, texts in enumerate(rows)
        for place, text in enumerate(texts)
    ]


def count(text):
    """Tokens, if a byte is one."""
    return len(text.encode())


# -- what the decoder is told -----------------------------------------------------------------------------------------


def test_a_row_is_a_line_with_its_place():
    lines = [Line("Total", (0.1, 0.52, 0.2, 0.55), 1.0, 0), Line("$9.00", (0.8, 0.514, 0.9, 0.55), 0.9, 0)]
    assert describe(lines, 1000, count) == f"{HEAD}\nTotal $9.00 (10,51)"


def test_nothing_is_said_of_an_image_without_text():
    assert describe([], 1000, count) == ""


@given(rows=rows, budget=st.integers(0, 400))
def test_a_description_keeps_to_its_budget_by_whole_lines_and_says_so(rows, budget):
    lines = lines_of(rows)
    whole, said = describe(lines, 10**9, count), describe(lines, budget, count)
    assert count(said) <= budget
    if said in (whole, ""):
        return
    first, *shown = said.split("\n")
    cut = next(place for place, line in enumerate(shown) if line.endswith(" lines left out)"))
    everything = whole.split("\n")[1:]
    assert first == HEAD and shown[cut] == f"({len(everything) - len(shown) + 1} lines left out)"
    assert shown[:cut] == everything[:cut] and shown[cut + 1 :] == everything[len(everything) - len(shown) + cut + 1 :]
    assert 0 <= cut - (len(shown) - cut - 1) <= 1, "as many of the first as of the last"


@given(rows=rows)
def test_all_is_said_where_there_is_room_for_it(rows):
    lines = lines_of(rows)
    whole = describe(lines, 10**9, count)
    assert describe(lines, count(whole), count) == whole


@given(rows=rows.filter(bool), budget=st.integers(0, 400))
def test_as_much_is_said_as_there_is_room_for(rows, budget):
    lines = lines_of(rows)
    said = describe(lines, budget, count)
    longest = max(count(line) for line in describe(lines, 10**9, count).split("\n")) + len("(99 lines left out)\n\n")
    assert said == describe(lines, 10**9, count) or count(said) > budget - longest - len(HEAD)


# -- any callable -----------------------------------------------------------------------------------------------------


def test_boxes_are_shares_of_the_image():
    def engine(picture):
        assert picture.mode == "RGB"
        return [("a  b\n", (20, 10, 60, 20)), ("c", [(20, 30), (60, 30), (60, 40), (20, 40)], 0.5), (" ", (0, 0, 1, 1))]

    lines = read_text(Image.new("L", (200, 100)), engine)
    assert lines == [Line("a b", (0.1, 0.1, 0.3, 0.2), 1.0, 0), Line("c", (0.1, 0.3, 0.3, 0.4), 0.5, 1)]


def test_the_image_is_upright_and_whole():
    """EXIF says that it lies on its side; it is not shrunk."""
    image, seen = Image.new("RGB", (3000, 1000)), []
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()

    def engine(picture):
        seen.append(picture.size)
        return []

    assert read_text(image, engine) == [] and seen == [(1000, 3000)]


def test_arrays_of_numpy_are_boxes():
    quad = np.array([[0, 0], [5, 0], [5, 5], [0, 5]], dtype=np.float32)
    assert read_text(Image.new("RGB", (10, 10)), lambda _: [("a", quad, np.float32(0.5))])[0].box == (0, 0, 0.5, 0.5)


BAD = [
    [("a",)],
    ["ab"],
    [("a", (1, 2, 3))],
    [("a", (1, 2, 3, float("nan")))],
    [("a", (5, 2, 3, 4))],
    [("a", (1, 5, 3, 4))],
    [("a", "wide")],
    [("a", (1, 2, 3, 4), 1.5)],
    [("a", (1, 2, 3, 4), "sure")],
    [("a", (1, 2, 3, 4), 1.0, 2)],
    [(b"a", (1, 2, 3, 4))],
    [(None, (1, 2, 3, 4))],
    [3],
]


@pytest.mark.parametrize("given", BAD, ids=repr)
def test_what_a_callable_gives_wrongly_is_one_error(given):
    def my_engine(picture):
        return given

    with pytest.raises(ValueError, match=r"ocr engine .*my_engine: gave .*; a line must be \(text, box\)"):
        read_text(Image.new("RGB", (9, 9)), my_engine)


def test_a_callable_that_gives_nothing_iterable():
    with pytest.raises(ValueError, match="gave None, not an iterable"):
        read_text(Image.new("RGB", (9, 9)), lambda picture: None)


def test_unknown_and_missing_engines(monkeypatch):
    with pytest.raises(ValueError, match=r"ocr='tesseract': takes 'rapidocr', '' for none, or a callable"):
        find_engine("tesseract")
    with pytest.raises(ValueError, match=r"ocr=True: takes 'rapidocr', '' for none, or a callable"):
        find_engine(True)
    with pytest.raises(ValueError, match=r"ocr='callable/.*<lambda>': made with a callable, which could not be saved"):
        find_engine(engine_name(lambda picture: []))
    monkeypatch.setattr(ocr, "PACKAGES", ("rapidocr", "no_such_package"))
    with pytest.raises(
        ImportError, match=r"needs no_such_package: pip install \"mmlm-adapter\[ocr\]\", or pass ocr=''"
    ):
        find_engine("rapidocr")


def test_a_bad_image_is_told_as_everywhere(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_text(tmp_path / "none.png", lambda picture: [])


# -- read once --------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The pictures that the engine "rapidocr" was given; it is replaced by one that reads their colours."""
    seen = []

    def engine(picture):
        seen.append(picture.size)
        return [(str(picture.getpixel((0, 0))), [(0, 0), (9, 0), (9, 9), (0, 9)], 0.25)]

    monkeypatch.setitem(ocr.ENGINES, "rapidocr", engine)
    return seen


def test_an_image_is_read_once(counted, picture, tmp_path):
    reader = Reader("rapidocr")
    picture(1).save(tmp_path / "a.png")
    first = reader(picture(1), tmp_path / "kept")
    assert reader(tmp_path / "a.png") == reader(np.asarray(picture(1))) == first and len(counted) == 1
    assert reader(picture(2)) != first and len(counted) == 2
    assert Reader("rapidocr")(picture(1), tmp_path / "kept") == first and len(counted) == 2, "from disk"
    [path] = (tmp_path / "kept").glob("rapidocr-*/*/*.json")
    assert json.loads(path.read_text())[0][2] == 0.25
    path.write_text("[[")
    assert Reader("rapidocr")(picture(1), tmp_path / "kept") == first and len(counted) == 3, "damaged, so anew"
    assert Reader("rapidocr")(picture(1), tmp_path / "kept") == first and len(counted) == 3


def test_what_a_callable_found_is_not_kept_on_disk(picture, tmp_path):
    """Another of the same name may read otherwise."""
    assert Reader(lambda image: [("a", (0, 0, 5, 5))])(picture(1), tmp_path / "kept")[0].text == "a"
    assert Reader(lambda image: [("b", (0, 0, 5, 5))])(picture(1), tmp_path / "kept")[0].text == "b"
    assert not (tmp_path / "kept").exists()


def test_memory_is_bounded_and_threads_may_share_a_reader(counted, monkeypatch):
    monkeypatch.setattr(ocr, "MOST", 8)
    reader = Reader("rapidocr")
    shades = [*range(20), *range(20)] * 3
    with ThreadPoolExecutor(4) as pool:
        said = pool.map(lambda shade: reader(Image.new("RGB", (12, 12), (shade, 0, 0)))[0].text, shades)
    assert list(said) == [f"({shade}, 0, 0)" for shade in shades] and len(reader.kept) == 8


# -- the real engine on documents -------------------------------------------------------------------------------------


def sheet(size=(640, 400), ground="white"):
    image = Image.new("RGB", size, ground)
    return image, ImageDraw.Draw(image)


def said(image):
    """The texts of the image's rows, as the engine reads them."""
    return [
        " ".join(line.text for line in row) for _, row in groupby(read_text(image, "rapidocr"), lambda line: line.row)
    ]


def receipt():
    image, draw = sheet((420, 420))
    rows = [("CORNER SHOP", ""), ("Bread", "2.80"), ("Apples 1 kg", "3.15"), ("Milk", "1.09"), ("TOTAL", "7.04")]
    for row, (name, price) in enumerate(rows):
        write(draw, 30, 30 + 70 * row, name, 24, name="DejaVuSansMono")
        write(draw, 390, 30 + 70 * row, price, 24, right=True, name="DejaVuSansMono")
    return image, [f"{name} {price}".strip() for name, price in rows]


def test_an_invoice():
    image, total = invoice(37)
    assert any(row.lower().startswith(("total", "grand total", "amount due")) and total in row for row in said(image))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 5, -8])
def test_a_receipt_however_it_is_turned(degrees):
    image, rows = receipt()
    assert said(image.rotate(degrees, expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC)) == rows


def test_two_columns_are_read_one_after_the_other():
    image, draw = sheet((900, 330))
    write(draw, 450 - 150, 15, "The Daily Harbour News", 28)
    left = ["Ships came in late last night", "and the pilots had to wait for", "the tide to turn at midnight"]
    right = ["Fish was sold at low prices", "while the market stayed open", "until the last boat had left"]
    for column, texts in enumerate((left, right)):
        for row, text in enumerate(texts):
            write(draw, 30 + 450 * column, 90 + 60 * row, text, 24)
    assert said(image) == ["The Daily Harbour News", *left, *right]


def test_a_sign_in_a_scene():
    """Noise and colours as in a photo, the sign a bit askew."""
    noise = np.random.default_rng(0).integers(60, 150, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    sign, draw = sheet((300, 120), (20, 60, 150))
    write(draw, 40, 35, "EXIT 42", 48, name="DejaVuSans-Bold", ink="white")
    turned = sign.convert("RGBA").rotate(6, expand=True, resample=Image.Resampling.BICUBIC)
    image.paste(turned, (200, 150), turned)
    [line] = [line for line in read_text(image, "rapidocr") if line.score > 0.9]
    assert line.text == "EXIT 42" and 0.3 < line.box[0] < 0.5 and 0.3 < line.box[1] < 0.6


def test_faint_words():
    image, draw = sheet((420, 120), (120, 120, 120))
    write(draw, 30, 40, "hardly there", 28, ink=(138, 138, 138))
    assert said(image) == ["hardly there"]


def test_small_type_on_a_large_page():
    """Lines are sought in a smaller copy, and read in the image itself."""
    image, draw = sheet((3000, 2200))
    write(draw, 2300, 1900, "Serial number 8841-207", 28)
    write(draw, 200, 150, "Height 30.25 mm", 28)
    assert said(image) == ["Height 30.25 mm", "Serial number 8841-207"]


def test_accents_and_currencies():
    image, draw = sheet((640, 200))
    write(draw, 30, 30, "Café crème à l'été", 26)
    write(draw, 30, 110, "Straße €5,30 Łódź", 26)
    assert said(image) == ["Café crème à l'été", "Straße €5,30 Łódź"]


@pytest.mark.parametrize("size", [(1, 1), (40, 9), (3000, 30), (30, 3000), (500, 400)])
def test_no_text_at_all(size):
    assert said(Image.new("RGB", size, (90, 140, 90))) == []
