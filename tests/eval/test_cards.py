"""Zener cards: pictures that show what they are said to show, and answers of which no more counts than was said."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.cards import COLORS, FULL, LETTERS, MOST, SYMBOLS, Cards, read

KS = range(1, MOST + 1)
grids = st.builds(Cards, st.sampled_from(KS), st.integers(0, 10**6), st.integers(0, 9))


@given(grids)
def test_the_right_answer_is_read_as_it_was_meant(deck):
    assert read(deck.answer, deck.k) == deck.cards
    assert read(f"Sure! Here they are:\n{deck.answer.upper()}.\nAnything else?", deck.k) == deck.cards
    assert len(deck.answer.splitlines()) == deck.k and len(deck.answer.split()) == 3 * deck.k**2


@given(grids)
def test_answers_in_other_forms_are_read(deck):
    """As models that were not taught ours give them: a JSON matrix, on one line or many; lists without places."""
    rows = [deck.cards[start : start + deck.k] for start in range(0, deck.k**2, deck.k)]
    named = [[" ".join(card) for card in row] for row in rows]
    forms = [
        json.dumps(named),
        f"```json\n{json.dumps(named, indent=2)}\n```",
        "\n".join("| " + " | ".join(row) + " |" for row in named),
        "\n".join(f"- {card}" for row in named for card in row),
        "\n\n".join(", ".join(f"a {card}" for card in row) for row in named),
        json.dumps(named).replace("waves", "wavy lines").replace("cross", "plus"),
        "; ".join(f"{LETTERS[j]}{i + 1}: {card}" for i, row in enumerate(named) for j, card in enumerate(row)),
    ]
    for form in forms:
        assert read(form, deck.k) == deck.cards, form


pieces = st.sampled_from(
    [*COLORS, *SYMBOLS, "a1", "b2", "m13", "a", "1", ",", ":", "\n", "purple", "hexagon", "wavy", "s"]
)


@given(st.lists(pieces, max_size=60).map(" ".join), st.sampled_from(KS))
def test_every_card_is_taken_for_one_or_none(text, k):
    said = read(text, k)
    assert len(said) == k * k and set(said) <= {None, *FULL}


@given(grids, st.data())
def test_only_the_first_word_about_a_card_counts(deck, data):
    """An answer that goes on with every other card for each place gets nothing for it."""
    place = data.draw(st.integers(0, deck.k**2 - 1))
    name = f"{LETTERS[place % deck.k]}{place // deck.k + 1}"
    guesses = " ".join(f"{name} {color} {symbol}" for color, symbol in FULL)
    assert read(f"{deck.answer}\n{guesses}", deck.k) == deck.cards
    assert read(guesses, deck.k) == [FULL[0] if n == place else None for n in range(deck.k**2)]


@given(grids, st.data())
def test_a_row_that_is_short_spoils_no_other(deck, data):
    row = data.draw(st.integers(0, deck.k - 1))
    lines = [
        ", ".join(" ".join(card) for card in deck.cards[start : start + deck.k])
        for start in range(0, deck.k**2, deck.k)
    ]
    lines[row] = lines[row].rpartition(",")[0] or "red star"
    said = read("\n".join(lines), deck.k)
    own = slice(row * deck.k, (row + 1) * deck.k)
    assert said[: own.start] + said[own.stop :] == deck.cards[: own.start] + deck.cards[own.stop :]
    assert deck.k == 1 or said[own.stop - 1] is None


@pytest.mark.parametrize(
    "text", ["", "I see a grid.", "red, green, blue", "a1 b1 c1", "star red", "redstar", "reds tar"]
)
def test_what_names_no_card_is_no_answer(text):
    assert read(text, 2) == [None] * 4


def test_cards_are_drawn_from_all_kinds_alike():
    drawn = Counter(card for number in range(100) for card in Cards(10, number).cards)
    assert set(drawn) == set(FULL) and max(drawn.values()) < 1.25 * min(drawn.values())


@pytest.mark.parametrize("k", KS)
def test_every_cell_shows_its_own_color(k):
    """The commonest of the colors, among pixels that are far from the ground, is the card's; the border has none."""
    deck = Cards(k, k)
    picture = np.asarray(deck()).astype(int)
    ground, cell = picture[0, 0], 512 / k
    for place, (color, _) in enumerate(deck.cards):
        top, left = (round(at * cell) for at in divmod(place, k))
        part = picture[top : round(top + cell), left : round(left + cell)]
        inked = part[np.abs(part - ground).max(2) > 60]
        away = np.abs(inked[:, None] - np.array(list(COLORS.values()))).sum(2)
        shown = Counter(away.argmin(1).tolist()).most_common(1)[0][0]
        assert list(COLORS)[shown] == color
    border = np.concatenate([picture[[0, -1]].reshape(-1, 3), picture[:, [0, -1]].reshape(-1, 3)])
    assert (border == ground).all()


def test_symbols_are_told_apart_by_their_shapes():
    """Of ten pictures of each, the nearest by its blurred outline is most often of the same symbol."""
    outlines, names = [], []
    for number in range(200):
        deck = Cards(1, number)
        if names.count(deck.cards[0][1]) < 10:
            picture = np.asarray(deck().resize((16, 16))).astype(float)
            far = np.abs(picture - picture[0, 0]).sum(2)
            outlines.append((far / far.max()).ravel())
            names.append(deck.cards[0][1])
    assert len(names) == 50
    away = np.linalg.norm(np.array(outlines)[:, None] - np.array(outlines), axis=2) + 1e9 * np.eye(50)
    right = [names[other] == name for name, other in zip(names, away.argmin(1), strict=True)]
    assert np.mean(right) > 0.8


@settings(max_examples=10)
@given(grids, st.sampled_from([64, 512, 700]))
def test_a_picture_follows_from_its_name(deck, size):
    deck = Cards(deck.k, deck.number, deck.seed, size)
    picture = deck()
    assert picture.size == (size, size) and picture.mode == "RGB"
    assert picture.tobytes() == Cards(deck.k, deck.number, deck.seed, size)().tobytes()
    assert picture.tobytes() != Cards(deck.k, deck.number + 1, deck.seed, size)().tobytes()


def test_lines_are_smooth():
    """Between ground and ink there are shades."""
    picture = np.asarray(Cards(3, 0)())
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
