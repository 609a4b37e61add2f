"""Work that was asked for: one at a time, in order, and nobody's end is its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from variegate.run import Run
from variegate.studio import devices as places
from variegate.studio import jobs as room
from variegate.studio.desk import Desk
from variegate.studio.devices import Device
from variegate.studio.jobs import Jobs, at_work, is_learning


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "jobs")
    assert made.keep()
    yield made
    for job in made.all():
        if job.state == "running" and (process := room._process(job)):
            process.kill()
    made.leave()


def until(true: Callable[[], bool], queue: Jobs, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, [(j.words, j.state, j.fault) for j in queue.all()]
        queue.tick()
        time.sleep(0.05)


def lasting(home: Path) -> list[str]:
    """Words of a process that stays until it is ended, and loads no model."""
    return ["studio", "--port", "0", "--home", str(home)]


def state(queue: Jobs, name: str) -> str:
    job = queue.get(name)
    assert job is not None
    return job.state


def test_jobs_run_in_order_one_at_a_time_and_say_how_they_ended(queue: Jobs) -> None:
    good = queue.add(["recipe", "pocket"], title="good", lane="device")
    bad = queue.add(["recipe", "no-such"], title="bad", lane="device")
    assert [state(queue, good.id), state(queue, bad.id)] == ["running", "waiting"]
    until(lambda: state(queue, bad.id) == "failed", queue)
    done, failed = queue.get(good.id), queue.get(bad.id)
    assert done is not None
    assert failed is not None
    assert (done.state, done.fault) == ("done", "")
    assert (queue.answer(done) or {})["base"] == "pocket"
    assert "no recipe 'no-such'" in failed.fault
    assert done.ended is not None
    assert failed.began is not None
    assert failed.began >= done.ended
    again = queue.again(failed)
    assert again is not None
    assert again.words == failed.words


def test_small_things_go_beside_the_device_but_not_beside_each_other(
    queue: Jobs, tmp_path: Path
) -> None:
    long = queue.add(lasting(tmp_path / "h"), title="long", lane="device")
    small = queue.add(["recipe"], title="small", lane="desk")
    next_small = queue.add(["recipe"], title="next", lane="desk")
    states = [state(queue, j.id) for j in (long, small, next_small)]
    assert states == ["running", "running", "waiting"]
    until(lambda: state(queue, next_small.id) == "done", queue)
    assert state(queue, long.id) == "running"


CARDS = tuple(Device("CUDA_VISIBLE_DEVICES", str(n), "A card") for n in range(2))


@pytest.fixture
def cards(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "jobs", on=lambda: CARDS)
    assert made.keep()
    yield made
    for job in made.all():
        if job.state == "running" and (process := room._process(job)):
            process.kill()
    made.leave()


def environment(queue: Jobs, name: str) -> dict[str, str]:
    job = queue.get(name)
    assert job is not None
    assert job.pid
    return psutil.Process(job.pid).environ()


def test_each_card_has_one_job_which_sees_no_other_card(cards: Jobs, tmp_path: Path) -> None:
    made = [cards.add(lasting(tmp_path / n), title=n, lane="device") for n in "abc"]
    assert [state(cards, j.id) for j in made] == ["running", "running", "waiting"]
    seen = [environment(cards, j.id)["CUDA_VISIBLE_DEVICES"] for j in made[:2]]
    assert seen == ["0", "1"]
    cards.stop(cards.get(made[0].id) or made[0])
    until(lambda: state(cards, made[2].id) == "running", cards)
    assert environment(cards, made[2].id)["CUDA_VISIBLE_DEVICES"] == "0"
    assert state(cards, made[1].id) == "running"


def test_two_jobs_about_one_folder_wait_for_each_other_and_others_pass(
    cards: Jobs, tmp_path: Path
) -> None:
    about = str(tmp_path / "run")
    first = cards.add(lasting(tmp_path / "a"), title="a", lane="device", about=about)
    second = cards.add(["recipe"], title="b", lane="device", about=about)
    inside = cards.add(["recipe"], title="c", lane="device", about=f"{about}/part")
    other = cards.add(["recipe"], title="d", lane="device", about=f"{about}-too")
    until(lambda: state(cards, other.id) == "done", cards)
    assert [state(cards, j.id) for j in (first, second, inside)] == ["running", *["waiting"] * 2]
    cards.stop(cards.get(first.id) or first)
    until(lambda: state(cards, inside.id) == "done", cards)
    assert state(cards, second.id) == "done"


def test_a_job_from_before_there_were_cards_is_on_the_first(cards: Jobs, tmp_path: Path) -> None:
    old = cards.add(lasting(tmp_path / "a"), title="a", lane="device")
    cards._write(replace(cards.get(old.id) or old, on=""))
    new = cards.add(lasting(tmp_path / "b"), title="b", lane="device")
    assert environment(cards, new.id)["CUDA_VISIBLE_DEVICES"] == "1"


def test_cards_are_those_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"0": "One", "1": "Two", "2": "Three"}
    monkeypatch.setattr(places, "_nvidia", lambda: names)
    monkeypatch.setattr(places, "_built_for", lambda: "cuda")

    def values(shown: str | None) -> list[str]:
        found = places.devices({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})
        return [d.value for d in found]

    assert values(None) == ["0", "1", "2"]
    assert values("2,0") == ["2", "0"]
    assert values("GPU-1f") == ["GPU-1f"]
    assert values("") == values("-1") == [""]  # all hidden: the machine itself
    cards = places.devices({})
    assert places.shown_to({"CUDA_VISIBLE_DEVICES": "1"}, cards).value == "1"
    assert places.shown_to({}, cards).value == "0"
    monkeypatch.setattr(places, "_built_for", lambda: "")  # a PyTorch that cannot use them
    assert places.devices({}) == (places.MACHINE,)
    assert places.MACHINE.environment == {}


def test_what_torch_was_built_for_is_read_without_loading_it() -> None:
    import torch

    wanted = "cuda" if torch.version.cuda else "hip" if torch.version.hip else ""
    assert places._built_for() == wanted


def test_the_card_of_a_run_from_the_command_line_is_left_to_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "home", on=lambda: CARDS)
    run = desk.home / "runs" / "theirs"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"},
    )
    try:
        told = f'{{"pid": {holder.pid}, "host": "{room.platform.node()}", "since": {time.time()}}}'
        (run / "run.lock.holder").write_text(told)
        Run.journal_in(run).write_text('{"kind": "start", "time": 1}\n')
        assert desk.jobs.keep()
        made = [desk.jobs.add(lasting(tmp_path / n), title=n, lane="device") for n in "ab"]
        assert [state(desk.jobs, j.id) for j in made] == ["running", "waiting"]
        assert environment(desk.jobs, made[0].id)["CUDA_VISIBLE_DEVICES"] == "0"
    finally:
        holder.kill()
        holder.communicate()
        for job in desk.jobs.all():
            if process := room._process(job):
                process.kill()
        desk.jobs.leave()


def test_the_queue_is_put_in_order_and_struck_out(queue: Jobs, tmp_path: Path) -> None:
    queue.add(lasting(tmp_path / "h"), title="long", lane="device")
    a, b, c = (queue.add(["recipe"], title=t, lane="device") for t in "abc")
    queue.move(c, -1)
    queue.move(a, 1)
    queue.move(c, -1)
    queue.move(c, -1)  # it is the first already
    waiting = [j.title for j in queue.all() if j.state == "waiting"]
    assert waiting == ["c", "a", "b"]
    queue.stop(a)
    assert [j.title for j in queue.all() if j.state == "waiting"] == ["c", "b"]
    assert b.id


def test_a_killed_studio_leaves_the_work_and_a_new_one_finds_it(
    tmp_path: Path, queue: Jobs
) -> None:
    job = queue.add(lasting(tmp_path / "h"), title="long", lane="device")
    waiting = queue.add(["recipe"], title="next", lane="device")
    queue.leave()  # what the system does to the lock of a killed process
    later = Jobs(queue.folder)
    assert later.keep()
    later.tick()
    found = later.get(job.id)
    assert found is not None
    assert (found.state, found.pid) == ("running", job.pid)
    assert state(later, waiting.id) == "waiting"
    later.stop(found)
    until(lambda: state(later, job.id) == "stopped", later)
    until(lambda: state(later, waiting.id) == "done", later)
    later.leave()
    assert queue.keep()


def test_a_job_whose_number_was_never_noted_is_found_by_its_mark(
    tmp_path: Path, queue: Jobs
) -> None:
    job = queue.add(lasting(tmp_path / "h"), title="long", lane="device")
    noted = queue.get(job.id)
    assert noted is not None
    until(
        lambda: bool(queue.log(noted) or (queue.folder / job.id / "answer.json").stat().st_size),
        queue,
    )
    queue._write(replace(noted, pid=None, born=None))  # the studio died in between
    queue.tick()
    found = queue.get(job.id)
    assert found is not None
    assert (found.state, found.pid) == ("running", noted.pid)


def test_another_process_with_the_same_number_is_not_taken_for_ours(queue: Jobs) -> None:
    job = queue.add(["recipe"], title="short", lane="device")
    until(lambda: state(queue, job.id) == "done", queue)
    ended = queue.get(job.id)
    assert ended is not None
    queue._write(replace(ended, state="running", pid=os.getpid(), born=1.0))
    queue.tick()
    assert state(queue, job.id) == "done"


def test_a_job_that_was_killed_failed_and_what_it_said_last_is_kept(
    tmp_path: Path, queue: Jobs
) -> None:
    job = queue.add(lasting(tmp_path / "h"), title="long", lane="device")
    assert job.pid
    until(lambda: (queue.folder / job.id / "answer.json").stat().st_size > 0, queue)
    (queue.folder / job.id / "answer.json").write_text("")
    (queue.folder / job.id / "log.txt").write_text("load base\ntrain  3/400  2.0/s\n")
    psutil.Process(job.pid).kill()
    until(lambda: state(queue, job.id) == "failed", queue)
    ended = queue.get(job.id)
    assert ended is not None
    assert "ended from outside, often by the system for lack of memory" in ended.fault
    assert ended.fault.endswith("\ntrain  3/400  2.0/s")


def test_a_job_that_ends_while_it_is_looked_at_leaves_no_zombie(
    tmp_path: Path, queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.add(lasting(tmp_path / "h"), title="long", lane="device")
    child = queue._children[job.id]
    looked = room._process

    def ends_first(seen: room.Job) -> psutil.Process | None:
        child.kill()
        while looked(seen) is not None:
            time.sleep(0.01)
        return None

    monkeypatch.setattr(room, "_process", ends_first)
    queue.tick()
    assert state(queue, job.id) == "failed"
    assert child.returncode == -signal.SIGKILL
    assert not psutil.pid_exists(child.pid)
    assert queue._children == {}


def test_only_one_studio_starts_what_waits(tmp_path: Path, queue: Jobs) -> None:
    other = Jobs(queue.folder)
    assert not other.keep()
    job = other.add(["recipe"], title="asked of the other", lane="device")
    other.tick()
    assert state(other, job.id) == "waiting"
    until(lambda: state(queue, job.id) == "done", queue)


def test_the_device_is_waited_for_while_a_run_from_the_command_line_is_on_it(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path / "home")
    run = desk.home / "runs" / "theirs"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    try:
        told = f'{{"pid": {holder.pid}, "host": "{room.platform.node()}", "since": {time.time()}}}'
        (run / "run.lock.holder").write_text(told)
        Run.journal_in(run).write_text('{"kind": "start", "time": 1}\n')
        assert at_work(run)
        assert is_learning(run)
        assert desk.runs()[0].state == "learning"
        assert desk.jobs.keep()
        job = desk.jobs.add(["recipe"], title="ours", lane="device")
        assert state(desk.jobs, job.id) == "waiting"
    finally:
        holder.kill()
        holder.communicate()
    assert not at_work(run)  # its holder's file is still there, the process is not
    desk.forget_listing()
    until(lambda: state(desk.jobs, job.id) == "done", desk.jobs)
    desk.jobs.leave()


def test_a_learning_run_is_asked_first_and_told_later(
    tmp_path: Path, queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    sent: list[int] = []
    monkeypatch.setattr(room, "is_learning", lambda folder: True)
    monkeypatch.setattr(psutil.Process, "send_signal", lambda self, number: sent.append(number))
    job = queue.add(lasting(tmp_path / "h"), title="long", lane="device", about=str(run))
    queue.stop(job)
    assert (run / "control.json").exists()
    assert sent == []
    queue.stop(job)
    assert sent == [signal.SIGTERM]


def test_a_second_press_asks_for_nothing_more(tmp_path: Path) -> None:
    queue = Jobs(tmp_path / "jobs")  # not its keeper: nothing is begun
    for about, words in (("/a/run", ["trial", "x"]), ("", ["recipe"])):
        job = queue.add(words, title="a job", lane="device", about=about)
        assert queue.again(job) is None  # it waits
        queue._write(ended := replace(job, state="stopped", ended=1.0))
        second = queue.again(ended)
        assert second is not None
        assert queue.again(ended) is None
        queue._write(replace(second, state="failed", ended=2.0))
        assert queue.again(ended) is not None


def test_files_that_are_no_jobs_are_passed_over(queue: Jobs) -> None:
    for name, text in (("x", "{"), ("y", "[]"), ("z", '{"id": 3}')):
        (queue.folder / name).mkdir()
        (queue.folder / name / "job.json").write_text(text)
    assert queue.all() == []
    assert queue.get("../x") is None


def test_earlier_answers_are_let_go_of_but_the_last_good_one(tmp_path: Path) -> None:
    queue, made = Jobs(tmp_path / "jobs"), []  # not its keeper: nothing is begun
    for state_after in ("done", "done", "failed", "stopped", "stopped"):
        job = queue.add(["audit", "x"], title="look", lane="desk", about="/a/set")
        queue._write(replace(job, state=state_after, ended=time.time()))
        made.append(job.id)
    other = queue.add(["audit", "y"], title="look", lane="desk", about="/another/set")
    last = queue.add(["audit", "x"], title="look", lane="desk", about="/a/set")
    left = {j.id for j in queue.all()}
    assert left == {made[1], made[4], other.id, last.id}
