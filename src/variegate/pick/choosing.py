"""Which checkpoint to use, how strongly, and at which guidance scale: drawn, measured, exported.

The search (`race`) goes by few pictures, and what it chooses was chosen for looking well. So the
choice is drawn once more, at prompts and seeds that the search never saw, beside the plain point
that it is compared with; what is told of the two comes from those pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from variegate.errors import Interrupted, RequestError
from variegate.formats.privacy import without_folders
from variegate.judged import write_json
from variegate.measure import Verdict, measure
from variegate.measure.versus import gain, kept
from variegate.measurement import Measurement, Missing
from variegate.pick.handing import SHOWN, cannot_tell, export, page_rows, reason
from variegate.pick.points import MOST, Point, checkpoints_of, grid
from variegate.pick.race import FEWEST, Race, race
from variegate.pick.stand import EACH, Bench, Fresh
from variegate.pick.votes import Strength, read_votes
from variegate.pick.votes import strengths as liked_in
from variegate.progress import Say, silent
from variegate.recipe import SamplingPlan
from variegate.report import write_picked
from variegate.run import Run

STRENGTHS = (0.6, 0.8, 1.0)
EASED = 0.6  # of the base's guidance beyond 1, tried beside the whole of it
SHARE = 0.25  # of the full grid's pictures
CHECKED = 0.25  # of the budget at most, for the check at fresh prompts and seeds
MARGIN = 0.03  # of the times that the best plain point shows the subject, that may be lost
PROMPTS = 16  # of each group, that the full grid would draw of every point
WHERE = "picked"  # the folder in a run or beside checkpoints


@dataclass(frozen=True)
class Placed:
    """A point as it is told: its numbers with their intervals, of prompts of each group.

    likeness: how often it shows the subject for each time that the best plain point does
    (`recognised`). ruled_out: why, or "". tied: it cannot be told
    from the choice. votes: how much it was liked, where anybody was asked.
    """

    point: Point
    prompts: int
    variety: Measurement | Missing
    likeness: Measurement | Missing
    on_front: bool
    ruled_out: str = ""
    tied: bool = False
    votes: Strength | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.point.to_json(),
            "prompts": self.prompts,
            "variety": self.variety.to_json(),
            "likeness": self.likeness.to_json(),
            "on_front": self.on_front,
            "ruled_out": self.ruled_out,
            "tied": self.tied,
            "votes": self.votes.to_json() if self.votes else None,
        }


@dataclass(frozen=True)
class Picked:
    """The point that is recommended, why, and all that stood beside it.

    searched: what the search chose, which fresh pictures may have refused. gain, closeness: of the
    fresh pictures, its variety less that of the plain reference, and how often it shows the subject
    for each time that this does (`recognised`); Missing where it is the reference itself.
    """

    point: Point
    searched: Point
    reference: Point
    reason: str
    cannot_tell: str
    points: tuple[Placed, ...]
    gain: Measurement | Missing
    closeness: Measurement | Missing
    verdict: Verdict
    run: str | None
    base: str
    adapter: Path
    files: dict[str, str]
    page: Path
    samples_used: int
    samples_of_grid: int
    stopped_because: str
    checkpoint: Path
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "base": self.base,
            "adapter": str(self.adapter),
            "checkpoint": str(self.checkpoint),
            "step": self.point.step,
            "strength": self.point.strength,
            "guidance_scale": self.point.guidance_scale,
            "stopped_because": self.stopped_because,
            "point": self.point.name,
            "searched": self.searched.name,
            "reference": self.reference.name,
            "reason": self.reason,
            "cannot_tell": self.cannot_tell,
            "gain": self.gain.to_json(),
            "closeness": self.closeness.to_json(),
            "front": [p.to_json() for p in self.points if p.on_front],
            "points": [p.to_json() for p in self.points],
            "verdict": self.verdict.to_json(),
            "samples_used": self.samples_used,
            "samples_of_grid": self.samples_of_grid,
            "files": self.files,
            "page": str(self.page),
            "warnings": list(self.warnings),
        }


def pick(
    folder: Path,
    *,
    base: str | None = None,
    out: Path | None = None,
    trigger: str | None = None,
    class_noun: str | None = None,
    style: bool = False,
    train_images: Path | None = None,
    encoders: Sequence[str] = (),
    strengths: Sequence[float] = STRENGTHS,
    guidance: Sequence[float] = (),
    checkpoints: int = MOST,
    samples: int | None = None,
    share: float = SHARE,
    margin: float = MARGIN,
    prompts: int = PROMPTS,
    votes: Path | None = None,
    seed: int = 0,
    say: Say | None = None,
) -> Picked:
    """The point of checkpoints x strengths x guidance scales with most variety that shows the
    subject as often as the best plain point does, but for `margin` of its times.

    folder: a run, or LoRA files of any trainer. Plain is what a trainer hands over: strength 1 (or
    the nearest named) at the base's own guidance scale. Base, trigger, class noun and training
    pictures default to what the run, or the newest file's header, says. guidance: none named, the
    base's own scale and an eased one. samples: the budget in pictures; else a share of what the
    full grid would take, `prompts` prompts of each group for every point. votes: a file of people's
    comparisons (`votes.read_votes`). out: where the export goes; `picked` in the folder
    without it. What was drawn is kept in the cache: the same call goes on where it was stopped.

    Raises: RequestError for a folder without checkpoints, without a trigger, for numbers that make
    no sense and for a budget that is too small; Interrupted on Ctrl-C.
    """
    say = say or silent
    folder = Path(folder)
    _check(samples, share, margin, prompts)
    found, told = checkpoints_of(folder, most=checkpoints)
    run = Run.open(folder) if (folder / "recipe.toml").is_file() else None
    bench = Bench.on(
        found,
        run,
        base=base,
        trigger=trigger,
        class_noun=class_noun,
        style=style,
        train_images=train_images,
        encoders=encoders,
        prompts=prompts,
        seed=seed,
        say=say,
        told=told,
    )
    points = grid(found, strengths, guidance or guidance_of(bench.own))
    ballots = read_votes(votes, {p.name for p in points}) if votes else []
    whole = 2 * prompts * EACH
    budget = samples if samples is not None else int(share * len(points) * whole)
    # The choice and the reference are checked at two groups of prompts each.
    bench.fresh_prompts = max(2, min(prompts // 2, int(CHECKED * budget) // (4 * EACH)))
    fresh = 4 * bench.fresh_prompts * EACH + bench.extra + SHOWN
    least = len(points) * 2 * FEWEST * EACH + fresh
    if least > budget:
        raise RequestError(
            f"{len(points)} points want {least} pictures at least, to be looked at once and the "
            f"choice checked; found a budget of {budget}; raise --samples or --share, or name "
            "fewer strengths, guidance scales or checkpoints"
        )
    out = (out or folder / WHERE).resolve()
    if out in (folder.resolve(), *(c.file.resolve().parent for c in found)):
        raise RequestError(
            f"{out} holds the checkpoints, which an export might overwrite; name another folder"
        )
    try:
        went = race(
            points,
            bench,
            plain=plain_of(points, bench.own),
            prompts=prompts,
            each=EACH,
            budget=budget - fresh,
            margin=margin,
        )
        liked = liked_in(ballots)
        choice = _by_votes(went, liked)
        seen = bench.fresh(choice, went, margin)
    except Interrupted as error:
        raise Interrupted(
            "stopped; what was drawn is kept: the same command goes on from there",
            error.signal_number,
        ) from error
    return _settled(bench, went, seen, liked, run, out, margin=margin, of_grid=len(points) * whole)


def guidance_of(own: SamplingPlan) -> tuple[float, ...]:
    """The base's own guidance scale, and one that is eased.

    >>> guidance_of(SamplingPlan(guidance_scale=7.5))
    (4.9, 7.5)
    """
    eased = round(1 + EASED * (own.guidance_scale - 1), 1)
    return tuple(dict.fromkeys((eased, own.guidance_scale)))


def plain_of(points: Sequence[Point], own: SamplingPlan) -> Callable[[Point], bool]:
    """Whether a point is how a trainer hands its checkpoint over: of the strengths and scales that
    are there, those nearest to 1 and to the base's own."""
    strength = min({p.strength for p in points}, key=lambda s: (abs(s - 1), s))
    scale = min({p.guidance_scale for p in points}, key=lambda g: (abs(g - own.guidance_scale), g))
    return lambda p: (p.strength, p.guidance_scale) == (strength, scale)


def _check(samples: int | None, share: float, margin: float, prompts: int) -> None:
    if not 0 < share <= 1:
        raise RequestError(f"share {share:g}; expected more than 0 and at most 1")
    if samples is not None and samples < 1:
        raise RequestError(f"{samples} samples; expected 1 or more")
    if not 0 <= margin < 1:
        raise RequestError(f"margin {margin:g}; expected a share from 0 to below 1")
    if not FEWEST <= prompts <= PROMPTS:
        raise RequestError(f"{prompts} prompts; expected {FEWEST} to {PROMPTS}")


def _by_votes(went: Race, liked: dict[str, Strength]) -> Point:
    """The choice, or what people like better among those that it cannot be told from."""
    assert went.choice is not None
    rivals = [p for p in (went.choice, *went.tied) if p.name in liked]
    best = max(rivals, key=lambda p: liked[p.name].value, default=went.choice)
    mine = liked[went.choice.name].value if went.choice.name in liked else 0.0
    return best if best.name in liked and liked[best.name].value > mine else went.choice


# --- what is told -------------------------------------------------------------------------------


def _settled(
    bench: Bench,
    went: Race,
    seen: Fresh,
    liked: dict[str, Strength],
    run: Run | None,
    out: Path,
    *,
    margin: float,
    of_grid: int,
) -> Picked:
    """The export, the page and the words."""
    placed = _placed(bench, went, liked, seen)
    point, reference = seen.point, seen.reference
    left, right = seen.evidence[reference], seen.evidence[point]
    none = "it is the plain point itself"
    same = point == reference
    grown = Missing("variety_gain", none) if same else gain(left, right)
    closer = Missing("recognised", none) if same else bench.as_often(left, right)
    verdict = measure(right)
    if not bench.learnt_known:
        verdict = replace(verdict, notes=(*verdict.notes, *bench.told[-1:]))
    checkpoint = bench.adapters[point.checkpoint]
    why = reason(seen, grown, closer, kept(right), went, liked, margin)
    cannot = cannot_tell(went, grown, point, reference)
    warned = list(bench.told)
    files = export(checkpoint, point, verdict, bench, out, warned)
    found = Picked(
        point=point,
        searched=seen.searched,
        reference=reference,
        reason=why,
        cannot_tell=cannot,
        points=placed,
        gain=grown,
        closeness=closer,
        verdict=verdict,
        run=str(run.folder) if run else None,
        base=bench.base,
        adapter=Path(files["a1111"]),
        files=files,
        page=out / "pick.html",
        samples_used=went.pictures + seen.pictures + bench.extra + SHOWN,
        samples_of_grid=of_grid,
        stopped_because=went.stopped_because,
        checkpoint=checkpoint.file.resolve(),
        warnings=tuple(warned),
    )
    write_json(out / "pick.json", found.to_json())
    shown = [each.point for each in placed if each.on_front]
    # The page is made to be sent; folders of this machine stay here.
    public = found.to_json() | {"warnings": [without_folders(line) for line in warned]}
    write_picked(public, grid=page_rows(bench, shown), out=found.page)
    return found


def _placed(
    bench: Bench, went: Race, liked: dict[str, Strength], seen: Fresh
) -> tuple[Placed, ...]:
    """Every point that was drawn, by checkpoint, strength and scale as the grid has them."""
    drawn = [p for p in went.points if p in went.sights]
    assert went.reference is not None
    like = {p: bench.likeness(went.reference, p) for p in drawn}
    known = {p: m.value for p, m in like.items() if isinstance(m, Measurement)}
    front = front_of({p: (went.sights[p].variety, value) for p, value in known.items()})
    front |= {seen.point, seen.reference}
    return tuple(
        Placed(
            p,
            went.sights[p].prompts,
            bench.variety(p),
            like[p],
            p in front,
            went.ruled_out[p].why if p in went.ruled_out else "",
            p in went.tied and p != seen.point,
            liked.get(p.name),
        )
        for p in drawn
    )


def front_of(values: dict[Point, tuple[float, float]]) -> set[Point]:
    """The points that no other has both more variety and more likeness than."""
    return {
        p
        for p, (variety, likeness) in values.items()
        if not any(
            v >= variety and k >= likeness and (v, k) != (variety, likeness)
            for v, k in values.values()
        )
    }
