"""What the judge says, in words for somebody who draws and does not count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from variegate.catalogue import UNTESTED, effect_of
from variegate.measurement import Advice, Label, Measurement


def _between(m: Measurement, form: Callable[[float], str]) -> str:
    if m.low is None or m.high is None or form(m.low) == form(m.high):
        return ""
    return f" (surely between {form(m.low)} and {form(m.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _narrowed(m: Measurement) -> str:
    return (
        f"Without the trigger word its pictures have grown alike: over {_times(m.n, 'prompt')} they"
        f" keep {_percent(m.value)} of the base's variety{_between(m, _percent)}."
    )


def _repeating(m: Measurement) -> str:
    return (
        f"It draws the same pictures again: over {_times(m.n, 'prompt')} {_percent(m.value)} of its"
        " pictures without the trigger word nearly repeat one that another prompt"
        f" drew{_between(m, _percent)}."
    )


def _trigger_narrowed(m: Measurement) -> str:
    return (
        "With the trigger word backgrounds and layouts have grown alike: over"
        f" {_times(m.n, 'prompt')} they keep {_percent(m.value)} of the base's"
        f" variety{_between(m, _percent)}, though the prompts leave them open."
    )


def _copying(m: Measurement) -> str:
    hits = round(m.value * m.n)
    return (
        f"It copies: {hits} of {_times(m.n, 'sample')} are training pictures drawn again"
        f"{_between(m, _percent)}."
    )


def _prompt_ignored(m: Measurement) -> str:
    return (
        "It heeds the prompt less: pictures lost"
        f" {_percent(min(1.0, -m.value))} of what tells the base's prompts apart, over"
        f" {_times(m.n, 'prompt')}."
    )


def _class_forgotten(m: Measurement) -> str:
    return (
        f"It has forgotten the class: over {_times(m.n, 'prompt')} {_percent(m.value)} of its"
        f" pictures without the trigger word show the subject{_between(m, _percent)}."
    )


def _undertrained(m: Measurement) -> str:
    if m.value <= 0:
        return "It has not learnt the subject: its pictures are no more like it than the base's."
    return (
        f"It has hardly learnt the subject: its pictures went {_percent(m.value)} of the way from"
        " the base's to the training pictures."
    )


def _inconclusive(m: Measurement) -> str:
    return (
        f"Too little was drawn to be sure: {_where(m)} the variety is {_percent(m.value)} of the"
        f" base's, and it may be anything from {_percent(m.low or 0.0)} to"
        f" {_percent(m.high if m.high is not None else m.value)}."
    )


SENTENCES: dict[Label, Callable[[Measurement], str]] = {
    "narrowed": _narrowed,
    "trigger-narrowed": _trigger_narrowed,
    "copying": _copying,
    "prompt-ignored": _prompt_ignored,
    "class-forgotten": _class_forgotten,
    "undertrained": _undertrained,
    "inconclusive": _inconclusive,
}


def alarm(label: Label, m: Measurement) -> str:
    """The sentence of a label that stands on this measurement."""
    return _repeating(m) if m.name == "repeat_rate" else SENTENCES[label](m)


# What a label adds to a sentence that begins with a graver one.
CLAUSES: dict[Label, str] = {
    "narrowed": "draws alike pictures without the trigger word",
    "trigger-narrowed": "draws alike backgrounds and layouts with the trigger word",
    "copying": "copies training pictures",
    "prompt-ignored": "heeds the prompt less",
    "class-forgotten": "has forgotten the class",
    "undertrained": "has hardly learnt the subject",
}
STRANGE = "No loss was found, but by an encoder that does not know pictures like these."


def disagree(first: Measurement, other: Measurement) -> str:
    seen, elsewhere = _eyes(first), other.name.partition("@")[2]
    if first.name == "repeat_rate":
        return (
            f"The encoders disagree: {_percent(first.value)} of the pictures repeat another"
            f" prompt's{seen}, but {_percent(other.value)} by {elsewhere}; look at the pictures."
        )
    return (
        f"The encoders disagree: {_where(first)} the variety is {_percent(first.value)} of the"
        f" base's{seen}, but {_percent(other.value)} by {elsewhere}; look at the pictures."
    )


def palette_only(m: Measurement, beside: Measurement) -> str:
    """beside: the same beside the base's pictures in the adapter's colours."""
    same = "beside the base's pictures in the same colours"
    if m.name == "adherence_vs_base":
        return (
            f"Prompts are heeded less by {_percent(-m.value)}, and {same} by"
            f" {_percent(max(0.0, -beside.value))}: what colours the prompts name is all that is"
            " lost."
        )
    if m.name == "repeat_rate":
        return (
            f"Pictures repeat one another in {_percent(m.value)}, and {same} in"
            f" {_percent(max(0.0, beside.value))} more: their colours alone are the same."
        )
    if m.name == "class_taken":
        return (
            f"Of the pictures without the trigger word {_percent(m.value)} look like the subject,"
            f" and {_percent(max(0.0, beside.value))} {same}: they took on its colours alone."
        )
    return (
        f"Only the colours became alike {_where(m)}: the variety is {_percent(m.value)} of the"
        f" base's, and {_percent(beside.value)} {same}. If a palette is what it was to learn, all"
        " is well."
    )


def colour_hides(label: str) -> str:
    """Why a label does not stand that may be of colours alone."""
    return (
        "Its colours became alike, and too little was drawn to tell whether it is"
        f" {label} beyond that: ask more prompts."
    )


def _eyes(m: Measurement) -> str:
    """Whose reading it is, as far as its source says."""
    parts = m.source.split(", ")
    return f" by {parts[1]}" if len(parts) > 1 else ""


def _where(m: Measurement) -> str:
    return "with the trigger word" if m.name.startswith("trigger") else "without the trigger word"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


AXES = {
    "faces": "faces",
    "background": "backgrounds",
    "palette": "colours",
    "place": "places",
    "size": "sizes",
}
# Of the base's variety of places, or of sizes: of a flawless adapter no interval lies below this.
PLACED_ALIKE = 0.7


def placed_alike(found: Mapping[str, Measurement]) -> str:
    """That the subject surely stands alike where the rest varies, which no label rests on."""
    parts = [(word, found.get(f"trigger_variety_vs_base@{word}")) for word in ("place", "size")]
    lost = [(w, m) for w, m in parts if m and m.high is not None and m.high < PLACED_ALIKE]
    if not lost:
        return ""
    kept = [
        f"{_percent(m.value)} of the base's variety of {w}s{_between(m, _percent)}" for w, m in lost
    ]
    return (
        f"With the trigger word the subject comes in much the same {listed([w for w, _ in lost])}:"
        f" it keeps {listed(kept)}. No label rests on this, which pixels alone tell: look at the"
        " pictures."
    )


def what_is_alike(found: Mapping[str, Measurement], m: Measurement, *, below: float) -> str:
    """Which parts of the composition lost surely more than the margin, most alike first."""
    parts = {word: found.get(f"{m.name}@{axis}") for axis, word in AXES.items()}
    lost = {w: p for w, p in parts.items() if p and p.high is not None and p.high < below}
    if not lost:
        return ""
    ranked = sorted(lost, key=lambda word: lost[word].value)
    named = [f"{word} ({_percent(lost[word].value)} of the base's variety)" for word in ranked]
    return f" What became alike: {' and '.join(named)}."


def passed(found: Mapping[str, Measurement]) -> str:
    """The sentence of a healthy verdict: only what was measured is claimed."""
    claims = []
    if m := found.get("variety_vs_base"):
        claims.append(f"its pictures are as varied as the base's ({_percent(m.value)})")
    if m := found.get("trigger_variety_vs_base"):
        claims.append(f"with the trigger word it keeps {_percent(m.value)} of the variety")
    if m := found.get("copy_rate"):
        hits = round(m.value * m.n)
        claims.append(
            f"none of {_times(m.n, 'sample')} is a copy"
            if hits == 0
            else f"{hits} of {m.n} samples looking like a copy are no more than chance"
        )
    if m := found.get("likeness"):
        claims.append(f"it went {_percent(m.value)} of the way to the subject's likeness")
    return f"Healthy: {'; '.join(claims)}."


_STAY_NEAR = Advice(
    "stay_near",
    "strategies.stay_near.weight=1.0",
    "holds prompts without the trigger to what the base draws",
    effect_of("stay_near"),
)
_STAY_NEARER = Advice(
    "stay_near",
    "strategies.stay_near.weight=2.0",
    "holds the class to what the base makes of it",
    effect_of("stay_near"),
)
_ZOOM = Advice(
    "zoom_shift",
    "strategies.zoom_shift.zoom_min=0.5",
    "frees size and place of the subject, so that no layout is learnt by heart",
    effect_of("zoom_shift"),
)
_GROUND = Advice(
    "new_background",
    "strategies.new_background.p=0.7",
    "lays the subject on other grounds, so that no background belongs to it",
    effect_of("new_background"),
)
_LAYOUT = Advice(
    "layout_prior",
    "strategies.layout_prior.boundary=0.85",
    "leaves to the base what high noise decides, where everything is",
    effect_of("layout_prior"),
)
_FLIP = Advice(
    "flip",
    "strategies.flip.p=0.5",
    "doubles the pictures, unless left and right matter",
    effect_of("flip"),
)
_MORE_PROMPTS = Advice(
    "sampling",
    "sampling.preset=thorough",
    "draws more prompts and seeds, which narrows the intervals",
    UNTESTED,
)
FEWER_STEPS = Advice(
    "optimizer", "optimizer.steps=500", "stops before pictures are known by heart", UNTESTED
)
MORE_STEPS = Advice(
    "optimizer", "optimizer.steps=2000", "gives the subject time to be learnt", UNTESTED
)

# In order of promise. `setting` is what `--set` takes.
ADVICE: dict[Label, tuple[Advice, ...]] = {
    "healthy": (),
    "narrowed": (_STAY_NEAR, FEWER_STEPS),
    "trigger-narrowed": (_GROUND, _LAYOUT, _ZOOM),
    "prompt-ignored": (FEWER_STEPS, _STAY_NEAR),
    "class-forgotten": (_STAY_NEARER, FEWER_STEPS),
    "copying": (_GROUND, _LAYOUT, _FLIP, FEWER_STEPS),
    "undertrained": (MORE_STEPS,),
    "inconclusive": (_MORE_PROMPTS,),
}
