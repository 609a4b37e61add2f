"""The pocket's words: a CLIP tokenizer whose BPE vocabulary is trained on the world's captions."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from variegate.bench import world

LENGTH = 32
SHIPPED = Path(__file__).resolve().parents[2] / "src/variegate/models/pocket/tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """The vocabulary in the folder as CLIP's; else the shipped one; trained where there is neither.

    Never trained twice: the trainer breaks ties as it likes, so another time the ids of words that
    occur equally often are others, and weights that learnt the first ones call a bus a ladybug.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "vocab.json").exists() and (SHIPPED / "vocab.json").exists():
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(SHIPPED / file, folder / file)
    if not (folder / "vocab.json").exists():
        _train_vocabulary(folder)
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )


def _train_vocabulary(folder: Path) -> None:
    """Train it on captions and write it as vocab.json and merges.txt."""
    rng = np.random.default_rng(3)
    text = [world.draw_caption(world.draw_scene(rng), rng) for _ in range(20_000)]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    text += [*letters, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1100,
        min_frequency=12,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    # Every byte may end a word too, so that no trigger word is ever unknown.
    tokens += [c + "</w>" for c in alphabet if c + "</w>" not in model["vocab"]]
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf8")
