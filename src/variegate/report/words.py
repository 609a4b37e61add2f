"""What labels, measurements, strategies and probes mean, in an artist's words.

A name that is not listed here is still shown, under its technical name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "warn", "bad", "unsure"]


@dataclass(frozen=True)
class LabelWords:
    """A label as the page says it: a chip's title, its tone, and what it means."""

    title: str
    tone: Tone
    meaning: str


LABELS: dict[str, LabelWords] = {
    "healthy": LabelWords(
        "Healthy",
        "good",
        "The adapter has learnt something new, and as far as these pictures can show it still "
        "varies, listens to the prompt and remembers its class the way the base model does.",
    ),
    "narrowed": LabelWords(
        "Narrowed",
        "warn",
        "Even without the trigger word, pictures of the same kind of thing have become more "
        "alike than the base model's. The adapter changes more than the subject it was meant for.",
    ),
    "trigger-narrowed": LabelWords(
        "Trigger-narrowed",
        "warn",
        "With the trigger word, whatever the prompt leaves open (background, layout, pose) keeps "
        "coming out the same. Some sameness belongs to the subject; this is more than that.",
    ),
    "prompt-ignored": LabelWords(
        "Prompt ignored",
        "warn",
        "The pictures follow the words of the prompt less than the base model's do.",
    ),
    "class-forgotten": LabelWords(
        "Class forgotten",
        "warn",
        "Asked for the ordinary kind of thing, the model now draws your subject or something "
        "broken: it has partly forgotten what it knew.",
    ),
    "copying": LabelWords(
        "Copying",
        "bad",
        "Some pictures repeat a training picture nearly as it is, instead of showing the subject "
        "anew.",
    ),
    "undertrained": LabelWords(
        "Undertrained",
        "unsure",
        "The pictures do not yet look like your subject, so their variety says nothing about "
        "collapse so far.",
    ),
    "inconclusive": LabelWords(
        "Inconclusive",
        "unsure",
        "These pictures cannot tell. This is no all-clear and no alarm: the reasons below say "
        "what would settle it.",
    ),
}


@dataclass(frozen=True)
class NumberWords:
    """How a headline number is read.

    style: a share, a signed share, or a bare number.
    reference: the value that stands for "no change" and is drawn as a tick, with its name.
    scale: the ends of the drawn axis; it grows when an interval does not fit.
    below, same, above: the sentence when the interval lies below the reference, spans it, or
    lies above it; `{value}` is filled in. Without a reference `same` is always used.
    """

    title: str
    style: Literal["percent", "change", "plain"]
    scale: tuple[float, float]
    reference: float | None
    reference_name: str
    below: str
    same: str
    above: str


NUMBERS: dict[str, NumberWords] = {
    "variety_vs_base": NumberWords(
        "Variety without the trigger",
        "percent",
        (0.0, 1.2),
        1.0,
        "base",
        "Asked for ordinary things, it keeps about {value} of the base model's variety.",
        "Asked for ordinary things, it is about as varied as the base model, as far as these "
        "pictures can tell.",
        "Asked for ordinary things, it is more varied than the base model.",
    ),
    "repeat_rate": NumberWords(
        "Repeats across prompts",
        "percent",
        (0.0, 1.0),
        0.0,
        "base",
        "Its pictures of different prompts repeat one another less than the base model's.",
        "Its pictures of different prompts repeat one another no more than the base model's, as "
        "far as these pictures can tell.",
        "{value} of the pictures nearly repeat one that another prompt drew.",
    ),
    "trigger_variety_vs_base": NumberWords(
        "Variety with the trigger",
        "percent",
        (0.0, 1.2),
        1.0,
        "base",
        "With the trigger word, pictures of one prompt keep about {value} of the base model's "
        "variety. Some loss is natural, since the subject itself is now fixed.",
        "With the trigger word, it is about as varied as the base model, as far as these pictures "
        "can tell.",
        "With the trigger word, it is more varied than the base model.",
    ),
    "likeness": NumberWords(
        "Likeness",
        "percent",
        (0.0, 1.2),
        None,
        "",
        "",
        "It went {value} of the way from the base model's pictures to yours (100 % = as like your "
        "pictures as they are to one another).",
        "",
    ),
    "copy_rate": NumberWords(
        "Copies",
        "percent",
        (0.0, 1.0),
        0.0,
        "none",
        "",
        "About {value} of the pictures repeat a training picture, which may be chance.",
        "About {value} of the pictures repeat a training picture nearly as it is.",
    ),
    "adherence_vs_base": NumberWords(
        "Following the prompt",
        "change",
        (-0.6, 0.6),
        0.0,
        "base",
        "It follows the words of the prompt less than the base model does.",
        "It follows the prompt about as well as the base model, as far as these pictures can tell.",
        "It follows the words of the prompt more closely than the base model does.",
    ),
    "class_taken": NumberWords(
        "Your subject in place of its class",
        "percent",
        (0.0, 1.0),
        0.0,
        "base",
        "Asked for the ordinary kind of thing, it draws your subject less often than the base "
        "model.",
        "Asked for the ordinary kind of thing, it draws your subject no more often than the base "
        "model, as far as these pictures can tell.",
        "Of the pictures asked for the ordinary kind of thing, {value} show your subject.",
    ),
    "class_retention": NumberWords(
        "Remembering its class",
        "percent",
        (0.0, 1.2),
        1.0,
        "base",
        "Asked for the ordinary kind of thing, {value} of it is still itself; the rest has moved "
        "towards your subject.",
        "Asked for the ordinary kind of thing, it draws it like the base model, as far as these "
        "pictures can tell.",
        "Asked for the ordinary kind of thing, it keeps clear of your subject.",
    ),
    "world_drift": NumberWords(
        "Leaving the rest alone",
        "plain",
        (0.0, 0.5),
        None,
        "",
        "",
        "How far pictures of unrelated things have moved from the base model's: 0 is untouched, "
        "0.5 is nothing in common.",
        "",
    ),
}

# What a strategy does and why one would want it, for people who paint rather than train.
STRATEGIES: dict[str, tuple[str, str]] = {
    "min_snr": (
        "Even-handed noise levels",
        "Stops a few easy noise levels from dominating what is learnt.",
    ),
    "caption_scene": (
        "Say what is seen",
        "Some captions say how large the subject is, where it stands and on what colour, so that "
        "these words keep their meaning beside the trigger and it does not take them over.",
    ),
    "caption_dropout": (
        "Caption dropout",
        "Some steps train without a caption, so that guidance keeps its footing.",
    ),
    "caption_shuffle": (
        "Tags in any order",
        "The tags of a caption change places, so that each is read for itself.",
    ),
    "token_dropout": (
        "Fewer words",
        "Some words of a caption are left out, so that no set of words calls up one picture.",
    ),
    "caption_edits": (
        "Stray words",
        "A random word is put into some captions, so that no caption is the key to one picture.",
    ),
    "caption_noise": (
        "Blurred words",
        "Captions read a little differently each time, so that none is the key to one picture.",
    ),
    "even_pictures": (
        "One picture, one vote",
        "Copies of a picture take turns, so that it does not count more than the others.",
    ),
    "buckets": (
        "Shapes kept",
        "Wide and tall pictures are trained on as they are, not cut to squares.",
    ),
    "flip": ("Mirroring", "Mirrored copies keep one side from becoming the only side."),
    "crop": (
        "Cropping",
        "Parts of a picture are shown at full size, so that one framing is not learnt as part of "
        "the subject.",
    ),
    "affine": (
        "Turning and leaning",
        "The subject is shown turned and leaning a little, with fresh ground painted where the "
        "picture ends.",
    ),
    "colour": (
        "Other light",
        "Brightness, contrast and colours vary a little, as light and cameras make them vary.",
    ),
    "erase": (
        "Gaps",
        "A rectangle is taken out here and there, so that no single part stands for the subject.",
    ),
    "stay_near": (
        "Stay near the base",
        "While your subject is learnt, prompts for ordinary things are held to what the base "
        "model would have drawn, so that it does not forget them.",
    ),
    "zoom_shift": (
        "Zoom and shift",
        "The subject is shown at other sizes and places, with fresh ground painted where the "
        "picture ends, so that one layout is not learnt as part of it.",
    ),
    "masked_loss": (
        "Look at the subject",
        "Errors on the subject count fully and errors on the background little, so that the "
        "background is not learnt along with it.",
    ),
    "new_background": (
        "New backgrounds",
        "The subject is cut out and laid on other grounds, so that the one it was photographed on "
        "does not become part of it.",
    ),
    "layout_prior": (
        "Keep the base's layouts",
        "Where a picture is still mostly noise, and its layout is decided, the trigger is held to "
        "what the base draws for the class.",
    ),
    "prior_pictures": (
        "Class pictures",
        "Ordinary pictures of the class are learnt beside yours, so that the class stays itself.",
    ),
    "low_rank": (
        "Keep the update simple",
        "What is learnt is kept small and of few directions, so that it leaves the rest alone.",
    ),
    "spectral_cap": (
        "Cap the strongest direction",
        "No layer's strongest change may grow past a share of what the base has there.",
    ),
    "max_norm": ("Cap the size", "No layer's change may grow past a limit."),
    "neuron_dropout": (
        "Neuron dropout",
        "Single values inside the adapter are left out by chance, so that none is leant on.",
    ),
    "rank_dropout": (
        "Rank dropout",
        "Whole directions of the adapter are left out by chance, so that none is leant on.",
    ),
    "module_dropout": (
        "Layer dropout",
        "Whole layers of the adapter are left out by chance, so that none is leant on.",
    ),
    "debiased": (
        "Noise weighed evenly",
        "Errors count by what they miss of the clean picture, at every level of noise.",
    ),
    "soft_high_noise": (
        "Layout counts less",
        "Where a picture is mostly noise its layout is learnt by heart first; that counts less.",
    ),
    "noise_offset": (
        "Noise offset",
        "Brightness as a whole is learnt too, which helps very dark and very light pictures.",
    ),
    "input_perturbation": (
        "A little more noise",
        "The input is noised a little more than is said, so that small errors do not grow.",
    ),
    "huber": ("Bend large errors", "Large errors count less, so that odd pictures pull less."),
    "ema": (
        "Running average",
        "The adapter is a running average of its last steps, which is steadier than any one.",
    ),
    "swa": (
        "Average of the end",
        "The adapter is the average of the last part of training, steadier than any one point.",
    ),
}

# What advice calls by other names than a strategy's.
ADVICE_TITLES: dict[str, str] = {
    "sampling": "Draw more pictures",
    "optimizer": "Train for another length",
    "adapter": "Another size of adapter",
}

PROBES: dict[str, tuple[str, str]] = {
    "loss": ("Training loss", "What training pushes down. Lower is not always better."),
    "terms": ("Parts of the loss", "What the loss is made of."),
    "loss_vs_base.train": (
        "Learning your pictures",
        "Error on pictures it trains on, against the base model's (dashed). Falling is learning.",
    ),
    "loss_vs_base.held_out": (
        "Pictures it never saw",
        "Error on pictures kept aside, against the base model's (dashed). Rising while the other "
        "falls is memorising.",
    ),
    "held_out_gap": (
        "Memorising",
        "How much better it does on pictures it trains on than on ones kept aside. A growing gap "
        "is learning by heart.",
    ),
    "bits": (
        "Bits learnt",
        "How much better than the base it tells these pictures from noise, in bits.",
    ),
    "bits_gap": (
        "Bits learnt by heart",
        "How much more it learnt of pictures it trains on than of ones kept aside.",
    ),
    "guidance": (
        "Pull of the prompt",
        "How far a prompt moves the answer, against the base model's (dashed). Far above it is "
        "what pictures learnt by heart show.",
    ),
    "update_size": (
        "How much was learnt",
        "The size of the changes: nuclear norm, and the largest share of the base's own weights.",
    ),
    "update_rank": (
        "Over how many directions",
        "Ranks of the changes, in the middle layer: few directions leave more of the base alone.",
    ),
    "intruders": (
        "Directions the base does not have",
        "Among the strongest directions of each layer, those unlike every one of the base's. They "
        "grow with the learning rate and the steps; alone they tell little of collapse.",
    ),
    "leak": (
        "Leak into the class",
        "How far ordinary prompts moved, against how far the trigger did. 0 is none.",
    ),
    "one_step_copying": (
        "Nearness to the pictures",
        "How much nearer its first guesses are to a training picture than the base model's. At 1 "
        "each is one.",
    ),
    "one_step_variety": (
        "Variety while training",
        "How different its first guesses from different noise are, against the base model's "
        "(dashed). Falling towards 0 is collapse coming.",
    ),
}

# Last parts of a probe's name, in the order in which they are listed.
PROBE_PARTS: dict[str, str] = {
    "high": "high noise (layout)",
    "middle": "middle noise (shapes)",
    "low": "low noise (detail)",
    "class": "class prompts",
    "trigger": "trigger prompts",
    "nuclear_norm": "nuclear norm",
    "stable": "stable rank",
    "effective": "effective rank",
    "share": "share of the base's",
}

GROUPS: dict[str, str] = {
    "trigger": "With the trigger word",
    "class": "Without the trigger word",
    "caption": "Training captions",
    "unrelated": "Unrelated prompts",
    "": "Samples",
}


def probe_words(prefix: str) -> tuple[str, str]:
    """Title and meaning of a family of probes; an unknown one keeps its technical name."""
    return PROBES.get(prefix, (prefix.replace("_", " "), ""))


def label_words(label: str) -> LabelWords:
    """The words of a label; an unknown one keeps its name."""
    return LABELS.get(label, LabelWords(label, "unsure", ""))
