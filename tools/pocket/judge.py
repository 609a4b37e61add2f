"""Train the judge on rendered scenes of all subjects, some softened as a codec would."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from pocket.codec import new_codec
from pocket.shipped import JUDGE, codec_weights, shipped
from pocket.stage import run_stage
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from variegate.bench import world
from variegate.bench.judge import JudgeNet

PACKAGE = Path(import_module("variegate.bench").__file__).parent  # type: ignore[arg-type]


def scenes(seed: int, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    rng = np.random.default_rng((11, seed))
    drawn = [world.draw_scene(rng, world.SUBJECTS) for _ in range(n)]
    x = torch.from_numpy(np.stack([world.render(s) for s in drawn]))
    labels = {
        name: torch.tensor([values.index(getattr(s, name)) for s in drawn])
        for name, values in world.FACTORS.items()
    }
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def train_judge(folder: Path, minutes: float) -> None:
    torch.manual_seed(2)
    net = JudgeNet().to(memory_format=torch.channels_last)
    codec = new_codec()
    codec.load_state_dict(codec_weights(folder))

    def loss_of(step: int) -> dict[str, Tensor]:
        x, labels = scenes(step, 128)
        g = torch.Generator().manual_seed(step)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            x[:24] = codec.decode(codec.encode(x[:24]).latents).sample.float()
            x[24:48] = F.avg_pool2d(x[24:48], 3, 1, 1)
        x = x + 0.08 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        x = x + 0.06 * (torch.rand(len(x), 3, 1, 1, generator=g) - 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        return {k: F.cross_entropy(v.float(), labels[k]) for k, v in logits.items()}

    def check() -> str:
        net.eval()
        x, labels = scenes(10**9, 4000)
        with torch.no_grad():
            logits = net(x)
            soft = net(codec.decode(codec.encode(x[:1000]).latents).sample.clamp(-1, 1))
        state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
        state = {k: v.contiguous() for k, v in state.items()}
        save_file(state, PACKAGE / "judge.safetensors")
        (PACKAGE / "judge.safetensors").chmod(0o644)

        def right(k: str, rows: Tensor) -> float:
            return 100 * float((rows.argmax(-1) == labels[k][: len(rows)]).float().mean())

        return ", ".join(
            f"{k} {right(k, v):.2f} % (through the codec {right(k, soft[k]):.1f} %)"
            for k, v in logits.items()
        )

    run_stage(
        "judge",
        net,
        loss_of,
        folder=folder,
        minutes=minutes,
        lr=2e-3,
        check=check,
        shipped=lambda: shipped(*JUDGE),
    )
