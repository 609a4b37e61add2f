"""What captions say, and what they leave for the trigger to soak up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from variegate.audit.finding import Finding

CLIP_TOKENS = 75  # words past it are not seen by Stable Diffusion's text encoder

_WORD = re.compile(r"[^\W_]+(?:['\-][^\W_]+)*")
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")
# Words by which captions place a subject somewhere.
_PLACE = re.compile(
    r"\b(background|backdrop|indoors?|outdoors?|inside|outside|in front of|against|behind|beside"
    r"|next to|near|under|on (?:a|an|the|some|top)|in (?:a|an|the|some)|at (?:a|an|the|night)"
    r"|grass|sky|street|road|floor|wall|table|desk|room|kitchen|beach|sea|water|river|forest"
    r"|snow|sand|studio|field|garden|park|city|mountains?|window|bench|stone|rock|carpet)\b",
    re.IGNORECASE,
)
_CAMERA_NAME = re.compile(
    r"(?:img|dsc[fn]?|pxl|p|image|photo|pic|picture|screenshot|untitled)?[ _\-()]*\d[\d _\-()]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CaptionFacts:
    """Counts over the usable pictures of a set.

    constant: words in every caption. varying: how many other words there are. place: how many
    captions say where the subject is. trigger: how many hold the trigger; None when none is known.
    """

    present: int
    missing: int
    empty: int
    distinct: int
    constant: tuple[str, ...]
    varying: int
    place: int
    longest_tokens: int
    too_long: int
    file_names: int
    trigger: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "constant": list(self.constant)}


def count_captions(
    captions: Sequence[str | None], stems: Sequence[str], *, trigger: str | None = None
) -> CaptionFacts:
    """Facts about captions in the order of the pictures; `stems` are their file names."""
    given = [(c, s) for c, s in zip(captions, stems, strict=True) if c]
    words = [words_of(c) for c, _ in given]
    shared = set.intersection(*map(set, words)) if words else set()
    constant = tuple(dict.fromkeys(w for w in (words[0] if words else []) if w in shared))
    tokens = [clip_tokens(c) for c, _ in given]
    wanted = words_of(trigger) if trigger else []
    return CaptionFacts(
        present=len(given),
        missing=sum(c is None for c in captions),
        empty=sum(c == "" for c in captions),
        distinct=len({" ".join(w) for w in words}),
        constant=constant if len(given) > 1 else (),
        varying=len(set().union(*words) - shared) if words else 0,
        place=sum(bool(_PLACE.search(c)) for c, _ in given),
        longest_tokens=max(tokens, default=0),
        too_long=sum(t > CLIP_TOKENS for t in tokens),
        file_names=sum(_is_file_name(c, s) for c, s in given),
        trigger=sum(_holds(w, wanted) for w in words) if wanted else None,
    )


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def clip_tokens(text: str) -> int:
    """About how many tokens CLIP makes of a text: digits and punctuation count one each, words
    one per seven letters begun. Within a fifth of the tokenizer's count on English captions."""
    return sum(1 + (len(p) - 1) // 7 if p[0].isalpha() else 1 for p in _PIECE.findall(text))


def _holds(words: list[str], wanted: list[str]) -> bool:
    span = len(wanted)
    return any(words[i : i + span] == wanted for i in range(len(words) - span + 1))


def _is_file_name(caption: str, stem: str) -> bool:
    plain = re.sub(r"\.(png|jpe?g|webp|bmp|gif|avif)$", "", caption.strip(), flags=re.IGNORECASE)
    if plain != caption.strip() or _CAMERA_NAME.fullmatch(plain):
        return True
    return plain == stem and re.search(r"[\d_]", stem) is not None


def judge_captions(
    facts: CaptionFacts, *, trigger: str | None = None, one_background: bool = False
) -> list[Finding]:
    """What about the captions will narrow the adapter, worst first."""
    n = facts.present + facts.missing + facts.empty
    if n == 0:
        return []
    if facts.present == 0:
        return [
            Finding(
                "No picture has a caption",
                f"0 of {n} captions",
                "Write one sentence per picture that names what changes from picture to picture "
                "(background, pose, light). Whatever captions never name becomes part of the "
                "trigger and will be in every picture you make.",
            )
        ]
    return [
        *_gaps(facts, n),
        *_sameness(facts),
        *_trigger(facts, trigger),
        *_place(facts, one_background),
        *_form(facts),
    ]


def _gaps(facts: CaptionFacts, n: int) -> list[Finding]:
    found = []
    if facts.missing:
        found.append(
            Finding(
                "Some pictures have no caption",
                f"{facts.missing} of {n} have none",
                "Write the missing ones in the style of the others.",
            )
        )
    if facts.empty:
        found.append(
            Finding(
                "Some captions are empty",
                f"{facts.empty} of {n} are empty",
                "Fill them in; an empty caption teaches the picture to every prompt.",
            )
        )
    return found


def _sameness(facts: CaptionFacts) -> list[Finding]:
    if facts.present < 2 or facts.distinct > 1:
        return []
    return [
        Finding(
            "All captions are the same",
            f"{facts.present} captions, 1 wording ({' '.join(facts.constant[:12])})",
            "Keep the part that names the subject and add what differs in each picture, so that "
            "backgrounds and poses are not learnt as part of the subject.",
        )
    ]


def _trigger(facts: CaptionFacts, trigger: str | None) -> list[Finding]:
    if facts.trigger is None or facts.trigger == facts.present:
        return []
    return [
        Finding(
            "The trigger is not in every caption",
            f"{trigger!r} is in {facts.trigger} of {facts.present} captions",
            "Put the trigger into every caption, spelt the same way; pictures without it teach "
            "the subject to ordinary words.",
        )
    ]


def _place(facts: CaptionFacts, one_background: bool) -> list[Finding]:
    if facts.place * 2 >= facts.present:
        return []
    advice = (
        "All pictures share one background: name it in every caption "
        '("... on a blue background"), or it will be learnt as part of the subject.'
        if one_background
        else 'Say where the subject is ("... on grass", "... in a kitchen"), so that the '
        "background is learnt as something that can change."
    )
    return [
        Finding(
            "Captions do not name the background",
            f"{facts.place} of {facts.present} captions say where the subject is",
            advice,
        )
    ]


def _form(facts: CaptionFacts) -> list[Finding]:
    found = []
    if facts.too_long:
        found.append(
            Finding(
                "Some captions are too long",
                f"{facts.too_long} of {facts.present} pass about {CLIP_TOKENS} tokens; the longest "
                f"has about {facts.longest_tokens}",
                "Shorten them: Stable Diffusion does not read past that point.",
            )
        )
    if facts.file_names:
        found.append(
            Finding(
                "Some captions look like file names",
                f"{facts.file_names} of {facts.present}",
                "Replace them by what is seen; camera names and numbers teach nothing.",
            )
        )
    return found
