import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.captions import caption_scores, caption_scores_each, cider_each, exact_match
from eval.ptb import ptb_tokenize

# Made with pycocoevalcap 1.2 on Python 3.11: its PTBTokenizer (Stanford CoreNLP 3.4.1 under Java 17), then Cider(),
# Bleu(4) and Rouge(). Each: hypotheses, references, (cider, bleu1, bleu2, bleu3, bleu4, rouge_l), cider of each sample.
GOLDEN = {
    "plain": (
        ["a cat sits on the mat", "two dogs play in the park", "a man rides a red bicycle down the street"],
        [
            ["a cat is sitting on the mat", "the cat sat on a mat"],
            ["two dogs are playing in a park", "a pair of dogs play in the grass"],
            ["a man riding a bike on a city street", "the man rides a red bicycle"],
        ],
        (
            3.0178981155502025,
            0.8626877209576516,
            0.7405268911707323,
            0.5935905657285437,
            0.4725307462935028,
            0.6857605397051026,
        ),
        [2.533463404809932, 3.160655211552915, 3.3595757302877605],
    ),
    "punctuated": (
        [
            "A man's dog doesn't like the \"well-known\" toy.",
            "There are 1,234.5 apples (red), on the table!",
            "Mr. Smith's T-shirt says STOP...",
        ],
        [
            ["The man's dog does not like a well-known toy", "A dog that doesn't like its toy."],
            ["Apples on a table; there are 1,234.5 of them (all red)."],
            ['Mr. Smith wears a T-shirt that says "stop"', "A t-shirt reads STOP !", "Man in shirt"],
        ],
        (
            2.4735759145762692,
            0.8882480439592952,
            0.6393633496278825,
            0.42848992236449135,
            0.2583255247904494,
            0.6449217591880542,
        ),
        [3.4483552049909405, 2.684686471876171, 1.2876860668616954],
    ),
    "short and empty": (
        ["", "dog", "a large elephant", "yes"],
        [
            ["a cat on a chair"],
            ["dog", "a dog"],
            ["an elephant standing near a tree", "a large grey elephant"],
            ["no"],
        ],
        (
            1.0822192481463766,
            0.24095536943337964,
            0.1904919454356251,
            2.2192179260840425e-06,
            1.3469814636884588e-06,
            0.4589041095890411,
        ),
        [0.0, 2.457042773743769, 1.8718342188417372, 0.0],
    ),
    "repeats": (
        ["a a a a a a a", "the red red car car", "a bus on a street near a bus stop on a street"],
        [["a bird"], ["the red car"], ["a bus near a bus stop", "a street with a bus"]],
        (
            1.5850537319471716,
            0.4583333333142362,
            0.3908679799678364,
            0.25700361160885526,
            0.18341362950013976,
            0.5805578712187733,
        ),
        [0.08738249899685344, 3.0376107730184887, 1.6301679238261724],
    ),
    "one sample": (
        ["a cat on a mat"],
        [["a cat on a mat", "the cat"]],
        (0.0, 0.9999999996000004, 0.9999999995750004, 0.9999999995388893, 0.9999999994791672, 1.0),
        [0.0],
    ),
}

# What pycocoevalcap's PTBTokenizer makes of these.
TOKENS = {
    "A man's dog doesn't like the (red) ball.": "a man 's dog does n't like the -lrb- red -rrb- ball",
    "We can't, cannot; won't": "we ca n't can not wo n't",
    "“It’s open” — the kids’ café": "it 's open the kids café",
    "a well-known black-and-white T-shirt": "a well-known black-and-white t-shirt",
    "1,234.5 apples at 5:30 p.m. for $3.50 each": "1,234.5 apples at 5:30 p.m. for $ 3.50 each",
    "'quoted' \"words\" -- and --- dashes -": "quoted words and dashes",
    " ... !\n": "",
}

words = st.text(alphabet="abcdefgh'-., ", max_size=24)
corpora = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=5)


@pytest.mark.parametrize(("caption", "tokens"), TOKENS.items())
def test_tokens_are_those_of_the_penn_treebank_tokenizer(caption, tokens):
    assert " ".join(ptb_tokenize(caption)) == tokens


@given(st.text())
def test_tokens_of_any_text_are_neither_empty_nor_broken(text):
    tokens = ptb_tokenize(text)
    assert all(tokens) and " ".join(tokens).split(" ") == (tokens or [""])


def test_tokens_that_are_kept_are_not_those_that_are_given():
    ptb_tokenize("a cat sits").clear()
    assert ptb_tokenize("a cat sits") == ["a", "cat", "sits"]


@pytest.fixture(scope="module")
def official():
    """Captions of many kinds as pycocoevalcap splits and scores them: see regenerate.py."""
    return json.loads(gzip.decompress((Path(__file__).parent / "golden_captions.json.gz").read_bytes()))


def test_tokens_are_those_of_the_java_tokenizer(official):
    pairs = [
        pair
        for sample in zip(official["captions"], official["tokens"], strict=True)
        for pair in zip(*sample, strict=True)
    ]
    assert len(pairs) >= 5000
    assert [pair for pair in pairs if " ".join(ptb_tokenize(pair[0])) != pair[1]] == []


def test_scores_are_the_official_ones(official):
    hypotheses, references = zip(*((hypothesis, refs) for hypothesis, *refs in official["captions"]), strict=True)
    scores, each = caption_scores(hypotheses, references), caption_scores_each(hypotheses, references)
    assert {name: official["scores"][name] for name in scores} == pytest.approx(scores, abs=1e-6)
    assert each.keys() == official["each"].keys()
    for name in each:
        assert each[name] == pytest.approx(official["each"][name], abs=1e-6), name


unmarked = st.text(st.characters(exclude_characters="<"), max_size=40)  # a tag may hold spaces


@given(unmarked, unmarked)
def test_a_space_always_ends_a_plain_word(left, right):
    assert ptb_tokenize(f"{left} zebra {right}") == ptb_tokenize(f"{left} zebra") + ptb_tokenize(right)


@pytest.mark.parametrize("name", GOLDEN)
def test_scores_are_those_of_pycocoevalcap(name):
    hypotheses, references, golden, each = GOLDEN[name]
    scores = caption_scores(hypotheses, references)
    assert list(scores) == ["cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"]
    assert list(scores.values()) == pytest.approx(golden, abs=1e-6)
    assert cider_each(hypotheses, references) == pytest.approx(each, abs=1e-6)


@given(st.lists(st.integers(4, 9), min_size=2, max_size=6))
def test_perfect_captions_score_full_marks(lengths):
    captions = [" ".join(f"w{sample}x{place}" for place in range(n)) for sample, n in enumerate(lengths)]
    scores = caption_scores(captions, captions)
    assert scores["cider"] == pytest.approx(10)
    assert [scores[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
    assert scores["rouge_l"] == pytest.approx(1)
    assert exact_match(captions, captions) == 1


@given(corpora)
def test_scores_stay_in_range_and_cider_is_its_samples_mean(corpus):
    hypotheses, references = zip(*corpus, strict=True)
    scores, each = caption_scores(hypotheses, references), cider_each(hypotheses, references)
    assert 0 <= scores["cider"] <= 10 + 1e-9
    assert all(0 <= score <= 1 + 1e-9 for name, score in scores.items() if name != "cider")
    assert scores["cider"] == pytest.approx(math.fsum(each) / len(each))
    assert 0 <= exact_match(hypotheses, references) <= 1


@given(corpora, st.randoms(use_true_random=False))
def test_the_order_of_samples_and_references_does_not_matter(corpus, random):
    shuffled = [(hypothesis, random.sample(group, len(group))) for hypothesis, group in corpus]
    random.shuffle(shuffled)
    before, after = (caption_scores(*zip(*samples, strict=True)) for samples in (corpus, shuffled))
    assert before == pytest.approx(after)


def test_one_reference_may_be_a_string():
    hypotheses, references = ["a red cat sleeps", "two dogs run fast"], ["a red cat sits", "two dogs run home"]
    assert caption_scores(hypotheses, references) == caption_scores(hypotheses, [[ref] for ref in references])


@pytest.mark.parametrize("references", [["a cat on a mat"], [["a cat", "the cat"]]])
def test_an_empty_hypothesis_scores_nothing(references):
    assert caption_scores(["..."], references) == pytest.approx(dict.fromkeys(caption_scores([""], references), 0))
    assert exact_match([""], references) == 0


def test_exact_match_sees_past_case_and_punctuation():
    assert exact_match(["A cat, on a mat.", "a dog"], [["the cat", "a cat on a mat"], ["the dog"]]) == 0.5


@pytest.mark.parametrize("score", [caption_scores, cider_each, exact_match])
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 texts but references for 1 samples"),
        ([], [], "nothing to score"),
        (["a", "b"], [["a"], []], "sample 1 has no references"),
    ],
)
def test_bad_input_is_named(score, hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        score(hypotheses, references)
