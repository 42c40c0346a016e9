"""Shared fixtures: a tiny untrained BLIP, a tiny phantom data set, and one training run on both."""

import contextlib
import copy
import importlib.util
import io
import os
import string
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hub_server import HubServer

CACHE = tempfile.TemporaryDirectory(prefix="medcap-tests-")  # keeps the caches of tests out of the home folder
HUB = HubServer().start()  # a local server: no request leaves this machine
os.environ["HF_DATASETS_CACHE"] = CACHE.name
os.environ["XDG_CACHE_HOME"] = CACHE.name
PARAPHRASES = Path(__file__).parents[1] / ".pytest_cache" / "meteor"  # METEOR's index takes ten seconds
PARAPHRASES.mkdir(parents=True, exist_ok=True)
Path(CACHE.name, "medcap").mkdir()
Path(CACHE.name, "medcap", "meteor").symlink_to(PARAPHRASES)
# huggingface_hub reads these variables when it is imported below
os.environ.update(HF_ENDPOINT=HUB.url, HF_HUB_DISABLE_XET="1", HF_HOME=CACHE.name, HF_HUB_DISABLE_PROGRESS_BARS="1")
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)

import pytest
import torch
import yaml
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from medcap.modeling.load import load_base
from medcap.phantom.dataset import write_phantom
from medcap.recipe import RecipeError, read_recipe

ROOT = Path(__file__).parents[1]
SIZE, PATCH, WIDTH = 32, 8, 32  # image size in pixels, patch size in pixels, hidden size
WORDS = """
    a abdomen abscess an angiogram angiography arrow axial branch calcification chest cm computed crescent ct
    cyst cystic demonstrating digital enhanced enhancing field findings hematoma hemisphere image in kidney
    large left lesion like liver lobe lower lung magnetic man mass matter measuring mid middle mode mri no
    normal of old on picture plain pole posteroanterior quadrant radiograph ray resonance revealing right rim
    ring scan shaped showing shows simple small solid subtraction territory the tomography transverse tumor
    ultrasound upper weighted white with without woman x year zone
"""


def tiny_tokenizer(folder: Path) -> BertTokenizer:
    """Return a WordPiece tokenizer like BLIP's on the Hub: without [DEC] and [ENC]; unknown words become letters."""
    letters = [*string.ascii_lowercase, *string.digits]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = dict.fromkeys([*special, *WORDS.split(), *string.punctuation, *letters, *(f"##{c}" for c in letters)])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return BertTokenizer(str(folder / "vocab.txt"), model_max_length=512)


def tiny_blip(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """Return an untrained BLIP whose [DEC] and [ENC] ids follow the tokenizer's last token, as on the Hub."""
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {
        **shape, "vocab_size": len(tokenizer) + 2, "encoder_hidden_size": WIDTH, "projection_dim": WIDTH,
        "bos_token_id": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        "sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id,
        "max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
    }  # fmt: skip
    vision = {
        **shape, "image_size": SIZE, "patch_size": PATCH, "projection_dim": WIDTH,
        "initializer_range": 0.02,  # with the default, 1e-10, all images have the same features (trap 18)
    }  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    embeddings = model.text_decoder.bert.embeddings
    with torch.no_grad():  # larger (tied, frozen) embeddings allow confident predictions with 32 dimensions
        embeddings.word_embeddings.weight.mul_(10)
        embeddings.position_embeddings.weight.mul_(10)
    return model


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A checkpoint folder of the tiny BLIP, as downloaded from the Hub; read-only."""
    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = tiny_tokenizer(folder)
    tiny_blip(tokenizer).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A data folder with 12 training, 6 validation and 6 test images; read-only."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantom(folder, train=12, valid=6, test=6, seed=0)
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_base) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """The tiny base and its processor; read-only."""
    model, processor = load_base(str(tiny_base))
    return model.eval(), processor


@pytest.fixture
def blip(loaded) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """A copy of the tiny base and its processor, which a test may change."""
    return copy.deepcopy(loaded)


@pytest.fixture(scope="session")
def train_script() -> ModuleType:
    """scripts/train.py as a module."""
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """An empty Hub, reset before and after a test module."""
    HUB.reset()
    yield HUB
    HUB.reset()


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, recipe and output."""

    folder: Path
    recipe: Path
    stdout: str
    stderr: str


def write_recipe(path: Path, **keys: Any) -> Path:
    """Write `keys` to a YAML file and return its path."""
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


SMALLEST_RECIPE = {"data_dir": "data", "model_name_or_path": "base", "output_dir": "run", "use_cpu": True}


@pytest.fixture
def recipe_file(tmp_path):
    """Return a function that writes the smallest recipe with other keys and lines, and returns its path."""

    def write(text: str = "", **keys: Any) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**SMALLEST_RECIPE, **keys}) + text, encoding="utf-8")
        return str(path)

    return write


def recipe_error(arguments: list[str]) -> str:
    """Return the message of the RecipeError for these arguments; always one line."""
    with pytest.raises(RecipeError, match=r"\w") as caught:
        read_recipe(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def refusal(recipe_file):
    """Return a function: the message, without the file's name, that refuses a recipe with these keys."""

    def message(**keys: Any) -> str:
        path = recipe_file(**keys)
        line = recipe_error(["--config", path])
        assert line.startswith(f"{path}: ")
        return line.removeprefix(f"{path}: ")

    return message


@pytest.fixture(scope="session")
def trained_run(train_script, tiny_base, phantoms, tmp_path_factory) -> Run:
    """Two epochs of three steps at 48 px on a base for 32 px, evaluated by generation; read-only."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(
        folder / "recipe.yaml",
        data_dir=str(phantoms),
        model_name_or_path=str(tiny_base),
        output_dir=str(folder / "run"),
        image_size=48,
        lora_target_modules="text",
        lora_r=8,
        lora_dropout=0.1,  # a resumed run is identical only if the random state is restored
        num_train_epochs=2,
        precision="fp32",
        per_device_train_batch_size=4,
        train_sampling_strategy="group_by_length",  # its order must be resumed too
        per_device_eval_batch_size=4,  # 6 images: the last batch is not full
        learning_rate=0.02,
        logging_steps=1,
        num_beams=2,
        max_new_tokens=24,  # more than the default of generate, 20
        no_repeat_ngram_size=3,
        metric_for_best_model="length_ratio",
        greater_is_better=False,  # selects the epoch with the shorter captions, the first one, not the last one
        use_cpu=True,
        seed=5,
    )
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        train_script.main(["--config", str(recipe)])
    return Run(folder / "run", recipe, out.getvalue(), err.getvalue())
