"""Scores of answers beside the VQA accuracy of eval/vqa.py."""

from collections.abc import Sequence

from eval.paired import References, paired
from eval.vqa import normalize_answer

_TOLERANCE = 0.05
_THRESHOLD = 0.5


def exact_each(answers: Sequence[str], references: References) -> list[float]:
    """1 for an answer whose normal form (`eval.vqa.normalize_answer`) is that of one of its references, 0 otherwise."""
    return [
        float(normalize_answer(answer) in map(normalize_answer, group)) for answer, group in paired(answers, references)
    ]


def anls_each(answers: Sequence[str], references: References) -> list[float]:
    """ANLS of each answer (0..1), which forgives slips of reading: Biten et al. 2019 (arXiv:1907.00490).

    1 minus the edit distance to the nearest reference as a share of the longer one's length, and 0 where half or more
    of it differs. Case and the amount of space do not count.
    """
    return [
        max(_likeness(" ".join(answer.lower().split()), " ".join(ref.lower().split())) for ref in group)
        for answer, group in paired(answers, references)
    ]


def relaxed_each(answers: Sequence[str], references: References) -> list[float]:
    """Relaxed accuracy of each answer (0 or 1), for charts: Masry et al. 2022 (arXiv:2203.10244).

    A number may be off by 5 % of the reference, "%" behind it stands for hundredths; all else has to be the same
    string, whatever its case. Where the reference is 0 the answer has to be that string, too.
    """
    return [
        float(any(_relaxed(answer.strip(), ref.strip()) for ref in group))
        for answer, group in paired(answers, references)
    ]


def _likeness(left: str, right: str) -> float:
    longer = max(len(left), len(right), 1)
    if abs(len(left) - len(right)) / longer >= _THRESHOLD:  # at least so many edits: nothing need be counted
        return 0.0
    share = _edits(left, right) / longer
    return 1 - share if share < _THRESHOLD else 0.0


def _edits(left: str, right: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(right) + 1))
    for place, letter in enumerate(left, 1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(right, 1):
            diagonal, row[column] = row[column], min(diagonal + (letter != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


def _relaxed(answer: str, reference: str) -> bool:
    said, meant = _number(answer), _number(reference)
    if said is not None and meant:
        return abs(said - meant) <= _TOLERANCE * abs(meant)
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
