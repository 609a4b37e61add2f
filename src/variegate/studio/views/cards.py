"""Runs and jobs as lists show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from variegate.errors import RunError
from variegate.report.page import Chip, chips
from variegate.report.pictures import pair
from variegate.report.record import RunRecord
from variegate.studio.desk import RunPlace
from variegate.studio.devices import Device
from variegate.studio.frame import Studio
from variegate.studio.jobs import Job
from variegate.studio.watching import Stage, clock, stage_of


@dataclass(frozen=True)
class RunCard:
    """A run at a glance. job: the one of ours that works on it, waits or was stopped there."""

    place: RunPlace
    pictures: tuple[str, ...]
    chips: tuple[Chip, ...]
    share: float
    step: int
    of: int
    job: Job | None
    trigger: str
    sentence: str


def run_cards(studio: Studio, places: Sequence[RunPlace]) -> list[RunCard]:
    jobs = studio.desk.jobs.all()
    made = []
    for place in places:
        try:
            record = studio.desk.record(place.folder)
        except RunError:
            continue
        now = clock(record)
        made.append(
            RunCard(
                place=place,
                pictures=tuple(filter(None, map(studio.desk.show, last_pictures(record)))),
                chips=tuple(chips(record.verdict)),
                share=now.share,
                step=now.step,
                of=now.of,
                job=next((j for j in jobs if works_on(j, place.folder)), None),
                trigger=str((record.recipe or {}).get("trigger") or ""),
                sentence=record.verdict.sentence if record.verdict else "",
            )
        )
    return made


def last_pictures(record: RunRecord, most: int = 4) -> list[Path]:
    """The newest pictures of a run: of the verdict, else of the last look."""
    samples = [s for s in record.adapter if s.group == "trigger"] or list(record.adapter)
    if not samples and record.panels:
        samples = list(record.panels[-1].samples)
    stride = max(1, len(samples) // most)
    return [s.file for s in samples[::stride][:most] if s.file is not None]


def sides(studio: Studio, record: RunRecord) -> list[list[tuple[str, str, list[str]]]]:
    """For each group of prompts the base's pictures and the adapter's, seed by seed: what a side
    is called, its prompt, and its pictures."""
    made = []
    for group in pair([record.base, record.adapter], prompts=1, seeds=6):
        for row in group.rows[:1]:
            shown = [
                (name, prompt, [studio.desk.show(s.file) if s else "" for s in samples])
                for name, prompt, samples in zip(
                    ("base", "adapter"), row.prompts, row.sides, strict=True
                )
            ]
            made.append([side for side in shown if any(side[2])])
    return [group for group in made if group]


def works_on(job: Job, folder: Path) -> bool:
    """Whether a job fills this run's folder, or a folder above it as the demo does."""
    return bool(job.about) and (
        job.about == str(folder)
        or (job.verb in ("demo", "tune") and folder.is_relative_to(job.about))
    )


@dataclass(frozen=True)
class JobLine:
    """A job at a glance: what it is at, the page that shows what it makes, and where it is done if
    there is more than one device."""

    job: Job
    stage: Stage | None
    link: str
    device: Device | None


def job_lines(studio: Studio, jobs: Sequence[Job]) -> list[JobLine]:
    lines = []
    for job in jobs:
        log = studio.desk.jobs.log(job) if job.state == "running" else []
        working = job.state == "running" and job.lane == "device"
        device = studio.desk.device_told(job.on) if working else None
        lines.append(JobLine(job, stage_of(log), link_of(studio, job), device))
    return lines


def link_of(studio: Studio, job: Job) -> str:
    """The page on which a job's work is seen; "" when there is none yet."""
    if not job.about:
        return ""
    about, desk = Path(job.about), studio.desk
    for run in desk.runs():
        if run.folder == about:
            return f"/runs/{run.id}"
    for kind, path in (("checks", "check"), ("blends", "blend")):
        if about.parent == desk.home / kind and about.is_dir():
            return f"/{path}/{desk.id_of(about)}"
    if about.parent == desk.home / "pictures" and about.is_dir():
        return f"/pictures/{desk.id_of(about)}"
    below = [r for r in desk.runs() if r.folder.is_relative_to(about)]
    return f"/runs/{below[0].id}" if below else ""
