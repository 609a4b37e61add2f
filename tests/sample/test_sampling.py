from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import ExifTags, Image
from tests.tiny import write_tiny_sd, write_tiny_sdxl
from typer.testing import CliRunner

from variegate import formats, seeds
from variegate.adapter import Adapter, LayerUpdate
from variegate.cli import app
from variegate.errors import EmptyImageSet, Interrupted, NoSpace, NotFinite, RequestError
from variegate.formats import inspect
from variegate.images import ImageSet
from variegate.images.captions import read_parameters
from variegate.models import DiffusionModel, load
from variegate.models.samplers import diffusers_warnings_off
from variegate.recipe import SamplingPlan
from variegate.sample import (
    Named,
    Request,
    contact_sheet,
    denoise,
    grid,
    initial_noise,
    sample,
    sample_json,
    seconds_to_draw,
    varied,
)

PLAN = SamplingPlan(steps=2, guidance_scale=3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionModel:
    return load(str(folder))


@pytest.fixture
def adapter(model: DiffusionModel) -> Adapter:
    draw = torch.Generator().manual_seed(0)
    layers = {
        f"unet.{path}": LayerUpdate(
            down=torch.randn(2, module.in_features, generator=draw),
            up=torch.randn(module.out_features, 2, generator=draw),
            alpha=2.0,
        )
        for path, module in model.unet.named_modules()
        if path.endswith("to_q")
    }
    return Adapter("sd1", layers)


def test_the_time_that_is_foretold_grows_with_pictures_and_steps(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = (float(second) for second in range(100))
    monkeypatch.setattr("variegate.sample.draw.time.perf_counter", lambda: next(clock))
    foretold = [
        seconds_to_draw(model, PLAN.model_copy(update={"steps": steps}), pictures)
        for steps, pictures in ((5, 1), (10, 1), (10, 64))
    ]
    assert foretold == [5, 10, 20]  # a second a step, 32 pictures a batch


def pixels(pictures: ImageSet) -> dict[tuple[Any, Any], np.ndarray]:
    return {(p.prompt, p.seed): np.asarray(p.open(), dtype=int) for p in pictures}


def forbid_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a picture was drawn anew")

    monkeypatch.setattr("variegate.sample.draw.denoise", fail)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("autoencoder", ["kl", "tiny"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_loop_agrees_with_the_pipeline_of_diffusers(
    prediction: Any, autoencoder: Any, guidance: float, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {}
    if prediction == "v_prediction":  # the pocket's own schedule
        settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = write_tiny_sd(tmp_path, prediction, autoencoder=autoencoder, **settings)
    model, pipeline = load(str(folder)), StableDiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.cat([initial_noise(model, seed) for seed in (0, 1)])
    prompts = ["an owl", "a red owl"]
    plan = SamplingPlan(steps=4, guidance_scale=guidance)
    with torch.no_grad():
        asked, empty = model.embed(prompts), model.embed(["", ""])
        latents = denoise(model, noise, asked, empty, plan=plan, picture_seeds=[0, 1])
        ours = model.decode(latents)
        asks: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": guidance}
        theirs = pipeline(prompts, latents=noise, output_type="latent", **asks).images
        torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=1e-5)
        theirs = pipeline(prompts, latents=noise, output_type="pt", **asks).images
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-5, rtol=0)


THEIRS: dict[str, Any] = {
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


@pytest.mark.parametrize("base", ["sd epsilon", "sd v to pure noise", "sdxl"])
@pytest.mark.parametrize("sampler", THEIRS)
def test_every_sampler_agrees_with_the_pipeline_of_diffusers(
    sampler: Any, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-4, that of `euler_a` with the same noise between steps. Flows: tests/models."""
    if base == "sdxl":
        folder, kind = write_tiny_sdxl(tmp_path), StableDiffusionXLPipeline
    else:
        more = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        prediction = "v_prediction" if "v" in base else "epsilon"
        folder = write_tiny_sd(tmp_path, prediction, **(more if "v" in base else {}))  # type: ignore[arg-type]
        kind = StableDiffusionPipeline
    model, pipeline = load(str(folder)), kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, settings = THEIRS[sampler]
    with diffusers_warnings_off():
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    noise = torch.cat([initial_noise(model, seed) for seed in (3, 4)])
    prompts, plan = ["an owl", "a red owl"], SamplingPlan(steps=4, sampler=sampler)
    steps = iter(range(4))

    def between(shape: Any, **_: Any) -> torch.Tensor:
        index = next(steps)
        own = [seeds.at(seed, "ancestral", index) for seed in (3, 4)]
        return torch.cat([torch.randn(1, *shape[1:], generator=g) for g in own])

    with torch.no_grad(), diffusers_warnings_off():
        asked, empty = model.embed(prompts), model.embed(["", ""])
        ours = denoise(model, noise, asked, empty, plan=plan, picture_seeds=[3, 4])
        place = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
        monkeypatch.setattr(place, between)
        asks: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 7.5, "latents": noise}
        theirs = pipeline(prompts, output_type="latent", **asks).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpmpp_2m"])
def test_a_picture_does_not_depend_on_its_neighbours(
    sampler: Any, model: DiffusionModel, tmp_path: Path
) -> None:
    plan = SamplingPlan(steps=3, guidance_scale=3.0, sampler=sampler)
    requests = grid(["an owl", "a red fox", ""], range(2))
    together = pixels(sample(model, None, requests, plan=plan, out=tmp_path / "a"))
    backwards = sample(model, None, requests[::-1], plan=plan, out=tmp_path / "b", batch_size=4)
    alone = sample(model, None, requests[3:4], plan=plan, out=tmp_path / "c")
    for other in (pixels(backwards), pixels(alone)):
        for look, picture in other.items():
            assert np.abs(picture - together[look]).max() <= 2
    first, second = (together["an owl", seed] for seed in (0, 1))
    assert np.abs(first - second).max() > 2


def test_zero_terminal_snr_works_with_every_sampler(tmp_path: Path) -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model = load(str(write_tiny_sd(tmp_path / "m", "v_prediction", **settings)))
    for sampler in ("ddim", "euler", "euler_a", "dpmpp_2m"):
        plan = SamplingPlan(steps=3, guidance_scale=2.0, sampler=sampler)
        pictures = sample(model, None, [Request("an owl", 0)], plan=plan, out=tmp_path / sampler)
        assert np.asarray(pictures.pictures[0].open()).std() > 0


def test_the_noise_hangs_on_the_seed_alone(model: DiffusionModel) -> None:
    assert torch.equal(initial_noise(model, 3), initial_noise(model, 3))
    assert not torch.equal(initial_noise(model, 3), initial_noise(model, 4))
    assert initial_noise(model, 3).shape == (1, 4, 8, 8)


def test_the_adapter_acts_and_is_gone_afterwards(
    model: DiffusionModel, adapter: Adapter, tmp_path: Path
) -> None:
    requests = grid(["an owl"], range(2))
    before = pixels(sample(model, None, requests, plan=PLAN, out=tmp_path / "base"))
    with_it = pixels(sample(model, adapter, requests, plan=PLAN, out=tmp_path / "adapter"))
    after = pixels(sample(model, None, requests, plan=PLAN, out=tmp_path / "again"))
    nothing = adapter.scaled(0.0)
    silent = pixels(sample(model, nothing, requests, plan=PLAN, out=tmp_path / "silent"))
    for look in before:
        assert np.array_equal(before[look], after[look])
        assert np.abs(before[look] - silent[look]).max() <= 1
        assert np.abs(before[look] - with_it[look]).max() > 2


def test_what_is_there_is_kept_and_only_the_rest_is_drawn(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = grid(["an owl", "a fox"], range(2))
    first = sample(model, None, requests[:1], plan=PLAN, out=tmp_path)
    made = first.pictures[0].file
    assert made is not None
    stamp = made.stat().st_mtime_ns
    said: list[tuple[str, int, int]] = []

    def say(phase: str, done: int, total: int, note: str) -> None:
        said.append((phase, done, total))

    # Asked in another order: the picture is found though its prompt has another number now.
    everything = sample(model, None, requests[::-1], plan=PLAN, out=tmp_path, say=say)
    assert made.stat().st_mtime_ns == stamp
    assert said == [("sample", 1, 4), ("sample", 4, 4)]
    assert [(p.prompt, p.seed) for p in everything] == [(r.prompt, r.seed) for r in requests[::-1]]
    forbid_drawing(monkeypatch)
    again = sample(model, None, requests[::-1], plan=PLAN, out=tmp_path)
    assert again == everything


@pytest.mark.parametrize(
    "change",
    [
        lambda asks: asks | {"plan": PLAN.model_copy(update={"steps": 3})},
        lambda asks: asks | {"plan": PLAN.model_copy(update={"guidance_scale": 2.0})},
        lambda asks: asks | {"negative": "blurry"},
        lambda asks: asks | {"adapter": True},
    ],
    ids=["steps", "guidance", "negative", "adapter"],
)
def test_another_setting_draws_anew_and_lists_only_that(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    model: DiffusionModel,
    adapter: Adapter,
    tmp_path: Path,
) -> None:
    asks: dict[str, Any] = {"plan": PLAN, "out": tmp_path}
    (old,) = sample(model, None, [Request("an owl", 0)], **asks)
    asks = change(asks)
    learnt = adapter if asks.pop("adapter", False) else None
    (new,) = sample(model, learnt, [Request("an owl", 0)], **asks)
    assert new.file != old.file
    assert [picture.file for picture in ImageSet.read(tmp_path)] == [new.file]


def test_the_preset_is_no_setting_of_the_pictures(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(model, None, [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    forbid_drawing(monkeypatch)
    quick = PLAN.model_copy(update={"preset": "quick"})
    assert len(sample(model, None, [Request("an owl", 0)], plan=quick, out=tmp_path)) == 1


@pytest.mark.parametrize("damage", [0, 40, -20])
def test_a_damaged_picture_is_drawn_again(
    damage: int, model: DiffusionModel, tmp_path: Path
) -> None:
    (first,) = sample(model, None, [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    assert first.file is not None
    whole = first.file.read_bytes()
    first.file.write_bytes(whole[:damage] if damage else b"")
    (second,) = sample(model, None, [Request("an owl", 0)], plan=PLAN, out=tmp_path)
    assert second.file == first.file
    assert first.file.read_bytes() == whole


def test_the_folder_is_read_back_with_prompts_seeds_and_groups(
    model: DiffusionModel, tmp_path: Path
) -> None:
    requests = [Request("an owl", 1, "class"), Request("an owl", 1, "trigger"), Request("", 0)]
    drawn = sample(model, None, requests, plan=PLAN, out=tmp_path)
    assert len({picture.key for picture in drawn}) == 3
    assert np.array_equal(drawn.pictures[0].open(), drawn.pictures[1].open())
    read = ImageSet.read(tmp_path)
    facts = [(p.file, p.prompt, p.seed, p.group) for p in drawn]
    assert [(p.file, p.prompt, p.seed, p.group) for p in read] == facts
    assert [fact[1:] for fact in facts] == [
        ("an owl", 1, "class"),
        ("an owl", 1, "trigger"),
        ("", 0, None),
    ]


def test_repeated_requests_are_drawn_once(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []

    def counting(model: Any, noise: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        rows.append(len(noise))
        return denoise(model, noise, *rest, **more)

    monkeypatch.setattr("variegate.sample.draw.denoise", counting)
    sample(model, None, [Request("an owl", 1)] * 3, plan=PLAN, out=tmp_path)
    assert rows == [1]


def test_a_prompt_is_embedded_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(folder))
    asked: list[str] = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda prompts: asked.extend(prompts) or embed(prompts))
    sample(model, None, grid(["a", "b"], range(4)), plan=PLAN, out=tmp_path, batch_size=2)
    assert sorted(asked) == ["", "a", "b"]


def test_ctrl_c_leaves_a_folder_that_goes_on(model: DiffusionModel, tmp_path: Path) -> None:
    requests = grid(["an owl"], range(3))

    def interrupt(phase: str, done: int, total: int, note: str) -> None:
        if done == 1:
            signal.raise_signal(signal.SIGINT)  # to this thread, at once

    # A shell has what it starts in the background ignore Ctrl-C: hear it all the same.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted, match="after 1 of 3 pictures") as caught:
            sample(model, None, requests, plan=PLAN, out=tmp_path, batch_size=1, say=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == 130
    (kept,) = ImageSet.read(tmp_path)
    assert kept.file is not None
    stamp = kept.file.stat().st_mtime_ns
    assert len(sample(model, None, requests, plan=PLAN, out=tmp_path)) == 3
    assert kept.file.stat().st_mtime_ns == stamp
    assert not list(tmp_path.glob(".*"))


def test_a_picture_that_turns_nan_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(folder))
    predict = model.predict

    def spoilt(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        answer = predict(latents, *rest)
        answer[1] = torch.nan
        return answer

    monkeypatch.setattr(model, "predict", spoilt)
    requests = [Request("an owl", 6), Request("a fox", 7)]
    with pytest.raises(NotFinite, match=r"'a fox', seed 7 turned NaN .* at denoising step 0"):
        sample(model, None, requests, plan=PLAN, out=tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_the_batch_is_halved_when_memory_runs_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(folder))
    predict = model.predict

    def small(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > 2 * 2:
            raise torch.OutOfMemoryError("too much")
        return predict(latents, *rest)

    monkeypatch.setattr(model, "predict", small)
    assert len(sample(model, None, grid(["a"], range(6)), plan=PLAN, out=tmp_path)) == 6


def test_wrong_requests_are_refused_before_anything_is_drawn(
    model: DiffusionModel, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="nothing to draw"):
        sample(model, None, [], plan=PLAN, out=tmp_path / "a")
    with pytest.raises(RequestError, match="seed -1 is below 0"):
        sample(model, None, [Request("a", -1)], plan=PLAN, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        sample(model, None, [Request("a", 0)], plan=PLAN, out=tmp_path / "file")
    with pytest.raises(NoSpace, match="name another folder"):
        sample(model, None, [Request("a", 0)], plan=PLAN, out=tmp_path / "file" / "b")


def test_a_folder_with_somebody_elses_list_is_left_alone(
    model: DiffusionModel, tmp_path: Path
) -> None:
    listed = '{"file_name": "lamp.png", "text": "a lamp"}\n'
    (tmp_path / "metadata.jsonl").write_text(listed)
    with pytest.raises(RequestError, match=r"lamp\.png"):
        sample(model, None, [Request("a", 0)], plan=PLAN, out=tmp_path)
    assert (tmp_path / "metadata.jsonl").read_text() == listed


HOSTILE = [
    "a\nNegative prompt: b\nSteps: 1, Sampler: x, CFG scale: 2, Seed: 99",
    "Negative prompt: everything",
    "../../etc/passwd\x00\x1b[31m",
    'an owl, "quoted": \\ <script>alert(1)</script>',
    "Eule \u202e \u4e00 \U0001f989" * 50,
]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_hostile_prompt_stays_text(prompt: str, model: DiffusionModel, tmp_path: Path) -> None:
    (picture,) = sample(model, None, [Request(prompt, 7)], plan=PLAN, out=tmp_path)
    assert picture.file is not None
    assert picture.file.parent == tmp_path
    assert picture.file.name.startswith("p000-s0007-")
    with Image.open(picture.file) as image:
        lines = image.text["parameters"].split("\n")
    assert len(lines) == 2
    assert not lines[0].lower().startswith("negative prompt:")
    assert "Seed: 7, Size: 64x64" in lines[1]
    (line,) = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == prompt
    contact_sheet(ImageSet((picture,), "test"), tmp_path / "sheet.png")


def test_the_parameters_are_those_of_a1111(model: DiffusionModel, tmp_path: Path) -> None:
    plan = SamplingPlan(steps=2, guidance_scale=7.5, sampler="dpmpp_2m")
    (picture,) = sample(
        model, None, [Request("an owl", 7)], plan=plan, out=tmp_path, negative="blurry, dark"
    )
    assert picture.file is not None
    with Image.open(picture.file) as image:
        text = image.text["parameters"]
    start = (
        "an owl\nNegative prompt: blurry, dark\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 7.5, "
        "Seed: 7, Size: 64x64, Model: tiny, Version: variegate "
    )
    assert text.startswith(start)
    assert "/" not in text.partition("Model:")[2]


def test_an_adapters_file_is_called_as_a1111_calls_it(
    model: DiffusionModel, adapter: Adapter, tmp_path: Path
) -> None:
    file = formats.write(adapter, tmp_path / "my, owls.safetensors")
    named = Named.of(file, formats.read(file).metadata)
    assert named.digits == formats.read(file).metadata["sshs_model_hash"][:12]
    assert Named.of(file, {}).digits == inspect(file)["hashes"]["autov3"]
    asks: dict[str, Any] = {"plan": PLAN, "out": tmp_path / "out", "named": named}
    (picture,) = sample(model, adapter, [Request("an owl", 7, strength=0.8)], **asks)
    assert picture.file is not None
    with Image.open(picture.file) as image:
        prompt, settings = image.text["parameters"].split("\n")
    assert prompt == "an owl <lora:my__owls:0.8>"
    assert f'Lora hashes: "my__owls: {named.digits}", Adapter strength: 0.8, Version' in settings


def test_webp_holds_the_same_numbers_and_what_drew_them(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (png,) = sample(model, None, [Request("an owl", 7)], plan=PLAN, out=tmp_path)
    asks: dict[str, Any] = {"plan": PLAN, "out": tmp_path, "format": "webp"}
    (webp,) = sample(model, None, [Request("an owl", 7)], **asks)
    assert webp.file is not None
    assert webp.file.suffix == ".webp"
    assert np.array_equal(png.open(), webp.open())
    with Image.open(webp.file) as image, Image.open(png.file) as other:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        text = other.text["parameters"]
    assert comment[:8] == b"UNICODE\x00"
    assert comment[8:].decode("utf-16-be") == text
    webp.file.rename(tmp_path / "elsewhere.webp")
    assert read_parameters(tmp_path / "elsewhere.webp") == ("an owl", 7)
    (tmp_path / "elsewhere.webp").rename(webp.file)
    forbid_drawing(monkeypatch)
    assert sample(model, None, [Request("an owl", 7)], **asks).pictures == (webp,)
    webp.file.write_bytes(webp.file.read_bytes()[:-40])
    with pytest.raises(AssertionError, match="drawn anew"):
        sample(model, None, [Request("an owl", 7)], **asks)


def test_words_that_vary_come_each_once_in_a_block_of_seeds() -> None:
    asked = [varied("an owl", seed, ["on a {red|blue|green} ground"]) for seed in range(9)]
    for block in range(3):
        words = {prompt.split()[4] for prompt in asked[3 * block : 3 * block + 3]}
        assert words == {"red", "blue", "green"}
    assert len({tuple(asked[3 * block : 3 * block + 3]) for block in range(3)}) > 1
    assert varied("an owl", 5, ["on a {red|blue|green} ground"]) == asked[5]
    assert varied("an owl", 0, []) == "an owl"
    with pytest.raises(RequestError, match="leaves nothing open"):
        varied("an owl", 0, ["on a {red} ground"])


def test_the_command_draws_with_methods_and_varied_words(
    folder: Path, adapter: Adapter, tmp_path: Path
) -> None:
    file = formats.write(adapter, tmp_path / "a.safetensors")
    words = ["sample", "--base", str(folder), "--prompt", "an owl", "--seeds", "2", "--steps", "2"]
    words += ["--out", str(tmp_path / "out"), "--adapter", str(file), "--json", "--quiet"]
    words += ["--method", "cads", "--method", "cads.strength=0.2", "--format", "webp"]
    words += ["--vary", "{in snow|at sea}", "--variety", "low"]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    images = json.loads(answer.stdout)["images"]
    assert {image["prompt"] for image in images} == {"an owl, in snow", "an owl, at sea"}
    assert all(image["file"].endswith(".webp") for image in images)
    with Image.open(images[0]["file"]) as image:
        inner = image.getexif().get_ifd(ExifTags.IFD.Exif)
    text = inner[ExifTags.Base.UserComment][8:].decode("utf-16-be")
    assert "<lora:a:1>" in text
    assert "cads" in text.partition("Methods")[2]
    refused = CliRunner().invoke(app, [*words, "--method", "cats"])
    assert refused.exit_code == 2
    assert "did you mean 'cads'?" in refused.output


def test_the_sheet_shows_every_picture_and_has_bounds(
    model: DiffusionModel, tmp_path: Path
) -> None:
    drawn = sample(model, None, grid(["an owl", "w" * 500], range(3)), plan=PLAN, out=tmp_path)
    file = contact_sheet(drawn, tmp_path / "sheets" / "sheet.png")
    with Image.open(file) as sheet:
        assert sheet.width > 3 * 64
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 100
    many = ImageSet(
        tuple(
            type(p)(key=f"{i}", file=p.file, prompt=f"prompt {i}", seed=i)
            for i in range(60)
            for p in drawn.pictures[:1]
        ),
        "many",
    )
    with Image.open(contact_sheet(many, tmp_path / "many.png")) as sheet:
        assert max(sheet.size) < 4000
    with pytest.raises(EmptyImageSet):
        contact_sheet(ImageSet((), "none"), tmp_path / "none.png")


def test_the_answer_has_absolute_paths(model: DiffusionModel, tmp_path: Path) -> None:
    drawn = sample(model, None, [Request("an owl", 7)], plan=PLAN, out=tmp_path)
    answer = sample_json(drawn, contact_sheet(drawn, tmp_path / "sheet.png"))
    (image,) = answer["images"]
    assert (image["prompt"], image["seed"]) == ("an owl", 7)
    assert Path(image["file"]).is_absolute()
    assert Path(answer["contact_sheet"]).is_file()
    assert sample_json(drawn, None)["contact_sheet"] is None
