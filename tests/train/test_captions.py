"""Captions change by address as their strategies say, and the trigger always stays whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_sd
from tests.train.scenes import tiny_recipe, write_pictures

from variegate.images import ImageSet
from variegate.models import load
from variegate.recipe import Recipe
from variegate.train import train
from variegate.train.data import Latents, read_training_set
from variegate.train.strategies import Seen, Setting, Strategy, cook
from variegate.train.strategies.caption_edits import whole_words

NOTHING = Seen(None, None)
TAGS = "zqx dog, red hat, on a beach, at noon, smiling"
VOCABULARY = {"lamp</w>": 0, "river</w>": 1, "zqx</w>": 2, "dog</w>": 3, "ri": 4, "1st</w>": 5}


def one(name: str, *, trigger: str = "zqx", **settings: Any) -> Strategy:
    recipe = Recipe.build({"strategies": {name: settings}, "trigger": trigger})
    strategy = cook(recipe)[name]
    tokenizer = SimpleNamespace(get_vocab=lambda: VOCABULARY)
    strategy.prepare(Setting(recipe, SimpleNamespace(tokenizer=tokenizer), Path(), lambda *_: None))
    return strategy


def told(strategy: Strategy, caption: str, count: int = 200) -> list[str]:
    return [strategy.caption(caption, step, 0, NOTHING) for step in range(count)]


@pytest.mark.parametrize("name", ["caption_shuffle", "token_dropout", "caption_edits"])
def test_the_same_step_and_row_give_the_same_caption(name: str) -> None:
    strategy = one(name, p=0.5)
    assert told(strategy, TAGS, 20) == told(strategy, TAGS, 20)
    rows = {strategy.caption(TAGS, 1, row, NOTHING) for row in range(30)}
    assert len(rows) > 3
    assert set(told(one(name, p=0.0), TAGS, 20)) == {TAGS}
    assert set(told(strategy, "", 20)) == {""}


def test_shuffled_tags_are_all_there_and_the_first_stay() -> None:
    captions = told(one("caption_shuffle", keep=2), TAGS)
    assert {caption[:16] for caption in captions} == {"zqx dog, red hat"}
    assert {tuple(sorted(caption.split(", "))) for caption in captions} == {
        tuple(sorted(TAGS.split(", ")))
    }
    # Three tags have six orders, each about as likely.
    counts = Counter(captions)
    assert len(counts) == 6
    assert min(counts.values()) > 15
    assert set(told(one("caption_shuffle"), "a photo of zqx")) == {"a photo of zqx"}


def test_dropped_tags_fall_at_their_rate_and_the_trigger_stays() -> None:
    captions = told(one("token_dropout", p=0.25), TAGS, 400)
    kept = Counter(tag for caption in captions for tag in caption.split(", "))
    assert kept["zqx dog"] == 400
    for tag in TAGS.split(", ")[1:]:
        assert kept[tag] == pytest.approx(300, abs=40)


def test_dropped_words_leave_a_clean_caption_and_a_trigger_of_two_words_whole() -> None:
    strategy = one("token_dropout", p=0.6, unit="word", trigger="zqx dog")
    for caption in told(strategy, TAGS):
        assert "zqx dog" in caption
        assert ", ," not in caption
        assert not caption.endswith((",", " "))
        words = iter(TAGS.replace(",", "").split())
        assert all(word in words for word in caption.replace(",", "").split())  # in their order


def test_a_caption_never_loses_everything() -> None:
    strategy = one("token_dropout", p=0.99, unit="word", trigger="")
    assert "" not in told(strategy, "an old house")


def test_edits_add_or_replace_one_known_word_and_never_the_triggers() -> None:
    caption = "a zqx dog on a lawn, at noon"
    lengths = Counter()
    for edited in told(one("caption_edits", p=1.0, trigger="zqx dog"), caption):
        assert "zqx dog" in edited
        assert edited != caption
        old, new = caption.replace(",", "").split(), edited.replace(",", "").split()
        lengths[len(new) - len(old)] += 1
        fresh = Counter(new) - Counter(old)
        assert sum(fresh.values()) == 1
        assert set(fresh) <= {"lamp", "river"}
    assert set(lengths) == {0, 1}
    assert lengths[0] == pytest.approx(100, abs=30)
    changed = [c != caption for c in told(one("caption_edits", p=0.3), caption, 400)]
    assert sum(changed) == pytest.approx(120, abs=35)


def test_noise_is_a_share_of_the_embeddings_spread_by_address_and_spares_the_empty_caption() -> (
    None
):
    strategy = one("caption_noise", amount=0.2)
    read = 3.0 * torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) + 5
    first = strategy.stir(read, "a zqx", 1, 0)
    assert float((first - read).std()) == pytest.approx(0.2 * float(read.std()), rel=0.1)
    assert torch.equal(first, strategy.stir(read, "a zqx", 1, 0))
    for step, row in ((1, 1), (2, 0)):
        assert not torch.allclose(first, strategy.stir(read, "a zqx", step, row))
    assert strategy.stir(read, "", 1, 0) is read


def test_noise_reaches_the_pictures_rows_alone_in_parts_as_at_once(tmp_path: Path) -> None:
    """Rows beside the pictures, the base and what is watched read captions as they are."""
    model = load(str(write_tiny_sd(tmp_path / "base")))
    pictures = write_pictures(tmp_path / "pictures")
    heard: dict[Any, list[torch.Tensor]] = {}
    predict = model.predict

    def noting(latents: Any, timesteps: Any, words: Any) -> Any:
        heard[way].append(words.embeddings.detach())
        return predict(latents, timesteps, words)

    model.predict = noting
    for way in ("plain", "noisy", "in parts"):
        heard[way] = []
        strategies: dict[str, Any] = {"stay_near": {"batch_size": 1}}
        recipe = tiny_recipe(
            tmp_path / "base",
            pictures,
            strategies=strategies | ({} if way == "plain" else {"caption_noise": {}}),
            optimizer={"steps": 1, "micro_batch": 1 if way == "in parts" else None},
            probes={"every": 1, "triples": 3},
        )
        train(recipe, out=tmp_path / way, model=model)
    plain, noisy, parts = (heard[way] for way in ("plain", "noisy", "in parts"))
    changed = [i for i, (a, b) in enumerate(zip(plain, noisy, strict=True)) if not a.equal(b)]
    assert len(changed) == 1
    told, own = noisy[changed[0]], plain[changed[0]]
    assert [bool((a != b).any()) for a, b in zip(told, own, strict=True)] == [True, True, False]
    rows = torch.cat([call for call in parts if len(call) == 1])
    for row in told[:2]:
        assert any(torch.allclose(row, other, atol=1e-5) for other in rows)


def test_words_to_insert_are_whole_and_not_the_trigger() -> None:
    assert whole_words(VOCABULARY, but="zqx dog") == ["lamp", "river"]


def trained_on(model: Any, place: Path, said: str, **strategies: Any) -> list[str]:
    """The captions of 60 steps over two pictures that all have this one."""
    recipe = Recipe.build(
        {"trigger": "zqx", "held_out": {"share": 0}, "strategies": strategies, "variants": 4}
    )
    folder = write_pictures(place / "images", 2)
    for picture in folder.glob("*.png"):
        picture.with_suffix(".txt").write_text(said, encoding="utf8")
    found = read_training_set(ImageSet.read(folder), recipe, side=64, pocket=True, needs_masks=True)
    latents = Latents(model, recipe, cook(recipe))
    return [c for step in range(1, 61) for c in latents.batch(found.train, step).captions]


def test_captions_stay_true_of_pictures_that_are_mirrored_or_altered(tmp_path: Path) -> None:
    model, said = load("pocket"), "a small zqx on a red striped background on the left"
    assert set(trained_on(model, tmp_path, said)) == {said}
    flipped = Counter(trained_on(model, tmp_path, said, flip={}))
    other = said.replace("left", "right")
    assert set(flipped) == {said, other}
    assert flipped[other] == pytest.approx(flipped.total() / 2, abs=flipped.total() / 8)
    moved = set(trained_on(model, tmp_path, said, zoom_shift={"p": 1.0}))
    assert moved == {"a zqx on a red striped background"}
    laid = set(trained_on(model, tmp_path, said, new_background={"p": 1.0, "source": "painted"}))
    assert laid == {"a small zqx on the left"}
