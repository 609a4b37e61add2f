"""T5's tokenizer, which no checkpoint of Stable Diffusion 3 holds, from wherever it lies.

Read are a tokenizer's folder, a `tokenizer.json`, and the SentencePiece model as T5 was published
(`spiece.model`), for which no library of its own is needed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, T5TokenizerFast

from variegate.errors import BaseError

LARGEST = 64 << 20  # bytes; T5's own has 0.8 million
FIRST = ("<pad>", "</s>", "<unk>")  # T5's first pieces, in the order of their ids
UNIGRAM = 1
# Numbers of fields in google/sentencepiece `src/sentencepiece_model.proto`.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE = 1, 2
MODEL_TYPE = 3
CHARSMAP = 2
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types


def find_t5_tokenizer(path: Path) -> Path:
    """The file to read: the path itself, or the tokenizer.json or spiece.model in the folder.

    Raises: BaseError when there is neither, or the file is of another kind.
    """
    if path.is_dir():
        for name in ("tokenizer.json", "spiece.model"):
            if (path / name).is_file():
                return path / name
        held = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise BaseError(
            f"T5's tokenizer: {path} holds {held}; expected tokenizer.json or spiece.model, as in "
            "the folder tokenizer_3 of the diffusers form of Stable Diffusion 3"
        )
    if path.is_file() and path.suffix in (".json", ".model"):
        return path
    found = f"{path} is a file of another kind" if path.is_file() else f"nothing at {path}"
    raise BaseError(
        f"T5's tokenizer: {found}; expected a folder, a tokenizer.json or a spiece.model"
    )


def read_t5_tokenizer(path: Path) -> Any:
    """The tokenizer in a folder or file.

    Raises: BaseError when there is none, or what is there cannot be read or is not T5's.
    """
    file = find_t5_tokenizer(path)
    if file.stat().st_size > LARGEST:
        raise BaseError(
            f"T5's tokenizer: {file} has {file.stat().st_size} bytes; at most {LARGEST}"
        )
    try:
        if file.suffix == ".model":
            return _from_pieces(file.read_bytes())
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file), pad_token=FIRST[0], eos_token=FIRST[1], unk_token=FIRST[2]
        )
    except Exception as error:  # tokenizers raises nothing narrower
        what = " ".join(str(error).split())[:200]
        raise BaseError(
            f"T5's tokenizer cannot be read from {file}: {what}; copy or download it again"
        ) from error


def digest_t5_tokenizer(path: Path) -> str:
    """What tells two of them apart: a hash of the file that is read."""
    return hashlib.sha256(find_t5_tokenizer(path).read_bytes()).hexdigest()[:8]


def _from_pieces(data: bytes) -> Any:
    """Raises: ValueError for what is no SentencePiece model or not one of T5's."""
    pieces, charsmap, kind = list[tuple[str, float]](), b"", UNIGRAM
    for number, value in _fields(data):
        if number == PIECES:
            inner = dict(_fields(_bytes(value)))
            score = struct.unpack("<f", _bytes(inner.get(SCORE, bytes(4))))[0]
            pieces.append((_bytes(inner.get(PIECE, b"")).decode("utf8"), score))
        elif number == TRAINER:
            kind = dict(_fields(_bytes(value))).get(MODEL_TYPE, UNIGRAM)  # type: ignore[assignment]
        elif number == NORMALIZER:
            charsmap = _bytes(dict(_fields(_bytes(value))).get(CHARSMAP, b""))
    begun = tuple(piece for piece, _ in pieces[: len(FIRST)])
    if begun != FIRST or kind != UNIGRAM:
        raise ValueError(f"it begins with {begun} (kind {kind}); T5's with {FIRST} (kind 1)")
    return T5TokenizerFast(vocab=pieces, _spm_precompiled_charsmap=charsmap or None)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; a nested message's bytes unread.

    Source: the Protocol Buffers encoding, "Message Structure".
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        sizes = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in sizes:
            size = sizes[wire]
        else:
            raise ValueError(f"no SentencePiece model: wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"cut off: {size} bytes are told at byte {at}, {len(data) - at} left")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(a whole number in groups of seven bits, the lowest first; where it ends)."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise ValueError("cut off within a number")
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise ValueError("no SentencePiece model: a number of more than ten bytes")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("no SentencePiece model: a number where bytes are expected")
    return value
