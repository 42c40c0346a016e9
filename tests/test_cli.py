"""The command line: results on stdout, errors of one line, and the exit status."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch

from medcap import __version__
from medcap.cli import main
from medcap.launch import THREADS, launch_command, shipped_folder
from medcap.modeling.feature_store import FeatureCache
from medcap.phantom import TINY_BASE


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run `medcap` with the arguments and return status, stdout and stderr."""
    status = 0
    try:
        main(argv)
    except SystemExit as error:
        status = int(error.code or 0)
    return status, *capsys.readouterr()


def write_csv(path: Path, rows: dict[str, str]) -> Path:
    path.write_text("ID,Caption\n" + "".join(f'{key},"{text}"\n' for key, text in rows.items()))
    return path


BASE = str(TINY_BASE)
ERRORS = {
    "no command": ([], 2, "required: COMMAND"),
    "unknown command": (["fly"], 2, "'fly' is not allowed; it can be quickstart, data,"),
    "missing option": (["evaluate", "--model", "m"], 2, "required: --data, --out"),
    "unknown split": (["evaluate", "--model", "m", "--data", "d", "--out", "o", "--split", "dev"], 2, "'dev'"),
    "no data": (["evaluate", "--model", BASE, "--data", "/nowhere/x", "--out", "o"], 1, "no data at '/nowhere/x'"),
    "no model": (["caption", __file__, "--model", "runs/none/adapter"], 1, "no model at 'runs/none/adapter'"),
    "a folder without model": (["caption", __file__, "--model", "/"], 1, "/ holds no model"),
    "no evaluation": (["compare", "/nowhere/eval", "--out", "o"], 1, "has no metrics.json"),
    "no predictions": (["score", "--predictions", "/nowhere.csv", "--references", "/nowhere.csv"], 1, "/nowhere.csv"),
    "publish without destination": (["publish", "run"], 2, "one of the arguments --to --repo-id"),
    "publish of a missing run": (["publish", "/nowhere/run", "--to", "/nowhere/release"], 1, "/nowhere/run"),
    "unknown accelerate name": (["train", "--accelerate", "tpu"], 2, "names are cpu, cpu-ddp, ddp, fsdp2, zero2"),
    "public folder": (["publish", "run", "--to", "release", "--public"], 2, "--public applies to a Hub"),
    "overwritten folder": (
        ["publish", "run", "--to", "release", "--overwrite"], 2, "--overwrite applies to a Hub repository",
    ),
    "unknown cache": (["cache", "clear", "x", "--folder", "/nowhere"], 2, "/nowhere has no cache x; it has none"),
    "clear without names": (["cache", "clear", "--folder", "/nowhere"], 2, "name the caches to remove"),
    "output in no folder": (["caption", ".", "--model", BASE, "--out", "no/x"], 2, "--out no/x: the folder no does"),
    "scores in no folder": (
        ["score", "--predictions", "/x", "--references", "/x", "--out", "no/x.json"], 2, "the folder no does not",
    ),
    "output is a folder": (["caption", "x.png", "--model", BASE, "--out", "."], 2, "it is a folder; name a file"),
    "report is a folder": (["data", "audit", "x", "--out", "/"], 2, "it is a folder; name a file"),
    "output is a file": (["data", "phantom", "--out", __file__], 2, "test_cli.py is a file; name a folder"),
    "output in a file": (["compare", "x", "--out", f"{__file__}/x"], 2, "test_cli.py is a file; name a folder"),
    "release is a file": (["publish", "run", "--to", __file__], 2, "test_cli.py is a file; name a folder"),
    "missing image": (["caption", "x.png", "--model", "/nowhere"], 1, "x.png: no such image or folder"),
    "Space on the Hub": (["publish", "run", "--repo-id", "me/it", "--space"], 2, "use --to DIR"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "expected", "message"), ERRORS.values(), ids=ERRORS)
def test_error_is_one_line_and_a_status(argv, expected, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(argv, capsys)
    assert (status, out) == (expected, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_other_commands_than_evaluate_refuse_several_processes(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["compare", str(tmp_path), "--out", str(tmp_path / "compared")]
    status, out, err = run(argv, capsys)
    assert (status, out) == (2, "")
    assert err == "medcap: error: medcap compare runs in one process: start it without accelerate launch\n"


EVALUATION = ["evaluate", "--model", BASE, "--data", "data", "--out", "out"]


@pytest.mark.parametrize(
    ("options", "config", "processes"),
    [(["--num_processes=2"], "cpu-ddp", "2"), (["--accelerate", "ddp", "--num-processes", "4"], "ddp", "4")],
)
def test_evaluate_starts_itself_in_several_processes(monkeypatch, options, config, processes) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr("medcap.cli.has_cuda", lambda: False)
    monkeypatch.setattr("medcap.commands.launching.run_launched", lambda command: commands.append(command) or 3)
    with pytest.raises(SystemExit, match="3"):
        main([*EVALUATION, *options])
    (command,) = commands
    assert command[-9:] == ["--module", "medcap.cli", *EVALUATION]
    assert Path(command[command.index("--config_file") + 1]).stem == config
    assert command[command.index("--num_processes") + 1] == processes


def test_evaluate_refuses_an_unknown_configuration(capsys) -> None:
    status, out, err = run([*EVALUATION, "--accelerate", "ddpp"], capsys)
    assert (status, out) == (2, "")
    assert err.startswith("medcap: error: --accelerate ddpp: no such file; known names are cpu, cpu-ddp, ddp, ")


def test_version_is_printed(capsys) -> None:
    assert run(["--version"], capsys)[:2] == (0, f"medcap {__version__}\n")


def test_help_of_train_prints_no_messages_of_libraries(capsys) -> None:
    logger = logging.getLogger("bitsandbytes")  # it logs a warning when it is imported
    logger.setLevel(logging.WARNING)
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    assert capsys.readouterr().out.startswith("usage: medcap train")
    assert logger.level == logging.ERROR


def test_debug_shows_the_traceback(capsys) -> None:
    with pytest.raises(ValueError, match=r"has no metrics.json"):
        main(["compare", "/nowhere/eval", "--out", "o", "--debug"])


def test_train_passes_all_arguments_to_accelerate_launch() -> None:
    command = launch_command(["--config", "r.yaml", "--lora_r", "4"], "cpu")
    assert command[1:3] == ["-m", "medcap.launch"]
    assert command[-5:] == [str(shipped_folder("scripts") / "train.py"), "--config", "r.yaml", "--lora_r", "4"]
    assert Path(command[4]).name == "cpu.yaml"
    assert launch_command(["--config", "r.yaml"], "ddp", "4")[5:7] == ["--num_processes", "4"]


@pytest.mark.parametrize(
    ("config", "processes", "threads"), [("cpu", None, 6), ("cpu-ddp", None, 3), ("cpu-ddp", "4", 1)]
)
def test_train_computes_on_all_cores(monkeypatch, config, processes, threads) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 12 if logical else 6)
    command = launch_command([], config, processes)
    assert command[command.index(THREADS) + 1] == str(threads)


@pytest.mark.parametrize("config", ["cpu", "cpu-ddp", "ddp", None])
def test_train_leaves_omp_num_threads_as_it_is(monkeypatch, config) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert THREADS not in launch_command([], config)


@pytest.mark.parametrize("value", ["0", "-1", "4,2", "many"])
def test_invalid_omp_num_threads_is_named(monkeypatch, capsys, value) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    status, _, err = run(["train", "--accelerate", "cpu", "--config", "r.yaml"], capsys)
    assert (status, err) == (
        2, f"medcap: error: OMP_NUM_THREADS is {value!r}; it must be a positive integer, or unset\n",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["use_cpu: [", "- cpu", "cpu", ""])
def test_a_file_that_is_no_config_of_accelerate_is_named(monkeypatch, tmp_path, capsys, text) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "c.yaml").write_text(text)
    status, _, err = run(["train", "--accelerate", str(tmp_path / "c.yaml"), "--config", "r.yaml"], capsys)
    assert status == 2
    assert f"--accelerate {tmp_path / 'c.yaml'}: not a config of accelerate" in err


def test_score_pairs_captions_by_id(capsys, tmp_path) -> None:
    captions = {"a": "a mass in the left lung (arrow)", "b": "normal chest x-ray", "c": "a cyst, 3.5 cm, in the liver"}
    references = write_csv(tmp_path / "r.csv", captions)
    predictions = write_csv(tmp_path / "p.csv", dict(reversed(captions.items())))
    argv = ["score", "--predictions", str(predictions), "--references", str(references)]
    status, out, _ = run([*argv, "--json", "--out", str(tmp_path / "m.json")], capsys)
    result = json.loads(out)
    assert status == 0
    _, table, _ = run(argv, capsys)
    assert re.search(r"^BLEU-1 +1\.0000 +1\.0000 to 1\.0000$", table, re.MULTILINE)
    assert f"3 captions, {result['signature']}" in table
    assert result["metrics"]["bleu_1"] == pytest.approx(1)
    assert result["n"] == 3
    assert "tok:ptb" in result["signature"]
    assert json.loads((tmp_path / "m.json").read_text()) == result


def test_score_reports_a_missing_id(capsys, tmp_path) -> None:
    predictions = write_csv(tmp_path / "p.csv", {"a": "one"})
    references = write_csv(tmp_path / "r.csv", {"a": "one", "b": "two"})
    argv = ["score", "--predictions", str(predictions), "--references", str(references)]
    status, _, err = run(argv, capsys)
    assert (status, "p.csv: 1 of 2 ids are missing: b" in err) == (1, True)


def test_evaluate_writes_metrics_predictions_and_a_report(capsys, tmp_path, tiny_base, phantoms) -> None:
    argv = ["evaluate", "--model", str(tiny_base), "--data", str(phantoms), "--out", str(tmp_path / "eval")]
    status, out, _ = run([*argv, "--num_beams", "1", "--max_new_tokens", "6", "--name", "a <q>"], capsys)
    result = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    page = (tmp_path / "eval" / "report.html").read_text()
    assert status == 0
    assert "constant" in out
    assert "shuffled" in out
    assert result["n"] == 6
    names = ["constant", "constant-modality", "shuffled", "nearest", "nearest-k"]
    assert list(result["baselines"]) == names
    assert all(f"<li>{name}: " in page for name in names)
    assert {(test["first"], test["second"]) for test in result["tests"]} == {("a <q>", name) for name in names}
    for row in (result, *result["baselines"].values(), result["shuffled_images"]):
        for metric, (low, high) in row["intervals"].items():
            assert low <= high
            assert row["metrics"].keys() >= {metric}
    assert result["baselines"]["nearest"]["training_images"] == 12
    assert set(result["findings"]) == {"modality", "side", "level", "finding"}
    assert "decoding:beams-1,max-6,ngram-0" in result["signature"]
    assert "a &lt;q&gt;" in page
    assert "<q>" not in page
    assert page.count("<img") == 3 * 6  # best, worst and random images
    rows = (tmp_path / "eval" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "ID,Caption"
    assert len(rows) == 7
    assert (tmp_path / "eval" / "baselines" / "nearest" / "scores.csv").is_file()


def test_evaluate_without_detokenization_reports_both_scores(capsys, tmp_path, tiny_base, phantoms) -> None:
    argv = ["evaluate", "--model", str(tiny_base), "--data", str(phantoms), "--out", str(tmp_path / "eval")]
    argv += ["--num_beams", "1", "--max_new_tokens", "6", "--nearest", "0", "--no-detokenize"]
    argv += ["--max_eval_samples", "3"]
    status, out, _ = run([*argv, "--protocol", "imageclef-2026"], capsys)
    result = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    lines = (tmp_path / "eval" / "predictions.csv").read_text().splitlines()[1:]
    assert status == 0
    assert "detokenized" in out
    assert "|text:decoded|" in result["signature"]
    captions = [line.partition(",")[2] for line in lines]
    assert captions == [caption.lower() for caption in captions]
    assert result["baselines"].keys() == {"constant", "constant-modality", "shuffled"}
    assert result["omitted"]["nearest-k"] == "no training images were searched"
    assert "There are too few images to tell whether the captions depend on the image" in out
    assert result["imageclef"]["metrics"].keys() == {"rouge_1"}
    assert result["imageclef"]["submission"] == "valid"


def test_imageclef_protocol_reports_an_invalid_submission(capsys, tmp_path) -> None:
    predictions = write_csv(tmp_path / "p.csv", {"i1": "a mass", "i2": ""})
    references = write_csv(tmp_path / "r.csv", {"i1": "A mass.", "i2": "normal"})
    argv = ["score", "--predictions", str(predictions), "--references", str(references)]
    argv += ["--out", str(tmp_path / "m.json")]
    status, out, _ = run([*argv, "--protocol", "imageclef-2026"], capsys)
    result = json.loads((tmp_path / "m.json").read_text())
    assert status == 0
    assert result["imageclef"]["metrics"] == {"rouge_1": 0.5}
    assert result["imageclef"]["not_computed"].keys() >= {"bleurt", "relevance", "factuality"}
    assert result["imageclef"]["submission"] == ["1 captions are blank, the first: i2"]
    assert result["intervals"]["rouge_l"][0] <= result["metrics"]["rouge_l"] <= result["intervals"]["rouge_l"][1]
    assert "1 captions are blank" in out


def test_submission_writes_the_zip_or_names_the_problem(capsys, tmp_path) -> None:
    (tmp_path / "eval").mkdir()
    write_csv(tmp_path / "eval" / "predictions.csv", {"i1": "a mass, left", "i2": "normal"})
    argv = ["submission", str(tmp_path / "eval"), "--out", str(tmp_path / "s.zip")]
    status, out, _ = run(argv, capsys)
    assert status == 0
    assert "submission.csv with 2 captions; images and order are those of the captions" in out
    ids = write_csv(tmp_path / "ids.csv", {"i1": ""})
    status, out, err = run([*argv, "--ids", str(ids)], capsys)
    assert (status, out) == (1, "")
    assert "is no valid submission: 1 ids are not in the split, the first: i2" in err
    ids.write_text("image\ni1\n")
    assert "ids.csv: needs the column ID, has image" in run([*argv, "--ids", str(ids)], capsys)[2]


def test_submission_is_a_zip_file_by_name(capsys, tmp_path) -> None:
    captions = write_csv(tmp_path / "c.csv", {"i1": "a mass"})
    status, out, err = run(["submission", str(captions), "--out", str(tmp_path / "s.csv")], capsys)
    assert (status, out, "give a name that ends in .zip" in err) == (1, "", True)
    assert not (tmp_path / "s.csv").exists()


def test_evaluate_uses_the_requested_precision(capsys, tmp_path, tiny_base, phantoms) -> None:
    argv = ["evaluate", "--model", str(tiny_base), "--data", str(phantoms), "--out", str(tmp_path / "eval")]
    argv += ["--num_beams", "1", "--max_new_tokens", "4", "--nearest", "0", "--max_eval_samples", "2"]
    status, out, _ = run([*argv, "--precision", "bf16", "--json"], capsys)
    assert status == 0
    assert "|precision:bf16|" in json.loads(out)["signature"]
    assert json.loads(out) == json.loads((tmp_path / "eval" / "metrics.json").read_text())
    _, out, _ = run(["compare", str(tmp_path / "eval"), "--out", str(tmp_path / "c"), "--json"], capsys)
    assert json.loads(out) == json.loads((tmp_path / "c" / "comparison.json").read_text())


def test_cache_lists_and_clears(capsys, tmp_path) -> None:
    cache = FeatureCache(tmp_path / "0123456789abcdef", (5, 4), torch.float32)
    cache.put([bytes(16)], torch.zeros(1, 5, 4))
    cache.flush()
    folder = ["--folder", str(tmp_path)]
    status, listed, _ = run(["cache", "list", *folder], capsys)
    assert status == 0
    assert listed.splitlines()[0].startswith("0123456789abcdef ")
    (as_json,) = json.loads(run(["cache", "list", "--json", *folder], capsys)[1])
    assert (as_json["folder"], as_json["images"]) == (str(tmp_path / "0123456789abcdef"), 1)
    assert run(["cache", "clear", "0123456789abcdef", *folder], capsys)[1].startswith(f"{tmp_path}: 1 caches removed")
    assert list(tmp_path.iterdir()) == []
