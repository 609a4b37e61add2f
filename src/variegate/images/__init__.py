"""Pictures of any origin as one type: training photographs and samples are both an ImageSet.

Reading a folder decodes no picture and imports no torch; `audit` tells what is wrong with a set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from variegate.errors import ImagesError
from variegate.images.cache import cache_dir, put
from variegate.images.conventions import read_folder
from variegate.images.decode import Examined, Fault, examine
from variegate.images.picture import Picture
from variegate.images.shards import Shards, absolute, is_sharded

if TYPE_CHECKING:
    from torch import Tensor

    from variegate.images.features import ImageEncoder
else:  # names for the shape checker; torch is imported when features are asked for
    Tensor = ImageEncoder = Any

__all__ = [
    "Examined",
    "Fault",
    "ImageSet",
    "Picture",
    "Shards",
    "absolute",
    "cache_dir",
    "examine",
    "is_sharded",
    "open_pictures",
]


def open_pictures(
    where: str | Path,
    *,
    share: tuple[int, int] = (0, 1),
    say: Callable[[int, int], object] | None = None,
) -> ImageSet | Shards:
    """The pictures of a folder, or of tars where a pattern, a folder of tars or an address is
    given. share, say: as `Shards.open` takes them.

    Raises: ImagesError.
    """
    spec = str(where)
    return Shards.open(spec, share=share, say=say) if is_sharded(spec) else ImageSet.read(spec)


@dataclass(frozen=True)
class ImageSet:
    """Pictures in a fixed order, where they came from, and what was wrong on reading them.

    Keys are unique. `faults` are about the folder (captions, links, formats); what is wrong inside
    a picture file is found by `examine`, which decodes it.
    """

    pictures: tuple[Picture, ...]
    origin: str
    faults: tuple[Fault, ...] = ()

    @staticmethod
    def read(folder: Path | str) -> ImageSet:
        """The pictures of a folder: flat with captions beside them, kohya's `10_name` sub-folders,
        metadata.jsonl, or one sub-folder per prompt.

        Raises: ImagesError when there is no folder or no picture in it.
        """
        if is_sharded(str(folder)):
            raise ImagesError(
                f"{str(folder)!r} names tars; `train` reads them as they are and `audit` a sample "
                "of them: for anything else unpack them, or some of them, into a folder"
            )
        reading = read_folder(Path(folder))
        if not reading.pictures:
            raise ImagesError(_nothing_found(str(folder), reading.faults))
        return ImageSet(tuple(reading.pictures), str(reading.root), tuple(reading.faults))

    @staticmethod
    def sampled(shards: Shards, most: int, *, seed: int = 0) -> ImageSet:
        """Pictures of tars by chance, `most` or all of them, as files in the cache.

        They lie there under names of ours. What was wrong with the tars is among the faults.
        Raises: ImagesError when they cannot be kept, WorkError when a tar cannot be read.
        """
        import numpy as np

        count = min(most, len(shards))
        numbers = np.random.default_rng(seed).choice(len(shards), count, replace=False)
        home = cache_dir() / "shards" / "samples"
        pictures = []
        for member in shards.members(sorted(numbers.tolist())):
            name = f"{hashlib.sha256(member.data).hexdigest()}{member.suffix}"
            mask = None
            if member.mask is not None:
                mask = _kept(home, f"{hashlib.sha256(member.mask).hexdigest()}.png", member.mask)
            file = _kept(home, name, member.data)
            pictures.append(Picture(member.key, file, member.caption, mask_file=mask))
        return ImageSet(tuple(pictures), shards.origin, shards.faults)

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def by_prompt(self) -> dict[str, ImageSet]:
        """The set split by prompt, in the order of first appearance; no prompt counts as ""."""
        parts: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            parts.setdefault(picture.prompt or "", []).append(picture)
        return {p: ImageSet(tuple(found), self.origin) for p, found in parts.items()}

    def select(self, keys: Iterable[str]) -> ImageSet:
        """The pictures with these keys, in the order of the keys.

        Raises: ImagesError that names the keys that are not in the set.
        """
        by_key = {p.key: p for p in self.pictures}
        wanted = list(keys)
        unknown = [k for k in wanted if k not in by_key]
        if unknown:
            raise ImagesError(
                f"{len(unknown)} of {len(wanted)} keys are not in the set from {self.origin!r}: "
                f"{', '.join(map(repr, unknown[:3]))}"
            )
        return ImageSet(tuple(by_key[k] for k in wanted), self.origin)

    def with_group(self, name: str) -> ImageSet:
        """The same pictures, all in one group."""
        return replace(self, pictures=tuple(replace(p, group=name) for p in self.pictures))

    def features(self, encoder: ImageEncoder, *, batch: int = 64) -> Float[Tensor, "n d"]:
        """One row per picture, in order, kept on disk by content under `cache_dir()`.

        batch: pictures per call of the encoder.
        Raises: EmptyImageSet, ImagesError for a picture that cannot be opened, EncoderError.
        """
        from variegate.images.features import cached_features

        return cached_features(self.pictures, encoder, batch=batch)


def _kept(home: Path, name: str, data: bytes) -> Path:
    """A file in the cache, whole or not at all."""
    file = home / name[:2] / name
    if file.is_file() and file.stat().st_size == len(data):
        return file
    try:
        put(file, data)
    except OSError as error:
        raise ImagesError(
            f"a picture out of a tar cannot be kept at {file}: {error.strerror}; free some space, "
            "or set VARIEGATE_CACHE to a folder that can be written"
        ) from error
    return file


def _nothing_found(folder: str, faults: list[Fault]) -> str:
    refused = [f for f in faults if not f.usable]
    message = f"no pictures in {folder!r}; expected PNG, JPEG, WEBP, BMP or GIF files"
    if refused or faults:
        told = "; ".join(f"{f.file.name!r}: {f.fault}" for f in (refused or faults)[:3])
        what = f"{len(refused)} file(s) were refused" if refused else "what was found"
        message += f". {what}: {told}"
    return message
