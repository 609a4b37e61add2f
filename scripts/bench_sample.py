"""What each method of sampling costs on a full-size base, as ratios to plain sampling.

    scripts/bench-sample                             # Stable Diffusion 1.5, 128 pixels, 4 steps
    scripts/bench-sample --shapes pocket
    scripts/bench-sample --pixels 512 --steps 10 --pictures 4

Networks have random weights, which cost what trained ones cost, and an adapter of random factors
on their attention layers. Each method draws the same latents in a process of its own, plain first
and last; time is the median over rounds, on a CPU the processor's own; memory is the process's
peak. What is done once for a group of pictures (noises chosen, prompts read anew) is in it; the
autoencoder is not.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("a photo of sks toy", "")
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "late_adapter": {"late_adapter": {}},
    "cads": {"cads": {}},
    "interval": {"interval": {}},
    "delayed": {"delayed": {}},
    "rescale": {"rescale": {}},
    "cfg_pp": {"cfg_pp": {}},
    "autoguidance": {"autoguidance": {}},
    "particle": {"particle": {"least_noise": 0.0}},
    "spell": {"spell": {}},
    "shield (100 pictures)": {"shield": {"images": "given"}},
    "noise_choice select": {"noise_choice": {}},
    "noise_choice optimise": {"noise_choice": {"way": "optimise"}},
    "noise_choice balanced": {"noise_choice": {"way": "balanced"}},
    "plain again": {},
}
SHIELDED = 100
RANK = 8


def base_of(shapes: str, folder: Path) -> str:
    """The pocket, or a folder of random weights of Stable Diffusion 1's sizes."""
    if shapes == "pocket":
        return "pocket"
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    from variegate.models.blueprints import BLUEPRINTS
    from variegate.models.single_file import clip_tokenizer

    plan = BLUEPRINTS[shapes]
    torch.manual_seed(0)
    diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**plan.network),
        vae=diffusers.AutoencoderKL(**plan.vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**plan.encoders["text_encoder"])),
        tokenizer=clip_tokenizer(),
        scheduler=diffusers.DDIMScheduler(**plan.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def adapter_of(model: Any) -> Any:
    from variegate import seeds
    from variegate.adapter import Adapter, LayerUpdate

    layers: dict[str, Any] = {}
    for path, module in model.unet.named_modules():
        if path.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            name = f"unet.{path}"
            layers[name] = LayerUpdate(
                0.02 * torch.randn(RANK, module.in_features, generator=seeds.at(0, name, "down")),
                0.02 * torch.randn(module.out_features, RANK, generator=seeds.at(0, name, "up")),
                alpha=float(RANK),
            )
    return Adapter(model.family, layers)


def timed(asked: dict[str, Any]) -> dict[str, float]:
    """Seconds of the median round of one method, and the process's peak memory in GiB."""
    from variegate.models import Conditioning, load
    from variegate.recipe import SamplingPlan
    from variegate.sample import denoise
    from variegate.sample.chorus import voices
    from variegate.sample.methods import Scene

    model = load(asked["base"])
    pictures, side = asked["pictures"], asked["pixels"] // model.downscale
    plan = SamplingPlan.model_validate(
        {"steps": asked["steps"], "guidance_scale": 7.5}
        | ({"methods": asked["methods"]} if asked["methods"] else {})
    )
    methods = plan.in_force
    noise = torch.randn(
        pictures, model.latent_channels, side, side, generator=torch.Generator().manual_seed(0)
    )
    away = None
    if methods is not None and methods.shield is not None:
        away = torch.randn(SHIELDED, *noise.shape[1:])
    dialled = methods is not None and methods.dialled
    # Other work on the machine does not count in a processor's own time.
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = []
    with voices(model, adapter_of(model), plan, dialled=dialled) as voice, torch.no_grad():
        speaker: Any = voice(0)

        @cache
        def words(share: float) -> tuple[Conditioning, Conditioning]:
            at = {"strength": share} if dialled else {}
            asked_for, empty = (speaker.model.embed([p], **at).repeat(pictures) for p in PROMPTS)
            return asked_for, empty

        scene = Scene(
            words=words,
            groups=torch.zeros(pictures, dtype=torch.long),
            weaker=speaker.weaker,
            away=away,
        )
        for _ in range(asked["rounds"] + 1):  # the first warms up
            began = clock()
            denoise(
                *(speaker.model, noise, *words(1.0)),
                plan=plan,
                picture_seeds=range(pictures),
                scene=scene,
            )
            seconds.append(clock() - began)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1024**3
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"seconds": statistics.median(seconds[1:]), "gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=("sd1", "pocket"), default="sd1")
    parser.add_argument("--pixels", type=int, default=None)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--asked", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.asked:
        print(json.dumps(timed(json.loads(args.asked))))
        return
    chosen = ["plain", *args.method] if args.method else list(METHODS)
    with tempfile.TemporaryDirectory() as folder:
        base = base_of(args.shapes, Path(folder) / "base")
        common = {
            "base": base,
            "pixels": args.pixels or (64 if args.shapes == "pocket" else 128),
            "steps": args.steps,
            "pictures": args.pictures,
            "rounds": args.rounds,
        }
        print(f"{common}\n\n| method | seconds | of plain's | GiB at most | more |")
        print("|---|---|---|---|---|")
        plain: dict[str, float] = {}
        for name in chosen:
            asked = json.dumps(common | {"methods": METHODS[name]})
            told = subprocess.run(
                [sys.executable, __file__, "--asked", asked],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            found = json.loads(told.splitlines()[-1])
            plain = plain or found
            print(
                f"| {name} | {found['seconds']:.2f} | {found['seconds'] / plain['seconds']:.2f} "
                f"| {found['gib']:.2f} | {found['gib'] - plain['gib']:+.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
