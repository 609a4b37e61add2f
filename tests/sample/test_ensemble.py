"""An ensemble samples: pictures hang on prompt and seed alone, and each way is what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny_sd, write_tiny_sdxl

from variegate import seeds
from variegate.adapter import Adapter, Ensemble, LayerUpdate, attached, attached_in_turn
from variegate.adapter.places import find
from variegate.blend.cast import open_learnt, read_ensemble, write_ensemble
from variegate.errors import AdapterError
from variegate.formats import write
from variegate.images import ImageSet
from variegate.models import DiffusionModel, load
from variegate.recipe import SamplingPlan
from variegate.sample import Request, grid, sample
from variegate.sample.chorus import Chorus

PLAN = SamplingPlan(steps=3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return load(str(write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")))


def learnt(model: Any, seed: int) -> Adapter:
    """A random update of attention layers, text encoder included."""
    layers = {}
    for part, ends in (("unet", "to_q"), ("text_encoder", "q_proj")):
        for path, module in getattr(model, part).named_modules():
            if path.endswith(ends):
                name = f"{part}.{path}"
                layers[name] = LayerUpdate(
                    torch.randn(2, module.in_features, generator=seeds.at(seed, name, "down")),
                    torch.randn(module.out_features, 2, generator=seeds.at(seed, name, "up")),
                    alpha=2.0,
                )
    return Adapter("sd1", layers)


@pytest.fixture(scope="module")
def members(model: DiffusionModel) -> tuple[Adapter, ...]:
    return tuple(learnt(model, seed) for seed in range(3))


def pixels(pictures: ImageSet) -> dict[tuple[Any, Any], np.ndarray]:
    return {(p.prompt, p.seed): np.asarray(p.open(), int) for p in pictures}


def alike(one: np.ndarray, two: np.ndarray) -> bool:
    return int(np.abs(one - two).max()) <= 2  # of 255: another batch rounds elsewhere


def test_each_picture_is_that_of_the_member_chosen_for_it(
    model: DiffusionModel, members: Any, tmp_path: Path
) -> None:
    ensemble = Ensemble(members, (1.0, 1.0, 2.0))
    requests = grid(["a cat", "a dog"], range(3))
    together = pixels(sample(model, ensemble, requests, plan=PLAN, out=tmp_path / "all"))
    chosen = Counter(ensemble.chosen(r.prompt, r.seed) for r in requests)
    assert len(chosen) > 1
    for request in requests:
        own = members[ensemble.chosen(request.prompt, request.seed)]
        alone = sample(model, own, [request], plan=PLAN, out=tmp_path / own.digest()[:8])
        look = (request.prompt, request.seed)
        assert alike(together[look], pixels(alone)[look])


@pytest.mark.parametrize("way", ["member", "switch", "average"])
def test_a_picture_does_not_depend_on_its_neighbours(
    way: Any, model: DiffusionModel, members: Any, tmp_path: Path
) -> None:
    ensemble = Ensemble(members, (1.0, 2.0, 1.0), way)
    requests = grid(["a cat", "a dog"], range(2))
    many = pixels(sample(model, ensemble, requests, plan=PLAN, out=tmp_path / "many"))
    for request in (requests[0], requests[-1]):
        one = sample(model, ensemble, [request], plan=PLAN, out=tmp_path / f"{request.seed}")
        look = (request.prompt, request.seed)
        assert alike(many[look], pixels(one)[look])


def test_members_are_chosen_by_their_weights() -> None:
    ensemble = Ensemble((Adapter("sd1", {}),) * 3, (1.0, 2.0, 1.0))
    chosen = Counter(ensemble.chosen("a cat", seed) for seed in range(4000))
    shares = [chosen[i] / 4000 for i in range(3)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_turns_follow_the_weights_at_every_step() -> None:
    turns = Ensemble((Adapter("sd1", {}),) * 3, (3.0, 2.0, 1.0)).turns(30)
    for step in range(1, 31):
        for member, share in enumerate((1 / 2, 1 / 3, 1 / 6)):
            assert abs(turns[:step].count(member) - share * step) < 1
    assert turns[0] == 0


@pytest.mark.parametrize("way", ["member", "switch", "average"])
def test_one_member_alone_is_that_adapter(
    way: Any, model: DiffusionModel, members: Any, tmp_path: Path
) -> None:
    requests = [Request("a cat", 0)]
    ours = sample(
        model, Ensemble(members[:1], (3.0,), way), requests, plan=PLAN, out=tmp_path / "e"
    )
    theirs = sample(model, members[0], requests, plan=PLAN, out=tmp_path / "a")
    assert np.array_equal(pixels(ours)["a cat", 0], pixels(theirs)["a cat", 0])


@pytest.mark.parametrize("make", [write_tiny_sd, write_tiny_sdxl])
def test_an_average_is_the_weighted_mean_of_the_members_predictions(
    make: Any, tmp_path: Path
) -> None:
    """Each member's own reading of the prompt included; its text encoder learnt too."""
    model = load(str(make(tmp_path / "base")))
    members = tuple(learnt(model, seed) for seed in range(2))
    latents = torch.randn(2, 4, 8, 8, generator=seeds.at(0, "latents"))
    times = torch.tensor([500.0, 500.0])
    wanted = []
    for member in members:
        with attached(model, member), torch.no_grad():
            wanted.append(model.predict(latents, times, model.embed(["a cat", "a dog"])))
    before = model.predict(latents, times, model.embed(["a cat", "a dog"]))
    with attached_in_turn(model, members) as turn, torch.no_grad():
        chorus = Chorus.of(model, Ensemble(members, (3.0, 1.0), "average"), turn, PLAN)
        found = chorus.predict(latents, times, chorus.embed(["a cat", "a dog"]))
    torch.testing.assert_close(found, 0.75 * wanted[0] + 0.25 * wanted[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-3)
    after = model.predict(latents, times, model.embed(["a cat", "a dog"]))
    assert torch.equal(after, before)


def test_a_switch_asks_one_member_at_each_step(model: DiffusionModel, members: Any) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=seeds.at(0, "latents"))
    scheduler = model.sampler(PLAN.sampler)
    scheduler.set_timesteps(PLAN.steps)
    with attached_in_turn(model, members) as turn, torch.no_grad():
        chorus = Chorus.of(model, Ensemble(members, (1.0,) * 3, "switch"), turn, PLAN)
        words = chorus.embed(["a cat"])
        answers = [chorus.predict(latents, t.reshape(1), words) for t in scheduler.timesteps]
    for answer, member, t in zip(answers, members, scheduler.timesteps, strict=True):
        with attached(model, member), torch.no_grad():
            alone = model.predict(latents, t.reshape(1), model.embed(["a cat"]))
        torch.testing.assert_close(answer, alone, atol=1e-6, rtol=1e-6)


def test_taking_turns_leaves_the_model_as_it_was(model: Any, members: Any) -> None:
    names = [name for name, _ in model.unet.named_modules()]
    with attached_in_turn(model, members) as turn:
        assert [name for name, _ in model.unet.named_modules()] == names
        for number in (0, 2, 1):
            turn(number)
        with pytest.raises(AdapterError, match="already carries"):
            find(model, members[0])
    assert [name for name, _ in model.unet.named_modules()] == names
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_a_described_ensemble_is_read_back(members: Any, tmp_path: Path) -> None:
    files = [write(m, tmp_path / "parts" / f"{i}.safetensors") for i, m in enumerate(members)]
    file = write_ensemble(tmp_path / "cast.toml", files, [1.0, 2.0, 1.0], "switch")
    assert str(tmp_path) not in file.read_text()  # members are named beside it
    ensemble = open_learnt(file)
    assert isinstance(ensemble, Ensemble)
    assert (ensemble.way, ensemble.shares) == ("switch", (0.25, 0.5, 0.25))
    assert [m.digest() for m in ensemble.members] == [open_learnt(f).digest() for f in files]
    (tmp_path / "moved").mkdir()
    (tmp_path / "parts").rename(tmp_path / "moved" / "parts")
    file.rename(tmp_path / "moved" / "ensemble.toml")
    assert open_learnt(tmp_path / "moved").digest() == ensemble.digest()


def test_what_shapes_an_answer_shapes_the_digest(members: Any) -> None:
    one = Ensemble(members, (1.0, 1.0, 1.0))
    assert Ensemble(members, (2.0, 2.0, 2.0)).digest() == one.digest()
    others = [
        Ensemble(members, (1.0, 2.0, 1.0)),
        Ensemble(members, (1.0,) * 3, "switch"),
        Ensemble(members[::-1], (1.0,) * 3),
        one.scaled(0.5),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("way = 'all'\n[[member]]\nfile = 'a'", "way: Input should be 'member', 'switch'"),
        ("way = 'switch'", "member: Field required"),
        ("[[member]]\nfile = 'a'\nweight = 0", "member.0.weight: Input should be greater than 0"),
        ("[[member]]\nfile = 'a'\nheight = 2", "member.0.height: Extra inputs"),
        ("member = [", "describes no ensemble"),
        ("[[member]]\nfile = 'a.safetensors'", "no adapter at"),
        ("[[member]]\nfile = 'other.toml'", "is an ensemble itself"),
    ],
)
def test_a_file_that_describes_no_ensemble_is_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "cast.toml"
    file.write_text(text)
    with pytest.raises(AdapterError, match=told):
        read_ensemble(file)


def test_members_of_different_families_are_refused(members: Any) -> None:
    with pytest.raises(AdapterError, match="different families: sd1, sdxl"):
        Ensemble((members[0], Adapter("sdxl", members[1].layers)), (1.0, 1.0))
    with pytest.raises(AdapterError, match="3 members and 1 weights"):
        Ensemble(members, (1.0,))
