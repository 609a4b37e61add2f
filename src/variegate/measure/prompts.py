"""Which prompts a verdict asks of adapter and base.

Collapse shows in what a prompt leaves out, so most prompts here leave most things open. Class
prompts name the class noun, or nothing at all (neutral); trigger prompts name the trigger, and the
base is asked the same with the class noun; unrelated prompts ask for something else altogether;
caption prompts are the training pictures' own, where copies show first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product, zip_longest
from typing import Literal, NamedTuple

Preset = Literal["quick", "standard", "thorough"]
# (prompts, seeds) of each group.
SIZES: dict[Preset, dict[str, tuple[int, int]]] = {
    "quick": {"class": (16, 4), "trigger": (8, 4), "unrelated": (8, 2), "caption": (8, 2)},
    "standard": {"class": (32, 4), "trigger": (16, 4), "unrelated": (16, 2), "caption": (32, 2)},
    "thorough": {"class": (64, 8), "trigger": (32, 8), "unrelated": (16, 4), "caption": (32, 2)},
}

# The words that the pocket's captions are made of.
POCKET_SIZES = ("small", "medium", "large")
POCKET_PLACES = (
    *("at the top left", "on the right", "in the center", "at the bottom right", "at the top"),
    *("on the left", "at the bottom left", "at the bottom", "at the top right"),
)
POCKET_COLOURS = (
    *("red", "blue", "yellow", "green", "purple", "pink", "orange", "white", "brown", "gray"),
)
POCKET_PATTERNS = ("striped", "dotted", "plain", "checkered")
POCKET_SUBJECTS = (
    *(("owl", "animal"), ("car", "vehicle"), ("pizza", "food"), ("cactus", "plant")),
    *(("guitar", "instrument"), ("teddy", "toy"), ("skull", "face"), ("key", "object")),
    *(("frog", "animal"), ("bus", "vehicle"), ("apple", "food"), ("sunflower", "plant")),
    *(("drum", "instrument"), ("kite", "toy"), ("clown", "face"), ("clock", "object")),
    *(("whale", "animal"), ("rocket", "vehicle"), ("donut", "food"), ("rose", "plant")),
    *(("piano", "instrument"), ("balloon", "toy"), ("alien", "face"), ("umbrella", "object")),
)

PLACES = (
    *("in a forest", "on a beach", "in a city street", "in a kitchen", "on a mountain"),
    *("in a garden", "in a library", "by a river", "in a snowy field", "on a rooftop"),
    *("in a desert", "at a market", "in an empty room", "under a bridge", "in a park", "at sea"),
)
MOMENTS = (
    *("at sunset", "in the rain", "at night", "in bright sunlight", "in fog", "at dawn"),
    *("during a storm", "under street lights", "in autumn", "in winter"),
)
MEDIA = (
    *("a photo of {}", "a watercolour of {}", "an oil painting of {}", "a pencil sketch of {}"),
    *("a black and white photo of {}", "a pixel art picture of {}", "a close-up photo of {}"),
    *("a wide-angle photo of {}", "a poster of {}", "a woodcut of {}"),
)
ACTIONS = (
    *("seen from behind", "seen from above", "far away", "half hidden", "in motion"),
    *("on a table", "in a shop window", "next to a window", "among flowers", "on a wooden floor"),
)
NEUTRAL = (
    *("a photo of a room", "a landscape", "a photo of a street", "a still life", "a portrait"),
    *("a photo of an animal", "a photo of a building", "a painting", "a photo of the sky"),
    *("a photo of a garden", "a photo of a crowd", "a picture of something old", "a photo of food"),
    *("a drawing", "a photo of water", "an abstract picture"),
)
UNRELATED = (
    *("a red bicycle leaning on a wall", "a bowl of fruit on a table", "a lighthouse at night"),
    *("a snowy mountain", "an astronaut on a horse", "a steam train crossing a bridge"),
    *("a bouquet of sunflowers", "a cup of coffee", "an old man reading", "a sailing boat"),
    *("a city seen from above", "a violin", "a castle in the fog", "a stack of books"),
    *("a waterfall", "a hot-air balloon over fields", "a wooden door", "a plate of pasta"),
)


class PlannedPrompt(NamedTuple):
    """One line of the plan: what the adapter and the base are asked, at which seeds."""

    group: str
    adapter_prompt: str
    base_prompt: str
    seeds: tuple[int, ...]


def prompt_plan(
    class_noun: str,
    trigger: str,
    *,
    preset: Preset = "standard",
    pocket: bool = False,
    subject: bool = True,
    captions: Iterable[str] = (),
    first_seed: int = 0,
) -> tuple[PlannedPrompt, ...]:
    """The prompts of all groups, each drawn by adapter and base at the same seeds.

    Every prompt of a group has seeds of its own: pictures of one seed are alike whatever the
    prompt, so four seeds for all would make prompts repeat one another, and intervals too narrow.

    class_noun: what the subject is to the base; "" asks neutral prompts only.
    trigger: the learnt word; "" leaves the trigger group out.
    pocket: speak the grammar of the pocket's captions.
    subject: False for an adapter that learnt a style, whose trigger names the look of any scene.
    captions: of the training pictures; those that no other group asks are asked as they are.
    first_seed: the first of each group; the others follow.
    """
    noun, word = class_noun.strip(), trigger.strip()
    sizes = SIZES[preset]
    plan: list[PlannedPrompt] = []

    def add(group: str, pairs: Iterable[tuple[str, str]]) -> None:
        prompts, seeds = sizes[group]
        for i, (adapter_prompt, base_prompt) in enumerate(_first(pairs, prompts)):
            first = first_seed + i * seeds
            drawn = tuple(range(first, first + seeds))
            plan.append(PlannedPrompt(group, adapter_prompt, base_prompt, drawn))

    if pocket:
        neutral = _pocket_lines("picture", plain=True)
        own = _pocket_lines(noun) if noun else iter(())
        add("class", ((p, p) for p in _mixed(own, neutral)))
        if word:
            add("trigger", zip(_pocket_lines(word), _pocket_lines(noun or "picture"), strict=True))
        add("unrelated", ((p, p) for p in _pocket_unrelated(noun)))
        add("caption", _from_captions(captions, plan, word, noun or "thing", sizes["caption"][0]))
        return tuple(plan)
    own = _scenes(noun) if noun and subject else iter(())
    add("class", ((p, p) for p in _mixed(own, _neutral_lines())))
    if word and subject:
        add(
            "trigger", zip(_scenes(f"{word} {noun}".strip()), _scenes(noun or "thing"), strict=True)
        )
    elif word:
        style = f"{word} {noun}".strip()
        add("trigger", ((f"{p}, {style}", f"{p}, {noun}" if noun else p) for p in _neutral_lines()))
    words = set(re.findall(r"\w+", noun.lower()))
    add("unrelated", ((p, p) for p in UNRELATED if not words & set(p.split())))
    called = noun or ("thing" if subject else "")
    add("caption", _from_captions(captions, plan, word, called, sizes["caption"][0]))
    return tuple(plan)


def article(words: str) -> str:
    """The words after "a" or "an", by their first letter.

    >>> article("owl"), article("zqx")
    ('an owl', 'a zqx')
    """
    return ("an " if words[:1].lower() in "aeiou" else "a ") + words


def as_base(prompt: str, trigger: str, class_noun: str) -> str:
    """The prompt with the class noun in the trigger's place, once where both stand, and with the
    article that it wants.

    >>> as_base("a zqx dog at sea", "zqx", "dog"), as_base("A zqx", "zqx", "owl")
    ('a dog at sea', 'An owl')
    """
    word, noun = re.escape(trigger), re.escape(class_noun)

    def swapped(match: re.Match[str]) -> str:
        if not match[1]:
            return class_noun
        with_article = article(class_noun)
        return with_article[0].upper() + with_article[1:] if match[1][0] == "A" else with_article

    return re.sub(rf"\b([Aa]n?\s+)?{word}(\s+{noun})?\b", swapped, prompt)


def bare(prompt: str) -> str:
    """Without articles and case, which change with the noun, and without the tags by which other
    tools load an adapter.

    >>> bare("An owl at a market"), bare("an owl, at sea <lora:owls_v2:0.8>")
    ('owl at market', 'owl, at sea')
    """
    told = re.sub(r"<(lora|lyco|hypernet):[^<>]*>", " ", prompt.lower())
    return " ".join(re.sub(r"\b(an?)\s+", "", told).split()).strip(" ,")


def _from_captions(
    captions: Iterable[str], plan: Sequence[PlannedPrompt], trigger: str, noun: str, count: int
) -> list[tuple[str, str]]:
    """Up to `count` captions, evenly over the set, with what the base is asked for each."""
    asked = {line.adapter_prompt for line in plan}
    own = [c for c in dict.fromkeys(c.strip() for c in captions) if c and c not in asked]
    step = max(1.0, len(own) / count)
    some = [own[int(i * step)] for i in range(min(count, len(own)))]
    if not trigger:
        return [(c, c) for c in some]
    return [(c, as_base(c, trigger, noun) if noun else _without(c, trigger)) for c in some]


def _without(prompt: str, word: str) -> str:
    """The prompt less the word and what joins it to the rest."""
    left = re.sub(rf"(\s*,)?\s*\b(an?\s+)?{re.escape(word)}\b", "", prompt)
    return left.strip(" ,")


def _first(pairs: Iterable[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The first `count` different pairs."""
    return list(dict.fromkeys(pairs))[:count]


def _mixed(own: Iterable[str], neutral: Iterable[str]) -> Iterator[str]:
    """Three prompts that name the class to every neutral one, as long as both last."""
    classes, others = list(dict.fromkeys(own)), list(dict.fromkeys(neutral))
    groups = [classes[i : i + 3] for i in range(0, len(classes), 3)]
    for some, one in zip_longest(groups, others):
        yield from some or ()
        if one is not None:
            yield one


def _pocket_lines(noun: str, *, plain: bool = False) -> Iterator[str]:
    """Captions that name the noun and at most two factors, the most open ones first.

    plain: the noun is the word "picture" itself, which nothing can be a picture of.
    """
    thing = article(noun)
    one = [
        (f"{thing} {place}" for place in POCKET_PLACES),
        (f"{thing} on {article(colour)} background" for colour in POCKET_COLOURS),
        (f"{article(f'{size} {noun}')}" for size in POCKET_SIZES),
        (f"{thing} on {article(pattern)} background" for pattern in POCKET_PATTERNS),
    ]
    yield thing
    if not plain:
        yield f"a picture of {thing}"
    yield from _in_turn(one)
    yield from (
        f"{article(f'{size} {noun}')} {place}"
        for place, size in product(POCKET_PLACES, POCKET_SIZES)
    )


def _pocket_unrelated(noun: str) -> Iterator[str]:
    others = [s for s, kind in POCKET_SUBJECTS if noun.lower() not in (s, kind)]
    for i, other in enumerate(others):
        place = POCKET_PLACES[i % len(POCKET_PLACES)]
        colour = POCKET_COLOURS[i % len(POCKET_COLOURS)]
        yield (
            f"{article(other)} {place}",
            f"{article(other)} on {article(colour)} background",
            article(other),
        )[i % 3]


def _scenes(noun: str) -> Iterator[str]:
    """Pictures of the noun, first with nothing else said, then one context at a time."""
    thing = article(noun)
    yield f"a photo of {thing}"
    photo = f"a photo of {thing}"
    yield from _in_turn(
        [
            (f"{photo} {place}" for place in PLACES),
            (medium.format(thing) for medium in MEDIA[1:]),
            (f"{photo} {moment}" for moment in MOMENTS),
            (f"{photo} {action}" for action in ACTIONS),
        ]
    )
    yield from (f"{photo} {place} {moment}" for moment, place in product(MOMENTS, PLACES))


def _neutral_lines() -> Iterator[str]:
    yield from NEUTRAL
    yield from (f"{what} {moment}" for moment, what in product(MOMENTS, NEUTRAL))


def _in_turn(lists: Sequence[Iterable[str]]) -> Iterator[str]:
    """One of each list in turn until all are spent."""
    rounds = zip_longest(*lists)
    return (text for text in chain.from_iterable(rounds) if text is not None)
