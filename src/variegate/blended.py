"""A blend beside its members: all drawn at one plan, judged, and compared with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from pathlib import Path
from typing import Any

from variegate import recipes
from variegate.adapter import Adapter, Ensemble
from variegate.device import pick_device
from variegate.drawn import draw_both
from variegate.encoders import Encoder, load_encoders
from variegate.errors import RequestError
from variegate.formats import own_notes, reading_of, trigger_of
from variegate.images import ImageSet, cache_dir
from variegate.judged import short_hash
from variegate.measure import Evidence, PlannedPrompt, gather, measure, prompt_plan
from variegate.measure.versus import copies_versus, versus
from variegate.measurement import Measurement, Missing
from variegate.models import DiffusionModel
from variegate.models import load as load_model
from variegate.progress import Say, silent
from variegate.recipe import SamplingPlan
from variegate.run import Run
from variegate.train.checkpoint import ADAPTER, checkpoint_folders, step_of

BY = ("trigger_variety_vs_base", "likeness")  # what a soup is tasted for
WORDS = {
    "variety_vs_base": ("more varied", "less varied"),
    "trigger_variety_vs_base": ("more varied under the trigger", "less varied under the trigger"),
    "copy_rate": ("copies more", "copies less"),
}


def members_of(paths: Sequence[Path]) -> list[Path]:
    """Adapter files, a run folder standing for all its checkpoints, oldest first.

    Raises: RequestError when a run has no checkpoint.
    """
    found: list[Path] = []
    for path in paths:
        if not (path / "recipe.toml").is_file():
            found.append(path)
            continue
        folders = sorted(checkpoint_folders(Run.open(path).checkpoints), key=step_of)
        if not folders:
            raise RequestError(f"the run {path} has no checkpoint to blend; train it first")
        found += [folder / ADAPTER for folder in folders]
    return found


@dataclass(frozen=True)
class Judge:
    """Draws whatever was learnt on one base at one plan, and measures it.

    Pictures are kept in the cache by what drew them, so that a judging that was stopped goes on.
    sampling: None for that of the base's own recipe.
    """

    model: DiffusionModel
    plan: tuple[PlannedPrompt, ...]
    encoders: tuple[Encoder, ...]
    base: str
    train: ImageSet | None = None
    trigger: str = ""
    class_noun: str = ""
    say: Say = silent
    sampling: SamplingPlan | None = None

    @staticmethod
    def on(
        base: str,
        members: Sequence[Adapter],
        *,
        encoders: Sequence[str] = (),
        train_images: Path | None = None,
        trigger: str | None = None,
        class_noun: str | None = None,
        preset: str = "standard",
        seed: int = 0,
        say: Say | None = None,
    ) -> Judge:
        """Trigger and class noun default to what the first member's file says."""
        told = members[0].metadata
        trigger = trigger or trigger_of(told)
        class_noun = class_noun or str(own_notes(told).get("class", ""))
        train = ImageSet.read(train_images) if train_images else None
        eyes = tuple(load_encoders(encoders))
        model = load_model(base, device=pick_device(), **reading_of(told))
        plan = prompt_plan(
            class_noun,
            trigger,
            preset=preset,  # type: ignore[arg-type]
            pocket=model.pocket,
            captions=[p.prompt for p in train or () if p.prompt],
            first_seed=seed,
        )
        return Judge(model, tuple(plan), eyes, base, train, trigger, class_noun, say or silent)

    def evidence(self, learnt: Adapter | Ensemble, *, out: Path | None = None) -> Evidence:
        """out: where the pictures are kept; None for the cache."""
        home = cache_dir() / "measured" / short_hash(learnt.digest(), repr(self.plan), self.base)
        sampling = self.sampling or sampling_of(self.base)
        ours, base = draw_both(
            self.model, learnt, self.plan, sampling, out=out or home, say=self.say
        )
        return gather(
            ours,
            base,
            encoders=self.encoders,
            train_images=self.train,
            trigger=self.trigger or None,
            class_noun=self.class_noun or None,
        )

    def score(self, by: Sequence[str] = BY) -> Callable[[Adapter], float]:
        """How good an adapter is: the product of these measurements, each within 0 and 1, of those
        that are better low one less them. For `greedy_soup`.

        Raises (when asked): RequestError where a measurement is missing.
        """

        def of(adapter: Adapter) -> float:
            found = {m.name: m for m in measure(self.evidence(adapter)).measurements}
            return reduce(mul, (_worth(name, found.get(name)) for name in by), 1.0)

        return of


def sampling_of(base: str) -> SamplingPlan:
    """How pictures of a base are drawn where nobody says."""
    return recipes.read(recipes.default_for(base)).sampling


def compare(blend: Adapter | Ensemble, members: Sequence[Adapter], judge: Judge) -> dict[str, Any]:
    """The verdict on a blend and on each member, and what differs between them, with intervals.

    `said` calls the blend more or less of something only where the whole 95 % interval of the
    difference lies on that side of zero.
    """
    whole = judge.evidence(blend)
    compared = []
    for member in members:
        own = judge.evidence(member)
        gaps = [*versus(own, whole), copies_versus(own, whole)]
        compared.append(
            {
                "verdict": measure(own).to_json(),
                "differences": [gap.to_json() for gap in gaps],
                "said": [told(gap) for gap in gaps],
            }
        )
    return {"verdict": measure(whole).to_json(), "members": compared}


def told(gap: Measurement | Missing) -> str:
    """One difference in words: the blend beside a member.

    >>> told(Measurement("variety_vs_base", 0.1, -0.02, 0.2, 16))
    'no difference in variety_vs_base that 16 prompts show (+0.10, -0.02 to +0.20)'
    """
    if isinstance(gap, Missing):
        return f"{gap.name}: not known, {gap.why}"
    if gap.low is None or gap.high is None:
        return f"{gap.name}: {gap.value:+.2f}, without an interval, which says nothing"
    interval = f"({gap.value:+.2f}, {gap.low:+.2f} to {gap.high:+.2f})"
    more, less = WORDS.get(gap.name, (f"more {gap.name}", f"less {gap.name}"))
    if gap.low > 0:
        return f"{more} {interval}"
    if gap.high < 0:
        return f"{less} {interval}"
    return f"no difference in {gap.name} that {gap.n} prompts show {interval}"


def _worth(name: str, found: Measurement | Missing | None) -> float:
    if not isinstance(found, Measurement):
        why = "there is no measurement of that name" if found is None else found.why
        raise RequestError(
            f"a soup cannot be tasted by {name}: {why}; give --trigger, --class and "
            "--train-images, or name other measurements with --by"
        )
    value = min(max(found.value, 0.0), 1.0)
    return 1 - value if found.better == "lower" else value
