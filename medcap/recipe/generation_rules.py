"""Settings of caption generation that contradict each other."""

from __future__ import annotations

from medcap.recipe.groups import GenerationArguments


def generation_fault(settings: GenerationArguments) -> str:
    """Return the first contradiction in `settings`; "" if there is none."""
    if settings.min_new_tokens >= settings.max_new_tokens:
        return (
            f"min_new_tokens is {settings.min_new_tokens}, must be below max_new_tokens, {settings.max_new_tokens}: "
            "the end of a caption is a token too"
        )
    if settings.rerank != "none" and settings.num_beams < 2:
        return f"rerank is {settings.rerank}, which chooses among beams, and num_beams is 1: set it to 2 or more"
    if (settings.rerank_candidates or 0) > settings.num_beams:
        return (
            f"rerank_candidates is {settings.rerank_candidates}, must be at most num_beams, {settings.num_beams}: the "
            "candidates are beams"
        )
    return ""
