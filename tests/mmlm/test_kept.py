"""What is kept: computed once, in chunks whose shape follows from a text alone, and the oldest makes room."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlm.kept import TOKENS, Kept, wide


class Lengths(Kept):
    """The result of a text is the length of its last part; notes what it was asked to compute."""

    def __init__(self, most=1000):
        super().__init__(most)
        self.asked = []

    def compute(self, texts, widths):
        self.asked.append((texts, tuple(widths)))
        return [torch.tensor(len(text[-1])) for text in texts]


@given(st.integers(0, 2000))
def test_widths_are_few_and_wide_enough(tokens):
    assert tokens <= wide(tokens) == wide(wide(tokens)) < tokens + 24
    assert wide(tokens) in {0, 8, 12, 16} or wide(tokens) % 24 == 0


ids = st.integers(0, 80).map(lambda count: tuple(range(count)))
texts = st.lists(st.tuples(ids, ids.filter(bool)), max_size=60)


@given(texts=texts, more=texts)
def test_a_text_is_computed_once_in_a_shape_of_its_own(texts, more):
    kept = Lengths()
    for asked in (texts, more, texts + more):
        assert [int(length) for length in kept(asked)] == [len(text[-1]) for text in asked]
    new = []
    for chunk, widths in kept.asked:
        assert len(chunk) == max(1, TOKENS // widths[-1])
        assert {tuple(wide(len(part)) for part in text) for text in chunk} == {widths}
        new += set(chunk)
    assert sorted(new) == sorted({*texts, *more})


def test_the_oldest_make_room():
    kept = Lengths(most=3)
    texts = [((number,),) for number in range(5)]
    assert len(kept(texts)) == 5, "more than are kept"
    assert list(kept.kept) == texts[2:]
