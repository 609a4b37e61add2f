"""What is chosen by drawing and measuring: which checkpoint to use and how, and of a finished
adapter the edits that repair it.

`choosing` is the verb `pick`: `points` are what it can choose, `race` how it searches, `stand` who
draws and measures for it, `votes` what people say, `handing` what is told and exported. `mending`
is the verb `repair`: `search` looks for edits within a number of tries, `hearing` works out what
one of them has to know.
"""

from variegate.pick.choosing import Picked, pick
from variegate.pick.mending import Repaired, repair

__all__ = ["Picked", "Repaired", "pick", "repair"]
