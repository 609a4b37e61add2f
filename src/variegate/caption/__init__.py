"""Captions proposed by a model that looks at the pictures; written beside them only when asked.

captions = propose(ImageSet.read("photos"), load_captioner(Path("blip")), trigger="zqx",
                   class_noun="dog")
write(captions)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from variegate.audit.captions import count_captions, judge_captions
from variegate.audit.finding import Finding
from variegate.caption.captioner import Captioner, load_captioner
from variegate.caption.weave import says_something, weave
from variegate.errors import ImagesError, NoSpace
from variegate.images import ImageSet, Picture
from variegate.images.captions import CAPTION_SUFFIXES, read_caption, read_parameters
from variegate.images.conventions import METADATA
from variegate.progress import Say, silent
from variegate.run import write_atomically

__all__ = ["Captions", "Proposal", "check_writable", "load_captioner", "propose", "write"]

State = Literal["proposed", "written", "kept", "empty"]


@dataclass(frozen=True)
class Proposal:
    """What one picture's caption could be.

    seen: what the model said. caption: that with trigger and class noun; "" where it said nothing.
    existing: the caption that is there already, beside the picture or inside it; None: none.
    sidecar: the file in which a caption is read first.
    """

    file: Path
    seen: str
    caption: str
    existing: str | None
    sidecar: Path
    state: State

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "file": str(self.file), "sidecar": str(self.sidecar)}


@dataclass(frozen=True)
class Captions:
    """The proposals for a folder, in the order of its pictures, and what is wrong with them.

    unread: pictures that could not be opened, and why.
    """

    folder: str
    model: str
    proposals: tuple[Proposal, ...]
    findings: tuple[Finding, ...]
    unread: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "model": self.model,
            "captions": [proposal.to_json() for proposal in self.proposals],
            "written": sum(proposal.state == "written" for proposal in self.proposals),
            "findings": [finding.to_json() for finding in self.findings],
            "unread": [{"file": file, "fault": fault} for file, fault in self.unread],
        }


def propose(
    images: ImageSet,
    captioner: Captioner,
    *,
    trigger: str = "",
    class_noun: str = "",
    say: Say | None = None,
) -> Captions:
    """A caption for every picture of a folder; nothing is written.

    Raises: ImagesError when no picture can be opened, CaptionerError when the model fails.
    """
    say = say or silent
    stems = Counter((p.file.parent, p.file.stem) for p in images if p.file is not None)
    proposals, unread = list[Proposal](), list[tuple[str, str]]()
    for done, picture in enumerate(images):
        say("caption", done, len(images), picture.key)
        file = picture.file
        assert file is not None  # a folder's pictures are files
        try:
            opened = picture.open()
        except ImagesError as error:
            unread.append((str(file), str(error)))
            continue
        seen = captioner.describe(opened)
        caption = weave(seen, trigger=trigger, class_noun=class_noun)
        existing, sidecar = _place(picture, file, alone=stems[file.parent, file.stem] == 1)
        state: State = "kept" if existing is not None else "proposed" if caption else "empty"
        proposals.append(Proposal(file, seen, caption, existing, sidecar, state))
    say("caption", len(images), len(images), "")
    if not proposals:
        raise ImagesError("\n".join(fault for _, fault in unread))
    return Captions(
        folder=images.origin,
        model=captioner.name,
        proposals=tuple(proposals),
        findings=tuple(judge(proposals, trigger=trigger, class_noun=class_noun)),
        unread=tuple(unread),
    )


def check_writable(images: ImageSet) -> None:
    """Raises: ImagesError where captions beside pictures would not be read."""
    listed = {Path(images.origin), *(p.file.parent for p in images if p.file is not None)}
    for folder in sorted(listed):
        if (folder / METADATA).is_file():
            raise ImagesError(
                f"the captions of {folder} are in its {METADATA}, so .txt files beside its "
                f"pictures would not be read; leave out --write and put the proposals into "
                f"{METADATA}, or remove that file"
            )


def write(captions: Captions, *, force: bool = False) -> Captions:
    """Write the proposals beside their pictures; with force, over captions that are there.

    An empty proposal is never written. Raises: NoSpace when a file cannot be written.
    """
    done = []
    for proposal in captions.proposals:
        if proposal.caption and (proposal.existing is None or force):
            try:
                write_atomically(proposal.sidecar, f"{proposal.caption}\n".encode())
            except OSError as error:
                raise NoSpace(
                    f"the caption {proposal.sidecar} cannot be written: {error.strerror}; those "
                    "before it are written; make room or check the folder's rights, then again"
                ) from error
            proposal = replace(proposal, state="written")
        done.append(proposal)
    return replace(captions, proposals=tuple(done))


def judge(proposals: Sequence[Proposal], *, trigger: str, class_noun: str) -> list[Finding]:
    """What about the proposed captions would narrow the adapter, as the audit sees it."""
    silent_ones = [
        p
        for p in proposals
        if not says_something(p.caption, trigger=trigger, class_noun=class_noun)
    ]
    found = []
    if silent_ones:
        found.append(
            Finding(
                "Some captions say nothing",
                f"{len(silent_ones)} of {len(proposals)} name nothing but the subject, such as "
                f"that of {silent_ones[0].file.name!r}: {silent_ones[0].caption!r}",
                "Write by hand what changes from picture to picture (background, pose, light), or "
                "take another captioning model.",
            )
        )
    facts = count_captions(
        [p.caption for p in proposals], [p.file.stem for p in proposals], trigger=trigger or None
    )
    return [*found, *judge_captions(facts, trigger=trigger)]


def _place(picture: Picture, file: Path, *, alone: bool) -> tuple[str | None, Path]:
    """The caption that is there, and the file in which a new one would be read.

    A folder's name that stands in for captions is none. alone: no other picture has this stem.
    """
    names = [stem + suffix for stem in (file.stem, file.name) for suffix in CAPTION_SUFFIXES]
    for name in names:
        beside = file.with_name(name)
        if beside.exists() or beside.is_symlink():
            return read_caption(beside)[0] or "", beside
    inside = read_parameters(file)
    listed = picture.prompt if (file.parent / METADATA).is_file() else None
    written = inside[0] if inside is not None else listed
    return written, file.with_name((file.stem if alone else file.name) + CAPTION_SUFFIXES[0])
