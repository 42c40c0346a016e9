"""A release is complete, contains only files on the list, and is written atomically.

The upload: test_hub_client.py.
"""

import json
import pickle

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from medcap.evaluation.result import Comparison, EvaluationResult
from medcap.metrics.coco import METRICS
from medcap.publish import release as releases
from medcap.publish.release import RELEASE_FILES, build_release, check_release

TOKEN = "hf_" + "aB3" * 12  # has the format of a token
SCORES = dict(zip(METRICS, (0.337, 0.25, 0.17, 0.1, 0.14, 0.32, 0.4), strict=True))
HUB_BASE = "Salesforce/blip-image-captioning-base"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def change_json(path, **keys):
    write(path, {**json.loads(path.read_text()), **keys})


@pytest.fixture
def run(tmp_path):
    """The files of a training run and its evaluation, including files that must not be published."""
    run, base = tmp_path / "runs" / "mine", tmp_path / "models" / "tiny base"
    write(base / "config.json", {"model_type": "blip", "vision_config": {"image_size": 384}})
    adapter = run / "adapter"
    lora = {"base_model_name_or_path": str(base), "peft_type": "LORA", "r": 8, "inference_mode": False}
    mapping = {"base_model_class": "BlipForConditionalGeneration", "parent_library": "transformers.models.blip"}
    write(adapter / "adapter_config.json", {**lora, "auto_mapping": mapping, "revision": None})
    save_file({"lora_A.weight": torch.zeros(2, 3)}, adapter / "adapter_model.safetensors", {"format": "pt"})
    write(adapter / "generation_config.json", {"num_beams": 3})
    write(adapter / "processor_config.json", {"processor_class": "BlipProcessor"})
    write(adapter / "tokenizer.json", {"model": {"vocab": {"/": 0, "root": 1, "/root": 2}}})
    write(adapter / "tokenizer_config.json", {"do_lower_case": True})
    write(adapter / "README.md", "# Model Card for Model ID\n[More Information Needed]")
    recipe = {
        "data_dir": str(tmp_path / "data" / "radiographs"), "prompt": "", "model_name_or_path": str(base),
        "output_dir": str(run), "image_size": 224, "resume_from_checkpoint": "last", "learning_rate": 1e-4,
        "accelerator_config": {"file": str(tmp_path / "accelerate.yaml")},
    }  # fmt: skip
    write(adapter / "recipe.yaml", yaml.safe_dump(recipe))
    write(run / "recipe.yaml", yaml.safe_dump(recipe))
    write(run / "environment.json", {"medcap": "0.1.0", "seed": 0, "data": {"train": {"rows": 254}}})
    write(run / "metrics.jsonl", '{"epoch": 1.0, "step": 13, "loss": 1.5, "eval_loss": 0.9, "eval_cider": 0.4}\n')
    write(run / "checkpoint-13" / "optimizer.pt", "")
    write(run / "samples" / "epoch-1.md", "")
    evaluation = {
        "name": "6 epochs", "model": str(adapter), "base": str(base), "split": "test", "n": 2, "metrics": SCORES,
        "signature": "metrics:coco|n:2",
    }  # fmt: skip
    write(run / "eval" / "metrics.json", EvaluationResult.from_json(evaluation).to_json())
    write(run / "eval" / "predictions.csv", "ID,Caption\na,aortic arch/root\nb,ct scan\n")
    write(run / "eval" / "report.html", "<img>")
    return run


@pytest.fixture
def release(run, tmp_path):
    return build_release(run, tmp_path / "release")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_release_contains_listed_files_only(release):
    assert sorted(path.name for path in release.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "curve.png", "environment.json",
        "generation_config.json", "metrics.json", "metrics.jsonl", "predictions.csv", "processor_config.json",
        "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert {path.name for path in release.iterdir()} <= RELEASE_FILES


def test_no_file_contains_a_local_path(release, tmp_path):
    for path in release.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    recipe = yaml.safe_load((release / "recipe.yaml").read_text())
    assert (recipe["data_dir"], recipe["output_dir"], recipe["model_name_or_path"]) == (
        "radiographs",
        "mine",
        "tiny-base",
    )
    assert recipe["accelerator_config"] == {"file": "accelerate.yaml"}
    assert (recipe["learning_rate"], recipe["image_size"], recipe["prompt"]) == (1e-4, 224, "")
    assert "resume_from_checkpoint" not in recipe
    assert (read(release / "metrics.json")["model"], read(release / "metrics.json")["base"]) == (
        "adapter",
        "tiny base",
    )


def test_files_are_copies_of_the_run(release, run):
    for name in ("adapter_model.safetensors", "generation_config.json", "processor_config.json", "tokenizer.json"):
        assert (release / name).read_bytes() == (run / "adapter" / name).read_bytes()
    assert (release / "predictions.csv").read_bytes() == (run / "eval" / "predictions.csv").read_bytes()
    assert read(release / "environment.json") == read(run / "environment.json")
    changed = {"model": "adapter", "base": "tiny base"}
    assert read(release / "metrics.json") == {**read(run / "eval" / "metrics.json"), **changed}


def test_card_has_scores_and_replaces_pefts_card(release):
    card = ModelCard.load(release / "README.md")
    assert [result.metric_value for result in card.data.eval_results] == list(SCORES.values())
    assert card.data.base_model is None  # a local folder: the Hub would link to another model of this name
    assert "More Information Needed" not in card.text
    assert "The adapter was trained at 224 px. `interpolate_pos_encoding=True`" in card.text  # on a base for 384 px
    assert "13 | 1.5000 | 0.9000 | 0.4000" in card.text


def test_card_is_written_last(run, tmp_path, monkeypatch):
    written, render = [], releases.render_card

    def list_files_and_render(card_data):
        written.extend(path.name for path in (tmp_path / "out.part").iterdir())
        return render(card_data)

    monkeypatch.setattr(releases, "render_card", list_files_and_render)
    out = build_release(run, tmp_path / "out")
    assert {path.name for path in out.iterdir()} - set(written) == {"README.md"}


def test_local_base_is_named_without_path_and_warns(run, tmp_path, caplog):
    config = read(build_release(run, tmp_path / "release") / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["inference_mode"], config["r"]) == ("tiny-base", True, 8)
    assert [record.message for record in caplog.records] == [
        "the base model 'tiny-base' is a local folder: users of this adapter need a copy of it "
        "(or name a base on the Hub with --base)"
    ]


def test_hub_base_is_named_in_all_files(run, tmp_path, caplog):
    release = build_release(run, tmp_path / "release", base=HUB_BASE, repo_id="someone/captions")
    assert read(release / "adapter_config.json")["base_model_name_or_path"] == HUB_BASE
    assert yaml.safe_load((release / "recipe.yaml").read_text())["model_name_or_path"] == HUB_BASE
    card = ModelCard.load(release / "README.md")
    assert (card.data.base_model, card.data.model_name) == (HUB_BASE, "captions")
    assert not caplog.records


def test_revision_of_base_is_in_adapter_config(run, tmp_path):
    recipe = run / "adapter" / "recipe.yaml"
    write(recipe, recipe.read_text() + "model_revision: v1\n")
    change_json(run / "adapter" / "adapter_config.json", base_model_name_or_path=HUB_BASE)
    assert read(build_release(run, tmp_path / "release") / "adapter_config.json")["revision"] == "v1"


def test_run_without_evaluation(run, tmp_path):
    (run / "eval").rename(run / "elsewhere")
    release = build_release(run, tmp_path / "release")
    assert not {"metrics.json", "predictions.csv"} & {path.name for path in release.iterdir()}
    assert "was not evaluated" in (release / "README.md").read_text()
    scored = build_release(run, tmp_path / "scored", evaluation=run / "elsewhere")
    assert read(scored / "metrics.json")["metrics"] == SCORES


def test_comparison_is_in_card_and_release(run, tmp_path):
    base = {"name": "without fine-tune", "n": 2, "metrics": dict.fromkeys(SCORES, 0.0123)}
    systems = [base, {"name": "6 epochs", "n": 2, "metrics": SCORES}]
    comparison = Comparison.from_json({"systems": systems, "tests": []}).to_json()
    write(tmp_path / "comparison.json", comparison)
    release = build_release(run, tmp_path / "release", comparison=tmp_path / "comparison.json")
    assert "| without fine-tune | 0.0123 |" in (release / "README.md").read_text()
    assert read(release / "comparison.json") == comparison


def test_scores_on_rocov2_are_written_as_eval_results(run, tmp_path):
    recipe = run / "adapter" / "recipe.yaml"
    write(recipe, recipe.read_text().replace("radiographs", "rocov2"))
    release = build_release(run, tmp_path / "release")
    entries = yaml.safe_load((release / ".eval_results" / "rocov2.yaml").read_text())
    assert [entry["value"] for entry in entries] == list(SCORES.values())
    (release / ".eval_results" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt is not part of a release"):
        check_release(release)


def test_codecarbon_sums_are_in_card(run, tmp_path):
    write(run / "emissions.csv", "project_name,duration,emissions,energy_consumed\nx,60.5,0.25,0.5\nx,1.5,0.25,0.5\n")
    assert "Training took 62 s and 1 kWh" in (build_release(run, tmp_path / "release") / "README.md").read_text()
    assert not (tmp_path / "release" / "emissions.csv").exists()  # it contains the location of the machine


def test_release_is_deterministic(run, tmp_path):
    first, second = (build_release(run, tmp_path / name) for name in ("first", "second"))
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


def test_existing_release_is_not_overwritten(run, release, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in release.iterdir()}
    with pytest.raises(FileExistsError, match="release exists and is never overwritten"):
        build_release(run, release)
    assert {path: path.stat().st_mtime_ns for path in release.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file exists"):
        build_release(run, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert (build_release(run, tmp_path / "empty") / "README.md").is_file()


def test_failed_release_leaves_no_files(run, tmp_path, monkeypatch):
    def fail(card_data):
        raise RuntimeError("no card")

    monkeypatch.setattr(releases, "render_card", fail)
    with pytest.raises(ValueError, match="mine cannot be used: RuntimeError: no card"):
        build_release(run, tmp_path / "out" / "release")
    assert list((tmp_path / "out").iterdir()) == []


def adapter_file(name, content=""):
    return lambda run: write(run / "adapter" / name, content)


def missing_file(name):
    return lambda run: (run / name).unlink()


def pickled_weights(run):
    (run / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps({"lora": [0.0]}))


def pickled_vocab(run):
    (run / "adapter" / "vocab.txt").write_bytes(pickle.dumps({"lora": [0.0]}))


def another_adapter(run):
    other = run.parent / "other"
    other.mkdir()
    save_file({"lora_A.weight": torch.ones(2, 3)}, other / "adapter_model.safetensors")
    change_json(run / "eval" / "metrics.json", model=str(other))


def needs_medcap(run):
    change_json(run / "adapter" / "adapter_config.json", auto_mapping={"parent_library": "medcap.modeling.blip"})


REFUSED = {
    "pickled weights": (adapter_file("adapter_model.bin"), ValueError, r"adapter_model\.bin is pickled"),
    "optimizer": (adapter_file("optimizer.pt"), ValueError, r"optimizer\.pt is pickled"),
    "pickled safetensors": (pickled_weights, ValueError, r"adapter_model\.safetensors is not in the format"),
    "pickled vocab": (pickled_vocab, ValueError, r"vocab\.txt is not in the format"),
    "invalid JSON": (adapter_file("tokenizer.json", "{"), ValueError, r"tokenizer\.json is not JSON"),
    "token": (adapter_file("vocab.txt", f"a\n{TOKEN}\n"), ValueError, r"vocab\.txt contains a Hugging Face token"),
    "token of the environment": (
        adapter_file("tokenizer_config.json", '{"auth": "oidc-12345"}'), ValueError,
        r"tokenizer_config\.json contains a",
    ),
    "path in the home folder": (
        adapter_file("vocab.txt", "/home/somebody/notes"), ValueError,
        r"vocab\.txt contains the local path /home/somebody/",
    ),
    "class of medcap in the adapter": (needs_medcap, ValueError, "auto_mapping names a class of medcap"),
    "scores of another adapter": (another_adapter, ValueError, "holds the scores of .*other, not of .*adapter"),
    "scores of the base": (
        lambda run: change_json(run / "eval" / "metrics.json", model=HUB_BASE, base=HUB_BASE), ValueError,
        f"holds the scores of {HUB_BASE}",
    ),
    "scores of medcap score": (
        lambda run: write(run / "eval" / "metrics.json", {"metrics": SCORES, "n": 2}), ValueError,
        "lacks one of the keys",
    ),
    "missing weights": (missing_file("adapter/adapter_model.safetensors"), FileNotFoundError, "is missing; publish"),
    "missing recipe": (missing_file("adapter/recipe.yaml"), FileNotFoundError, r"recipe\.yaml is missing"),
    "missing predictions": (missing_file("eval/predictions.csv"), FileNotFoundError, r"predictions\.csv"),
}  # fmt: skip


@pytest.mark.parametrize(("change_run", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_content_raises_an_error_of_one_line(change_run, error, message, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "oidc-12345")
    monkeypatch.setenv("HOME", "/home/somebody")
    change_run(run)
    with pytest.raises(error, match=message) as raised:
        build_release(run, tmp_path / "out" / "release")
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_comparison_in_the_run_is_used_without_naming_it(run, tmp_path):
    systems = [{"name": "6 epochs", "n": 2, "metrics": SCORES}]
    comparison = Comparison.from_json({"systems": systems, "tests": []}).to_json()
    (run / "comparison").mkdir()
    write(run / "comparison" / "comparison.json", comparison)
    assert read(build_release(run, tmp_path / "release") / "comparison.json") == comparison


def test_comparison_without_this_adapter_raises(run, tmp_path):
    write(tmp_path / "comparison.json", {"systems": [{"name": "4 epochs", "n": 2, "metrics": SCORES}], "tests": []})
    with pytest.raises(ValueError, match=r"comparison\.json has no row of the evaluation .*eval"):
        build_release(run, tmp_path / "release", comparison=tmp_path / "comparison.json")


@pytest.mark.parametrize("names", [{"repo_id": "a/b/c"}, {"base": "no such name"}])
def test_invalid_hub_name_raises(names, run, tmp_path):
    with pytest.raises(ValueError, match="Repo id must"):
        build_release(run, tmp_path / "release", **names)


def test_image_named_like_a_plot_raises(release):
    Image.new("RGB", (160, 160), "grey").save(release / "curve.png")
    with pytest.raises(ValueError, match=r"curve\.png differs from the plot that matplotlib .* draws"):
        check_release(release)
