"""What was learnt, free of any file format, and how it sits on a model.

`noun` is the adapter, `ensemble` several that sample together, `updates` what one layer gets in
each kind, `places` which layers learn, `tuners` PEFT's layers, `timed` T-LoRA's own, `begin` sizes
and first weights, `dial` how strongly each row of a batch gets them, `attach` all of it on a model.
"""

from variegate.adapter.attach import Attached, attach, attach_from, attached, attached_in_turn
from variegate.adapter.dial import Dial
from variegate.adapter.ensemble import WAYS, Ensemble, Way
from variegate.adapter.noun import Adapter, Masking
from variegate.adapter.places import PARTS
from variegate.adapter.updates import LayerUpdate, Update

__all__ = [
    "PARTS",
    "WAYS",
    "Adapter",
    "Attached",
    "Dial",
    "Ensemble",
    "LayerUpdate",
    "Masking",
    "Update",
    "Way",
    "attach",
    "attach_from",
    "attached",
    "attached_in_turn",
]
