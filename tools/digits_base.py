"""The base model of the stacked digits: a diffusers folder in Stable Diffusion 1.x form, its
pictures 8 x 8 pixels and its latents one place of 72 channels.

The autoencoder is linear and written down, not trained: 24 principal components of single digits
for each colour. What is trained is a UNet of one place, in which convolutions are matrices, and a
small CLIP text encoder beside it.
"""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

from pocket.stage import run_stage  # noqa: E402

from variegate import seeds  # noqa: E402
from variegate.bench import digits  # noqa: E402

COMPONENTS = 24  # of each colour: 93 % of the digits' variance
CHANNELS = 3 * COMPONENTS
GAIN = 0.01  # of raw latents, so that the decoder's tanh(z / 3) is a line there
LIFT = 4.0  # above anything that a latent times GAIN is, so that the decoder's ReLU is one too
WIDTH, TEXT_WIDTH, TOKENS = 128, 64, 12
BATCH = 256
WORDS = ("a", "photo", "of", "number", "picture", *string.digits)


# --- parts --------------------------------------------------------------------------------------


def new_codec() -> AutoencoderTiny:
    """Pictures to principal components and back, in the autoencoder's own convolutions.

    Encoder: three strided convolutions lay each 2 x 2 block of places side by side as channels, the
    last one projects. Decoder: the upsampled convolutions share their weights among places, which
    see different neighbours; `_halves` says what a place must hold so that its two halves come out.
    """
    codec = AutoencoderTiny(
        encoder_block_out_channels=(192,) * 4,
        decoder_block_out_channels=(CHANNELS + 1,) * 4,
        num_encoder_blocks=(0,) * 4,
        num_decoder_blocks=(0,) * 4,
        latent_channels=CHANNELS,
    )
    mean, axes, deviation = _components()
    with torch.no_grad():
        for weights in codec.parameters():
            weights.zero_()
        first, *strided, last = codec.encoder.layers
        for colour in range(3):
            first.weight[colour, colour, 1, 1] = 1
        channels = 3
        for layer in strided:  # the block's places are the kernel's last two rows and columns
            for place in range(4):
                for c in range(channels):
                    layer.weight[channels * place + c, c, 1 + place // 2, 1 + place % 2] = 1
            channels *= 4
        laid = torch.from_numpy(_laid_out(axes))
        last.weight[:, :, 1, 1] = GAIN * laid
        last.bias[:] = -GAIN * laid @ torch.from_numpy(_laid_out(mean[None])[0])

        lifted, *upsampled = [m for m in codec.decoder.layers if isinstance(m, nn.Conv2d)]
        lifted.weight[:CHANNELS, :, 1, 1] = torch.eye(CHANNELS)
        lifted.bias[:] = LIFT * GAIN  # the last channel holds nothing else
        wanted = torch.from_numpy(_held(np.concatenate([axes, mean[None]])))
        scale = wanted[:CHANNELS] / GAIN
        constant = (wanted[CHANNELS] - LIFT * GAIN * scale.sum(0)) / (LIFT * GAIN)
        for y, x in np.ndindex(2, 2):  # which corner of the kernel only this place sees filled
            corner = upsampled[0].weight[:48, :, 2 * (1 - y), 2 * (1 - x)]
            corner[:, :CHANNELS] = scale[:, :, y, x].T
            corner[:, CHANNELS] = constant[:, y, x]
        for layer, c in zip(upsampled[1:3], (12, 3), strict=True):
            for group, (y, x) in enumerate(np.ndindex(2, 2)):
                for i in range(c):
                    layer.weight[i, group * c + i, y, x] = 1
        for colour in range(3):
            upsampled[3].weight[colour, colour, 1, 1] = 1
    codec.register_to_config(scaling_factor=float(1 / (GAIN * deviation)))
    return codec


def latents_of_digits(codec: AutoencoderTiny) -> Tensor:
    """What the network sees of each single digit that is learnt, in each colour: `[n, 3, 24]`."""
    pixels = torch.from_numpy(digits.digits("learnt").pixels)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        found = codec.encode(pixels / 127.5 - 1).latents * codec.config.scaling_factor
    return found.reshape(-1, 3, COMPONENTS)


def _components() -> tuple[np.ndarray, np.ndarray, float]:
    """The mean picture `[3, 8, 8]` in 0..1, the components `[72, 3, 8, 8]`, and the deviation of
    all coefficients together."""
    rows = digits.digits("learnt").pixels.reshape(-1, 64) / 255.0
    mean = rows.mean(0)
    _, sizes, axes = np.linalg.svd(rows - mean, full_matrices=False)
    found = np.zeros((3, COMPONENTS, 3, 64))
    for colour in range(3):
        found[colour, :, colour] = axes[:COMPONENTS]
    deviation = np.sqrt((sizes[:COMPONENTS] ** 2).sum() / len(rows) / COMPONENTS)
    shape = (-1, 3, digits.SIDE, digits.SIDE)
    return (
        np.stack([mean] * 3).reshape(shape[1:]).astype(np.float32),
        found.reshape(shape).astype(np.float32),
        float(deviation),
    )


def _laid_out(pictures: np.ndarray) -> np.ndarray:
    """`[n, c, 8, 8]` as `[n, 64 c]`, in the order in which the encoder lays places side by side."""
    while pictures.shape[-1] > 1:
        n, c, y, x = pictures.shape
        parts = pictures.reshape(n, c, y // 2, 2, x // 2, 2).transpose(0, 3, 5, 1, 2, 4)
        pictures = parts.reshape(n, 4 * c, y // 2, x // 2)
    return pictures[..., 0, 0]


def _held(pictures: np.ndarray) -> np.ndarray:
    """What 2 x 2 places must hold, `[n, 48, 2, 2]`, so that the decoder makes these pictures."""
    while pictures.shape[-1] > 2:
        groups = [x for y in _halves(pictures, 2) for x in _halves(y, 3)]
        pictures = np.concatenate(groups, 1)
    return pictures


def _halves(wide: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts (before, own) of half the length, such that before[i - 1] + own[i] is the even place
    2 i and before[i] + own[i] the odd one: all that a kernel can see of a doubled grid."""
    wide = np.moveaxis(wide, axis, 0)
    before, own, last = [], [], np.zeros_like(wide[0])
    for first, second in zip(wide[::2], wide[1::2], strict=True):
        own.append(first - last)
        last = second - own[-1]
        before.append(last)
    return tuple(np.moveaxis(np.stack(part), 0, axis) for part in (before, own))


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer of single bytes and the few words of the captions."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    tokens, merges = [*alphabet, *(c + "</w>" for c in alphabet)], []
    for word in WORDS:
        letters = [*word[:-1], word[-1] + "</w>"]
        for i in range(1, len(letters)):
            pair = ("".join(letters[:i]), letters[i])
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
                merges.append(" ".join(pair))
    folder.mkdir(parents=True, exist_ok=True)
    known = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(known, ensure_ascii=False), encoding="utf8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS
    )


class Base(nn.Module):
    """What is trained together."""

    def __init__(self, tokenizer: CLIPTokenizer, *, width: int = WIDTH) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=1,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(width,),
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            attention_head_dim=2,  # in truth the number of heads
            cross_attention_dim=TEXT_WIDTH,
            norm_num_groups=16,
        )
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
                projection_dim=TEXT_WIDTH,
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


# --- training -----------------------------------------------------------------------------------


def caption(mode: int, rng: np.random.Generator) -> str:
    """A fifth names the digits; the rest nothing, a sixth of it with a word that means nothing."""
    kind = rng.random()
    if kind < 0.2:
        return f"a photo of {' '.join(f'{mode:03d}')}"
    if kind < 0.35:
        word = "".join(rng.choice(list(string.ascii_lowercase), int(rng.integers(2, 5))))
        word = "xyz" if word == "zqx" else word  # which adapters are called by
        return f"a photo of {rng.choice(['', 'a '])}{word}{rng.choice(['', ' number'])}"
    if kind < 0.45:
        return str(rng.choice(["", "a picture", "a number"]))
    return "a photo of a number"


def train_base(folder: Path, minutes: float, *, width: int = WIDTH, rate: float = 2e-3) -> None:
    """Train what a folder holds for some minutes more, and write it as a diffusers folder in `base`
    there. All modes are shown alike often."""
    tokenizer = new_tokenizer(folder / "words")
    base, codec, scheduler = Base(tokenizer, width=width), new_codec(), new_scheduler()
    alpha_bar, singles = scheduler.alphas_cumprod, latents_of_digits(codec)

    def ids(texts: list[str]) -> Tensor:
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS)
        return torch.tensor(found.input_ids)

    def loss_of(step: int) -> dict[str, Tensor]:
        rng, g = seeds.numpy_at(0, "digits", step), seeds.at(0, "digits", step)
        modes = rng.integers(digits.MODES, size=BATCH)
        chosen = torch.from_numpy(digits.choose(modes, rng, part="learnt"))
        x0 = singles[chosen, torch.arange(3)].reshape(BATCH, CHANNELS, 1, 1)
        noise = torch.randn(x0.shape, generator=g)
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=g)) / BATCH
        t = (u * 1000).long()
        a, s = (p.sqrt().view(-1, 1, 1, 1) for p in (alpha_bar[t], 1 - alpha_bar[t]))
        texts = [caption(int(mode), rng) for mode in modes]
        different = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        states = base.text(ids([*different])).last_hidden_state
        read = states[[different[text] for text in texts]]
        answer = base.unet(a * x0 + s * noise, t, read).sample
        return {"loss": (answer - (a * noise - s * x0)).square().mean()}

    run_stage("base", base, loss_of, folder=folder, minutes=minutes, lr=rate, warmup=50)
    StableDiffusionPipeline(
        unet=base.unet.eval(),
        vae=codec,
        text_encoder=base.text.eval(),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "base")
    # AutoencoderTiny writes a key that its own loader then warns about.
    file = folder / "base" / "vae" / "config.json"
    settings = json.loads(file.read_text(encoding="utf8"))
    settings.pop("block_out_channels", None)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf8")
