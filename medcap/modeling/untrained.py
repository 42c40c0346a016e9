"""Tokens whose input embeddings the base never learned: LoRA does not change them, so captions hardly contain them."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from medcap.data.captions import TokenizedCaptions
from medcap.modeling.trained_modules import KEY

SAMPLED = 1000  # rows of the table that each row is compared with
SIMILAR, COMMON = 0.95, 0.01  # the lowest cosine of similar rows, and how many of the table's rows are similar


def untrained_rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return which rows of an embedding table look untrained.

    Training moves all tokens that never occur in the same direction, and so does tying the table to the head; rows
    that a tokenizer was extended by are copies of the mean. Such a row has a cosine above 0.95 with over 1 % of the
    table's rows, of which 1000 are compared. In a table of independent random rows, and in trained ones, hardly two
    rows are that similar.

    Args:
        table: Embeddings (V, D).
        ids: Numbers (N,) of the rows.

    Returns:
        (N,) bool.
    """
    sample = _directions(table[torch.linspace(0, len(table) - 1, min(SAMPLED, len(table))).long()])
    counts = torch.cat([(_directions(table[part]) @ sample.T > SIMILAR).sum(1) for part in ids.split(8192)])
    return counts > max(COMMON * len(sample), 1)  # a row is similar to itself


def _directions(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows.detach().float().cpu(), dim=1)


def untrained_warning(base: PreTrainedModel, captions: TokenizedCaptions) -> str:
    """Return one line about the tokens of `captions` whose frozen embeddings look untrained; "" if there are none."""
    embeddings = base.get_input_embeddings()
    if any(weight.requires_grad for weight in embeddings.parameters()):
        return ""
    ids = torch.cat([torch.from_numpy(row) for row in captions.ids]).long()
    different, counts = ids.unique(return_counts=True)
    untrained = untrained_rows(embeddings.weight, different)
    if not (count := int(counts[untrained].sum())):
        return ""
    return (
        f"{count / len(ids):.0%} of the tokens of the training captions ({count:,} of {len(ids):,}, "
        f"{int(untrained.sum()):,} different ones) have input embeddings that look untrained, and LoRA does not "
        f"change them: train them with {KEY}: [{_short_name(base, embeddings)}]"
    )


def _short_name(base: PreTrainedModel, module: torch.nn.Module) -> str:
    """Return the shortest end of the name of `module`, from a dot on, that is the end of no other name."""
    names = {name: part for name, part in base.named_modules() if name}
    (full,) = (name for name, part in names.items() if part is module)
    parts = full.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next(end for end in ends if sum(f".{name}".endswith(f".{end}") for name in names) == 1)
