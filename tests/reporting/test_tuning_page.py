"""The page and plots of a search show every trial, and need enough of them for the importance of keys."""

from medcap.reporting.tuning_page import SearchResult, TrialRow, plot_history, write_results

ROWS = [
    TrialRow(0, "complete", 1.5, 4, {"learning_rate": 0.001, "lora_init": "<b>"}),
    TrialRow(1, "pruned", 0.5, 1, {"learning_rate": 0.01, "lora_init": "x"}),
    TrialRow(2, "failed", None, 0, {"learning_rate": 1.0, "lora_init": "x"}, "the loss became inf"),
    TrialRow(3, "complete", 2.25, 4, {"learning_rate": 0.0043210987, "lora_init": "x"}),
]


def result(**changes):
    values = {
        "recipe": "recipe.yaml", "metric": "cider", "greater_is_better": True,
        "space": {"learning_rate": "0.001 to 1, log scale", "lora_init": "<b>, x"},
        "before": {"learning_rate": 0.001, "lora_init": "<b>"}, "rows": ROWS, "best": ROWS[3], "own": ROWS[0],
        "importance": {},
    }  # fmt: skip
    return SearchResult(**values | changes)


def test_page_holds_the_trials_and_escapes_their_values(tmp_path):
    write_results(tmp_path, result())
    page = (tmp_path / "report.html").read_text()
    for text in ("the loss became inf", "0.004321", "2.2500", "1.5000", "2 complete, 1 pruned, 1 failed", "&lt;b&gt;"):
        assert text in page
    assert "<b>" not in page
    assert not (tmp_path / "importance.png").exists()
    assert (tmp_path / "trials.csv").read_text().splitlines()[3] == "2,failed,,0,1.0,x,the loss became inf"


def test_importance_is_drawn_and_values_outside_the_space_are_stated(tmp_path):
    write_results(tmp_path, result(importance={"learning_rate": 0.75, "lora_init": 0.25}, own=None))
    assert (tmp_path / "importance.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert "lie outside the space" in page


def test_history_shows_the_best_value_so_far_in_the_direction_of_the_metric():
    for greater, expected in ((True, [1.5, 2.25]), (False, [1.5, 1.5])):
        (axis,) = plot_history(result(greater_is_better=greater)).axes
        lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
        assert lines == {"complete": [1.5, 2.25], "pruned": [0.5], "best so far": expected}
