"""One training step beside others' on the same base, pictures and settings, as ratios.

    scripts/bench-train                                        # against a plain PEFT loop
    scripts/bench-train --script train_dreambooth_lora.py      # and against diffusers' example
    scripts/bench-train --shapes sd1 --precision bf16 --compile
    scripts/bench-train --shapes sdxl --side 512 --precision bf16 --only ours
    scripts/bench-train --watch                                # what the probes cost by the clock

The example is `examples/dreambooth/train_dreambooth_lora.py` of huggingface/diffusers (and
`train_dreambooth_lora_sdxl.py`), fetched by you and run as it is, but for two things that it finds
in place of its own: torchvision's five transforms, written here on Pillow for machines without it,
and, on the pocket, the pocket's own autoencoder. The plain loop is the least that trains: latents
and words worked out before, PEFT's layers, autocast, AdamW.

Bases are the pocket, and full-size networks of random weights, which cost what trained ones cost.
Each contestant runs in a process of its own, in turns; a step is the median over its steps and
rounds, from one optimizer step to the next, the first steps left out. FLOPs are counted by
PyTorch; the machine's peak is its best square matrix product, before and after.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
import types
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a photo of sks toy"
WARM = 4  # steps before the clock counts: every picture has been seen once
SIDES = {"pocket": 64, "sd1": 256, "sdxl": 512}  # pixels, on a CPU
GPU_SIDES = {"pocket": 64, "sd1": 512, "sdxl": 1024}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
RANK, LR = 8, 1e-4
LENGTH = 1000  # steps of the run whose watch is counted


class Done(BaseException):
    """Enough steps were timed; not an error, so that no handler of errors takes it."""


class Clock:
    """Marks the end of every step; knows where forward and backward were."""

    def __init__(self, steps: int) -> None:
        self.steps, self.marks, self.losses = steps, list[float](), list[float]()
        self.inside: list[float] = []
        self.look, self.every = 0.0, 1  # seconds of one look, steps from one to the next
        self._within = 0.0

    def mark(self) -> None:
        """A step has ended. Raises: Done after the last."""
        _wait()
        self.marks.append(time.perf_counter())
        self.inside.append(self._within)
        self._within = 0.0
        if len(self.marks) == 1 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if len(self.marks) > self.steps + WARM:
            raise Done

    def inner(self, work: Any) -> Any:
        """A function whose time is forward's or backward's."""

        def timed(*given: Any, **named: Any) -> Any:
            _wait()
            start = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                _wait()
                self._within += time.perf_counter() - start

        return timed

    def result(self) -> dict[str, Any]:
        taken = np.diff(self.marks)[WARM:]
        inside = np.array(self.inside[1 + WARM :])
        return {
            "seconds": taken.tolist(),
            "overhead": float(np.median(1 - inside / taken)) if inside.any() else None,
            "losses": self.losses[: self.steps],
            "gib": _peak_memory(),
            "look": self.look,
            "every": self.every,
        }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


# --- bases and pictures ---------------------------------------------------------------------


def base_of(shapes: str, precision: str, folder: Path) -> Path:
    """A diffusers folder: the pocket's own, or random weights of a family's full size."""
    if shapes == "pocket":
        from variegate.models.folder import POCKET

        return Path(POCKET)
    into = folder / f"{shapes}-{precision}"
    if (into / "model_index.json").exists():
        return into
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from variegate.models.blueprints import BLUEPRINTS
    from variegate.models.single_file import clip_tokenizer

    plan = BLUEPRINTS[shapes]
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[precision])  # or the largest would not fit while it is made
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    parts: dict[str, Any] = {
        name: classes[name](CLIPTextConfig(**settings)) for name, settings in plan.encoders.items()
    }
    parts |= {name.replace("text_encoder", "tokenizer"): clip_tokenizer() for name in parts}
    parts["unet"] = diffusers.UNet2DConditionModel(**plan.network)
    parts["vae"] = diffusers.AutoencoderKL(**plan.vae)
    parts["scheduler"] = diffusers.DDIMScheduler(**plan.scheduler)
    torch.set_default_dtype(torch.float32)
    if shapes == "sd1":
        none = dict.fromkeys(("safety_checker", "feature_extractor"))
        made = diffusers.StableDiffusionPipeline(**parts, **none, requires_safety_checker=False)
    else:
        made = diffusers.StableDiffusionXLPipeline(**parts)
    made.save_pretrained(into)
    return into


def pictures_of(shapes: str, side: int, folder: Path) -> Path:
    """A few pictures with the one caption that all contestants learn."""
    from PIL import Image

    into = folder / f"pictures-{shapes}-{side}"
    into.mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "src/variegate/demo/pictures").glob("*.png"))[:WARM]:
        with Image.open(file) as picture:
            picture.convert("RGB").resize((side, side)).save(into / file.name)
        (into / file.name).with_suffix(".txt").write_text(PROMPT)
    return into


# --- the contestants --------------------------------------------------------------------------


def ours(asked: dict[str, Any], clock: Clock) -> None:
    """`variegate train`, with no strategy and nobody watching."""
    from variegate.recipe import Recipe
    from variegate.run import Run
    from variegate.train import course, learner, optimizers, train

    recipe = Recipe.parse(
        {
            "base": "pocket" if asked["shapes"] == "pocket" else asked["base"],
            "images": asked["pictures"],
            "trigger": "sks",
            "class_noun": "toy",
            "resolution": asked["side"],
            "precision": asked["precision"],
            "adapter": {"rank": RANK, "alpha": RANK},
            "optimizer": {
                "steps": LENGTH if asked["watch"] else 100_000,
                "lr": LR,
                "batch_size": asked["batch"],
                "schedule": {"kind": "constant"},
                "warmup": 0,
                "weight_decay": 0.01,
            },
            "memory": {"compile": asked["compile"]} if asked["compile"] else {},
            "held_out": {"share": 0.0},
            "guard": {"mode": "watch"},
            "probes": {"every": None if asked["watch"] else 100_000},
            "checkpoints": {"every": 100_000},
        }
    )
    learner.Learner._ask = clock.inner(learner.Learner._ask)
    learner.Learner._ask = _method(learner.Learner._ask)
    optimizers.Descent.add = _method(clock.inner(optimizers.Descent.add))
    journal, look = Run.journal, course.Course.look

    def looked(self: Any, step: int) -> Any:
        start, due = time.perf_counter(), step % self.every == 0
        order = look(self, step)
        if due and step == 0:
            clock.look, clock.every = time.perf_counter() - start, self.every
        return order

    course.Course.look = looked

    def noted(run: Run, event: str, **entries: Any) -> None:
        journal(run, event, **entries)
        if event == "step":
            clock.losses.append(entries["loss"])
            clock.mark()

    Run.journal = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        train(recipe, out=Path(out) / "run")


def _method(timed: Any) -> Any:
    def method(self: Any, *given: Any, **named: Any) -> Any:
        return timed(self, *given, **named)

    return method


def plain(asked: dict[str, Any], clock: Clock) -> None:
    """The least loop that trains, and what a step costs in FLOPs."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig

    from variegate import models

    dtype, device = DTYPES[asked["precision"]], torch.device(models.pick_device())
    base = models.load(asked["base"], device=device, dtype=dtype)
    pixels = torch.stack([_pixels(f) for f in sorted(Path(asked["pictures"]).glob("*.png"))])
    latents = torch.cat([base.encode(row[None]) for row in pixels])
    words = base.embed([PROMPT], pixels=asked["side"])
    added = None
    if words.pooled is not None:
        added = {"text_embeds": words.pooled, "time_ids": words.sizes}
    noises = DDPMScheduler.from_pretrained(asked["base"], subfolder="scheduler")
    del base
    unet = UNet2DConditionModel.from_pretrained(asked["base"], subfolder="unet", torch_dtype=dtype)
    unet.requires_grad_(False).to(device)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    learnt = [p for p in unet.parameters() if p.requires_grad]
    for p in learnt:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(learnt, lr=LR)
    torch.manual_seed(0)
    half = dtype != torch.float32

    def step() -> float:
        rows = latents[torch.randint(len(latents), (asked["batch"],))]
        noise = torch.randn_like(rows)
        t = torch.randint(0, 1000, (len(rows),), device=rows.device)
        noised = noises.add_noise(rows, noise, t)
        every = words.repeat(len(rows))
        extra = None if added is None else {"text_embeds": every.pooled, "time_ids": every.sizes}
        with torch.autocast(device.type, dtype=dtype, enabled=half):
            asked_for = unet(noised, t, every.embeddings, added_cond_kwargs=extra).sample
        target = noise
        if noises.config.prediction_type == "v_prediction":
            target = noises.get_velocity(rows, noise, t)
        loss = torch.nn.functional.mse_loss(asked_for.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    if asked["count"]:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            step()
        raise Counted(counter.get_total_flops())
    while True:
        clock.losses.append(step())
        clock.mark()


class Counted(Exception):
    """The FLOPs of one step."""


def _pixels(file: Path) -> torch.Tensor:
    from PIL import Image

    with Image.open(file) as picture:
        rows = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(rows / 127.5 - 1).permute(2, 0, 1)


def example(asked: dict[str, Any], clock: Clock) -> None:
    """diffusers' own example script, as it is."""
    import accelerate
    import diffusers
    import transformers
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # asked for and remembered before the stand-in is there
    sys.modules["torchvision"], sys.modules["torchvision.transforms"] = _torchvision()
    del transformers
    if asked["shapes"] == "pocket":
        diffusers.AutoencoderKL = _tiny_as_kl()
    log = accelerate.Accelerator.log

    def logged(self: Any, values: dict[str, Any], *given: Any, **named: Any) -> None:
        log(self, values, *given, **named)
        clock.losses.append(values["loss"])
        clock.mark()

    accelerate.Accelerator.log = logged
    with tempfile.TemporaryDirectory() as out:
        pictures = Path(out) / "pictures"  # the script opens every file that is there
        pictures.mkdir()
        for file in Path(asked["pictures"]).glob("*.png"):
            (pictures / file.name).symlink_to(file.resolve())
        arguments = {
            "pretrained_model_name_or_path": asked["base"],
            "instance_data_dir": pictures,
            "instance_prompt": PROMPT,
            "output_dir": Path(out) / "made",
            "resolution": asked["side"],
            "train_batch_size": asked["batch"],
            "max_train_steps": 100_000,
            "checkpointing_steps": 100_000,
            "learning_rate": LR,
            "rank": RANK,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "seed": 0,
            "mixed_precision": {"float32": "no", "bf16": "bf16"}[asked["precision"]],
            "report_to": "all",  # of those that are installed
        }
        sys.argv = [asked["script"], *(f"--{name}={value}" for name, value in arguments.items())]
        runpy.run_path(asked["script"], run_name="__main__")


def _torchvision() -> tuple[types.ModuleType, types.ModuleType]:
    """torchvision.transforms as far as the examples use it, on Pillow, as torchvision does it."""
    from PIL import Image, ImageOps

    class Compose:
        def __init__(self, parts: list[Any]) -> None:
            self.parts = parts

        def __call__(self, picture: Any) -> Any:
            for part in self.parts:
                picture = part(picture)
            return picture

    def resize(side: int, interpolation: Any = None) -> Any:
        def work(picture: Any) -> Any:
            share = side / min(picture.size)
            return picture.resize(
                tuple(round(edge * share) for edge in picture.size), interpolation.value
            )

        return work

    def crop(side: int) -> Any:
        def work(picture: Any) -> Any:
            return ImageOps.fit(picture, (side, side))

        return work

    def to_tensor() -> Any:
        return lambda picture: (
            torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float().div(255)
        )

    def normalize(mean: list[float], deviation: list[float]) -> Any:
        return lambda rows: (rows - mean[0]) / deviation[0]

    class InterpolationMode(Enum):
        NEAREST = Image.Resampling.NEAREST
        BILINEAR = Image.Resampling.BILINEAR
        BICUBIC = Image.Resampling.BICUBIC
        LANCZOS = Image.Resampling.LANCZOS

    whole, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    vars(transforms).update(
        Compose=Compose,
        Resize=resize,
        CenterCrop=crop,
        RandomCrop=crop,
        ToTensor=to_tensor,
        Normalize=normalize,
        InterpolationMode=InterpolationMode,
    )
    whole.transforms = transforms  # type: ignore[attr-defined]
    return whole, transforms


def _tiny_as_kl() -> type:
    """The pocket's autoencoder with the face of the one that the example asks for."""
    from diffusers import AutoencoderTiny

    class TinyAsKL(AutoencoderTiny):  # type: ignore[misc]
        def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
            latents = super().encode(x).latents
            return types.SimpleNamespace(latent_dist=types.SimpleNamespace(sample=lambda: latents))

    return TinyAsKL


CONTESTANTS = {"ours": ours, "ours, compiled": ours, "plain loop": plain, "example": example}


# --- the match --------------------------------------------------------------------------------


def contest(asked: dict[str, Any]) -> dict[str, Any]:
    """What one contestant did, in this process."""
    clock = Clock(asked["steps"])
    try:
        CONTESTANTS[asked["who"]](asked, clock)
    except Done:
        return clock.result()
    except Counted as counted:
        return {"flops": counted.args[0]}
    raise RuntimeError(f"{asked['who']} ended before {asked['steps']} steps")


def apart(asked: dict[str, Any]) -> dict[str, Any]:
    """What one contestant did, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(asked, default=str)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        sys.exit(f"{asked['who']} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.rsplit("\n", 2)[-2])
    return result


def peak(precision: str, side: int = 3072, times: int = 5) -> float:
    """The best FLOPs per second of a square matrix product."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 4 * side if device == "cuda" else side
    a = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    best = math.inf
    for _ in range(times):
        _wait()
        start = time.perf_counter()
        a @ a
        _wait()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SIDES, default=["pocket", "sd1"])
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=["float32", "bf16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--side", type=int, help="pixels; else 256 of sd1, 512 of sdxl on a CPU")
    parser.add_argument("--steps", type=int, help="timed; else 12, and 300 of the pocket's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--script", help="diffusers' example script of this family")
    parser.add_argument("--compile", action="store_true", help="also ours through torch.compile")
    parser.add_argument("--only", choices=CONTESTANTS, help="one contestant alone")
    parser.add_argument("--folder", type=Path, default=Path("build/bench-train"))
    parser.add_argument("--watch", action="store_true", help="time the probes instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("\n" + json.dumps(contest(json.loads(given.one))))
        return
    names = ["ours", "plain loop"]
    names[1:1] = ["ours, compiled"] * given.compile
    names += ["example"] * bool(given.script)
    if given.only:
        names = [given.only]
    print(
        f"| shapes | precision | batch | s / step | s / look | looks every, steps of {LENGTH} "
        "| share of the time |\n" + "|---" * 7 + "|"
        if given.watch
        else "| shapes | precision | batch | who | s / step | ours is faster by | share of peak | "
        "outside forward and backward | peak memory, GiB | loss |\n" + "|---" * 10 + "|"
    )
    sides = GPU_SIDES if torch.cuda.is_available() else SIDES
    for shapes in given.shapes:
        for precision in given.precision:
            base = base_of(shapes, precision, given.folder)
            side = given.side or sides[shapes]
            pictures = pictures_of(shapes, side, given.folder)
            for batch in given.batch:
                asked = {
                    "shapes": shapes,
                    "precision": precision,
                    "base": str(base),
                    "pictures": str(pictures),
                    "side": side,
                    "batch": batch,
                    "steps": given.steps or (300 if shapes == "pocket" else 12),
                    "script": given.script,
                    "compile": False,
                    "count": False,
                    "watch": given.watch,
                }
                if given.watch:
                    watched(asked)
                else:
                    match(asked, names, given.rounds)


def watched(asked: dict[str, Any]) -> None:
    """Print what watching takes of a run's time."""
    found = apart(asked | {"who": "ours"})
    step, look, every = statistics.median(found["seconds"]), found["look"], found["every"]
    share = look / (look + every * step)
    print(
        f"| {asked['shapes']} at {asked['side']} | {asked['precision']} | {asked['batch']} "
        f"| {step:.3g} | {look:.3g} | {every} | {share:.1%} |",
        flush=True,
    )


def match(asked: dict[str, Any], names: list[str], rounds: int) -> None:
    """Print the rows of one base, precision and batch."""
    best = peak(asked["precision"])
    flops = apart(asked | {"who": "plain loop", "count": True})["flops"]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            asked["compile"] = name == "ours, compiled"
            found[name].append(apart(asked | {"who": name}))
    best = max(best, peak(asked["precision"]))
    medians = {
        name: [statistics.median(one["seconds"]) for one in results]
        for name, results in found.items()
    }
    for name, results in found.items():
        seconds = statistics.median(medians[name])
        ratio = statistics.median(
            theirs / own for theirs, own in zip(medians[name], medians[names[0]], strict=True)
        )
        losses = np.concatenate([one["losses"] for one in results])
        error = losses.std() / math.sqrt(len(losses))
        outside = results[0]["overhead"]
        print(
            f"| {asked['shapes']} at {asked['side']} | {asked['precision']} | {asked['batch']} "
            f"| {name} | {seconds:.3g} | {ratio:.2f} | {flops / seconds / best:.0%} "
            f"| {'' if outside is None else f'{outside:.1%}'} "
            f"| {max(one['gib'] for one in results):.2f} | {losses.mean():.4f} ± {error:.4f} |",
            flush=True,
        )
    print(f"<!-- {flops / 1e9:.4g} GFLOP a step; peak {best / 1e9:.4g} GFLOP/s -->", flush=True)


if __name__ == "__main__":
    main()
