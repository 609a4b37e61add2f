"""The folder to share: what others read of it, and what they never may."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import LocalTokenNotFoundError
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.blend.random_adapters import random_adapter
from typer.testing import CliRunner

from variegate import formats, recipes
from variegate.cli import app
from variegate.errors import RequestError, WorkError
from variegate.formats import own_notes
from variegate.measurement import Measurement, Reason, Verdict
from variegate.recipe import Recipe
from variegate.run import Run
from variegate.share import card, share
from variegate.share.card import code, escape, fenced
from variegate.share.folder import recipe_text

SECRET = "hf_" + "Ab1" * 8
OTHER_SECRET = "the-value-of-a-variable"
HOSTILE = (
    "zqx\n---\nlicense: mit\n--- <script>alert(1)</script> [x](javascript:y) `` ` | {{7*7}} \u202e!"
)
HOME = "/home/annabel/models"
# What the Hub documents of a model card's front matter, and the types it takes.
DOCUMENTED: dict[str, type | tuple[type, ...]] = {
    "license": str,
    "license_name": str,
    "license_link": str,
    "library_name": str,
    "pipeline_tag": str,
    "base_model": (str, list),
    "base_model_relation": str,
    "instance_prompt": str,
    "tags": list,
    "widget": list,
}


def verdict() -> Verdict:
    numbers = (
        Measurement("variety_vs_base", 0.83, 0.75, 0.91, 32, "higher", "of the base's"),
        Measurement("likeness", 0.9, 0.85, 0.94, 16, "higher"),
    )
    sentence = f"Class prompts keep 83 %, as on {HOSTILE!r}."
    return Verdict(
        labels=("healthy",),
        sentence=sentence,
        reasons=(Reason("narrowed", "warn", "variety_vs_base", f"in {HOME}/x.png"),),
        advice=(),
        measurements=numbers,
        rules="5",
        encoders=(f"{HOME}/dinov2",),
        plan={"prompts": {"class": 32, "trigger": 16}, "seeds": {"class": 4, "trigger": 4}},
    )


def build(home: Path, *, trigger: str = "zqx", base: str = "runwayml/stable-diffusion-v1-5") -> Run:
    """A finished run with all that a trial leaves, and secrets planted wherever a text can be."""
    recipe = recipes.read(
        "subject-plain",
        settings=("optimizer.steps=123",),
        images=f"{HOME}/photos/{SECRET}",
        base=base,
        trigger=trigger,
        class_noun="owl",
    )
    run = Run.create(home / "run", recipe)
    told = formats.describe(
        name="my owl",
        trigger=trigger,
        base=base,
        author="annabel",
        steps=123,
        tags={"a private caption": 3},
        notes={"class": "owl", "secret": SECRET},
    )
    told |= {"ss_dataset_dirs": json.dumps({f"{HOME}/photos": {"n": OTHER_SECRET}})}
    formats.write(replace(random_adapter(0), metadata=told), run.adapter_file)
    formats.stamp(run.adapter_file, verdict())
    run.verdict_file.write_text(json.dumps(verdict().to_json()))
    folder = run.samples / "adapter"
    folder.mkdir(parents=True)
    lines = []
    for i in range(8):
        notes = PngInfo()
        prompt = f"a secret prompt {i} of {trigger}"
        facts = f"Steps: 25, Sampler: DDIM, CFG scale: 7.5, Seed: {i}, Size: 64x64, Model: {HOME}/m"
        notes.add_text("parameters", f"{' '.join(prompt.split())}\n{facts}")
        notes.add_text("variegate", SECRET)
        Image.new("RGB", (64, 64), (20 * i, 90, 90)).save(folder / f"{i}.png", pnginfo=notes)
        lines.append({"file_name": f"{i}.png", "prompt": prompt, "seed": i, "group": "trigger"})
    lines.append({"file_name": "../../../outside.png", "prompt": "x", "seed": 0})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def everything(folder: Path) -> str:
    """All bytes of a folder, and its names, as text."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    return "\n".join(f"{f.name}\n{f.read_bytes().decode('latin1')}" for f in files)


def test_all_three_places_find_what_they_look_for(tmp_path: Path) -> None:
    run = build(tmp_path)
    found = share(run.folder)
    out = run.folder / "share"
    assert found.folder == out
    assert found.pushed is None
    assert {"README.md", "civitai.json", "recipe.toml", card.WEIGHTS} <= set(found.files)
    assert {"my-owl.safetensors", "my-owl.json", "my-owl.png"} <= set(found.files)
    pictures = [name for name in found.files if name.startswith("images/")]
    assert 4 <= len(pictures) <= 9
    for name in found.files:
        assert (out / name).is_file()
    source = formats.read(run.adapter_file)
    for name in (card.WEIGHTS, "my-owl.safetensors"):
        assert formats.read(out / name).digest() == source.digest()
    assert formats.inspect(out / card.WEIGHTS)["format"] == "diffusers"
    assert formats.inspect(out / "my-owl.safetensors")["format"] == "kohya"
    sidecar = json.loads((out / "my-owl.json").read_text())
    assert sidecar["activation text"] == "zqx"
    with Image.open(out / pictures[0]) as picture:
        text = picture.info["parameters"]
        assert set(picture.info) == {"parameters"}
    first, facts = text.split("\n")
    assert first == "a secret prompt 0 of zqx <lora:my-owl:1>"
    # A1111's own expression for the last line.
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', facts)
    assert dict(pairs)["CFG scale"] == "7.5"
    told = json.loads((out / "civitai.json").read_text())
    assert told["baseModel"] == "SD 1.5"
    assert told["trainedWords"] == ["zqx"]
    again = Recipe.read(out / "recipe.toml", images="x")
    assert again.optimizer.steps == 123
    assert again.trigger == "zqx"


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        *((("adamw", s)) for s in ("constant", "cosine", "linear", "restarts", "polynomial")),
        ("prodigy", "cosine"),
    ],
)
def test_a_shared_recipe_asks_what_the_run_asked(kind: str, schedule: str, tmp_path: Path) -> None:
    recipe = Recipe.build(
        settings=(f"optimizer.kind={kind}", f"optimizer.schedule={schedule}"), trigger="zqx"
    )
    file = tmp_path / "recipe.toml"
    file.write_text(recipe_text(recipe), encoding="utf8")
    assert Recipe.read(file) == recipe


def test_the_card_is_one_that_the_hub_takes(tmp_path: Path) -> None:
    run = build(tmp_path)
    out = share(run.folder).folder
    text = (out / "README.md").read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert set(data) <= set(DOCUMENTED)
    for key, value in data.items():
        assert isinstance(value, DOCUMENTED[key]), key
    assert data["license"] == "creativeml-openrail-m"
    assert data["base_model"] == "runwayml/stable-diffusion-v1-5"
    assert data["base_model_relation"] == "adapter"
    assert {"template:sd-lora", "stable-diffusion", "lora"} <= set(data["tags"])
    for entry in data["widget"]:
        assert set(entry) == {"text", "output"}
        assert (out / entry["output"]["url"]).is_file()
    read = ModelCard(text)
    assert isinstance(read.data, ModelCardData)
    assert read.data.library_name == "diffusers"
    for words in (
        "You should use `zqx` to trigger",
        "<Gallery />",
        "0.83",
        "0.75 to 0.91",
        "| 32 |",
    ):
        assert words in read.text
    for words in ("32 class prompts of 4 pictures", "rules 5", "load_lora_weights"):
        assert words in read.text


@pytest.mark.parametrize(
    ("family", "licence", "tag"),
    [
        ("sd2", "openrail++", "stable-diffusion"),
        ("sdxl", "openrail++", "stable-diffusion-xl"),
        ("sd3", "other", "sd3"),
        ("pocket", "apache-2.0", "lora"),
    ],
)
def test_licence_and_tags_follow_the_family(
    tmp_path: Path, family: str, licence: str, tag: str
) -> None:
    from variegate.share.source import source_of

    source = source_of(build(tmp_path).folder)
    source = replace(source, adapter=replace(source.adapter, family=family))
    data = card.front_matter(source, base_model=None, images=[], private=False)
    assert data.license == licence
    assert tag in data.tags
    assert "base_model" not in data.to_dict()
    assert ("license_link" in data.to_dict()) == (licence == "other")


@pytest.mark.parametrize("private", [False, True])
def test_no_folder_no_user_and_no_token_gets_out(
    tmp_path: Path, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", OTHER_SECRET)
    run = build(tmp_path)
    text = everything(share(run.folder, private=private).folder)
    for planted in (SECRET, OTHER_SECRET, HOME, "/home/", "annabel/", str(tmp_path)):
        assert planted not in text, planted
    assert ("annabel" in text) == (not private)  # who says that she is the author
    for prompt in ("secret prompt", "private caption"):
        assert (prompt in text) == (not private), prompt


def test_private_pictures_and_headers_say_nothing(tmp_path: Path) -> None:
    out = share(build(tmp_path).folder, private=True).folder
    with Image.open(out / "images/sample_0.png") as picture:
        assert picture.info == {}
    notes = own_notes(formats.read(out / "my-owl.safetensors").metadata)
    assert set(notes["verdict"]) == {"labels", "rules", "measured"}
    assert notes["class"] == "owl"
    assert "secret" not in notes


def test_a_hostile_trigger_stays_a_text(tmp_path: Path) -> None:
    run = build(tmp_path, trigger=HOSTILE, base=f"{HOME}/sd15")
    found = share(run.folder)
    text = (found.folder / "README.md").read_text()
    data = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---"))
    assert data["license"] == "creativeml-openrail-m"
    assert data["instance_prompt"].startswith("zqx --- license: mit --- <script>")
    assert "\u202e" not in text
    assert "base_model" not in data
    assert any("--base-model OWNER/NAME" in line for line in found.warnings)
    read = ModelCard(text)
    assert read.data.license == "creativeml-openrail-m"
    outside = re.sub(r"(`{3,}).*?\1|(`+) .*? \2", "", read.text, flags=re.S)
    assert "<script" not in outside
    assert "](javascript" not in outside
    assert json.loads((found.folder / "civitai.json").read_text())["trainedWords"]
    assert "\n" not in found.name
    assert re.fullmatch(r"[A-Za-z0-9._-]+", found.name)


def test_markdown_shows_the_text_that_was_meant() -> None:
    assert escape("a *b* <c>\n# d") == r"a \*b\* &lt;c&gt; \# d"
    assert code("``a`") == "``` ``a` ```"
    assert fenced("```", "sh").startswith("````sh\n")


def test_a_second_sharing_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    run = build(tmp_path)
    first = share(run.folder, name="one")
    second = share(run.folder, name="two", private=True)
    assert not (first.folder / "one.safetensors").exists()
    listed = {str(f.relative_to(second.folder)) for f in second.folder.rglob("*") if f.is_file()}
    assert listed == {*second.files, "share.json"}


def test_what_cannot_be_shared_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        share(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"holds no recipe\.toml and no pick\.json"):
        share(tmp_path)
    run = build(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    for asked, words in (
        ({"out": tmp_path / "full"}, "holds something else"),
        ({"name": "a b"}, "such as 'a-b'"),
        ({"base_model": "here"}, "expected OWNER/NAME"),
    ):
        with pytest.raises(RequestError, match=words):
            share(run.folder, **asked)  # type: ignore[arg-type]
    run.adapter_file.unlink()
    with pytest.raises(RequestError, match="has no adapter yet"):
        share(run.folder)


def test_a_run_that_was_never_judged_is_shared_without_figures(tmp_path: Path) -> None:
    run = build(tmp_path)
    run.verdict_file.unlink()
    for file in (run.samples / "adapter").iterdir():
        file.unlink()
    found = share(run.folder)
    text = (found.folder / "README.md").read_text()
    assert "What it keeps" not in text
    assert "<Gallery />" not in text
    assert len(found.warnings) == 2


class Hub:
    """What is asked of the Hub, in place of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        hub = self

        class Api:
            def create_repo(self, repo: str, **words: Any) -> str:
                if fault is not None:
                    raise fault
                hub.asked.append(("create_repo", {"repo": repo, **words}))
                return f"https://huggingface.co/{repo}"

            def upload_folder(self, **words: Any) -> None:
                hub.asked.append(("upload_folder", words))

        monkeypatch.setattr("variegate.share.hub.HfApi", Api)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)


def test_only_a_push_uploads_and_only_what_was_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    run = build(tmp_path)
    share(run.folder)
    assert hub.asked == []
    found = share(run.folder, push="ann/owl", private=True)
    assert found.pushed == "https://huggingface.co/ann/owl"
    (create, made), (upload, sent) = hub.asked
    assert (create, upload) == ("create_repo", "upload_folder")
    assert made["private"] is True
    assert sent["repo_id"] == "ann/owl"
    assert sent["allow_patterns"] == list(found.files)
    assert Path(sent["folder_path"]) == found.folder
    assert 'load_lora_weights("ann/owl"' in (found.folder / "README.md").read_text()


def test_a_push_that_cannot_be_is_refused_before_and_told_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE is set; unset it"):
        share(run.folder, push="ann/owl")
    assert not (run.folder / "share").exists()
    Hub(monkeypatch)
    for name, words in (("a b/c", "is no name on the Hub"), ("owl", "expected OWNER/NAME")):
        with pytest.raises(RequestError, match=words):
            share(run.folder, push=name)
    Hub(monkeypatch, LocalTokenNotFoundError("no token"))
    with pytest.raises(RequestError, match="hf auth login"):
        share(run.folder, push="ann/owl")
    Hub(monkeypatch, OSError("unreachable"))
    with pytest.raises(WorkError, match=r"the folder .* is complete"):
        share(run.folder, push="ann/owl")


def test_the_command_answers_in_one_document(tmp_path: Path) -> None:
    run = build(tmp_path)
    done = CliRunner().invoke(app, ["share", str(run.folder), "--json", "--quiet"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["folder"] == str(run.folder / "share")
    assert found["pushed"] is None
    assert (
        CliRunner()
        .invoke(app, ["share", str(run.folder)])
        .stdout.endswith("Nothing was uploaded; --push OWNER/NAME does.\n")
    )
