"""Reading prompts with CLIP's text encoders (and T5), layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def tokens(tokenizer: Any, prompts: list[str], length: int | None = None) -> Any:
    """Token ids and their mask, filled up and cut to the window."""
    return tokenizer(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=length or tokenizer.model_max_length,
        return_tensors="pt",
    )


def last_layer(
    encoder: Any, tokenizer: Any, prompts: list[str], *, skip: int
) -> Float[Tensor, "b t d"]:
    """The normed states of the last layer, or with skip > 1 of the skip-th from the end."""
    found = tokens(tokenizer, prompts)
    # Only some text encoders were trained with their padding masked out.
    masked = bool(getattr(encoder.config, "use_attention_mask", False))
    mask = found.attention_mask.to(encoder.device) if masked else None
    ids: Int[Tensor, "b t"] = found.input_ids.to(encoder.device)
    if skip == 1:
        answer = encoder(ids, attention_mask=mask)
        states: Tensor = answer.last_hidden_state
        return states
    answer = encoder(ids, attention_mask=mask, output_hidden_states=True)
    inner = getattr(encoder, "text_model", encoder)
    normed: Tensor = inner.final_layer_norm(answer.hidden_states[-skip])
    return normed


def penultimate_layer(
    encoder: Any, tokenizer: Any, prompts: list[str], *, skip: int
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b p"] | None]:
    """The bare states of the layer before the last, with skip > 1 of one so many further back;
    and the prompt as one vector, where the encoder has a projection for it."""
    ids = tokens(tokenizer, prompts).input_ids.to(encoder.device)
    answer = encoder(ids, output_hidden_states=True)
    states: Tensor = answer.hidden_states[-(skip + 1)]
    pooled: Tensor | None = getattr(answer, "text_embeds", None)
    return states, pooled


def zero_rows(states: Tensor, prompts: list[str]) -> Tensor:
    """The rows of empty prompts as zeros."""
    empty = torch.tensor([not prompt for prompt in prompts], device=states.device)
    return states.masked_fill(empty.view(-1, *([1] * (states.ndim - 1))), 0.0)
