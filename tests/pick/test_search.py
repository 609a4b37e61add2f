"""The search over edits, on made-up adapters whose best repair is known."""

from __future__ import annotations

from collections.abc import Callable

from variegate.blend.edits import Contrast, Edit, Weaken
from variegate.pick.search import Knob, Score, Try, best_of, search

KNOBS = (
    Knob("contrast", tuple(Contrast(p) for p in (1.0, 3.0, 10.0, 30.0)), (1,)),
    Knob("whole", tuple(Weaken("whole", to) for to in (0.9, 0.8, 0.7, 0.5))),
    Knob("text", (Weaken("text", 0.5), Weaken("text", 0.0))),
    Knob("down", (Weaken("down", 0.5), Weaken("down", 0.0))),
)


def adapter(asked: list[tuple[Edit, ...]]) -> Callable[[tuple[Edit, ...]], Score]:
    """Contrast gives variety at a small price, strength at a large one, text a little for nothing,
    and the blocks that go down do nothing."""

    def score(edits: tuple[Edit, ...]) -> Score:
        asked.append(edits)
        variety, likeness = 0.2, 1.0
        for edit in edits:
            if isinstance(edit, Contrast):
                steps = (1.0, 3.0, 10.0, 30.0).index(edit.price) + 1
                variety, likeness = variety + 0.15 * steps, likeness - 0.012 * steps
            elif edit.part == "whole":
                variety, likeness = variety + 0.5 * (1 - edit.to), likeness - (1 - edit.to)
            elif edit.part == "text":
                variety += 0.1 * (1 - edit.to)
        return Score(variety, likeness)

    return score


def test_what_helps_is_found_and_put_together() -> None:
    tried = search(KNOBS, adapter([]), tries=12, price=0.05)
    assert tried[0] == Try((), Score(0.2, 1.0))
    best = best_of(tried, price=0.05)
    assert best.edits == (Contrast(30.0), Weaken("text", 0.0))


def test_a_tighter_price_finds_a_milder_repair() -> None:
    tried = search(KNOBS, adapter([]), tries=20, price=0.03)
    assert best_of(tried, price=0.03).edits == (Contrast(3.0), Weaken("text", 0.0))


def test_an_edit_that_gives_next_to_nothing_is_left_out() -> None:
    none = Try((), Score(0.2, 1.0))
    one = Try((Contrast(3.0),), Score(0.6, 1.0))
    two = Try((Contrast(3.0), Weaken("text", 0.5)), Score(0.63, 1.0))
    assert best_of([none, one, two], price=0.05) is one
    worth_it = Try(two.edits, Score(0.7, 1.0))
    assert best_of([none, one, worth_it], price=0.05) is worth_it


def test_no_more_is_drawn_than_was_asked_and_nothing_twice() -> None:
    for tries in (1, 4, 9, 200):
        asked: list[tuple[Edit, ...]] = []
        tried = search(KNOBS, adapter(asked), tries=tries, price=0.05)
        assert len(asked) == len(tried) <= tries + 1
        assert len(set(asked)) == len(asked)
        assert [t.edits for t in tried] == asked


def test_what_moved_nothing_alone_is_not_turned_again() -> None:
    tried = search(KNOBS, adapter([]), tries=200, price=0.05)
    assert sum(Weaken("down", 0.5) in t.edits for t in tried) == 1


def test_a_knob_that_is_to_come_sooner_is_still_applied_in_its_place() -> None:
    knobs = (KNOBS[1], Knob("contrast", KNOBS[0].levels, (1,), sooner=True))
    tried = search(knobs, adapter([]), tries=9, price=0.5)
    assert tried[1].edits == (Contrast(3.0),)
    both = next(t.edits for t in tried if len(t.edits) == 2)
    assert isinstance(both[0], Weaken)


def test_where_nothing_is_within_the_price_the_adapter_stays_as_it_is() -> None:
    def worse(edits: tuple[Edit, ...]) -> Score:
        return Score(0.9, 0.1) if edits else Score(0.2, 1.0)

    tried = search(KNOBS, worse, tries=6, price=0.05)
    assert best_of(tried, price=0.05).edits == ()
