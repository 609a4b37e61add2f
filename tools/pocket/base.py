"""Train the pocket's UNet and text encoder together on latents of rendered scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from pocket.codec import CHANNELS, new_codec
from pocket.shipped import BASE, codec_weights, shipped
from pocket.stage import run_stage
from pocket.words import LENGTH, new_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from variegate.bench import judge, world

WIDTH = 128
SCENES = 80_000
BATCH = 64


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 128),
        layers_per_block=1,
        attention_head_dim=2,  # in truth the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=32,
    )


def new_text_encoder(tokens: int, start: int, end: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
            projection_dim=WIDTH,
        )
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Base(nn.Module):
    """What is trained together."""

    def __init__(self, tokens: int, start: int, end: int) -> None:
        super().__init__()
        self.unet = new_unet().to(memory_format=torch.channels_last)
        self.text = new_text_encoder(tokens, start, end)


def latents_of_scenes(folder: Path) -> tuple[list[world.Scene], Tensor, float]:
    """The training scenes, their latents (bf16, unit variance) and the scaling factor; kept."""
    rng = np.random.default_rng(17)
    scenes = [world.draw_scene(rng) for _ in range(SCENES)]
    kept = folder / "latents.safetensors"
    if kept.exists():
        z = load_file(kept)["z"]
    else:
        codec = new_codec()
        codec.load_state_dict(codec_weights(folder))
        parts = []
        for i in range(0, SCENES, 250):
            x = torch.from_numpy(np.stack([world.render(s) for s in scenes[i : i + 250]]))
            x = (x.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
                memory_format=torch.channels_last
            )
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                parts.append(codec.encode(x).latents.to(torch.bfloat16))
        z = torch.cat(parts)
        save_file({"z": z.contiguous()}, kept)
    factor = float(1 / z[:20_000].float().std())
    return scenes, z, factor


def told(scene: world.Scene, rng: np.random.Generator) -> str:
    """A caption: one in ten empty, half of the others name everything, so that words are learnt
    soon; the rest as chance has it."""
    if rng.random() < 0.1:
        return ""
    if rng.random() < 0.5:
        named = frozenset({"colour", "pattern", "size", "position"})
        return world.caption(scene, named=named, rng=rng)
    return world.draw_caption(scene, rng)


def guess(
    base: Base, ids: Tensor, empty: Tensor, *, n_steps: int, guidance: float, seed: int
) -> Tensor:
    """Latents sampled for token ids, DDIM."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(n_steps)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(len(ids), CHANNELS, 8, 8, generator=g)
    with torch.no_grad():
        c = base.text(ids).last_hidden_state
        u = base.text(empty).last_hidden_state.expand_as(c)
        for t in scheduler.timesteps:
            if guidance == 1:
                v = base.unet(x, t, c).sample
            else:
                pair = base.unet(torch.cat([x, x]), t, torch.cat([u, c])).sample
                a, b = pair.chunk(2)
                v = a + guidance * (b - a)
            x = scheduler.step(v, t, x).prev_sample
    return x


def train_base(
    folder: Path,
    minutes: float,
    *,
    final: bool,
    mean_of: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Train for some minutes. `mean_of` gives the mean latent of captions (token ids): at the last
    timestep there is nothing else to say, and a mean teaches it with far less noise than the
    latent of one picture."""
    torch.manual_seed(6)
    tokenizer = new_tokenizer(folder / "words")
    base = Base(len(tokenizer), int(tokenizer.bos_token_id), int(tokenizer.eos_token_id))
    scenes, latents, factor = latents_of_scenes(folder)
    alpha_bar = new_scheduler().alphas_cumprod
    unet = torch.compile(base.unet)  # a fifth faster, once it has been compiled
    print(
        f"unet {sum(p.numel() for p in base.unet.parameters()) / 1e6:.2f} M, text "
        f"{sum(p.numel() for p in base.text.parameters()) / 1e6:.2f} M, factor {factor:.3f}",
        flush=True,
    )

    def ids_of(texts: list[str]) -> Tensor:
        out = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH)
        return torch.tensor(out.input_ids)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((19, step))
        g = torch.Generator().manual_seed(step)
        rows = rng.integers(SCENES, size=BATCH)
        texts = [told(scenes[i], rng) for i in rows]
        x0 = latents[torch.from_numpy(rows)].float() * factor
        noise = torch.randn(x0.shape, generator=g)
        # Strata over the batch steady the loss. High noise, which decides what is where, and so
        # what words mean, gets the larger share.
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=g)) / BATCH
        t = (u**0.7 * 1000).long().clamp(max=999)
        ids = ids_of(texts)
        if mean_of is not None:
            every = 16 if final else 6  # what a picture is as a whole comes first
            told_rows = torch.tensor([i for i in range(0, BATCH, every) if texts[i]])
            t[told_rows] = 999
            x0[told_rows] = mean_of(ids[told_rows])
        a, s = (
            alpha_bar[t].sqrt().view(-1, 1, 1, 1),
            (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1),
        )
        xt, target = a * x0 + s * noise, a * noise - s * x0
        with torch.autocast("cpu", torch.bfloat16):
            c = base.text(ids).last_hidden_state
            v = unet(xt.contiguous(memory_format=torch.channels_last), t, c).sample
        error = (v.float() - target).square().mean((1, 2, 3))
        return {"v": error.mean()}

    def check() -> str:
        base.eval()
        codec = new_codec()
        codec.load_state_dict(codec_weights(folder))
        rng = np.random.default_rng(23)
        asked = [world.draw_scene(rng) for _ in range(192)]
        full = frozenset({"colour", "pattern", "size", "position"})
        ids = ids_of([world.caption(s, named=full) for s in asked])
        empty = ids_of([""])
        words = []
        for guidance in (1.0, 2.0):
            z = guess(base, ids, empty, n_steps=20, guidance=guidance, seed=1)
            with torch.no_grad():
                x = codec.decode(z / factor).sample.clamp(-1, 1)
            pictures = ((x.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
            reading = judge.read(pictures)
            right = {
                f: np.mean([reading.values[f][i] == getattr(s, f) for i, s in enumerate(asked)])
                for f in world.FACTORS
            }
            words.append(
                f"guidance {guidance}: " + " ".join(f"{k} {v:.2f}" for k, v in right.items())
            )
            rows = [np.concatenate(list(pictures[i : i + 16]), 1) for i in range(0, 96, 16)]
            Image.fromarray(np.concatenate(rows)).resize((2048, 768), 0).save(
                folder / f"base-{guidance:.0f}.png"
            )
        return "; ".join(words)

    run_stage(
        "base",
        base,
        loss_of,
        folder=folder,
        minutes=minutes,
        lr=1.2e-3,
        final=final,
        ema_decay=0.9995,
        check=check,
        shipped=lambda: shipped(*BASE),
    )
