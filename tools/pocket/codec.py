"""The pocket's autoencoder: 64-pixel pictures <-> 8x8 latents of 12 channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from pocket.atlas import extra_sprites
from pocket.shipped import CODEC, shipped
from pocket.stage import run_stage
from torch import Tensor
from torch.nn import functional as F

from variegate.bench import world

CHANNELS = 12
WIDTH = 32


def new_codec() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 2, 4, 4),
        num_decoder_blocks=(4, 4, 2, 0),
        latent_channels=CHANNELS,
    ).to(memory_format=torch.channels_last)


class FreePictures:
    """Pictures outside the world's grammar, so that the codec carries more than the world:
    other sprites, any size and place, other hues, phases, gradients."""

    def __init__(self) -> None:
        atlas = world._atlas()
        known = [atlas[name] for name in world.BASE_SUBJECTS]
        self.sprites = [*known, *extra_sprites()]

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rgb = tuple(int(c) for c in rng.integers(0, 256, 3))
        pattern = world.PATTERNS[rng.integers(4)]
        phase = (int(rng.integers(16)), int(rng.integers(16)))
        picture = world.paint_background(rgb, pattern, phase=phase)  # type: ignore[arg-type]
        if rng.random() < 0.4:
            end = rng.random(3).astype(np.float32)
            ramp = np.linspace(0, 1, world.PIXELS, dtype=np.float32)
            ramp = ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
            picture = picture * (1 - ramp) + end * ramp
        picture = picture.astype(np.float32)
        mask = np.zeros((world.PIXELS, world.PIXELS, 1), np.float32)
        for _ in range(int(rng.integers(1, 3))):
            sprite = world.shape_sprite(
                self.sprites[rng.integers(len(self.sprites))],
                int(rng.integers(16, 60)),
                float(rng.uniform(-30, 30)),
                bool(rng.integers(2)),
            )
            at = rng.integers(-8, world.PIXELS - 16, 2)
            world.paste(picture, sprite, *at)
            world.paste(mask, sprite, *at)
        return np.clip(picture, 0, 1), mask[..., 0]


def crowded(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A scene with five subjects: more of what is hard to carry in one picture."""
    scene = world.draw_scene(rng)
    picture = world.render(scene).astype(np.float32) / 255
    mask = world.render_mask(scene)[..., None]
    for _ in range(4):
        other = world.draw_scene(rng)
        sprite = world._sprite(other.subject, other.size, other.angle, other.flip)
        at = rng.integers(-4, world.PIXELS - len(sprite) + 5, 2)
        world.paste(picture, sprite, *at)
        world.paste(mask, sprite, *at)
    return np.clip(picture, 0, 1), mask[..., 0]


def scenes_batch(seed: int, n: int) -> Tensor:
    """Fresh scenes of the base's world: `[n, 3, 64, 64]` in -1..1."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([world.render(world.draw_scene(rng)) for _ in range(n)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def mixed_batch(seed: int, n: int, free: FreePictures) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng((7, seed))
    pictures, masks = [], []
    for i in range(n):
        kind = i % 8
        if kind < 2:
            scene = world.draw_scene(rng)
            picture, mask = world.render(scene).astype(np.float32) / 255, world.render_mask(scene)
        else:
            picture, mask = crowded(rng) if kind < 7 else free.draw(rng)
        pictures.append(picture)
        masks.append(mask)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(masks))


def decibels(codec: AutoencoderTiny, x: Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions of pictures in -1..1."""
    with torch.no_grad():
        y = codec.decode(codec.encode(x).latents).sample.clamp(-1, 1)
    error = (((y - x) / 2) ** 2).mean((1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


def train_codec(folder: Path, minutes: float, *, final: bool) -> None:
    torch.manual_seed(0)
    codec = new_codec()
    free = FreePictures()
    noise = torch.Generator().manual_seed(1)

    def loss_of(step: int) -> dict[str, Tensor]:
        x, mask = mixed_batch(step, 16, free)
        with torch.autocast("cpu", torch.bfloat16):
            z = codec.encode(x).latents
            z = z + 0.06 * torch.randn(z.shape, generator=noise)
            y = codec.decode(z).sample
        y = y.float()
        weight = 1 + 5 * mask[:, None]
        weight = weight / weight.mean()
        error = y - x
        edges = (error.diff(dim=-1) * weight[..., 1:]).abs().mean() + (
            error.diff(dim=-2) * weight[..., 1:, :]
        ).abs().mean()
        return {
            "l1": (error.abs() * weight).mean(),
            "l2": 2 * (error.square() * weight).mean(),
            "edges": 0.3 * edges,
            "range": 1e-3 * F.relu(z.float().abs() - 3).square().mean(),
        }

    def check() -> str:
        x = scenes_batch(123, 64)
        with torch.no_grad():
            z = codec.encode(x).latents
            y = codec.decode(z).sample.clamp(-1, 1)
        rows = torch.cat([torch.cat([x[i], y[i]], 1) for i in range(16)], 2)
        picture = ((rows.permute(1, 2, 0) + 1) * 127.5).byte().numpy()
        Image.fromarray(picture).resize((2048, 256), 0).save(folder / "codec.png")
        held = np.random.default_rng(5)
        unseen = torch.from_numpy(
            np.stack([world.render(world.draw_scene(held, world.HELD_OUT)) for _ in range(64)])
        )
        unseen = unseen.permute(0, 3, 1, 2).float() / 127.5 - 1
        return (
            f"{decibels(codec, x):.2f} dB, held-out subjects {decibels(codec, unseen):.2f} dB, "
            f"latent mean {z.mean():.3f} std {z.std():.3f}, by channel "
            f"{[round(float(s), 2) for s in z.std((0, 2, 3))]}"
        )

    run_stage(
        "codec",
        codec,
        loss_of,
        folder=folder,
        minutes=minutes,
        lr=2e-3,
        final=final,
        check=check,
        shipped=lambda: shipped(*CODEC),
    )
