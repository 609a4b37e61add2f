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
    """A caption: one in ten empty, a third of the others name everything, so that words are learnt
    soon (of those a fifth by the class noun); the rest as chance has it."""
    if rng.random() < 0.1:
        return ""
    if rng.random() < 0.35:
        named = frozenset({"colour", "pattern", "size", "position"})
        noun = scene.class_noun if rng.random() < 0.2 else None
        return world.caption(scene, named=named, noun=noun, rng=rng)
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


class Lessons:
    """Batches of captions, noised latents and what the UNet should say to them."""

    def __init__(self, folder: Path, mean_of: Callable[[Tensor], Tensor] | None) -> None:
        self.tokenizer = new_tokenizer(folder / "words")
        self.scenes, self.latents, self.factor = latents_of_scenes(folder)
        self._alpha_bar = new_scheduler().alphas_cumprod
        self._mean_of = mean_of

    def ids(self, texts: list[str]) -> Tensor:
        out = self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH)
        return torch.tensor(out.input_ids)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Token ids, timesteps, noised latents, targets, and which rows have a caption."""
        rng = np.random.default_rng((19, step))
        g = torch.Generator().manual_seed(step)
        rows = rng.integers(SCENES, size=BATCH)
        texts = [told(self.scenes[i], rng) for i in rows]
        x0 = self.latents[torch.from_numpy(rows)].float() * self.factor
        noise = torch.randn(x0.shape, generator=g)
        # Strata over the batch steady the loss. The middle, which decides what is where and what
        # it is, gets the larger share (Esser et al. 2024, arXiv 2403.03206).
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=g)) / BATCH
        normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
        t = ((0.6 + 1.2 * normal).sigmoid() * 1000).long()
        ids = self.ids(texts)
        if self._mean_of is not None:
            chosen = torch.tensor([i for i in range(0, BATCH, 12) if texts[i]])
            t[chosen] = 999
            x0[chosen] = self._mean_of(ids[chosen])
        a, s = (
            part.sqrt().view(-1, 1, 1, 1) for part in (self._alpha_bar[t], 1 - self._alpha_bar[t])
        )
        captioned = torch.tensor([bool(text) for text in texts])
        return ids, t, a * x0 + s * noise, a * noise - s * x0, captioned


def train_base(
    folder: Path,
    minutes: float,
    *,
    rate: float,
    final: bool,
    mean_of: Callable[[Tensor], Tensor] | None = None,
    guide: float = 1.0,
) -> None:
    """Train for some minutes. `mean_of` gives the mean latent of captions (token ids): at the last
    timestep there is nothing else to say, and a mean teaches it with far less noise than the
    latent of one picture. `guide` above 1 teaches what that guidance scale would give (Tang et al.
    2025, arXiv 2502.12154), below timestep 700, where the layout is settled."""
    torch.manual_seed(6)
    lessons = Lessons(folder, mean_of)
    words = lessons.tokenizer
    base = Base(len(words), int(words.bos_token_id), int(words.eos_token_id))
    unet = torch.compile(base.unet)  # a fifth faster, once it has been compiled
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (base.unet, base.text)]
    print(f"unet {sizes[0]:.2f} M, text {sizes[1]:.2f} M, factor {lessons.factor:.3f}", flush=True)

    def loss_of(step: int) -> dict[str, Tensor]:
        ids, t, xt, target, captioned = lessons.batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            c = base.text(ids).last_hidden_state
            v = unet(xt.contiguous(memory_format=torch.channels_last), t, c).sample.float()
        if guide > 1:
            rows = captioned & (t < 700)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                nothing = base.text(lessons.ids([""])).last_hidden_state
                free = base.unet(xt[rows], t[rows], nothing.expand(int(rows.sum()), -1, -1)).sample
            target[rows] += (1 - 1 / guide) * (v[rows].detach() - free.float())
        return {"v": (v - target).square().mean()}

    run_stage(
        "base",
        base,
        loss_of,
        folder=folder,
        minutes=minutes,
        lr=rate,
        muon=True,
        final=final,
        ema_decay=0.9995,
        check=lambda: look(base, lessons, folder),
        shipped=lambda: shipped(*BASE),
    )


def look(base: Base, lessons: Lessons, folder: Path) -> str:
    """Draw captions that name everything, keep the sheets, and tell what the judge reads."""
    base.eval()
    codec = new_codec()
    codec.load_state_dict(codec_weights(folder))
    rng = np.random.default_rng(23)
    asked = [world.draw_scene(rng) for _ in range(192)]
    full = frozenset({"colour", "pattern", "size", "position"})
    ids = lessons.ids([world.caption(s, named=full) for s in asked])
    told_of = []
    for guidance in (1.0, 2.0):
        z = guess(base, ids, lessons.ids([""]), n_steps=20, guidance=guidance, seed=1)
        with torch.no_grad():
            x = codec.decode(z / lessons.factor).sample.clamp(-1, 1)
        pictures = ((x.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
        reading = judge.read(pictures)
        right = {
            f: np.mean([reading.values[f][i] == getattr(s, f) for i, s in enumerate(asked)])
            for f in world.FACTORS
        }
        told_of.append(
            f"guidance {guidance}: " + " ".join(f"{k} {v:.2f}" for k, v in right.items())
        )
        rows = [np.concatenate(list(pictures[i : i + 16]), 1) for i in range(0, 96, 16)]
        sheet = Image.fromarray(np.concatenate(rows)).resize((2048, 768), 0)
        sheet.save(folder / f"base-{guidance:.0f}.png")
    return "; ".join(told_of)
