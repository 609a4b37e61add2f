"""Teach the text encoder what words look like before the UNet listens to it.

From a caption alone, tell the factors it names, and guess the mean latent at every place of the
picture: what the UNet has to say at the highest noise, at a hundredth of the cost of a UNet step.
A text encoder that starts from nothing beside a UNet leaves pattern and position words at chance
for hundreds of thousands of pictures: what "left" means differs from place to place and averages
to nothing, so no slope leads there until the word itself is already told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pocket.base import CHANNELS, WIDTH, Base, latents_of_scenes, new_text_encoder
from pocket.shipped import BASE, shipped
from pocket.stage import run_stage
from pocket.words import LENGTH, new_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from variegate.bench import world

BATCH = 192


class Guesser(nn.Module):
    """Captions -> the mean latent at each of 8x8 places, by attention from learnt places."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text
        self.place = nn.Parameter(0.5 * torch.randn(64, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.gate = nn.Linear(WIDTH, 4 * WIDTH)
        self.out = nn.Linear(2 * WIDTH, CHANNELS)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(WIDTH, len(values)) for name, values in world.FACTORS.items()}
        )

    def forward(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        words = self.text(ids).last_hidden_state
        place = self.place.expand(len(ids), -1, -1)
        h = self.norm(place + self.attention(place, words, words, need_weights=False)[0])
        a, b = self.gate(h).chunk(2, -1)
        guess = self.out(a * nn.functional.gelu(b))
        read = {name: head(words[:, -1]) for name, head in self.heads.items()}
        return guess.transpose(1, 2).reshape(len(ids), CHANNELS, 8, 8), read


def _tell(scene: world.Scene, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """A caption and the factors that it names; half of the captions name all."""
    whole = rng.random() < 0.5
    named = frozenset(f for f in world.FACTORS if whole or rng.random() < 0.6)
    noun = None if "subject" in named else scene.class_noun
    return world.caption(scene, named=named - {"subject"}, noun=noun, rng=rng), named


def mean_of_captions(folder: Path) -> Callable[[Tensor], Tensor] | None:
    """Token ids -> mean latents (unit variance), as the stage in the folder learnt them."""
    kept = folder / "meaning.safetensors"
    if not kept.exists():
        return None
    tokenizer = new_tokenizer(folder / "words")
    text = new_text_encoder(
        len(tokenizer), int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    )
    guesser = Guesser(text)
    guesser.load_state_dict(load_file(kept))
    guesser.eval()

    @torch.no_grad()
    def mean_of(ids: Tensor) -> Tensor:
        guess: Tensor = guesser(ids)[0]
        return guess

    return mean_of


def train_meaning(folder: Path, minutes: float) -> None:
    """Train the text encoder and put it into the base's weights in the folder."""
    torch.manual_seed(8)
    tokenizer = new_tokenizer(folder / "words")
    start, end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
    guesser = Guesser(new_text_encoder(len(tokenizer), start, end))
    scenes, latents, factor = latents_of_scenes(folder)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((37, step))
        rows = rng.integers(len(scenes), size=BATCH)
        told = [_tell(scenes[i], rng) for i in rows]
        texts = [text for text, _ in told]
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids
        with torch.autocast("cpu", torch.bfloat16):
            guess, read = guesser(torch.tensor(ids))
        x0 = latents[torch.from_numpy(rows)].float() * factor
        terms = {"mse": (guess.float() - x0).square().mean()}
        for name, values in world.FACTORS.items():
            truth = [
                values.index(getattr(scenes[i], name)) if name in named else -100
                for i, (_, named) in zip(rows, told, strict=True)
            ]
            loss = nn.functional.cross_entropy(read[name].float(), torch.tensor(truth))
            terms[name] = 0.1 * loss
        return terms

    run_stage("meaning", guesser, loss_of, folder=folder, minutes=minutes, lr=2e-3)
    kept = folder / "base.safetensors"
    state = load_file(kept) if kept.exists() else shipped(*BASE)
    if not state:
        state = dict(Base(len(tokenizer), start, end).state_dict())
    state |= {f"text.{k}": v for k, v in guesser.text.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, kept)
    if not (folder / "base.json").exists():
        (folder / "base.json").write_text('{"seconds": 0, "steps": 0}')
