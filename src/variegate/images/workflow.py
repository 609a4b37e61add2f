"""The prompt and seed inside a ComfyUI picture: a graph of nodes, followed from the sampler."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

MAX_WORKFLOW_BYTES = 4 * 2**20
MAX_NODES = 4096
MAX_SAMPLERS = 16  # looked at

# Where a conditioning's words stand, by the names that text nodes give their inputs.
_TEXTS = ("text", "text_g", "t5xxl", "clip_l", "prompt", "value", "string")
_SEEDS = ("seed", "noise_seed", "value", "int")


def parse_workflow(text: str) -> tuple[str, int | None] | None:
    """(prompt as written, seed) of the `prompt` graph that ComfyUI writes, or None when it is no
    such graph or has no sampler with words.

    A sampler is a node with a `positive` (or a `guider`) input and a seed, its own or that of its
    noise; the words are the first that lie upstream of it, not through anything named negative.
    Nodes with words but no seed (guiders, controls) stand in where there is no such sampler.

    >>> graph = {"1": {"class_type": "KSampler", "inputs": {"seed": 7, "positive": ["2", 0]}},
    ...          "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "an owl"}}}
    >>> parse_workflow(json.dumps(graph))
    ('an owl', 7)
    """
    if len(text) > MAX_WORKFLOW_BYTES:
        return None
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(graph, dict) or len(graph) > MAX_NODES:
        return None
    nodes = {str(k): v["inputs"] for k, v in graph.items() if _is_node(v)}
    without_seed: tuple[str, int | None] | None = None
    samplers = [inputs for inputs in nodes.values() if _conditioning(inputs) is not None]
    for inputs in samplers[:MAX_SAMPLERS]:
        words = _words(nodes, _conditioning(inputs))
        if words is None:
            continue
        seed = _seed(nodes, inputs)
        if seed is not None:
            return words, seed
        without_seed = without_seed or (words, None)
    return without_seed


def _conditioning(inputs: dict[str, Any]) -> Any:
    return inputs.get("positive", inputs.get("guider"))


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("inputs"), dict)


def _followed(nodes: dict[str, dict[str, Any]], link: Any) -> dict[str, Any] | None:
    """The inputs of the node that a link `[node, output]` comes from."""
    if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str | int):
        return nodes.get(str(link[0]))
    return None


def _words(nodes: dict[str, dict[str, Any]], link: Any) -> str | None:
    """The first words upstream of a link, nearest first; a graph may have loops."""
    waiting, seen = deque([link]), set[int]()
    while waiting:
        inputs = _followed(nodes, waiting.popleft())
        if inputs is None or id(inputs) in seen:
            continue
        seen.add(id(inputs))
        for name in _TEXTS:
            if isinstance(inputs.get(name), str) and inputs[name].strip():
                return str(inputs[name])
        waiting.extend(v for k, v in inputs.items() if isinstance(v, list) and "negative" not in k)
    return None


def _seed(nodes: dict[str, dict[str, Any]], sampler: dict[str, Any]) -> int | None:
    places = [sampler, _followed(nodes, sampler.get("noise"))]
    for inputs in places:
        for name in ("seed", "noise_seed"):
            value = (inputs or {}).get(name)
            linked = _followed(nodes, value) or {}
            found = [value, *(linked.get(k) for k in _SEEDS)]
            for number in found:
                if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
                    return number
    return None
