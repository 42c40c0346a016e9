"""Each epoch is pushed as a usable revision, and failures of the Hub never stop training."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from pushed_runs import BASE, EPOCHS, REPO, STEPS, TOKEN, call, files, make_recipe, reset, train
from safetensors.torch import load, load_file
from transformers import TrainerState

from medcap.cli import main
from medcap.data.detokenize import detokenize
from medcap.data.images import load_image
from medcap.data.load import load_data
from medcap.publish import hub_client
from medcap.publish.epoch_releases import EpochReleaseCallback, epoch_releases, push_run
from medcap.publish.hub_client import Destination, HubUnreachableError


@pytest.fixture(scope="module", autouse=True)
def token_and_short_pauses():
    """Set a token in the environment and shorten the pauses between retries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        sleep = time.sleep
        patch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))
        yield


@pytest.fixture(scope="module")
def pushed(hub, train_script, tiny_base, phantoms, tmp_path_factory):
    """A run that was pushed to `hub`; read-only."""
    reset(hub, tiny_base)
    return train(train_script, tmp_path_factory.mktemp("pushed"), phantoms)


def captions(content):
    """Return {id: caption} of a predictions.csv."""
    return {row["ID"]: row["Caption"] for row in csv.DictReader(io.StringIO(content.decode()))}


def test_each_epoch_is_a_revision_and_the_best_is_main(pushed, hub):
    assert pushed.status == 0, pushed.stderr
    assert pushed.stdout.splitlines()[-1] == f"{hub.url}/{REPO}"
    repository = hub.repositories["model", REPO]
    assert repository.private
    assert set(repository.branches) == {"main", *(f"epoch-{n}" for n in range(1, EPOCHS + 1))}
    lines = [json.loads(line) for line in (pushed.folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines, 1):
        revision = repository.files(f"epoch-{number}")
        assert revision == files(pushed.folder / "pushes" / f"epoch-{number}")
        checkpoint = load_file(pushed.folder / f"checkpoint-{STEPS * number}" / "adapter_model.safetensors")
        torch.testing.assert_close(load(revision["adapter_model.safetensors"]), checkpoint, rtol=0, atol=0)
        scores = json.loads(revision["metrics.json"])
        assert (scores["split"], scores["n"]) == ("valid", 6)
        assert scores["metrics"] == {name: line[f"eval_{name}"] for name in scores["metrics"]}
    best = max(range(1, EPOCHS + 1), key=lambda number: lines[number - 1]["eval_length_ratio"])
    released = repository.files()
    assert released["adapter_model.safetensors"] == (pushed.folder / "adapter/adapter_model.safetensors").read_bytes()
    for name in ("adapter_model.safetensors", "predictions.csv", "metrics.json"):
        assert released[name] == repository.files(f"epoch-{best}")[name]
    assert f'release = "{BASE}", "{REPO}"' in released["README.md"].decode()


# captions images with transformers and peft only
USER_SCRIPT = """
import json, sys
from pathlib import Path
sys.modules["medcap"] = None  # importing it would fail
import torch
from peft import AutoPeftModel, PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, BlipForConditionalGeneration, BlipProcessor, GenerationConfig

base, repo, folder, *revisions = sys.argv[1:]
processor = BlipProcessor.from_pretrained(repo)

def captions(model, revision):
    config = GenerationConfig.from_pretrained(repo, revision=revision)
    generated = {}
    for path in sorted(Path(folder).glob("*.png")):
        pixels = processor(images=Image.open(path), return_tensors="pt").pixel_values
        with torch.inference_mode():
            ids = model.generate(pixel_values=pixels, generation_config=config, interpolate_pos_encoding=True)
        generated[path.stem] = processor.decode(ids[0], skip_special_tokens=True)
    return generated

results = {}
for revision in revisions:
    blip = BlipForConditionalGeneration.from_pretrained(base)
    results[revision] = captions(PeftModel.from_pretrained(blip, repo, revision=revision).eval(), revision)
results["transformers"] = captions(AutoModelForImageTextToText.from_pretrained(repo).eval(), "main")
results["AutoPeftModel"] = captions(AutoPeftModel.from_pretrained(repo).eval(), "main")
print(json.dumps(results))
"""


def test_each_revision_generates_the_evaluated_captions(pushed, hub, phantoms, tmp_path):
    (tmp_path / "images").mkdir()
    for row in load_data(phantoms, splits=["valid"])["valid"]:
        load_image(row["image"]).save(tmp_path / "images" / f"{row['image_id']}.png")
    revisions = ["main", *(f"epoch-{n}" for n in range(1, EPOCHS + 1))]
    command = [sys.executable, "-c", USER_SCRIPT, BASE, REPO, str(tmp_path / "images"), *revisions]
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}  # an empty cache
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    detokenized = {
        name: {key: detokenize(text) for key, text in generated.items()} for name, generated in results.items()
    }
    evaluated = {name: captions(hub.repositories["model", REPO].files(name)["predictions.csv"]) for name in revisions}
    assert detokenized == {**evaluated, "transformers": evaluated["main"], "AutoPeftModel": evaluated["main"]}
    assert len({tuple(texts.values()) for texts in evaluated.values()}) > 3  # the revisions differ


def test_run_folder_contains_one_release_per_epoch(pushed):
    assert {path.name for path in pushed.folder.iterdir()} == {
        "recipe.yaml", "environment.json", "metrics.jsonl", "curves.png", "training.html", "samples", "adapter",
        "pushes", "release-1",
        *(f"checkpoint-{STEPS * n}" for n in range(1, EPOCHS + 1)),
    }  # fmt: skip
    assert [path.name for path in epoch_releases(pushed.folder)] == [f"epoch-{n}" for n in range(1, EPOCHS + 1)]
    assert len(list((pushed.folder / "pushes").iterdir())) == EPOCHS
    recipe = yaml.safe_load((pushed.folder / "recipe.yaml").read_text())
    assert (recipe["push_to_hub"], recipe["hub_model_id"]) == (True, REPO)  # a resumed run pushes too


def test_no_file_or_message_contains_the_token(pushed, hub):
    written = [path for path in pushed.folder.rglob("*") if path.is_file()]
    sent = [
        content
        for name in hub.repositories["model", REPO].branches
        for content in hub.repositories["model", REPO].files(name).values()
    ]
    assert not any(TOKEN.encode() in content for content in (*(path.read_bytes() for path in written), *sent))
    assert TOKEN not in pushed.stdout + pushed.stderr
    assert len(written) > 60


def test_publish_uploads_no_epoch_again(pushed, hub, tmp_path):
    shutil.copytree(pushed.folder, tmp_path / "run")
    before = {name: oid for name, oid in hub.repositories["model", REPO].branches.items() if name != "main"}
    hub.requests.clear()
    status, out, err = call(main, "publish", tmp_path / "run", "--repo-id", REPO)
    assert (status, out) == (0, f"{hub.url}/{REPO}\n"), err
    assert not any("PUT" in request or "commit/epoch" in request for request in hub.requests)
    assert {name: oid for name, oid in hub.repositories["model", REPO].branches.items() if name != "main"} == before


def test_evaluate_compares_a_published_revision_with_its_base(pushed, hub, phantoms, tmp_path):
    options = ["--data", phantoms, "--split", "valid", "--out", tmp_path / "eval", "--nearest", 0]
    options += ["--model", REPO, "--revision", "epoch-2", "--baseline", BASE]
    status, out, err = call(main, "evaluate", *options)
    assert status == 0, err
    comparison = json.loads((tmp_path / "eval" / "comparison.json").read_text())
    names = ["captions-epoch-2", "tiny-base (baseline)"]
    assert [row["name"] for row in comparison["systems"]][:2] == names
    assert all(name in out for name in names)
    released = hub.repositories["model", REPO].files("epoch-2")
    ours, base = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("eval", "eval/baseline"))
    assert (tmp_path / "eval" / "predictions.csv").read_bytes() == released["predictions.csv"]
    scores = json.loads(released["metrics.json"])
    assert (ours["metrics"], ours["signature"]) == (scores["metrics"], scores["signature"])
    assert ours["signature"] == base["signature"]
    assert ours["metrics"] != base["metrics"]


def test_resumed_run_pushes_missing_revisions(pushed, hub, train_script, tiny_base, tmp_path):
    """The run crashed between the release and the checkpoint of the fifth epoch, and the Hub has no revision."""
    run, last = tmp_path / "run", EPOCHS - 2
    shutil.copytree(pushed.folder, run)
    for number in range(last + 1, EPOCHS + 1):
        shutil.rmtree(run / f"checkpoint-{STEPS * number}")
    shutil.rmtree(run / "pushes" / f"epoch-{EPOCHS}")
    (run / "pushes" / f"epoch-{last + 1}" / "adapter_model.safetensors").write_bytes(b"of the crashed run")
    (run / "pushes" / f"epoch-{last + 1}.run").mkdir()
    first = hub.repositories.pop(("model", REPO))
    options = ["--config", run / "recipe.yaml", "--output_dir", run, "--resume_from_checkpoint", "last"]
    status, _, err = call(train_script.main, *options)
    second, hub.repositories["model", REPO] = hub.repositories["model", REPO], first
    assert status == 0, err
    assert set(second.branches) == set(first.branches)
    for name in first.branches:
        for file in ("adapter_model.safetensors", "predictions.csv"):
            assert second.files(name)[file] == first.files(name)[file], (name, file)


@pytest.mark.parametrize("released", [True, False])
def test_run_killed_during_upload_is_completed_by_the_same_command(
    pushed, hub, train_script, tmp_path, monkeypatch, caplog, released
):
    """The adapter exists but no revision is on the Hub: the run is pushed and not trained again."""
    run = tmp_path / "run"
    shutil.copytree(pushed.folder, run)
    if not released:
        (run / "release-1").rename(run / "release-1.part")
    first = hub.repositories.pop(("model", REPO))
    monkeypatch.setattr(train_script, "make_model", None)  # a call would fail
    status, out, err = call(train_script.main, "--config", run / "recipe.yaml", "--output_dir", run)
    second, hub.repositories["model", REPO] = hub.repositories["model", REPO], first
    assert status == 0, err
    assert out == f"{hub.url}/{REPO}\n"
    assert caplog.messages == [f"{run} is trained; pushing the releases that the Hub lacks"]
    assert set(second.branches) == set(first.branches)
    for name in first.branches:
        assert second.files(name)["adapter_model.safetensors"] == first.files(name)["adapter_model.safetensors"]
    assert [path.name for path in run.glob("release-*")] == ["release-1"]


def is_pushed(hub, run, epochs):
    """Whether the Hub has every epoch of the run as a revision, and its adapter as main."""
    repository = hub.repositories["model", REPO]
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return repository.files()["adapter_model.safetensors"] == adapter and all(
        repository.files(f"epoch-{n}") == files(run / "pushes" / f"epoch-{n}") for n in range(1, epochs + 1)
    )


def is_trained(run, epochs):
    """Whether training finished."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return len(lines) == epochs and (run / "adapter" / "adapter_model.safetensors").is_file()


def last_line(text):
    """Return the last line of an error message, which contains no traceback and no token."""
    assert "Traceback" not in text
    assert TOKEN not in text
    return text.splitlines()[-1]


@pytest.mark.parametrize("attempts", [8, 1])  # with one attempt the push is incomplete
def test_push_is_complete_despite_30_percent_failures(
    hub, attempts, train_script, tiny_base, phantoms, tmp_path, monkeypatch
):
    reset(hub, tiny_base)
    monkeypatch.setattr(hub_client, "MAX_ATTEMPTS", attempts)
    hub.fail_randomly(0.3, seed=0)
    # the base comes from a folder, so that only pushing fails
    done = train(train_script, tmp_path, phantoms, model_name_or_path=str(tiny_base), num_train_epochs=2)
    assert is_trained(done.folder, 2)
    assert hub.failed > 2
    if done.status == 1:
        assert f"complete it with: medcap publish {done.folder} --repo-id {REPO}" in last_line(done.stderr)
        monkeypatch.setattr(hub_client, "MAX_ATTEMPTS", 8)
        for _ in range(5):
            status, _, err = call(main, "publish", done.folder, "--repo-id", REPO)
            assert "Traceback" not in err
            if status == 0:
                break
        assert status == 0, err
    else:
        assert done.status == 0
    assert is_pushed(hub, done.folder, 2)


def test_publish_completes_the_push_after_permanent_failure(
    hub, train_script, tiny_base, phantoms, tmp_path, monkeypatch
):
    reset(hub, tiny_base)
    monkeypatch.setattr(hub_client, "MAX_ATTEMPTS", 2)
    hub.fail(503, times=None, message=f"refused: {TOKEN}")
    done = train(train_script, tmp_path, phantoms, model_name_or_path=str(tiny_base), num_train_epochs=2)
    assert is_trained(done.folder, 2)
    assert done.status == 1
    message = last_line(done.stderr)
    assert "503" in message
    assert "missing: epoch-1, epoch-2, main; complete it with: medcap publish" in message
    hub.faults.clear()
    status, _, err = call(main, *message.partition("complete it with: medcap ")[2].split())
    assert status == 0, err
    assert is_pushed(hub, done.folder, 2)


BAD_TOKENS = {"none": (None, "there is no token"), "read-only": ("hf_" + "R" * 34, "is read-only")}


@pytest.mark.parametrize(("token", "message"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_invalid_token_raises_before_training(
    token, message, hub, train_script, tiny_base, phantoms, tmp_path, monkeypatch
):
    reset(hub, tiny_base)
    hub.add_token("hf_" + "R" * 34, role="read")
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    done = train(train_script, tmp_path, phantoms)
    assert (done.status, done.stdout) == (1, "")
    assert message in last_line(done.stderr)
    assert not done.folder.exists()
    assert not any(BASE in request for request in hub.requests)  # the base was not downloaded


def test_repository_not_made_by_medcap_raises_before_training(hub, train_script, tiny_base, phantoms, tmp_path):
    reset(hub, tiny_base)
    hub.add_repository(REPO, {"model.safetensors": b"precious"}, private=True)
    done = train(train_script, tmp_path, phantoms)
    assert done.status == 1
    assert "was not made by medcap; use another name" in last_line(done.stderr)
    assert not done.folder.exists()


def test_command_in_error_names_the_same_repository(hub, pushed, tiny_base, monkeypatch):
    reset(hub, tiny_base)
    monkeypatch.setattr(hub_client, "MAX_ATTEMPTS", 1)
    hub.fail(503, "/commit/epoch-2", times=None)
    to = Destination(REPO, private=False, overwrite=True)
    with pytest.raises(HubUnreachableError) as raised:
        push_run(pushed.folder, pushed.folder / "release-1", to, pushed={"epoch-3"})
    missing = f"missing: epoch-2, epoch-4, main; complete it with: medcap publish {pushed.folder}"
    assert str(raised.value).endswith(f"{missing} --repo-id {REPO} --public --overwrite")
    assert set(hub.repositories["model", REPO].branches) == {"main", "epoch-1", "epoch-2"}


def test_failed_epoch_release_raises_at_the_end(hub, pushed, tiny_base, tmp_path):
    reset(hub, tiny_base)

    def disk_full(folder, weights):
        raise OSError("No space left on device")

    pushes = EpochReleaseCallback(tmp_path, Destination(REPO), lambda: None, disk_full, None, [])
    pushes.on_evaluate(None, TrainerState(epoch=1.0), None)
    with pytest.raises(OSError, match="has no revision of epoch-1: No space left on device"):
        pushes.finish(pushed.folder / "release-1")
    assert hub.repositories["model", REPO].files() == files(pushed.folder / "release-1")
    assert list((tmp_path / "pushes").iterdir()) == []


def test_a_run_without_adapter_pushes_whole_models(hub, train_script, tiny_base, phantoms, tmp_path):
    hub.add_token(TOKEN)
    base = hub.add_repository("someone/other-base", files(tiny_base))
    keys = {"model_name_or_path": "someone/other-base", "hub_model_id": "someone/model", "adapter": "none"}
    recipe = make_recipe(tmp_path, phantoms, num_train_epochs=1, **keys)
    lines = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in lines if not line.startswith("lora_")))
    status, stdout, stderr = call(train_script.main, "--config", recipe)
    assert status == 0, stderr
    assert stdout.splitlines()[-1] == f"{hub.url}/someone/model"
    for revision in ("main", "epoch-1"):
        pushed = hub.repositories["model", "someone/model"].files(revision)
        assert pushed["model.safetensors"] == (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
        assert pushed["model.safetensors"] != base.files()["model.safetensors"]
        assert pushed.keys() >= {"config.json", "generation_config.json", "README.md"}
        assert not any("adapter" in name for name in pushed)
