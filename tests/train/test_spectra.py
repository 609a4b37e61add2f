"""Intruder dimensions are those of a dense decomposition, found without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe, write_pictures

from variegate.adapter import Adapter, LayerUpdate
from variegate.models import load
from variegate.train import spectra, train
from variegate.train.spectra import ALIKE, Intruders, leading

SHAPES = {"square": (90, 90), "tall": (120, 40), "wide": (48, 130), "kernel": (60, 20, 3, 3)}
MOST = 6


@pytest.fixture(autouse=True)
def _no_layer_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "SMALL", 8)


def weight_of(shape: tuple[int, ...], *, decay: float, seed: int = 0) -> torch.Tensor:
    """A weight whose singular values fall as a power of their number."""
    draw = torch.Generator().manual_seed(seed)
    left, values, right = torch.linalg.svd(
        torch.randn(shape, generator=draw).flatten(1), full_matrices=False
    )
    values = torch.arange(1.0, len(values) + 1) ** -decay
    return ((left * values) @ right).view(shape)


def update_of(weight: torch.Tensor, size: float, *, rank: int = 5, seed: int = 1) -> LayerUpdate:
    """Directions drawn at random, the strongest `size` times as strong as the weight's."""
    draw = torch.Generator().manual_seed(seed)
    flat = weight.flatten(1)
    up = torch.linalg.qr(torch.randn(len(flat), rank, generator=draw)).Q
    down = torch.linalg.qr(torch.randn(flat.shape[1], rank, generator=draw)).Q.T
    up = up * torch.linspace(size, size / 3, rank) * torch.linalg.matrix_norm(flat, 2)
    ones = [1] * (weight.ndim - 2)
    return LayerUpdate(
        down.reshape(rank, *weight.shape[1:]), up.view(*up.shape, *ones), float(rank)
    )


def dense_count(weight: torch.Tensor, update: LayerUpdate) -> int:
    """As the paper has it."""
    base, both = (
        torch.linalg.svd(w.flatten(1).double(), full_matrices=False).U
        for w in (weight, weight + update.delta(weight))
    )
    return int(((base.T @ both[:, :MOST]).abs().amax(0) < ALIKE).sum())


@pytest.mark.parametrize("decay", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("size", [0.0, 0.2, 0.6, 1.5])
def test_as_many_intruders_are_found_as_by_dense_decompositions(decay: float, size: float) -> None:
    weights = {name: weight_of(shape, decay=decay) for name, shape in SHAPES.items()}
    updates = {name: update_of(weight, size) for name, weight in weights.items()}
    exact = {name: dense_count(weights[name], updates[name]) for name in weights}
    look = Intruders(weights, most=MOST, seed=0)
    for _ in range(2):  # the second with what the first had kept
        told, layers = look.look(Adapter("sd1", dict(updates)), 7)
        assert layers == {name: n for name, n in exact.items() if n}
        assert (told.value, told.n, told.step) == (sum(exact.values()), 4, 7)
    assert list(layers.values()) == sorted(layers.values(), reverse=True)
    assert bool(layers) == (size >= 0.6)


def test_a_direction_that_the_base_has_is_none_however_strong_it_grows() -> None:
    weight = weight_of(SHAPES["square"], decay=0.5)
    left, _, right = torch.linalg.svd(weight)
    grown = LayerUpdate(right[70:71], 3 * left[:, 70:71], alpha=1.0)
    assert torch.linalg.matrix_norm(weight + grown.delta(), 2) > 3
    told, layers = Intruders({"one": weight}, most=MOST, seed=0).look(
        Adapter("sd1", {"one": grown}), 1
    )
    assert (told.value, layers) == (0, {})


def test_a_layer_is_taken_apart_once_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = torch.linalg.svd
    weights = {name: weight_of(SHAPES["square"], decay=0.5) for name in ("quiet", "loud")}
    updates = {"quiet": update_of(weights["quiet"], 0.02), "loud": update_of(weights["loud"], 2)}

    def counted(matrix: torch.Tensor, **more: Any) -> Any:
        calls.append(len(matrix))
        return whole(matrix, **more)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    look = Intruders(weights, most=MOST, seed=0)
    for step in range(3):
        assert look.look(Adapter("sd1", dict(updates)), step)[1].keys() == {"loud"}
    assert calls == [90]


@pytest.mark.parametrize("decay", [0.1, 0.7])
def test_leading_directions_are_those_of_the_dense_decomposition(decay: float) -> None:
    weight = weight_of((150, 110), decay=decay, seed=3)
    weight = weight + 0.1 * torch.randn(150, 110, generator=torch.Generator().manual_seed(4))
    exact, values, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    begin = torch.randn(150, 8, generator=torch.Generator().manual_seed(5))
    found, squares = leading(weight, 8, begin)
    torch.testing.assert_close(squares.double(), values[:8], rtol=1e-5, atol=0)
    assert bool(((exact[:, :8] * found).sum(0).abs() > 0.99).all())


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("spectra")
    write_tiny_sd(folder / "base")
    write_pictures(folder / "images")
    return folder


def test_intruders_are_noted_at_checkpoints_with_the_layers_that_have_them(
    place: Path, tmp_path: Path
) -> None:
    model = load(str(place / "base"))
    loud = {"lr": 0.3, "steps": 8}
    recipe = tiny_recipe(place / "base", place / "images", optimizer=loud)
    run = train(recipe, out=tmp_path / "run", model=model)
    noted = run.read_journal("intruders")
    assert [line["step"] for line in noted] == [3, 6, 8]
    (told,) = noted[-1]["measurements"]
    assert told["name"] == "intruders"
    assert told["value"] == sum(noted[-1]["layers"].values()) > 0
    assert all(name.startswith("unet.") for name in noted[-1]["layers"])
    none = tiny_recipe(place / "base", place / "images", probes={"intruders": 0})
    assert not train(none, out=tmp_path / "none", model=model).read_journal("intruders")
