"""A folder ready for the Hub, Civitai and A1111 from a run or from what was picked.

`source` reads what there is to share, `card` is the model card, `private` what is left out of every
text, `folder` the verb, `hub` the upload, on request alone.
"""

from variegate.share.folder import Shared, share

__all__ = ["Shared", "share"]
