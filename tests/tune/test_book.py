"""The shared study: a silent process loses its trial, and nothing is lost, on either store."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.train.scenes import write_pictures
from tests.tune import postgres
from tests.tune.pieces import search_of
from tests.tune.test_search import asked as settings_of
from tests.tune.test_search import found, share_one

from variegate.errors import RequestError
from variegate.tune.book import Asked, Book, hidden

STORES = ("sqlite", "postgresql")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if postgres.programs() is None:
        pytest.skip(postgres.MISSING)
    with postgres.server() as url:
        yield url


@pytest.fixture(params=STORES)
def store(request: Any, tmp_path: Path) -> str:
    if request.param == "postgresql":
        url: str = request.getfixturevalue("server")
        return url
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: Any) -> Path:
    return write_pictures(tmp_path_factory.mktemp("book") / "images", count=3)


def book(url: str, name: str, patience: float = 2.0, **more: Any) -> Book:
    search = search_of(Path("pictures"), **more)
    return Book(url, name, space=search.space, recipe=search.recipe, seed=0, patience=patience)


def fall_silent(one: Book) -> None:
    """As a killed process does."""
    one._stop.set()
    one._thread.join()
    one._held.clear()


def test_a_silent_process_loses_its_trial_which_is_tried_once_more(
    store: str, request: Any
) -> None:
    name = request.node.name
    with book(store, name) as one, book(store, name) as other:
        mine = one.ask("trial")
        assert other.ask("trial").values != mine.values  # it is at work still
        time.sleep(3.5)
        other.reclaim()
        assert other.counts("trial")["running"] == 2  # and is kept alive while it is
        fall_silent(one)
        deadline = time.monotonic() + 15
        while other.counts("trial")["running"] == 2:
            assert time.monotonic() < deadline, "a dead process keeps its trial"
            time.sleep(0.5)
            other.reclaim()
        again = other.ask("trial")
        assert again.values == mine.values
        assert other.tell(again, (0.5, 0.5))
        # The silent one was only slow: what it says now comes too late.
        one.tell(mine, (0.9, 0.9))
        kept = [k for k in other.kept("trial") if k.values == mine.values]
        assert [k.objectives for k in kept] == [(0.5, 0.5)]
        # Lost again, it is given up: a trial that kills its process would kill them all.
        fall_silent(other)
    with book(store, name) as third:
        assert third.counts("trial")["complete"] == 1


def test_a_trial_that_was_given_back_is_taken_up_first_and_as_often_as_need_be(
    store: str, request: Any
) -> None:
    name = request.node.name
    values = None
    for _ in range(3):
        with book(store, name, patience=60.0) as one:
            asked = one.ask("trial")
            assert values in (None, asked.values)
            values = asked.values
    with book(store, name, patience=60.0) as one:
        asked = one.ask("trial")
        one.tell(asked, (0.5, 0.5), constraints={"copy_rate": -1.0}, figures=[{"a": 1}])
        (kept,) = one.kept("trial")
        assert (kept.values, kept.constraints) == (values, {"copy_rate": -1.0})
        assert kept.figures == [{"a": 1}]


def test_a_trial_whose_process_was_killed_as_it_was_handed_out_is_tried_once_more(
    store: str, request: Any
) -> None:
    name = request.node.name
    with book(store, name) as one, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one._studies["trial"].ask()  # it runs, and nothing was heard of it since
    with book(store, name) as other:
        deadline = time.monotonic() + 30
        while other.counts("trial")["running"]:
            assert time.monotonic() < deadline, "nobody will ever have this trial"
            time.sleep(0.5)
            other.reclaim()
        assert other.counts("trial")["waiting"] == 1
        assert other.ask("trial").number == 1


def test_a_trial_that_is_interrupted_while_it_is_handed_out_is_given_back(
    store: str, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    name = request.node.name
    with book(store, name, patience=60.0) as one:
        monkeypatch.setattr(one, "_suggest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.ask("trial")
    with book(store, name, patience=60.0) as other:
        counts = other.counts("trial")
        assert (counts["running"], counts["waiting"]) == (0, 1)


def test_who_asks_in_the_same_moment_gets_what_would_have_come_next(
    store: str, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = request.node.name
    with book(store, f"{name} alone") as alone:
        wanted = [alone.ask("trial").values for _ in range(2)]
    with book(store, name) as one, book(store, name) as other:
        real, theirs = one._sampler, list[Asked]()

        def slow(*given: Any, **named: Any) -> Any:
            found = real(*given, **named)
            if not theirs:
                theirs.append(other.ask("trial"))
            return found

        monkeypatch.setattr(one, "_sampler", slow)
        mine = one.ask("trial")
        assert [theirs[0].values, mine.values] == wanted


def test_what_is_tried_elsewhere_is_known_and_its_repeat_leaves_nothing(
    store: str, request: Any
) -> None:
    name, same = request.node.name, {"strategies.stay_near": "on"}
    with (
        book(store, name, ranges=["strategies.stay_near=on,off"]) as one,
        book(store, name, ranges=["strategies.stay_near=on,off"]) as other,
    ):
        one.queue("trial", same, anew=True)
        mine = one.ask("trial")
        one.queue("trial", same, anew=True)
        theirs = other.ask("trial")
        assert theirs.values == mine.values
        assert other.is_elsewhere(theirs)
        assert not one.is_elsewhere(mine)
        other.drop(theirs, repeats=True)
        assert other.counts("trial")["running"] == 1


def test_what_is_left_of_a_grid_is_queued_until_nothing_is(store: str, request: Any) -> None:
    ranges = ["strategies.stay_near=on,off", "adapter.rank=4,8"]
    with book(store, request.node.name, ranges=ranges) as one:
        scout = one.ask("scout")
        one.tell(scout, (), pruned=True)
        tried = [scout.values]
        one.queue("trial", {"strategies.stay_near": "on", "adapter.rank": 4}, anew=True)
        one.drop(one.ask("trial"))  # one too many is not tried
        while one.queue_untried("trial"):
            assert one.queue_untried("trial")
            assert one.counts("trial")["waiting"] == 1
            asked = one.ask("trial")
            assert asked.values not in tried
            tried.append(asked.values)
        assert len(tried) == 4
    with book(store, f"{request.node.name} endless") as endless:
        assert not endless.queue_untried("trial")


def test_what_waits_already_is_not_queued_twice(store: str, request: Any) -> None:
    with book(store, request.node.name) as one:
        own = {"adapter.rank": 8, "optimizer.lr": 1e-3, "strategies.stay_near": "off"}
        one.queue("trial", own)
        one.queue("trial", own)
        assert one.counts("trial")["waiting"] == 1
        assert one.ask("trial").values == own


def test_two_searches_in_one_store_do_not_meet(store: str, request: Any) -> None:
    name = request.node.name
    with book(store, f"{name} a") as one, book(store, f"{name} b") as other:
        one.tell(one.ask("trial"), (0.1, 0.1))
        assert other.counts("trial")["complete"] == 0


@pytest.mark.slow
def test_a_database_and_a_file_give_the_same_search(
    images: Path, tmp_path: Path, server: str
) -> None:
    by_file = found(images, tmp_path / "file", trials=8)
    by_server = found(images, tmp_path / "server", trials=8, storage=server)
    assert settings_of(by_file) == settings_of(by_server)
    assert by_file["recommended"]["number"] == by_server["recommended"]["number"]
    assert not (tmp_path / "server" / "study.db").exists()


@pytest.mark.slow
def test_processes_share_a_search_on_a_server(images: Path, tmp_path: Path, server: str) -> None:
    share_one(images, tmp_path / "shared", storage=server)


def test_a_wrong_password_is_told_without_telling_it(server: str) -> None:
    wrong = server.replace("se%20cret", "hunter2")
    with pytest.raises(RequestError, match="cannot be used") as told:
        book(wrong, "x")
    assert "hunter2" not in str(told.value)
    assert hidden(wrong).count("***") == 1
