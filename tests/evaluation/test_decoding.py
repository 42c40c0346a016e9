"""Generation settings are chosen on validation, resumed after a kill, and written into the adapter.

pytest tests/evaluation/test_decoding.py
"""

import json
import shutil
from dataclasses import replace

import pytest

from medcap.cli import main
from medcap.evaluation import decoding
from medcap.evaluation.decoding import Trial, Tuning, grid_settings, tune_decoding
from medcap.evaluation.scoring import describe_decoding
from medcap.evaluation.split import load_split
from medcap.inference import load_captioner
from medcap.recipe import GenerationArguments, RecipeError

RECIPE = GenerationArguments(num_beams=2, max_new_tokens=12)


def test_the_grid_has_every_combination_once_and_the_recipe_first():
    grid = {"num_beams": [1, 2], "length_penalty": [1.0, 2.0], "min_new_tokens": [0, 5]}
    settings = grid_settings(replace(RECIPE, no_repeat_ngram_size=3), grid)
    assert settings[0] == replace(RECIPE, no_repeat_ngram_size=3)
    assert len(settings) == len(set(settings)) == 6  # one beam has no length penalty
    assert {each.no_repeat_ngram_size for each in settings} == {3}
    assert len(grid_settings(replace(RECIPE, num_beams=7), grid)) == 7


def test_a_contradictory_grid_is_refused():
    with pytest.raises(RecipeError, match="min_new_tokens is 12"):
        grid_settings(RECIPE, {"min_new_tokens": [0, 12]})


@pytest.mark.parametrize(("scores", "best"), [((1.0, 2.0, 2.0), 1), ((2.0, 2.0, 1.0), 0), ((1.0, 0.5, 0.2), 0)])
def test_the_winner_is_never_worse_than_the_recipe(scores, best):
    trials = [Trial(str(row), {}, score, (0, 9), None) for row, score in enumerate(scores)]
    assert Tuning("cider", 6, trials).winner == trials[best]


def test_of_equal_settings_the_one_with_the_fewest_changes_wins():
    changes = [{}, {"num_beams": 5, "min_new_tokens": 8}, {"num_beams": 5}]
    trials = [Trial("", vars(replace(RECIPE, **keys)), float(bool(keys)), (0, 9), None) for keys in changes]
    assert Tuning("cider", 6, trials).winner == trials[2]


@pytest.mark.parametrize(("p", "any_gain", "best"), [(0.01, False, 1), (0.2, False, 0), (0.2, True, 1)])
def test_a_winner_that_may_be_chance_is_not_chosen(p, any_gain, best):
    trials = [Trial("", {}, 1.0, (0, 9), None), Trial("", {}, 2.0, (0, 9), {"difference": 1.0, "p": p})]
    assert Tuning("cider", 6, trials, any_gain).chosen == trials[best]
    assert Tuning("cider", 6, trials[:1], any_gain).chosen == trials[0]


@pytest.fixture
def without_java(monkeypatch):
    monkeypatch.setattr(decoding, "tokenize", lambda texts: [" ".join(text.lower().split()) for text in texts])


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_captioner(str(tiny_base))


@pytest.fixture(scope="module")
def valid(phantoms):
    return load_split(str(phantoms), "valid")


SETTINGS = grid_settings(RECIPE, {"num_beams": [1, 2], "min_new_tokens": [0, 6]})


@pytest.mark.usefixtures("without_java")
def test_a_killed_search_is_resumed_and_ends_the_same(base, valid, tmp_path, monkeypatch):
    whole = tune_decoding(base, valid, tmp_path / "whole", SETTINGS)
    caption, done = decoding.caption_dataset, []

    def killed_at_the_third(captioner, *args, **kwargs):
        done.append(captioner.generation_config.num_beams)
        if len(done) == 3:
            raise KeyboardInterrupt
        return caption(captioner, *args, **kwargs)

    monkeypatch.setattr(decoding, "caption_dataset", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        tune_decoding(base, valid, tmp_path / "resumed", SETTINGS)
    assert len(list((tmp_path / "resumed").glob("beams-*.csv"))) == 2
    assert tune_decoding(base, valid, tmp_path / "resumed", SETTINGS) == whole
    assert len(done) == 3 + 2  # the first two were not generated again
    for name in ("decoding.json", "decoding.csv"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.usefixtures("without_java")
def test_captions_of_other_images_are_replaced_only_with_overwrite(base, valid, tmp_path):
    tune_decoding(base, valid, tmp_path, SETTINGS[:1])
    other = replace(valid, rows=valid.rows.select(range(4)))
    with pytest.raises(FileExistsError, match="other weights or images: replace them with --overwrite"):
        tune_decoding(base, other, tmp_path, SETTINGS[:1])
    assert tune_decoding(base, other, tmp_path, SETTINGS[:1], overwrite=True).n == 4


@pytest.mark.usefixtures("without_java")
def test_every_setting_has_an_interval_and_a_test_against_the_recipe(base, valid, tmp_path):
    tuning = tune_decoding(base, valid, tmp_path, SETTINGS, metric="bleu_1")
    assert [trial.test is None for trial in tuning.trials] == [True, False, False, False]
    for trial in tuning.trials[1:]:
        assert trial.interval[0] <= trial.score <= trial.interval[1]
        assert trial.test["difference"] == pytest.approx(trial.score - tuning.trials[0].score)
    saved = json.loads((tmp_path / "decoding.json").read_text())
    assert saved["winner"]["name"] == tuning.winner.name
    assert len((tmp_path / "decoding.csv").read_text().splitlines()) == 1 + len(SETTINGS)


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("any_gain", [True, False])
def test_the_command_writes_the_chosen_setting_into_the_adapter(trained_run, tmp_path, capsys, any_gain):
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder / "adapter", run / "adapter")
    before = json.loads((run / "adapter" / "generation_config.json").read_text())
    grid = [
        "--num_beams",
        "1",
        "2",
        "--no_repeat_ngram_size",
        "1",
        "--length_penalty",
        "1",
        "--min_new_tokens",
        "0",
        "9",
    ]
    main(["tune-decoding", str(run), *grid, "--feature_cache", "off", *["--any_gain"] * any_gain])
    result, printed = json.loads((run / "decoding" / "decoding.json").read_text()), capsys.readouterr().out
    after = json.loads((run / "adapter" / "generation_config.json").read_text())
    assert len(result["settings"]) == 5
    assert result["recipe"]["name"] == "beams-2,max-24,ngram-3"
    assert result["winner"]["score"] == max(each["score"] for each in result["settings"])
    chosen = result["winner" if result["chosen"] == result["winner"]["name"] else "recipe"]
    assert any_gain is False or chosen == result["winner"]
    assert f"generation_config.json: {chosen['name']}, {'unchanged' if after == before else 'written'}" in printed
    assert result["decision"] in printed
    settings = load_captioner(str(run / "adapter")).generation_config
    assert describe_decoding(settings) == chosen["name"]


REFUSED = {
    "a metric": (["--metric", "meteor"], "--metric is 'meteor'; allowed are bleu_1"),
    "no run": ([], "is no finished run"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_is_refused_with_status_2(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as status:
        main(["tune-decoding", str(tmp_path), *options])
    assert status.value.code == 2
    assert message in capsys.readouterr().err
