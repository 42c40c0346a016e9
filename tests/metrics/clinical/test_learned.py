"""Learned clinical metrics: what is missing is one line; scores are those of radeval."""

import sys
from types import SimpleNamespace

import pytest

from medcap.metrics.clinical.learned import GREEN_MODEL, learned_scores


class FakeRadEval:
    """Scores like radeval: RadGraph has three keys, and RaTEScore cannot load its weights."""

    def __init__(self, metrics, show_progress):
        self.metrics = metrics

    def __call__(self, refs, hyps):
        if self.metrics == ["ratescore"]:
            raise OSError("no weights\nof RaTEScore")
        return dict.fromkeys(("radgraph_simple", "radgraph_partial", "radgraph_complete"), 0.5)


def test_without_radeval_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "radeval", None)
    scores, [missing] = learned_scores(["a mass"], ["a cyst"])
    assert scores == {}
    assert missing.startswith("RadGraph F1, RaTEScore, GREEN need radeval: pip install ")
    assert "[clinical]" in missing


def test_a_metric_without_weights_does_not_stop_the_others(monkeypatch):
    monkeypatch.setitem(sys.modules, "radeval", SimpleNamespace(RadEval=FakeRadEval))
    scores, missing = learned_scores(["a mass"], ["a cyst"])
    assert scores == pytest.approx(dict.fromkeys(("radgraph_simple", "radgraph_partial", "radgraph_complete"), 0.5))
    assert [line.partition(" ")[0] for line in missing] == ["RaTEScore", "GREEN"]
    assert GREEN_MODEL in missing[1]
    assert not any("\n" in line for line in missing)
