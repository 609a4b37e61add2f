"""The pocket's words: a CLIP tokenizer whose BPE vocabulary is trained on the world's captions."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from variegate.bench import world

LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train the vocabulary, write it as vocab.json and merges.txt, and load it as CLIP's."""
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
    alphabet = pre_tokenizers.ByteLevel.alphabet()
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )
