"""mmlm data check: what is in data, and what is wrong with it, in numbers that were counted by hand."""

import io
import json
import tarfile

import pytest
from data_verb import run, write_lines
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mmlm.config import AdapterConfig
from mmlm.data import Sample, Turn, open_data
from mmlm.data.check import check, spread
from mmlm.data.likeness import COLORS, FARTHEST, Alike, Likeness, colors_apart, distance, likeness
from mmlm.data.measure import Characters, Tokens
from mmlm.processor import Processor
from vision.pyramid import Pyramid

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def train(here, picture):
    """a, b and c are images; a is there twice, and once more under another name; d is broken, e is missing."""
    for name, seed, size in (("a", 0, (96, 64)), ("b", 1, (600, 512)), ("c", 2, (64, 64)), ("same", 0, (96, 64))):
        picture(seed, size).save(here / f"{name}.png")
    (here / "d.png").write_bytes(b"no image")
    chat = [
        {"role": "user", "content": "<image><image>?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "no", "learnt": False},
        {"role": "user", "content": "so?"},
        {"role": "assistant", "content": "maybe"},
    ]
    write_lines(
        here / "train.jsonl",
        {"image": "a.png", "text": "an a"},
        {"image": "a.png", "text": "another a"},
        {"image": "b.png", "question": "what?", "answer": "bee", "kind": "word"},
        {"image": "same.png", "text": "an a"},
        {"images": ["a.png", "c.png"], "messages": chat, "id": 1},
        {"image": "d.png", "text": "broken"},
        {"image": "e.png", "text": "missing"},
        {"image": "a.png", "text": ""},
        {"question": "1 + 1?", "answer": "2"},
    )
    return "train.jsonl"


def test_everything_is_counted(train, here):
    rows = open_data(train)
    report = check({"train": rows}, Characters())
    assert report["broken"] == 3 and report["leaks"] == []
    its = report["data"]["train"]
    assert (its["format"], its["rows"], its["samples"], its["unit"]) == ("jsonl", 9, 6, "characters")
    assert [row["row"] for row in its["broken"]] == [5, 6, 7]
    assert its["broken"][0]["why"].startswith("train.jsonl, line 6: d.png: not an image that Pillow can read")
    assert its["broken"][1]["why"] == "train.jsonl, line 7: e.png: no such file; check the path"
    assert its["broken"][2]["why"].startswith("train.jsonl, line 8: text: '' teaches nothing")
    assert its["duplicates"] == [{"row": 3, "of": 0}], "the same pixels and text, whatever the files are called"
    assert its["kinds"] == {"": 2, "caption": 3, "word": 1}
    assert its["roles"] == {"assistant": 8, "user": 8}
    assert its["repeated ids"] == 1
    assert its["distinct images"] == 3
    assert its["tiles"] == {"1": 5, "2": 1}
    assert its["learnt"] == {"sum": 4 + 9 + 3 + 4 + 8 + 1, "least": 1, "5%": 1, "median": 4, "95%": 9, "most": 9}
    prompt = len("Describe the image.")
    assert its["other"]["sum"] == 3 * prompt + 5 + len("<image><image>?sure?noso?") + 6
    assert its["images"] == {"sum": 6, "least": 0, "5%": 0, "median": 1, "95%": 2, "most": 2}
    assert its["embeddings"] == {"sum": 5 * 255 + 425, "least": 0, "5%": 0, "median": 255, "95%": 510, "most": 510}
    assert its["turns"] == {"sum": 16, "least": 2, "5%": 2, "median": 2, "95%": 6, "most": 6}
    assert its["width"] == {"sum": 760, "least": 64, "5%": 64, "median": 96, "95%": 600, "most": 600}


def test_tokens_are_those_that_training_learns(train, tokenizer):
    report = check({"train": open_data(train)}, Tokens(Processor(tokenizer, Pyramid()), AdapterConfig(detail="low")))
    its = report["data"]["train"]
    assert its["unit"] == "tokens"
    assert its["learnt"]["sum"] == 29 + 7, "a byte is a token, and each answer has an end"
    assert its["embeddings"]["sum"] == 6 * 85, "by the adapter's own detail"


def test_a_chat_that_the_decoder_refuses_is_broken(here, tokenizer):
    write_lines(here / "x.jsonl", {"text": "a"}, {"messages": [{"role": "assistant", "content": "b"}]})
    its = check({"x": open_data("x.jsonl")}, Tokens(Processor(tokenizer, Pyramid()), AdapterConfig()))["data"]["x"]
    assert [row["why"] for row in its["broken"]] == [
        "x.jsonl, line 2: sample '2': nobody asks before the last answer; it needs a turn of the user's before it"
    ]


def test_leaks_between_data(train, here, picture):
    picture(2, (64, 64)).save(here / "renamed.bmp")
    picture(1, (300, 256)).save(here / "smaller.png")
    picture(7).save(here / "new.png")
    write_lines(
        here / "test.jsonl", *({"image": name, "text": "x"} for name in ("new.png", "renamed.bmp", "smaller.png"))
    )
    sets = {name: open_data(f"{name}.jsonl") for name in ("train", "test")}
    assert check(sets, Characters())["leaks"] == [{"data": ["train", "test"], "same": [(4, 1)]}]
    assert check(sets, Characters(), near=3)["leaks"][0]["near"] == [(2, 2)]


def test_an_image_is_opened_once(here, picture, monkeypatch):
    """Of tars, too, whose images are no files."""
    from mmlm.data import walk

    picture().save(here / "a.png")
    with tarfile.open(here / "a.tar", "w") as tar:
        for name, data in {"1.png": (here / "a.png").read_bytes(), "1.txt": b"a"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_lines(here / "a.jsonl", *({"image": "a.png", "text": str(number)} for number in range(50)))
    seen, own = [], walk.look_at
    monkeypatch.setattr(walk, "look_at", lambda image: seen.append(image) or own(image))
    check({name: open_data(name) for name in ("a.jsonl", "a.tar")}, Characters())
    assert len(seen) <= 1 + 16, "each thread may be at it at once"


def test_no_text_is_remembered(here, monkeypatch):
    """Millions of rows are to fit: what is kept of a sample is its numbers and a hash."""
    write_lines(here / "a.jsonl", *({"text": f"{number} {'x' * 1000}"} for number in range(300)))
    report = check({"a": open_data("a.jsonl")}, Characters())
    assert len(json.dumps(report)) < 3000


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_tells_people(train, here, capsys):
    assert run("check", train, "--json", "all.json") == 1
    said = capsys.readouterr().out
    for line in (
        "train.jsonl (jsonl): 6 of 9 rows are samples",
        "  turns            8 assistant, 8 user",
        "  kinds            2 of no kind, 3 caption, 1 word",
        "  tiles            5 of 1, 1 of 2",
        "  samples with the id of another: 1",
        "  samples that are there twice: 1",
        "    train.jsonl, line 4 is train.jsonl, line 1",
        "  broken rows: 3",
        "    train.jsonl, line 7: e.png: no such file; check the path",
    ):
        assert line in said.splitlines()
    assert [line.split()[2:] for line in said.splitlines() if "learnt characters" in line] == [["29", *"11499"]]
    assert json.loads((here / "all.json").read_text())["broken"] == 3


def test_the_command_on_what_is_whole(here, picture, capsys, tokenizer):
    picture().save(here / "a.png")
    for split, text in (("train", "one"), ("test", "two")):
        write_lines(here / f"{split}.jsonl", {"image": "a.png", "text": text})
    tokenizer.save_pretrained(here / "decoder")
    assert run("check", ".", "--split", "train", "--split", "test", "--decoder", "decoder", "--prompt", "Say.") == 0
    said = capsys.readouterr().out
    assert ". [train] (jsonl): 1 of 1 rows are samples" in said and "learnt tokens" in said and "broken" not in said
    assert "  images both in . [train] and in . [test]: 1\n    train.jsonl, line 1 and test.jsonl, line 1" in said


def test_the_first_of_many_are_told(here, capsys):
    write_lines(here / "a.jsonl", {"text": "fine"}, *({"text": ""} for _ in range(9)))
    assert run("check", "a.jsonl") == 1
    said = capsys.readouterr().out
    assert said.count("teaches nothing") == 5 and "    ... and 4 more; --json FILE has all" in said
    write_lines(here / "b.jsonl", {"text": ""})
    assert run("check", "b.jsonl") == 1
    assert "b.jsonl (jsonl): 0 of 1 rows are samples\n  broken rows: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["check", "nothing.jsonl"], "nothing.jsonl: no such file or folder"),
        (["check", "a.jsonl", "--split", "x"], "a.jsonl: split='x', but a file has no splits"),
        (["check", "a.jsonl", "--decoder", "nothing/here"], "decoder='nothing/here' cannot be loaded"),
        (["check", "a.jsonl", "--model", "nothing"], "nothing: no such folder"),
        (["prune", "nothing.jsonl", "out"], "nothing.jsonl: no such file or folder"),
        (["prune", "a.jsonl", "out", "--clip", "open_clip:ViT-B-23/x"], "open_clip:ViT-B-23/x: open_clip has no model"),
        (["prune", "a.jsonl", "out", "--clip", "open_clip:ViT-B-32/x"], "open_clip:ViT-B-32/x: no weights 'x'; of"),
        (["prune", "a.jsonl", "a.jsonl"], "a.jsonl: exists already"),
    ],
)
def test_what_is_mistyped_is_one_line(words, answer, here, capsys):
    write_lines(here / "a.jsonl", {"text": "a"})
    assert run(*words) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"mmlm: {answer}") and said.err.count("\n") == 1


@pytest.mark.parametrize("near", ["-1", "16", "x", "1.5"])
def test_bits_are_few(near, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("check", "a", f"--near={near}")
    assert "is no whole number from 0 to 15" in capsys.readouterr().err


# -- what it counts with ----------------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_quantiles_are_values_that_are_there(counts):
    found = spread(counts)
    assert found.pop("sum") == sum(counts)
    assert set(found.values()) <= set(counts) and list(found.values()) == sorted(found.values())
    assert (found["least"], found["most"]) == (min(counts), max(counts))
    assert spread([]) == {"sum": 0}


hashes = st.integers(0, 2**64 - 1)
GREY = bytes([100] * 192)


@given(
    first=st.lists(hashes, min_size=1, max_size=12),
    flips=st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=8), st.booleans()), max_size=20),
    near=st.integers(0, FARTHEST),
)
def test_bands_find_what_all_pairs_find(first, flips, near):
    alike, known = Alike(near), []
    for place, bits, light in [*((n, set(), False) for n in range(len(first))), *flips]:
        value = first[place % len(first)] ^ sum(1 << bit for bit in bits)
        one = Likeness(value, bytes([100 + (COLORS + 1) * light, *GREY[1:]]))
        wanted = next(
            (
                row
                for row, other in enumerate(known)
                if (value ^ other.bits).bit_count() <= near and one.colors == other.colors
            ),
            None,
        )
        assert alike.find("x", [one]) == wanted
        assert alike.find("y", [one]) is None and alike.find("x", [one, one]) is None
        alike.add(len(known), "x", [one])
        known.append(one)


def test_several_images_are_near_if_each_is():
    def images(*values):
        return [Likeness(value, GREY) for value in values]

    assert distance(images(0, 0b111), images(0b1, 0b100)) == 2 and distance([], []) == 0 == colors_apart([], [])
    alike = Alike(2)
    alike.add(7, None, images(0, 0b111))
    assert alike.find(None, images(0b1, 0b100)) == 7
    assert alike.find(None, images(0, 0)) is None
    with pytest.raises(ValueError, match="near=16: takes 0 to 15, how many of 64 bits may differ"):
        Alike(16)


def known(one, other, near=3):
    alike = Alike(near)
    alike.add(0, None, [likeness(one)])
    return alike.find(None, [likeness(other)]) == 0


def test_an_image_is_known_again(picture):
    """Rescaled or recompressed; and no other is taken for it."""
    image = picture(3, (320, 240))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    same = [image.resize((160, 120)), image.resize((500, 500)), Image.open(buffer).convert("RGB")]
    assert all(known(image, other) for other in same)
    assert not any(known(image, picture(seed, (320, 240))) for seed in (0, 1, 2, 4, 5, 6))


def test_drawings_are_told_apart():
    """Mostly white, and of one color, though their hashes may be near."""
    drawn = [Image.new("RGB", (64, 64), color) for color in ("white", "red", "blue")]
    for shape, place in (("rectangle", 4), ("rectangle", 30), ("ellipse", 4)):
        drawn.append(Image.new("RGB", (64, 64), "white"))
        getattr(ImageDraw.Draw(drawn[-1]), shape)((place, place, place + 24, place + 24), "black")
    assert likeness(drawn[0]).bits == likeness(drawn[1]).bits == 0
    for place, one in enumerate(drawn):
        assert [known(one, other, 15) for other in drawn] == [place == n for n in range(len(drawn))]


def test_characters_are_those_of_turns():
    turns = Turn("user", "<image>what?"), Turn("assistant", "a", True), Turn("user", "b"), Turn("assistant", "cé", True)
    assert Characters()(Sample("x", (b"",), turns)) == (3, 13)
