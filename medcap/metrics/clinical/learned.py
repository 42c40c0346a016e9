"""Learned clinical metrics of radeval (Xu et al. 2025, EMNLP demos), an optional extra.

RadGraph F1 (Jain et al. 2021, arXiv:2106.14463), RaTEScore (Zhao et al. 2024, arXiv:2406.16845) and GREEN (Ostmeier
et al. 2024, arXiv:2405.03595). Each loads its own model from the Hub's cache or the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from huggingface_hub import try_to_load_from_cache

from medcap.extras import install_command
from medcap.logs import error_line

METRICS = {"radgraph": "RadGraph F1", "ratescore": "RaTEScore", "green": "GREEN"}  # names of radeval
GREEN_MODEL = "StanfordAIMI/GREEN-radllama2-7b"  # 13 GB: only used if it is on the machine


def learned_scores(predictions: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Compute the metrics of `METRICS` whose packages and weights are available.

    Args:
        predictions: One caption per image.
        references: The reference of each image.

    Returns:
        The scores, 0 to 1, by radeval's names (RadGraph F1 has three), and one line for each metric that is missing.
    """
    try:
        from radeval import RadEval
    except ImportError:
        return {}, [f"{', '.join(METRICS.values())} need radeval: {install_command('clinical')}"]
    scores: dict[str, float] = {}
    missing: list[str] = []
    for name, title in METRICS.items():
        if name == "green" and not isinstance(try_to_load_from_cache(GREEN_MODEL, "config.json"), str):
            missing.append(f"{title} needs {GREEN_MODEL} on this machine: hf download {GREEN_MODEL}")
            continue
        try:
            scores.update(_score(RadEval, name, predictions, references))
        except Exception as error:  # of the Hub, of weights, or of a package that radeval imports only now
            missing.append(f"{title} is not available: {error_line(error)}")
    return scores, missing


def _score(
    rad_eval: Callable[..., Any], name: str, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    result = rad_eval(metrics=[name], show_progress=False)(refs=list(references), hyps=list(predictions))
    return {key: float(value) for key, value in result.items()}
