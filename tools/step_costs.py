"""What a step costs on each family: `python tools/step_costs.py > src/variegate/studio/costs.toml`.

Counted, not timed: networks of full size without weights (PyTorch's meta device) are asked once,
and FLOPs, what autograd keeps and the numbers learnt per rank are added up. The pocket's are those
of its own network. Takes half a minute and needs no weights.
"""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from variegate.adapter.places import ATTENTION, CONVOLUTION, FEEDFORWARD
from variegate.measure.prompts import SIZES
from variegate.models.blueprints import BLUEPRINTS

SIDES = {"pocket": 64, "sd1": 512, "sd2": 512, "sdxl": 1024}
TOKENS = 77
ABOUT = """# What a run costs on each family of bases, before the first run: counted by
# tools/step_costs.py, which writes this file, for one picture of `side` pixels.
# gflop: 10^9 operations of one forward pass of the network. kept: bytes that autograd keeps of it
# in float32. weights: numbers of the whole base. per_rank: numbers learnt per rank, by layers.
"""


def network(family: str) -> Any:
    import diffusers

    if family == "pocket":
        from variegate.models.folder import POCKET

        config = diffusers.UNet2DConditionModel.load_config(POCKET / "unet")
        with torch.device("meta"):
            return diffusers.UNet2DConditionModel.from_config(config)
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**BLUEPRINTS[family].network)


def question(family: str, net: Any, side: int) -> dict[str, Any]:
    factor = 8 if family != "pocket" else _pocket_factor()
    cells = side // factor
    asked: dict[str, Any] = {
        "sample": torch.empty(1, net.config.in_channels, cells, cells, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(
            1, TOKENS, net.config.cross_attention_dim, device="meta"
        ),
    }
    if family == "sdxl":
        asked["added_cond_kwargs"] = {
            "text_embeds": torch.empty(1, 1280, device="meta"),
            "time_ids": torch.empty(1, 6, device="meta"),
        }
    return asked


def _pocket_factor() -> int:
    from variegate.models import load

    return int(load("pocket").downscale)


def weights_of(family: str, net: Any) -> int:
    """Numbers of the network, the autoencoder and the text encoders."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    total = sum(p.numel() for p in net.parameters())
    if family == "pocket":
        from variegate.models.folder import POCKET

        files = [f for f in POCKET.rglob("*.safetensors") if f.parent.name != "unet"]
        return total + sum(f.stat().st_size for f in files) // 4
    plan = BLUEPRINTS[family]
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        parts = [kinds[name](CLIPTextConfig(**c)) for name, c in plan.encoders.items()]
        parts.append(diffusers.AutoencoderKL(**plan.vae))
    return total + sum(p.numel() for part in parts for p in part.parameters())


def learnt_per_rank(net: Any) -> dict[str, int]:
    """Numbers of rank-1 updates of the layers that each choice of `adapter.layers` adds."""
    found = {"attention": 0, "feedforward": 0, "convolution": 0}
    for path, module in net.named_modules():
        inside = ".transformer_blocks." in f".{path}"
        ends = {"attention": ATTENTION, "feedforward": FEEDFORWARD, "convolution": CONVOLUTION}
        for name, listed in ends.items():
            if inside == (name == "convolution") or not path.endswith(
                tuple(f".{end}" for end in listed)
            ):
                continue
            weight = module.weight
            found[name] += weight[0].numel() + weight.shape[0]
    return found


def text_per_rank(family: str) -> int:
    """The same of the text encoders' attention: four square matrices a layer."""
    if family == "pocket":
        from variegate.models.folder import POCKET

        encoders = [json.loads((POCKET / "text_encoder" / "config.json").read_text())]
    else:
        encoders = list(BLUEPRINTS[family].encoders.values())
    return sum(c["num_hidden_layers"] * 4 * 2 * c["hidden_size"] for c in encoders)


def counted(net: Any, asked: dict[str, Any]) -> tuple[float, int]:
    """FLOPs of a forward pass, and the bytes that going back from it keeps."""
    net.requires_grad_(False)
    from peft import LoraConfig

    net.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(ATTENTION[:4])))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
            alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    weights = {id(p) for p in net.parameters()}
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        net(**asked)
    bytes_kept = sum(size for key, size in kept.items() if key not in weights)
    return float(counter.get_total_flops()), bytes_kept


def main() -> None:
    warnings.simplefilter("ignore")
    print(ABOUT)
    print("[pictures]  # of a verdict, of the adapter and of the base each")
    for name, groups in SIZES.items():
        print(f"{name} = {sum(prompts * seeds for prompts, seeds in groups.values())}")
    for family, side in SIDES.items():
        net = network(family)
        weights = weights_of(family, net)
        per_rank = learnt_per_rank(net) | {"text": text_per_rank(family)}
        flops, kept = counted(copy.deepcopy(net), question(family, net, side))
        print(f"\n[{family}]\nside = {side}\ngflop = {flops / 1e9:.4g}\nkept = {kept}")
        print(f"weights = {weights}")
        print(f"per_rank = {{ {', '.join(f'{k} = {v}' for k, v in per_rank.items())} }}")


if __name__ == "__main__":
    main()
