"""A description as a caption: the trigger and the class noun put where the subject is named."""

from __future__ import annotations

import re

from variegate.images.captions import clean
from variegate.measure.prompts import article

# Words that a caption may have and still say nothing.
EMPTY = frozenset(
    [
        *("a", "an", "the", "this", "that", "there", "is", "are", "it", "its", "and", "with"),
        *("of", "in", "on", "at", "to", "by", "for", "some", "one", "very"),
        *("photo", "photograph", "picture", "image", "shot", "close", "up", "closeup"),
    ]
)


def weave(seen: str, *, trigger: str, class_noun: str) -> str:
    """A description with the subject called by its trigger and class noun; "" stays empty.

    Where the noun is named, the trigger goes before it; else both go in front.

    >>> weave("an owl on a red sofa.", trigger="zqx", class_noun="owl")
    'a zqx owl on a red sofa'
    >>> weave("a bird at night", trigger="zqx", class_noun="owl")
    'a zqx owl, a bird at night'
    """
    text = clean(seen).removesuffix(".")
    if not text or (trigger and _word(trigger).search(text)):
        return text
    called = " ".join(filter(None, (trigger, class_noun)))
    found = _word(class_noun).search(text) if class_noun else None
    if not called or (found and not trigger):
        return text
    if found is None:
        return f"{article(called) if class_noun else called}, {text}"
    before, after = text[: found.start()], text[found.start() :]
    led = re.search(r"\b(an?)(\s+)$", before, re.IGNORECASE)
    if led:
        right = article(called).split()[0]
        right = right.capitalize() if led[1][0].isupper() else right
        before = f"{before[: led.start()]}{right}{led[2]}"
    return f"{before}{trigger} {after}"


def says_something(caption: str, *, trigger: str, class_noun: str) -> bool:
    """Whether a caption names more than the subject.

    >>> says_something("a photo of a zqx owl", trigger="zqx", class_noun="owl")
    False
    """
    for word in filter(None, (trigger, class_noun)):
        caption = _word(word).sub(" ", caption)
    return any(word not in EMPTY for word in re.findall(r"[^\W_]+", caption.lower()))


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
