"""Folding sequences: runs, repeats, and items that several sequences share."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from talkerviz.flowchart.repeats import Items


def fold(*sequences: str) -> tuple[str, list[list[str]]]:
    """Return the folded sequence of letters, repeats in brackets, and the item of each letter."""
    items = Items()
    found = [items.add([ord(letter) for letter in one], [letter.isupper() for letter in one]) for one in sequences]
    letters: dict[tuple[int, int], str] = {}
    for one, places in zip(sequences, found, strict=True):
        for letter, (place, _) in zip(one, places, strict=True):
            assert letters.setdefault((place.item, place.member), letter) == letter
    texts = []
    for item in items.order:
        members = "".join(letters[key] for key in sorted(letters) if key[0] == item)
        texts.append(f"({members})" if items.repeats[item] else members)
    return " ".join(texts), [[f"{place.item}.{turn}" for place, turn in places] for places in found]


def test_what_follows_itself_is_one() -> None:
    assert fold("aaab")[0] == "a b"


def test_other_calls_between_keep_them_apart() -> None:
    # conv relu conv relu: the second relu is not the first one's repeat.
    assert fold("abca")[0] == "a b c a"


def test_what_takes_turns_three_times_is_a_repeat() -> None:
    assert fold("xabababy")[0] == "x (ab) y"
    assert fold("xababy")[0] == "x a b a b y"
    turns = fold("ababab")[1][0]
    assert turns == ["0.0", "0.0", "0.1", "0.1", "0.2", "0.2"]


def test_runs_inside_turns() -> None:
    # Three linear layers, then a full one, over and over.
    assert fold("aaabaaabaaab")[0] == "(ab)"


def test_a_few_operations_in_a_row_stay_apart() -> None:
    assert fold("AAA")[0] == "A A A"
    assert fold("A" * 8)[0] == "A"


def test_sequences_share_items() -> None:
    order, places = fold("abc", "abd", "ac")
    assert order == "a b c d"
    assert places[0][0] == places[1][0] == places[2][0]
    assert places[0][2] == places[2][1]


def test_something_new_stands_before_what_follows_it() -> None:
    # A prefill's pass and a decode's, both before the argmax.
    assert fold("pz", "dz")[0] == "p d z"


letters = st.text(alphabet="abAB", max_size=24)


@given(st.lists(letters, min_size=1, max_size=5))
def test_nothing_is_lost_and_nothing_mixed(sequences: list[str]) -> None:
    items = Items()
    found = [items.add([ord(letter) for letter in one], [letter.isupper() for letter in one]) for one in sequences]
    assert sorted(items.order) == list(range(len(items.repeats)))
    of_place: dict[object, str] = {}
    for one, places in zip(sequences, found, strict=True):
        assert len(places) == len(one)
        for letter, (place, _) in zip(one, places, strict=True):
            # One place is one letter, in all sequences.
            assert of_place.setdefault(place, letter) == letter
            assert (place.member >= 0) == items.repeats[place.item]
        # What went to an item came in one piece.
        pieces = [item for item, _ in groupby(place.item for place, _ in places)]
        assert len(pieces) == len(set(pieces))
        turns = [(place.item, turn) for place, turn in places]
        assert turns == sorted(turns, key=lambda pair: (pieces.index(pair[0]), pair[1]))
