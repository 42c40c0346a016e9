"""Comparison of several evaluations with paired tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcap.evaluation.compare import compare
from medcap.evaluation.csv_files import read_scores, write_scores
from medcap.evaluation.result import SystemScores
from medcap.metrics.statistics import Statistics, bootstrap
from medcap.reporting.tables import differences_text, intervals_table, text_table, write_comparison

METRICS = {"bleu_1": 0.5, "bleu_2": 0.4, "bleu_3": 0.3, "bleu_4": 0.2, "meteor": 0.1, "rouge_l": 0.6, "cider": 1.25}
INTERVALS = {name: [value - 0.1, value + 0.1] for name, value in METRICS.items()}
N = 60
IDS = [f"image-{number:03d}" for number in range(N)]
GROUPS = [f"patient {number // 2}" if number < 40 else None for number in range(N)]


def statistics(quality: float, seed: int) -> Statistics:
    """Return statistics of N images; all metrics increase with `quality`, 0 to 1."""
    rng = np.random.default_rng(seed)
    words = rng.integers(5, 30, N)
    matches = rng.binomial(words[:, None], [quality, quality / 2, quality / 4, quality / 8])
    bleu = np.column_stack([words, words, matches, words[:, None] - np.arange(4)]).astype(float)
    rouge_l = np.clip(rng.normal(quality, 0.1, N), 0, 1)
    matched = words * np.clip(rng.normal(quality, 0.1, N), 0.01, 1)
    meteor = np.column_stack([words, words, matched, matched, rng.integers(1, 5, N), 2 * matched])
    return Statistics(bleu, rouge_l, 10 * rouge_l**2 / 3, meteor)


def write_system(folder: Path, scores: Statistics) -> None:
    folder.mkdir(parents=True)
    write_scores(folder / "scores.csv", IDS, GROUPS, scores)


def evaluation(folder: Path, name: str, quality: float = 0.5, seed: int = 0, **changes: Any) -> Path:
    scores = statistics(quality, seed)
    write_system(folder, scores)
    content = {
        "name": name, "n": N, "metrics": {key: float(value[0]) for key, value in scores.corpus().items()},
        "intervals": {key: list(value) for key, value in bootstrap(scores).items()},
        "split": "test", "signature": f"metrics:coco|n:{N}|data:abc|decoding:beams-3", **changes,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_systems_keep_their_order_and_baselines_appear_once(tmp_path: Path) -> None:
    rows = {
        name: {"name": name, "n": N, "metrics": METRICS, "intervals": INTERVALS} for name in ("constant", "shuffled")
    }
    folders = [
        evaluation(tmp_path / "base", "base", baselines=rows),
        evaluation(tmp_path / "tuned", "tuned", 0.8, 1, baselines=rows),
    ]
    for folder in folders:
        for name in rows:
            write_system(folder / "baselines" / name, statistics(0.3, 2))
    comparison = compare(folders, tmp_path / "out")
    write_comparison(tmp_path / "comparison.md", comparison)
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [system["name"] for system in written["systems"]] == ["base", "tuned", "constant", "shuffled"]
    assert written["systems"][2]["metrics"]["cider"] == 1.25
    assert len(written["tests"]) == 6 * 7
    page = (tmp_path / "comparison.md").read_text()
    assert "| constant | 0.5000 (0.400 to 0.600) |" in page
    assert "| base minus tuned | -0." in page


def test_significant_differences_are_marked(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / "good", "good", 0.8, 1),
        evaluation(tmp_path / "equal", "equal", 0.8, 2),
        evaluation(tmp_path / "bad", "bad", 0.3, 3),
    ]
    comparison = compare(folders, tmp_path / "out")
    tests = comparison.tests
    cider = {(test.first, test.second): test for test in tests if test.metric == "cider"}
    assert not cider["good", "equal"].significant
    assert cider["good", "bad"].significant
    assert cider["good", "bad"].low > 0
    lines = differences_text(tests).splitlines()
    assert lines[0] == "good against equal: no significant difference in all metrics"
    assert lines[1] == "good against bad: above in all metrics"
    write_comparison(tmp_path / "comparison.md", comparison)
    assert "(n.s.)" in (tmp_path / "comparison.md").read_text()


def test_images_in_another_order_are_matched_by_id(tmp_path: Path) -> None:
    scores = statistics(0.5, 0)
    one = evaluation(tmp_path / "one", "one")
    two = evaluation(tmp_path / "two", "two")
    backward = list(reversed(range(N)))
    ids, groups = [IDS[row] for row in backward], [GROUPS[row] for row in backward]
    write_scores(two / "scores.csv", ids, groups, scores.rows(backward))
    for test in compare([one, two], tmp_path / "out").tests:
        assert test.difference == pytest.approx(0, abs=1e-12)
        assert (test.low, test.high) == pytest.approx((0, 0), abs=1e-12)


def test_runs_that_differ_only_in_the_seed_are_pooled(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / str(seed), f"seed {seed}", 0.5, seed, recipe={"hash": "abc", "seed": seed})
        for seed in (1, 2, 3)
    ]
    folders += [evaluation(tmp_path / "other", "other", recipe={"hash": "xyz", "seed": 1})]
    comparison = compare(folders, tmp_path / "out")
    [pooled] = comparison.seeds
    assert (pooled.systems, pooled.seeds) == (["seed 1", "seed 2", "seed 3"], [1, 2, 3])
    values = [system.metrics["cider"] for system in comparison.systems[:3]]
    assert pooled.metrics["cider"] == pytest.approx({"mean": np.mean(values), "std": np.std(values, ddof=1), "n": 3})
    write_comparison(tmp_path / "comparison.md", comparison)
    assert "Several seeds" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n": 4}, "scored 4 images"), ({"signature": "metrics:coco|n:3|data:xyz"}, "different images")],
    ids=["other count", "other data"],
)
def test_different_images_raise(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folders = [evaluation(tmp_path / "a", "a"), evaluation(tmp_path / "b", "b", **changes)]
    with pytest.raises(ValueError, match=message):
        compare(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_systems_with_one_name_raise(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / "a", "adapter"), evaluation(tmp_path / "b", "adapter")]
    with pytest.raises(ValueError, match="two systems are called 'adapter'"):
        compare(folders, tmp_path / "out")


def test_comparison_of_other_systems_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    one, two, out = evaluation(tmp_path / "one", "one"), evaluation(tmp_path / "two", "two"), tmp_path / "out"
    for _ in range(2):  # the same one again
        compare([one], out)
    (out / "comparison.md").write_text("of one")
    before = (out / "comparison.json").read_text()
    with pytest.raises(FileExistsError, match=r"other systems or data \(one\): name another --out, or .*--overwrite"):
        compare([two], out)
    assert (out / "comparison.json").read_text() == before
    compare([two], out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["comparison.json"]  # the table of the other one is gone


def test_missing_files_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.json"):
        compare([tmp_path], tmp_path / "out")
    (evaluation(tmp_path / "old", "old") / "scores.csv").unlink()
    with pytest.raises(ValueError, match=r"has no scores\.csv"):
        compare([tmp_path / "old"], tmp_path / "out")


def test_scores_csv_round_trip_without_names_of_groups(tmp_path: Path) -> None:
    scores = statistics(0.5, 0)
    write_scores(tmp_path / "scores.csv", IDS, GROUPS, scores)
    ids, groups, read = read_scores(tmp_path / "scores.csv")
    assert ids == IDS
    assert groups == [str(number // 2) if number < 40 else None for number in range(N)]
    assert np.array_equal(read.table, scores.table)
    assert "patient" not in (tmp_path / "scores.csv").read_text()


def test_tables_align_and_escape() -> None:
    systems = [
        SystemScores(name="a|b", n=N, metrics=METRICS, intervals=INTERVALS, findings={"modality": 0.876}),
        SystemScores(name="c", n=N, metrics=METRICS, intervals=INTERVALS),
    ]
    lines = text_table(systems).splitlines()
    assert len({len(line) for line in lines if line.strip()}) == 1
    assert "88%" in lines[2]
    assert "| a&#124;b |" in intervals_table(systems)


def test_names_are_escaped_in_markdown_and_html_is_text(tmp_path: Path) -> None:
    name = "<script>x</script>\x1b[36m|`_a_`\nb"
    folders = [evaluation(tmp_path / "a", name), evaluation(tmp_path / "b", "other", 0.8, 1)]
    comparison = compare(folders, tmp_path / "out")
    write_comparison(tmp_path / "out" / "comparison.md", comparison)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert not {"<", ">", "`", "\x1b"} & set(text.replace(">= .05", ""))
    assert text.count("| &#60;script&#62;x&#60;/script&#62;") == 2
    lines = text_table(comparison.systems).splitlines()
    assert len(lines) == 2 + len(comparison.systems)
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith(r"<script>x</script>\u001b[36m|`_a_` b ")
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {9}


def test_other_ids_in_scores_are_named(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / "a", "a"), evaluation(tmp_path / "b", "b", 0.8, 1)]
    write_scores(folders[1] / "scores.csv", [f"other-{n}" for n in range(N)], GROUPS, statistics(0.5, 0))
    with pytest.raises(ValueError, match=r"no id of .*b/scores\.csv is in .*a/scores\.csv: the first has other-0, "):
        compare(folders, tmp_path / "out")
