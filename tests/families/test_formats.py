"""A Space of every family captions images as medcap does; ONNX is refused, in one line, where there is no export."""

import importlib
import sys

import pytest
import tiny_bases
from test_families import images
from tiny_runs import write_run

from medcap.cli import main
from medcap.inference import load_captioner

SPACE_MODULES = ("app", "page", "usage", "raster", "detokenize", "truecasing")


@pytest.mark.parametrize("name", tiny_bases.MAKERS)
def test_space_generates_the_captions_of_the_adapter(name, tmp_path, monkeypatch):
    run, space = write_run(tmp_path / "run", name), tmp_path / "space"
    main(["publish", str(run), "--to", str(space), "--space"])
    monkeypatch.syspath_prepend(space)
    try:
        app = importlib.import_module("app")
        settings = app.load_model()[2]
        captions = [app.caption(image, settings.num_beams, settings.max_new_tokens) for image in images(2)]
    finally:
        for module in SPACE_MODULES:
            sys.modules.pop(module, None)
    assert captions == load_captioner(str(run / "adapter")).caption(images(2))
    assert len(set(captions)) == 2
    reads_videos = name in ("smolvlm", "qwen2_5_vl")
    assert "torchvision" in (space / "requirements.txt").read_text() or not reads_videos


@pytest.mark.parametrize("name", tiny_bases.MAKERS)
def test_onnx_is_refused_in_one_line(name, tmp_path, capsys):
    run, folder = write_run(tmp_path / "run", name), tmp_path / "onnx"
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(run), "--to", str(folder), "--onnx"])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medcap: error: --onnx does not export ")
    assert line.endswith("use --merge, which writes a full model for transformers")
    assert not folder.exists()
