"""Train the pocket encoder: captions against pictures, and sprites against one another."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from pocket.atlas import extra_sprites
from pocket.codec import new_codec
from pocket.shipped import codec_weights
from pocket.stage import run_stage
from pocket.words import LENGTH, new_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from variegate.bench import world
from variegate.encoders.pocket import IDENTITY, ImageTower, TextTower

HERE = Path(import_module("variegate.encoders.pocket").__file__).parent  # type: ignore[arg-type]


class Towers(nn.Module):
    def __init__(self, tokens: int, end: int, sprites: int) -> None:
        super().__init__()
        self.image = ImageTower()
        self.text = TextTower(tokens, LENGTH, end)
        self.sprite = nn.Parameter(0.1 * torch.randn(sprites, IDENTITY))
        self.heat = nn.Parameter(torch.tensor([2.5, 2.5]))


class Pictures:
    """Scenes with captions, and other sprites on the world's grounds with their number."""

    def __init__(self) -> None:
        self.extra = extra_sprites()
        self.count = len(world.BASE_SUBJECTS) + len(self.extra)

    def captioned(self, rng: np.random.Generator) -> tuple[np.ndarray, str, int]:
        scene = world.draw_scene(rng)
        number = world.BASE_SUBJECTS.index(scene.subject)
        return world.render(scene), world.draw_caption(scene, rng), number

    def other(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        colours = list(world.COLOURS.values())
        picture = world.paint_background(
            colours[rng.integers(len(colours))], world.PATTERNS[rng.integers(4)]
        ).copy()
        number = int(rng.integers(len(self.extra)))
        side = int(rng.integers(18, 46))
        sprite = world.shape_sprite(
            self.extra[number], side, float(rng.uniform(-16, 16)), bool(rng.integers(2))
        )
        top, left = rng.integers(-2, world.PIXELS - side + 3, 2)
        world.paste(picture, sprite, int(top), int(left))
        return np.round(picture * 255).astype(np.uint8), len(world.BASE_SUBJECTS) + number


def train_encoder(folder: Path, minutes: float) -> None:
    torch.manual_seed(4)
    tokenizer = new_tokenizer(folder / "words")
    pictures = Pictures()
    towers = Towers(len(tokenizer), int(tokenizer.eos_token_id), pictures.count)
    towers.image.to(memory_format=torch.channels_last)
    codec = new_codec()
    codec.load_state_dict(codec_weights(folder))

    def ids_of(texts: list[str]) -> Tensor:
        out = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH)
        return torch.tensor(out.input_ids)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((13, step))
        told = [pictures.captioned(rng) for _ in range(128)]
        others = [pictures.other(rng) for _ in range(64)]
        x = torch.from_numpy(np.stack([p for p, *_ in told] + [p for p, _ in others]))
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        g = torch.Generator().manual_seed(step)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            x[::6] = codec.decode(codec.encode(x[::6]).latents).sample.float()
        x = x + 0.05 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        numbers = torch.tensor([n for *_, n in told] + [n for _, n in others])
        captions = [c for _, c, _ in told]
        with torch.autocast("cpu", torch.bfloat16):
            words, identity = towers.image(x)
            text = towers.text(ids_of(captions))
        logits = towers.heat[0].exp() * words[:128].float() @ text.float().T
        # Captions that are the same text are not each other's negatives.
        same = torch.tensor([[a == b for b in captions] for a in captions])
        same = same & ~torch.eye(128, dtype=torch.bool)
        logits = logits.masked_fill(same, -1e4)
        match = torch.arange(128)
        who = towers.heat[1].exp() * identity.float() @ F.normalize(towers.sprite, dim=-1).T
        return {
            "captions": (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2,
            "identity": F.cross_entropy(who, numbers),
        }

    def check() -> str:
        towers.eval()
        return _ship(towers, tokenizer, pictures, folder, ids_of)

    run_stage("encoder", towers, loss_of, folder=folder, minutes=minutes, lr=1.5e-3, check=check)


def _ship(towers: Towers, tokenizer, pictures: Pictures, folder: Path, ids_of) -> str:  # type: ignore[no-untyped-def]
    """Write the package's weights; say how well captions find their pictures among 64."""
    rng = np.random.default_rng(99)
    told = [pictures.captioned(rng) for _ in range(4096)]
    with torch.no_grad():
        x = torch.from_numpy(np.stack([p for p, *_ in told])).permute(0, 3, 1, 2).float()
        parts = [towers.image(part) for part in (x / 127.5 - 1).split(256)]
        words = torch.cat([w for w, _ in parts])
        features = torch.cat([torch.cat(p, 1) for p in parts]) / 2**0.5
        scenes = [world.draw_scene(rng) for _ in range(512)]
        full = frozenset({"colour", "pattern", "size", "position"})
        text = towers.text(ids_of([world.caption(s, named=full) for s in scenes]))
        y = torch.from_numpy(np.stack([world.render(s) for s in scenes]))
        seen = towers.image(y.permute(0, 3, 1, 2).float() / 127.5 - 1)[0]
    del words
    hits = [
        float((text[i : i + 64] @ seen[i : i + 64].T).argmax(0).eq(torch.arange(64)).float().mean())
        for i in range(0, 512, 64)
    ]
    mean = features.mean(0)
    centred = (features - mean).double()
    covariance = centred.T @ centred / len(centred)
    precision = torch.linalg.inv(covariance + 1e-4 * torch.eye(len(mean), dtype=torch.float64))
    distance = ((centred @ precision) * centred).sum(1)
    state = {
        k: v.half() if v.is_floating_point() else v
        for k, v in towers.state_dict().items()
        if k.startswith(("image.", "text."))
    }
    state |= {"world.mean": mean, "world.precision": precision.float()}
    out = HERE / "pocket_weights"
    out.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, out / "encoder.safetensors")
    (out / "encoder.safetensors").chmod(0o644)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "version": "1",
        "tokens": len(tokenizer),
        "length": LENGTH,
        "end": int(tokenizer.eos_token_id),
        "world_limit": float(distance.quantile(0.999)),
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf8")
    return f"a full caption finds its picture among 64: {100 * float(np.mean(hits)):.1f} %"
