from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from variegate.images import ImageSet
from variegate.images.workflow import parse_workflow


def graph(**changes: Any) -> dict[str, Any]:
    nodes: dict[str, Any] = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 156680208700286,
                "model": ["4", 0],
                "negative": ["7", 0],
                "positive": ["6", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "an owl", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    }
    return {**nodes, **changes}


def test_prompt_and_seed_are_found_through_the_sampler() -> None:
    assert parse_workflow(json.dumps(graph())) == ("an owl", 156680208700286)


def test_words_and_seed_may_come_from_nodes_further_up() -> None:
    control = {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {"negative": ["7", 0], "positive": ["6", 0]},
    }
    nodes = {"10": control, **graph()}
    nodes["3"]["inputs"]["positive"] = ["10", 0]
    nodes["3"]["inputs"]["seed"] = ["12", 0]
    nodes["6"]["inputs"]["text"] = ["11", 0]
    nodes["11"] = {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}}
    nodes["12"] = {"class_type": "PrimitiveInt", "inputs": {"value": 9}}
    assert parse_workflow(json.dumps(nodes)) == ("a fox", 9)


@pytest.mark.parametrize("guider", ["BasicGuider", "CFGGuider"])
def test_a_custom_sampler_has_its_noise_and_guider(guider: str) -> None:
    words = "conditioning" if guider == "BasicGuider" else "positive"
    nodes = {
        "1": {"class_type": guider, "inputs": {words: ["4", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "3": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["2", 0], "guider": ["1", 0]},
        },
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a whale"}},
    }
    assert parse_workflow(json.dumps(nodes)) == ("a whale", 5)


def test_a_seed_of_minus_one_is_no_seed() -> None:
    nodes = graph()
    nodes["3"]["inputs"]["seed"] = -1
    assert parse_workflow(json.dumps(nodes)) == ("an owl", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1, 2]",
        "[" * 100_000,
        json.dumps({"1": 3}),
        json.dumps({"1": {"inputs": {"text": "no sampler"}}}),
        json.dumps({"1": {"inputs": {"positive": ["1", 0]}}}),  # a loop
        json.dumps({"1": {"inputs": {"positive": [None, {}]}}}),
    ],
)
def test_what_is_no_workflow_is_none(text: str) -> None:
    assert parse_workflow(text) is None


def test_a_picture_from_comfyui_tells_its_prompt(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph()))
    Image.new("RGB", (64, 64), (20, 80, 90)).save(tmp_path / "ComfyUI_00001_.png", pnginfo=info)
    picture = ImageSet.read(tmp_path).pictures[0]
    assert (picture.prompt, picture.seed) == ("an owl", 156680208700286)
