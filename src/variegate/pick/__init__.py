"""What is chosen by drawing and measuring: of a finished adapter, the edits that repair it.

`search` looks for them within a number of tries, `hearing` works out what one of them has to know,
`mending` is the verb.
"""

from variegate.pick.mending import Repaired, repair

__all__ = ["Repaired", "repair"]
