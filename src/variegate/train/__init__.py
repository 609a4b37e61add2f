"""Pictures and a base in, an adapter out: `loop` is the page to read."""

from variegate.train.examples import caption_of
from variegate.train.loop import result, resume, train

__all__ = ["caption_of", "result", "resume", "train"]
