"""Data as people have it, one format after the other: what is read, and what is said of what cannot be."""

import io
import json
import pickle
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_verb import write_lines
from hypothesis import given
from hypothesis import strategies as st

from mmlm.data import Sample, SampleError, Turn, lines, open_data
from mmlm.data.found import expanded
from mmlm.data.lines import array_spans, line_spans
from mmlm.data.row import RowReader, row_of
from mmlm.names import CAPTION_PROMPT
from vision.images import ImageError, open_image, opened

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def png(picture):
    """Makes the bytes of an image file: png(seed)."""

    def make(seed=0):
        buffer = io.BytesIO()
        picture(seed).save(buffer, "PNG")
        return buffer.getvalue()

    return make


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def shown(sample):
    """Sizes of the sample's images, which can be opened."""
    return [open_image(opened(image)).size for image in sample.images]


def holds(rows, wanted, format):
    """The rows are the samples wanted; pickled and read by threads, too."""
    assert rows.format == format and len(rows) == len(wanted)
    assert list(rows) == wanted == [*rows.each()]
    assert rows[-1] == wanted[-1]
    with pytest.raises(IndexError):
        rows[len(wanted)]
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(rows.__getitem__, range(len(wanted)))] == wanted
    again = pickle.loads(pickle.dumps(rows))
    assert [sample.turns for sample in again] == [sample.turns for sample in wanted]
    assert [shown(sample) for sample in again] == [shown(sample) for sample in wanted]
    return True


def refusal(path, **how):
    """What is said of a source that cannot be opened; "read", if its rows are samples, or errors."""
    try:
        rows = open_data(path, **how)
    except ValueError as error:
        return str(error)
    return "read" if all(isinstance(one, Sample | SampleError) for one in rows.each()) else ""


def caption(id, image, text, references=None):
    return Sample.pair(id, (image,), CAPTION_PROMPT, text, references or (text,), "caption")


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_with_their_captions(here, png):
    for name, text in {"b.png": "a bee\r\n", "sub/a.PNG": "  two\nlines\n", "c.jpg": "ünï"}.items():
        path = here / "pairs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
        path.with_suffix(".txt").write_bytes(text.encode())
    (here / "pairs/README.txt").write_text("about them")
    (here / "pairs/.hidden").mkdir()
    (here / "pairs/.hidden/x.png").write_bytes(b"")
    (here / "pairs/._b.png").write_bytes(b"")
    texts = {"b.png": "a bee", "c.jpg": "ünï", "sub/a.PNG": "  two\nlines"}
    assert holds(open_data("pairs"), [caption(name, f"pairs/{name}", text) for name, text in texts.items()], "folder")
    assert open_data("pairs", prompt="What is this?")[0].question == "What is this?"


def test_an_image_without_a_caption_is_a_broken_row(here, png):
    for name in ("a", "b", "c", "d"):
        (here / f"{name}.png").write_bytes(png())
    (here / "a.txt").write_text("an a")
    (here / "c.txt").write_text(" \n")
    (here / "d.txt").write_bytes(b"\xff\xfe caption")
    good, *bad = open_data(here).each()
    assert good.answer == "an a"
    assert [type(one) for one in bad] == [SampleError] * 3
    assert str(bad[0]) == f"{here}/b.png: no b.txt beside it; write its caption there, or take the image out"
    assert "c.txt: ' ' teaches nothing" in str(bad[1])
    assert "d.txt is not UTF-8 (invalid start byte)" in str(bad[2])


# -- JSONL ------------------------------------------------------------------------------------------------------------


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image> or <image>?"},
    {"role": "assistant", "content": "The first."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Who knows.", "learnt": False},
    {"role": "user", "content": "Say."},
    {"role": "assistant", "content": "It is red.", "weight": 1},
]
TURNS = (
    Turn("system", "Be brief."),
    Turn("user", "<image> or <image>?"),
    Turn("assistant", "The first.", True),
    Turn("user", "Why?"),
    Turn("assistant", "Who knows."),
    Turn("user", "Say."),
    Turn("assistant", "It is red.", True),
)


def test_jsonl(here, png):
    for number in range(3):
        (here / f"{number}.png").write_bytes(png(number))
    path = write_lines(
        here / "data.jsonl",
        {"image": "0.png", "text": " a cat "},
        "",
        {"id": 7, "file_name": "1.png", "caption": "a dog", "references": ["a dog", "one dog"], "kind": "animal"},
        "   ",
        {"images": ["0.png", str(here / "2.png")], "messages": CHAT},
        {"image": "0.png", "question": "Which?", "answer": "cat", "answers": ["cat", "a cat"], "kind": "what"},
        {"image": ["0.png"], "question": "Which?", "answers": ["dog", "cat", {"answer": "cat"}]},
        {"question": "1 + 1?", "answer": "2", "image": None, "choices": ["1", "2"]},
    )
    zero, one, two = (str(here / f"{number}.png") for number in range(3))
    wanted = [
        caption("1", zero, " a cat "),
        Sample.pair("7", (one,), CAPTION_PROMPT, "a dog", ("a dog", "one dog"), "animal"),
        Sample("5", (zero, two), TURNS),
        Sample.pair("6", (zero,), "Which?", "cat", ("cat", "a cat"), "what"),
        Sample.pair("7", (zero,), "Which?", "cat", ("dog", "cat", "cat")),
        Sample.pair("8", (), "1 + 1?", "2", choices=("1", "2")),
    ]
    assert holds(open_data(path), wanted, "jsonl")
    assert open_data(here)[0] == wanted[0], "the only one in its folder"
    (here / "info.json").write_text("{}")
    assert open_data(here)[0] == wanted[0], "with its metadata beside it"


def test_where_lines_are_is_remembered_of_long_files(here, monkeypatch):
    monkeypatch.setattr(lines, "LARGE", 100)
    path = write_lines(here / "data.jsonl", *({"text": f"number {number}"} for number in range(30)))
    first = [*open_data(path)]
    with monkeypatch.context() as patch:
        patch.setattr(lines, "line_spans", None)
        assert [*open_data(path)] == first
    write_lines(path, {"text": "another " * 50})
    assert len(open_data(path)) == 1


def test_images_of_jsonl_may_be_here(here, png):
    (here / "pictures").mkdir()
    (here / "pictures/a.png").write_bytes(png())
    path = write_lines(here / "data.jsonl", {"image": "a.png", "text": "x"})
    assert shown(open_data(path, images="pictures")[0]) == [(96, 64)]
    with pytest.raises(FileNotFoundError, match="images='picturs': no such folder"):
        open_data(path, images="picturs")


def test_images_may_stand_in_messages(here):
    parts = [
        {"type": "text", "text": "Same as "},
        {"type": "image", "path": "a.png", "image": None},
        {"type": "text", "text": "?"},
        {"type": "image", "image": "b.png"},
    ]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]
    bare = [{"role": "user", "content": [{"type": "image"}, parts[0]]}, said[1]]
    path = write_lines(
        here / "data.jsonl", {"messages": said}, {"messages": bare, "image": "a.png"}, {"messages": said, "image": "c"}
    )
    rows = open_data(path)
    turns = Turn("user", "Same as <image>?<image>"), Turn("assistant", "Yes.", True)
    assert rows[0] == Sample("1", (str(here / "a.png"), str(here / "b.png")), turns)
    assert rows[1].turns[0].text == "<image>Same as " and rows[1].images == (str(here / "a.png"),)
    with pytest.raises(SampleError, match="line 3: images are in its messages and beside them"):
        rows[2]


BROKEN = {
    "{": "not JSON (Expecting property name enclosed in double quotes at character 2)",
    "[1]": "[1] is no object; a row is {...}",
    '{"image": "a.png"}': "nothing is said in it; it takes one of messages, conversations, question, text, caption",
    '{"image": "a.png", "text": "a", "caption": "b"}': "has text and caption, and it is unclear which is meant",
    '{"image": "a.png", "images": [], "text": "a"}': "has images and image, and it is unclear which",
    '{"image": "a.png", "text": 7}': "text: 7 is no text; it takes a string",
    '{"image": "a.png", "text": ""}': "text: '' teaches nothing",
    '{"image": "a.png", "text": "\\ud800"}': "text: '\\ud800' has half a character",
    '{"image": 7, "text": "a"}': "image: 7 names no image",
    '{"image": "http://x.org/a.png", "text": "a"}': "image: 'http://x.org/a.png' is a URL, which is fetched only if",
    '{"image": "a.png", "question": "a"}': "question without an answer",
    '{"image": "a.png", "question": "a", "answers": "b"}': "answers: 'b' is no list",
    '{"image": "a.png", "text": "a", "references": [1]}': "references: 1 is no text",
    '{"image": "a.png", "text": "a", "choices": "a"}': "choices: 'a' is no list",
    '{"image": "a.png", "text": "a", "choices": [1]}': "choices: 1 is no text",
    '{"image": "a.png", "text": "an <image>"}': "sample '1': <image> in what is learnt ('an <image>')",
    '{"messages": "a"}': "messages: 'a' is no list",
    '{"messages": []}': "sample '1': nothing to learn in it",
    '{"messages": ["a"]}': "messages[0]: 'a' is no message",
    '{"messages": [{"role": "user"}]}': "messages[0].content: None is no text",
    '{"messages": [{"content": "a"}]}': "messages[0].role: None is no text",
    '{"messages": [{"role": "user", "content": [{"type": "video"}]}]}': "messages[0].content[0]: {'type': 'video'} is",
    '{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}': "messages[0]: 0.5 says not whether it is",
    '{"messages": [{"role": "user", "content": "a", "learnt": true}]}': "sample '1': what the user says is learnt",
    '{"conversations": [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]}': (
        "sample '1': 1 <image> mark in its turns but 0 images;"
    ),
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named_and_others_are_read(line, here):
    good = {"image": "a.png", "text": "fine"}
    rows = open_data(write_lines(here / "data.jsonl", line, good))
    with pytest.raises(SampleError) as error:
        rows[0]
    assert str(error.value).startswith(f"{here}/data.jsonl, line 1: {BROKEN[line]}")
    assert rows[1].answer == "fine"


def test_bytes_that_are_no_text(here):
    (here / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "\xff"}')
    rows = open_data("data.jsonl")
    assert rows[0].answer == "a"
    with pytest.raises(SampleError, match=r"data\.jsonl, line 2: not UTF-8"):
        rows[1]


@given(lines=st.lists(st.text(st.sampled_from('ab "\\\r\té🙂'), max_size=20)), end=st.booleans())
def test_lines_are_where_editors_see_them(lines, end, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    data = ("\n".join(lines) + "\n" * end).encode()
    path.write_bytes(data)
    wanted = [(number, line.encode()) for number, line in enumerate(lines, 1) if line.strip(" \r\t")]
    assert [(number, data[start:stop]) for start, stop, number in line_spans(path).tolist()] == wanted


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    elements=st.lists(values),
    indent=st.sampled_from([None, 0, 3]),
    plain=st.booleans(),
    before=st.sampled_from(["", " \n"]),
)
def test_elements_are_where_they_are(elements, indent, plain, before):
    text = before + json.dumps(elements, indent=indent, ensure_ascii=plain)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    assert [json.loads(data[start:stop]) for start, stop, _ in array_spans(text).tolist()] == elements


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12).filter(
    lambda text: "<image>" not in text
)
spoken = words.filter(str.strip)


@st.composite
def samples(draw):
    paths = draw(st.lists(st.text("ab.-é ", min_size=1, max_size=5).map(lambda name: f"/x/{name}.png"), max_size=3))
    turns = draw(st.lists(st.builds(Turn, st.sampled_from(["system", "user", "tool"]), words), max_size=3))
    answer = st.builds(Turn, st.just("assistant"), spoken, st.booleans())
    turns = [*turns, *draw(st.lists(answer, max_size=2)), Turn("assistant", draw(spoken), True)]
    if paths and draw(st.booleans()):
        turns.insert(0, Turn("user", draw(words).join(["<image>"] * len(paths))))
    references, choices = (tuple(draw(st.lists(words, max_size=2))) for _ in range(2))
    return Sample(draw(words), tuple(paths), tuple(turns), references, draw(words), choices)


@given(sample=samples())
def test_a_row_reads_as_the_sample_it_was_written_of(sample):
    row = json.loads(json.dumps(row_of(sample, sample.images)))
    assert RowReader("/here")(row, "number") == sample


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_llava(here, png):
    (here / "a.png").write_bytes(png())
    said = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A cät."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    path = write_json(
        here / "llava.json",
        [{"id": "x", "image": "a.png", "conversations": said}, {"conversations": said[2:]}, {"conversations": []}],
    )
    turns = (
        Turn("user", "<image>\nWhat?"),
        Turn("assistant", "A cät.", True),
        Turn("user", "Sure?"),
        Turn("assistant", "Yes.", True),
    )
    rows = open_data(path)
    assert rows.format == "llava"
    assert [rows[0], rows[1]] == [Sample("x", (str(here / "a.png"),), turns), Sample("1", (), turns[2:])]
    assert shown(rows[0]) == [(96, 64)]
    with pytest.raises(SampleError, match=r"llava\.json, row 2: sample '2': nothing to learn"):
        rows[2]


def test_an_array_of_rows_as_in_jsonl(here):
    path = here / "rows.json"
    path.write_text('\ufeff[ {"text": "é"},\n{"text": "b"} ]', encoding="utf-8")
    rows = open_data(path)
    assert rows.format == "json" and [sample.answer for sample in rows] == ["é", "b"]


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [
        {"id": 10, "image_id": 2, "caption": "a bee "},
        {"id": 11, "image_id": 1, "caption": "an ape"},
        {"id": 12, "image_id": 2, "caption": "one bee"},
        {"id": 13, "image_id": 3, "caption": "nothing"},
        {"id": 14, "image_id": 1, "caption": None},
    ],
}


@pytest.mark.parametrize("place", ["annotations", "val2017", "images", "annotations/val2017", "here"])
def test_coco(place, here, png):
    path = write_json(here / "annotations/captions_val2017.json", COCO)
    (here / place).mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (here / place / name).write_bytes(png())
    rows = open_data(path, images=place if place == "here" else None)
    ape, bee = (
        str((here if place != "here" else here.relative_to(here)) / place / name) for name in ("a.png", "b.png")
    )
    assert rows.format == "coco" and [rows[0], rows[1], rows[2]] == [
        caption("10", bee, "a bee ", ("a bee ", "one bee")),
        caption("11", ape, "an ape"),
        caption("12", bee, "one bee", ("a bee ", "one bee")),
    ]
    with pytest.raises(SampleError, match=r"annotation 13: image_id 3 is none of its images"):
        rows[3]
    with pytest.raises(SampleError, match=r"annotation 14: caption: None is no text"):
        rows[4]


def test_images_that_are_nowhere(here):
    path = write_json(here / "annotations/captions_val2017.json", COCO)
    with pytest.raises(
        ValueError, match=r"its images are not found; looked for a\.png in .*/annotations, .*name their folder"
    ):
        open_data(path)


QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"question_id": 1001, "image_id": 100, "question": "What?"},
        {"question_id": 1002, "image_id": 101, "question": "Is it?"},
        {"question_id": 1003, "image_id": 101, "question": "Where?"},
        {"question_id": 1001, "image_id": "x", "question": "Why?"},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 1002, "answers": [{"answer": "yes"}, {"answer": "no"}, {"answer": "yes"}]},
        {
            "question_id": 1001,
            "multiple_choice_answer": "a cat",
            "answer_type": "other",
            "answers": [{"answer": "cat"}, {"answer": "a cat"}],
        },
    ]
}


def test_vqa(here, png):
    path = write_json(here / "v2_OpenEnded_mscoco_val2014_questions.json", QUESTIONS)
    write_json(here / "v2_mscoco_val2014_annotations.json", ANNOTATIONS)
    (here / "val2014").mkdir()
    for image in (100, 101):
        (here / f"val2014/COCO_val2014_{image:012}.jpg").write_bytes(png())
    rows = open_data(path)
    one, other = (str(here / f"val2014/COCO_val2014_{image:012}.jpg") for image in (100, 101))
    assert rows.format == "vqa" and [rows[0], rows[1]] == [
        Sample.pair("1001", (one,), "What?", "a cat", ("cat", "a cat"), "other"),
        Sample.pair("1002", (other,), "Is it?", "yes", ("yes", "no", "yes")),
    ]
    assert shown(rows[0]) == [(96, 64)]
    with pytest.raises(SampleError, match="question 1003: no annotation has its question_id"):
        rows[2]
    with pytest.raises(SampleError, match="image_id: 'x' is no number"):
        rows[3]


def test_questions_without_annotations(here, png):
    path = write_json(here / "v2_OpenEnded_mscoco_val2014_questions.json", QUESTIONS)
    with pytest.raises(ValueError, match=r"without their answers: no v2_mscoco_val2014_annotations\.json beside it"):
        open_data(path)
    write_json(here / "notes.json", ANNOTATIONS)
    with pytest.raises(ValueError, match=r"its images are not found; looked for COCO_val2014_000000000100\.jpg or"):
        open_data(path, annotations="notes.json")
    (here / "100.png").write_bytes(png())
    assert open_data(path, annotations="notes.json", images=".")[0].images == ("100.png",)
    with pytest.raises(ValueError, match=r"notes\.json: VQAv2's annotations, and the questions are in another file"):
        open_data("notes.json")
    other = write_json(here / "other.json", {"annotations": [{"question_id": 5}]})
    with pytest.raises(ValueError, match=r"other\.json: none of its annotations is of a question of"):
        open_data(path, annotations=other)
    with pytest.raises(ValueError, match=r"questions\.json: no annotations of VQAv2"):
        open_data(path, annotations=path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"text": "a"},\n {]', r"x\.json, line 2: not JSON"),
        ('[{"text": "a"}', r"x\.json, line 1: not JSON \(Expecting ',' or '\]'\)"),
        ('{"images": ', r"x\.json, line 1: not JSON"),
        ("{}", r"x\.json: of no known format \(\[\]\); it takes an array of rows"),
        ('{"images": [], "annotations": [{"bbox": []}]}', "of no known format"),
        ("7", "of no known format"),
        ("[]", r"x\.json: empty, not one row"),
        ('{"images": [7], "annotations": [{"caption": "a"}]}', r"x\.json, images\[0\]: 7 is no object"),
        ('{"questions": [7]}', r"x\.json, questions\[0\]: 7 is no object"),
    ],
)
def test_json_of_no_format(text, words, here):
    (here / "x.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        open_data("x.json")


fields = st.sampled_from(
    [
        "id",
        "image_id",
        "question_id",
        "file_name",
        "caption",
        "question",
        "answers",
        "multiple_choice_answer",
        "answer_type",
        "text",
        "image",
        "images",
        "messages",
        "conversations",
        "role",
        "content",
        "from",
        "value",
        "learnt",
        "weight",
        "type",
        "references",
        "kind",
        "choices",
        "data_subtype",
    ]
)
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["", "<image>", "assistant", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=12,
)
objects = st.lists(st.dictionaries(fields, odd, max_size=5), max_size=3)


@given(
    row=odd,
    whole=st.fixed_dictionaries({}, optional=dict.fromkeys(["images", "annotations", "questions"], objects | odd)),
)
def test_whatever_a_file_holds_is_read_or_refused(row, whole, tmp_path_factory):
    """With a ValueError: what is broken is told, and is no bug."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "x.jsonl").write_text(json.dumps(row))
    for name in ("v2_OpenEnded_mscoco_questions.json", "v2_mscoco_annotations.json", "x.json"):
        (folder / name).write_text(json.dumps(whole if "v2" in name else [row]))
    for path in folder.iterdir():
        assert refusal(path, images=folder).startswith((str(folder), "read"))


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 10**5, '[{"text": 1' + "0" * 10**4 + "}]"])
def test_json_that_python_does_not_take(text, here):
    (here / "x.json").write_text(text)
    (here / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        open_data("x.json")[0]
    with pytest.raises(SampleError, match=r"x\.jsonl, line 1"):
        open_data("x.jsonl")[0]


# -- tars -------------------------------------------------------------------------------------------------------------


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_tars(here, png):
    row = {"question": "<image> or <image>?", "answer": "The first.", "image": "here.png"}
    write_tar(
        here / "data-00.tar",
        {
            "a/1.jpg": png(1),
            "a/1.txt": b"one\n",
            "a/1.json": b"{}",
            "a/2.0.PNG": png(2),
            "a/2.1.png": png(3),
            "a/2.json": json.dumps(row).encode(),
            ".DS_Store": b"",
            "a/README": b"",
        },
    )
    write_tar(here / "data-01.tar", {"3.webp": png(4), "3.cls": b"7"})
    write_tar(here / "data-02.tar", {"4.txt": "fünf".encode(), "4.png": png(5), "5.txt": b"\xff", "6.json": b"{"})
    rows = open_data("data-{00..02}.tar")
    assert rows.format == "tars" and len(rows) == 6
    assert [rows[0].id, rows[0].answer, shown(rows[0])] == ["a/1", "one", [(96, 64)]]
    assert [rows[1].turns[0].text, shown(rows[1])] == ["<image> or <image>?", [(96, 64)] * 2]
    assert open_image(opened(rows[1].images[1])).tobytes() == open_image(png(3)).tobytes()
    assert rows[3].answer == "fünf"
    for number, words in {
        2: r"data-01\.tar: 3: no \.txt and no \.json in it, so that nothing is said; it has webp, cls",
        4: r"data-02\.tar: 5: 5\.txt: not UTF-8",
        5: r"data-02\.tar: 6: not JSON",
    }.items():
        with pytest.raises(SampleError, match=words):
            rows[number]
    assert [str(one) for one in open_data("data-*.tar").each()] == [str(one) for one in rows.each()]
    good = [rows[number] for number in (0, 1, 3)]
    again = pickle.loads(pickle.dumps(rows))
    assert [again[number] for number in (0, 1, 3)] == good
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(shown, [sample for _ in range(9) for sample in good])] == [shown(one) for one in good] * 9
    folder = here / "folder"
    folder.mkdir()
    (here / "data-00.tar").rename(folder / "train-00.tar")
    (here / "data-02.tar").rename(folder / "val-00.tar")
    assert len(open_data(folder)) == 5 and len(open_data(folder, split="val")) == 3


def test_a_tar_is_walked_through_once(here, png, monkeypatch):
    path = write_tar(here / "a.tar", {"1.png": png(), "1.txt": b"one"})
    first = open_data(path)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert list(open_data(path)) == list(first)
    write_tar(path, {"1.png": png(), "1.txt": b"another", "2.txt": b"more"})
    assert [sample.answer for sample in open_data(path)] == ["another", "more"]


def test_a_tar_that_is_not_whole(here, png):
    data = write_tar(here / "a.tar", {"1.png": png(), "1.txt": b"one"}).read_bytes()
    for content in (data[:600], data[:20], b"no tar at all" * 100):
        (here / "b.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.tar: no tar, packed, or not whole \("):
            open_data("b.tar")
    rows = open_data("a.tar")
    (here / "a.tar").write_bytes(data[:700])
    with pytest.raises(ImageError, match=r"a\.tar: shorter than it was; open the data set anew"):
        opened(rows.members(0)[1])
    (here / "a.tar").unlink()
    with pytest.raises(SampleError, match=r"a\.tar: 1: .*cannot be read"):
        rows[0]


@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_whatever_a_tar_holds_is_read_or_refused(changes, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "a.tar"
    write_tar(path, {"1.png": b"x" * 700, "1.txt": b"one", f"{'long' * 40}.json": b'{"text": "two"}'})
    data = bytearray(path.read_bytes())
    for place, change in changes:
        data[place : place + len(change)] = change
    path.write_bytes(data)
    assert refusal(path).startswith((str(path), "read"))


def test_an_image_in_a_tar_is_named_when_it_is_broken(here):
    write_tar(here / "a.tar", {"1.png": b"broken", "1.txt": b"one"})
    with pytest.raises(ImageError, match=r"a\.tar: 1\.png: not an image that Pillow can read"):
        shown(open_data("a.tar")[0])


def test_tars_that_are_missing(here, png):
    for number in (0, 2):
        write_tar(here / f"a-{number}.tar", {"1.png": png(), "1.txt": b"one"})
    with pytest.raises(FileNotFoundError, match=r"a-\{0\.\.3\}\.tar: 2 of 4 are not there, as a-1\.tar"):
        open_data("a-{0..3}.tar")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{a,b}-{1..2}", ["a-1", "a-2", "b-1", "b-2"]),
        ("plain", ["plain"]),
        ("a-{3..1}", []),
    ],
)
def test_braces(name, names):
    assert expanded(name) == names


# -- URLs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(here):
    """A web server of the files in a folder; `site.asked` has what it was asked for. {folder}/short is cut short."""
    folder, asked = here / "site", []
    folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            file = folder / self.path[1:].removeprefix("short-")
            if not file.is_file():
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(file.stat().st_size))
            self.end_headers()
            self.wfile.write(file.read_bytes()[: 10 if "short-" in self.path else None])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    server.folder, server.asked, server.url = folder, asked, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_tars_at_urls_are_fetched_once(site, png):
    for number in range(2):
        write_tar(site.folder / f"a-{number}.tar", {f"{number}.png": png(number), f"{number}.txt": b"one"})
    for _ in range(2):
        rows = open_data(f"{site.url}/a-{{0..1}}.tar")
        assert [(sample.id, shown(sample)) for sample in rows] == [("0", [(96, 64)]), ("1", [(96, 64)])]
    assert site.asked == ["/a-0.tar", "/a-1.tar"]


def test_a_url_of_no_format_is_not_fetched(site):
    with pytest.raises(ValueError, match=r"a\.zip\?x=1: of no known format"):
        open_data(f"{site.url}/a.zip?x=1")
    assert not site.asked


def test_what_cannot_be_fetched_leaves_nothing(site, here, png):
    write_tar(site.folder / "a.tar", {"1.png": png(), "1.txt": b"one"})
    for name, words in {"none.tar": "HTTP Error 404", "short-a.tar": "(10 of|IncompleteRead)"}.items():
        with pytest.raises(ValueError, match=rf"{site.url}/{name}: cannot be fetched \(.*{words}"):
            open_data(f"{site.url}/{name}")
    assert not [*here.parent.rglob("home/fetched/*")]


def test_images_at_urls_are_fetched_if_asked_for(site, here, png):
    (site.folder / "a.png").write_bytes(png())
    path = write_lines(
        here / "data.jsonl", *({"image": f"{site.url}/{name}", "text": "x"} for name in ("a.png", "b.png"))
    )
    with pytest.raises(SampleError, match=r"line 1: image: .* is a URL, .*open it with urls=True"):
        open_data(path)[0]
    good, bad = open_data(path, urls=True)
    assert site.asked == [] and shown(good) == shown(good) == [(96, 64)] and site.asked == ["/a.png"]
    with pytest.raises(ImageError, match=r"b\.png: cannot be fetched \(HTTP Error 404"):
        shown(bad)


# -- the library datasets ---------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


def table_of(datasets, here, png, many=False):
    """Two captioned images and a row without one; images as bytes."""
    image = {"bytes": png(), "path": None}
    image, feature = ([image, image], datasets.List(datasets.Image())) if many else (image, datasets.Image())
    columns = {"picture": [image, image, None], "text": ["one", " two", "three"], "more": [1, 2, 3]}
    features = datasets.Features(picture=feature, text=datasets.Value("string"), more=datasets.Value("int64"))
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("form", ["saved", "parquet", "folder of parquet", "arrow"])
def test_tables(form, many, datasets, here, png):
    table, source = table_of(datasets, here, png, many), str(here / "table")
    if form == "parquet":
        source += ".parquet"
        table.to_parquet(source)
    elif form == "folder of parquet":
        (here / "table/data").mkdir(parents=True)
        table.to_parquet(here / "table/data/train-00000-of-00001.parquet")
    else:
        table.save_to_disk(source)
    if form == "arrow":
        (source,) = map(str, (here / "table").glob("*.arrow"))
    rows = open_data(source)
    assert rows.format == ("saved" if form == "saved" else "table")
    assert [(sample.id, sample.answer) for sample in rows] == [("0", "one"), ("1", " two"), ("2", "three")]
    assert [shown(sample) for sample in rows] == [[(96, 64)] * (1 + many)] * 2 + [[]]
    assert rows[0].images == rows[0].images != rows[1].images
    again = pickle.loads(pickle.dumps(rows))
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(shown, [again[0]] * 20)] == [shown(rows[0])] * 20


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_several_tables(form, datasets, here, png):
    for number in range(2):
        table = table_of(datasets, here, png).select([number])
        if form == "parquet":
            table.to_parquet(here / f"{number}.parquet")
        else:
            table.save_to_disk(here / f"{number}")
    rows = open_data("*.parquet" if form == "parquet" else "*/*.arrow")
    assert [(sample.id, sample.answer) for sample in rows] == [("0", "one"), ("1", " two")]


def test_chats_in_tables(datasets, here, png):
    (here / "a.png").write_bytes(png())
    parts = [{"type": "text", "text": "What?"}, {"type": "image", "text": None}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "A."}]}]
    datasets.Dataset.from_dict({"messages": [chat, chat], "image": ["a.png", None]}).to_parquet(here / "chat.parquet")
    rows = open_data("chat.parquet", images=here)
    assert rows[0].turns == (Turn("user", "What?<image>"), Turn("assistant", "A.", True)) and shown(rows[0]) == [
        (96, 64)
    ]
    with pytest.raises(
        SampleError, match=r"chat\.parquet, row 1: sample '1': 1 <image> mark in its turns but 0 images"
    ):
        rows[1]


def test_bytes_that_parquet_does_not_call_images(datasets, here, png):
    datasets.Dataset.from_dict({"image": [png(), b"broken"], "caption": ["a", "b"]}).to_parquet(here / "raw.parquet")
    one, other = open_data("raw.parquet")
    assert shown(one) == [(96, 64)]
    with pytest.raises(ImageError, match=r"raw\.parquet, row 1, image: not an image"):
        shown(other)


def test_splits(datasets, here, png):
    table = table_of(datasets, here, png)
    datasets.DatasetDict({"val": table, "test": table.select([0])}).save_to_disk(here / "both")
    assert len(open_data("both", split="test")) == 1
    with pytest.raises(ValueError, match=r"both: which split is meant\?; there are 'val', 'test': split="):
        open_data("both")
    with pytest.raises(ValueError, match=r"split='tset' is not there; there are 'val', 'test'"):
        open_data("both", split="tset")
    table.save_to_disk(here / "one")
    with pytest.raises(ValueError, match="one: split='val', but it has no splits"):
        open_data("one", split="val")


def test_tables_of_two_images_and_of_no_text(datasets, here, png):
    table = table_of(datasets, here, png)
    other = table.select_columns("picture").rename_column("picture", "other")
    datasets.concatenate_datasets([table, other], axis=1).save_to_disk(here / "two")
    with pytest.raises(ValueError, match="two: images are in the columns picture, other, and one is taken"):
        open_data("two")
    table.remove_columns("text").save_to_disk(here / "none")
    with pytest.raises(SampleError, match=r"none, row 0: nothing is said in it; .* its fields are \['more'\]"):
        open_data("none")[0]


def test_a_table_that_is_damaged(datasets, here):
    (here / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"x\.parquet: datasets cannot read it \(.*fetch or save it anew"):
        open_data("x.parquet")


def test_the_hub_is_asked_for_what_is_no_path(datasets, here):
    with pytest.raises(
        ValueError, match=r"nobody/nothing: datasets cannot read it \(.*check the name, and that there is a network"
    ):
        open_data("nobody/nothing")


def test_without_the_library(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'nobody/nothing, comes with an extra: pip install -e "\.\[data\]"'):
        open_data("nobody/nothing")


# -- what is wrong with the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["nothing", "nothing.jsonl", "here/data.jsonl", "./nothing/at/all", "a-{0..2}.tar", "*.tar"]
)
def test_what_is_not_there(source, here):
    (here / "here").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no such file or folder; check the path"):
        open_data(source)


def test_what_has_no_format(here, png):
    (here / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no data in it; it takes a folder of images with a .txt beside each;"):
        open_data("empty")
    (here / "images").mkdir()
    (here / "images/a.png").write_bytes(png())
    with pytest.raises(ValueError, match="images: no data in it"):
        open_data("images")
    with pytest.raises(ValueError, match="images: no image in it has its caption beside it"):
        open_data("images", format="folder")
    (here / "data.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"data\.csv: of no known format"):
        open_data("data.csv")
    with pytest.raises(ValueError, match="format='csv' is unknown; there are folder, jsonl, json, tars"):
        open_data("data.csv", format="csv")
    (here / "x.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"x\.jsonl: empty, not one row"):
        open_data("x.jsonl")
    with pytest.raises(ValueError, match=r"x\.jsonl: split='val', but a file has no splits"):
        open_data("x.jsonl", split="val")


def test_a_format_may_be_said(here):
    write_lines(here / "data.txt", {"text": "a"})
    assert open_data("data.txt", format="jsonl")[0].answer == "a"


def test_splits_of_a_folder(here, png):
    write_lines(here / "val.jsonl", {"text": "a"})
    write_lines(here / "train.jsonl", {"text": "b"})
    (here / "test").mkdir()
    (here / "test/a.png").write_bytes(png())
    (here / "test/a.txt").write_text("c")
    assert [open_data(here, split=split)[0].answer for split in ("val", "train", "test")] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"which of train\.jsonl, val\.jsonl is meant\? Name the file, or the split"):
        open_data(here)
    with pytest.raises(ValueError, match=r"split='dev' is not there; looked for .*/dev, and dev.jsonl"):
        open_data(here, split="dev")
    with pytest.raises(ValueError, match=r"\*\.jsonl: 2 files, .* name one"):
        open_data(f"{here}/*.jsonl")


def test_rows_are_read_one_by_one(here):
    rows = open_data(write_lines(here / "data.jsonl", {"text": "a"}))
    with pytest.raises(TypeError, match="rows are read one by one"):
        rows[:1]
    assert repr(rows) == f"<1 rows of {here}/data.jsonl (jsonl)>"
