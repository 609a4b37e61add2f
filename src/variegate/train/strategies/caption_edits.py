"""Add a random word to some captions, or put one in the place of another; never the trigger's.

Captions that differ each time cannot be the key to one picture. Of the changes to captions that
Somepalli et al. compare (2023, arXiv 2305.20086, section 6, "random token replacement and
addition"), it is among those that copy least at little cost in quality.
"""

from __future__ import annotations

import torch

from variegate import seeds
from variegate.recipe import CaptionEdits, Recipe
from variegate.train.strategies.base import Seen, Setting, Strategy
from variegate.train.wording import joined, parts_of

WORD_END = "</w>"  # marks, in the vocabularies of CLIP's tokenizers, what ends a word
SHORTEST = 3  # letters of a word; shorter entries are mostly pieces


class EditCaptions(Strategy):
    def __init__(self, plan: CaptionEdits, recipe: Recipe) -> None:
        self.plan = plan
        self.trigger = recipe.trigger
        self.seed = recipe.seed
        self.words: list[str] = []

    def prepare(self, setting: Setting) -> None:
        self.words = whole_words(setting.model.tokenizer.get_vocab(), but=self.trigger)

    def caption(self, caption: str, step: int, row: int, seen: Seen) -> str:
        generator = seeds.at(self.seed, "caption_edits", step, row)
        if not caption or float(torch.rand((), generator=generator)) >= self.plan.p:
            return caption
        parts = parts_of(caption, self.trigger)
        for _ in range(self.plan.words):
            replaces, word, at = torch.rand(3, generator=generator).tolist()
            new = (self.words[int(word * len(self.words))], False)
            free = [i for i, (part, called) in enumerate(parts) if part != "," and not called]
            if free and replaces < self.plan.replaced:
                parts[free[int(at * len(free))]] = new
            else:
                # Not inside a trigger of several words, which would then no longer be one.
                gaps = [
                    i
                    for i in range(len(parts) + 1)
                    if not (0 < i < len(parts) and parts[i - 1][1] and parts[i][1])
                ]
                parts.insert(gaps[int(at * len(gaps))], new)
        return joined([part for part, _ in parts])


def whole_words(vocabulary: dict[str, int], *, but: str) -> list[str]:
    """The words that the tokenizer knows whole, sorted, without those of `but`."""
    known = [token.removesuffix(WORD_END) for token in vocabulary if token.endswith(WORD_END)]
    words = {word for word in known if word.isascii() and word.isalpha()} - set(but.split())
    return sorted(word for word in words if len(word) >= SHORTEST) or sorted(words)
