"""Tiny random captioning models of their families' own classes, written in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.tiny import write_byte_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

WORDS = ("dog", "cat", "lawn", "sofa", "red", "blue", "on", "a", "beach", "night", "table", "box")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")


def write_blip(folder: Path) -> Path:
    """BLIP with a vocabulary of twelve words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), additional_special_tokens=["[DEC]"])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text: dict[str, Any] = {
        **sizes,
        "encoder_hidden_size": 16,
        "intermediate_size": 16,
        "vocab_size": len(SPECIAL) + len(WORDS),
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    vision = {**sizes, "image_size": 16, "patch_size": 8, "intermediate_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reads(folder, "BlipImageProcessor")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "BlipProcessor"}))
    return folder


def write_vit_gpt2(folder: Path) -> Path:
    """A vision transformer with a decoder of text, one token per byte."""
    tokenizer = write_byte_tokenizer(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = ViTConfig(**sizes, image_size=16, patch_size=8, intermediate_size=16)
    text = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        add_cross_attention=True,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionEncoderDecoderModel(encoder=ViTModel(vision), decoder=GPT2LMHeadModel(text))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.pad_token_id = len(tokenizer) - 2
        config.eos_token_id = len(tokenizer) - 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reads(folder, "ViTImageProcessor")
    return folder


def write_git(folder: Path) -> Path:
    """GIT, whose text goes on from the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GitConfig(
        **sizes,
        vision_config={**sizes, "image_size": 16, "patch_size": 8, "intermediate_size": 16},
        vocab_size=len(tokenizer),
        intermediate_size=16,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GitForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reads(folder, "CLIPImageProcessor")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "GitProcessor"}))
    return folder


def write_florence2(folder: Path) -> Path:
    """Florence-2, which is asked by the name of a task."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *WORDS]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    stages = {"depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2], "embed_dim": [8, 16]}
    patches = {"patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = Florence2Config(
        vision_config={
            **stages,
            **patches,
            "patch_prenorm": [False, True],
            "window_size": 2,
            "projection_dim": 16,
        },
        text_config={
            **layers,
            **heads,
            "model_type": "bart",
            "vocab_size": len(words),
            "d_model": 16,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        },
        image_token_id=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Florence2ForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    pictures.image_seq_length = 17  # 4 x 4 places and one for them all
    processor = Florence2Processor(image_processor=pictures, tokenizer=tokenizer)
    processor.save_pretrained(folder)
    return folder


def reads(folder: Path, kind: str) -> None:
    plan = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_rescale": True,
        "do_center_crop": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(plan))
