"""Accuracy of answers to questions about images: the official VQA metric, and the prior that a look has to beat.

Antol et al. 2015, "VQA: Visual Question Answering" (arXiv:1505.00468), with the habits of its evaluation code, since
published numbers have them too.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from eval.paired import References, paired

_ARTICLES = frozenset(["a", "an", "the"])
_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNTING.split())}

# The official table maps to each of these what it is with one apostrophe left out. It is neither complete (no "ill" for
# "i'll", no "its", no "shes") nor free of slips: "somebody'd" loses its apostrophe instead of gaining it.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTED.split() for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"[0-9],[0-9]")
_MOST_PERIODS = 32  # the official call passes a flag where the count belongs


def normalize_answer(text: str) -> str:
    """The official normal form of an answer: "The two dogs!" -> "2 dogs", "dont" -> "don't", "1,000" -> "1000".

    Lower case; no articles; number words up to ten (and "none") as digits; apostrophes put back into contractions; no
    full stops except before a digit. A punctuation mark is deleted if the answer has it beside a space anywhere, or
    has a comma between digits, and becomes a space otherwise: "red/blue" -> "red blue".
    """
    text = raw = _strip(text)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in raw or f" {mark}" in raw
        text = text.replace(mark, "" if beside_space or _THOUSANDS.search(raw) else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", text, count=_MOST_PERIODS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy_each(answers: Sequence[str], references: References) -> list[float]:
    """VQA accuracy of each answer (0..1), given what the annotators (ten, officially) answered to its question.

    With several references it is the mean, over leaving out each of them in turn, of min(1, matches among the others
    / 3): four of ten who agree make a full point, and fewer than four references cannot. As in the official code, both
    sides are normalized (`normalize_answer`) only where the references differ among themselves; where all are the same
    string the answer has to be that string. With a single reference (a string or a list of one) it is 1 if
    both have the same normal form and 0 otherwise.

    Raises ValueError for empty or unequally long lists and for a question without references.
    """
    return [_accuracy(answer, group) for answer, group in paired(answers, references)]


def vqa_accuracy(answers: Sequence[str], references: References) -> float:
    """Mean VQA accuracy (0..1): see `accuracy_each`."""
    scores = accuracy_each(answers, references)
    return sum(scores) / len(scores)


def question_prior(train: Iterable[tuple[str, str]], test: Iterable[tuple[str, str]]) -> float:
    """Accuracy (0..1) that questions reach without their images: what a model has to beat to be said to look.

    Both are (question, answer) pairs. Each test question gets the commonest training answer to the very same question
    string, or to all questions if training never asked it; of equally common ones the first in the alphabet. An answer
    counts when the strings are equal. Raises ValueError when either is empty.
    """
    overall: Counter[str] = Counter()
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in train:
        overall[answer] += 1
        by_question[question][answer] += 1
    if not overall:
        raise ValueError("train is empty; the prior needs the training questions with their answers")
    fallback = _commonest(overall)
    prior = {question: _commonest(answers) for question, answers in by_question.items()}
    hits = [prior.get(question, fallback) == answer for question, answer in test]
    if not hits:
        raise ValueError("test is empty; give at least one question with its answer")
    return sum(hits) / len(hits)


def _accuracy(answer: str, references: list[str]) -> float:
    answer, references = _strip(answer), [_strip(reference) for reference in references]
    if len(references) == 1:
        return float(normalize_answer(answer) == normalize_answer(references[0]))
    if len(set(references)) > 1:
        answer, references = normalize_answer(answer), [normalize_answer(reference) for reference in references]
    matches = references.count(answer)
    return sum(min(1.0, (matches - (reference == answer)) / 3) for reference in references) / len(references)


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _commonest(answers: Counter[str]) -> str:
    return min(answers, key=lambda answer: (-answers[answer], answer))
