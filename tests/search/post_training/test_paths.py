"""Paths that are drawn, and their names."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model import Choice
from jetvit.search.post_training.paths import draw_path, path_key
from jetvit.search.post_training.supernet import FULL

CHOICES = (
    Choice("linear"),
    Choice("linear", conv_size=3),
    Choice("linear", eps=1e-3),
    Choice("linear", feature_map="hedgehog"),
    Choice("window", window=(2, 3)),
    Choice("window", window=(3, 2)),
)
alternatives = st.dictionaries(st.text(max_size=3), st.lists(st.sampled_from(CHOICES), min_size=1, unique=True))


@given(alternatives, st.integers(0, 5), st.text(max_size=3))
def test_a_path_is_of_the_alternatives(some: dict[str, list[Choice]], max_full: int, seed: str):
    path = draw_path(some, max_full, seed)
    assert list(path) == list(some)
    assert all(choice == FULL or choice in some[name] for name, choice in path.items())
    assert sum(choice == FULL for choice in path.values()) <= max_full
    assert draw_path(some, max_full, seed) == path


def test_every_number_of_full_sites_is_as_likely():
    some = dict.fromkeys("abcdef", CHOICES[:3])
    paths = [draw_path(some, 3, str(seed)) for seed in range(2000)]
    counts = Counter(sum(choice == FULL for choice in path.values()) for path in paths)
    assert set(counts) == {0, 1, 2, 3}
    assert all(430 < count < 570 for count in counts.values()), counts  # 500, and 3.6 standard deviations
    others = Counter(path["c"] for path in paths if path["c"] != FULL)
    assert set(others) == set(CHOICES[:3])
    assert max(others.values()) < 1.25 * min(others.values())


@given(alternatives, st.data())
def test_a_key_names_one_model(some: dict[str, list[Choice]], data: st.DataObject):
    one, other = (
        {name: data.draw(st.sampled_from([FULL, *choices])) for name, choices in some.items()} for _ in range(2)
    )
    same = {n: c for n, c in one.items() if c != FULL} == {n: c for n, c in other.items() if c != FULL}
    assert (path_key(one) == path_key(other)) == same
    assert path_key(dict(reversed(one.items()))) == path_key(one)


def test_sites_that_are_not_named_are_full():
    for left_out in itertools.chain.from_iterable(itertools.combinations("ab", n) for n in range(3)):
        path = {"a": FULL, "b": FULL, "c": CHOICES[0]}
        assert path_key({name: choice for name, choice in path.items() if name not in left_out}) == path_key(path)
