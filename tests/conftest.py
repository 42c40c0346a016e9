"""What the tests share: a tiny BLIP that was never trained, a tiny phantom data set, and one run made from the two."""

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

_CACHE = tempfile.TemporaryDirectory(prefix="medcap-tests-")  # what tests decode is not remembered in one's home
HUB = HubServer().start()  # the Hub of all tests: no request leaves this machine
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["XDG_CACHE_HOME"] = _CACHE.name
# read by huggingface_hub when it is imported, which the next lines do
os.environ.update(HF_ENDPOINT=HUB.url, HF_HUB_DISABLE_XET="1", HF_HOME=_CACHE.name, HF_HUB_DISABLE_PROGRESS_BARS="1")
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)

import pytest
import torch
import yaml
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from medcap.metrics.meteor import Meteor
from medcap.modeling.blip import load_blip
from medcap.phantom.dataset import write_phantom

ROOT = Path(__file__).parents[1]
SIZE, PATCH, WIDTH = 32, 8, 32  # pixels a side, pixels a patch, width of every layer
WORDS = """
    a abdomen abscess an angiogram angiography arrow axial branch calcification chest cm computed crescent ct
    cyst cystic demonstrating digital enhanced enhancing field findings hematoma hemisphere image in kidney
    large left lesion like liver lobe lower lung magnetic man mass matter measuring mid middle mode mri no
    normal of old on picture plain pole posteroanterior quadrant radiograph ray resonance revealing right rim
    ring scan shaped showing shows simple small solid subtraction territory the tomography transverse tumor
    ultrasound upper weighted white with without woman x year zone
"""


def tiny_tokenizer(folder: Path) -> BertTokenizer:
    """WordPiece as the Hub's BLIP has it, with [CLS] and [SEP] but no [DEC] and [ENC]; other words are spelt."""
    letters = [*string.ascii_lowercase, *string.digits]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = dict.fromkeys([*special, *WORDS.split(), *string.punctuation, *letters, *(f"##{c}" for c in letters)])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizer(str(folder / "vocab.txt"), model_max_length=512)


def tiny_blip(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """BLIP in all its parts, with [DEC] and [ENC] behind the tokenizer's last token, as in the Hub's."""
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
        "initializer_range": 0.02,  # the default, 1e-10, makes a tower that sees nothing (trap 18)
    }  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    words = model.text_decoder.bert.embeddings
    with (
        torch.no_grad()
    ):  # long vectors, so that 32 numbers can be sure of a word: they are the head's too, and frozen
        words.word_embeddings.weight.mul_(10)
        words.position_embeddings.weight.mul_(10)
    return model


START_METEOR, END_METEOR = Meteor.__enter__, Meteor.__exit__


@pytest.fixture
def own_meteor(monkeypatch) -> None:
    """Start and end a Java process for every `with Meteor()` of this test."""
    monkeypatch.setattr(Meteor, "__enter__", START_METEOR)
    monkeypatch.setattr(Meteor, "__exit__", END_METEOR)


@pytest.fixture(scope="session", autouse=True)
def shared_meteor() -> Iterator[None]:
    """Every `with Meteor()` of the session reuses an idle Java process: reading its tables takes ten seconds."""
    idle: list[dict[str, Any]] = []  # the state of a Meteor that has been left and whose process still runs

    def enter(self: Meteor) -> Meteor:
        if not idle:
            return START_METEOR(self)
        self.__dict__ = idle.pop()  # shared, because the thread that watches the process reads it
        return self

    def leave(self: Meteor, *exception: object) -> None:
        if self.is_running and exception[:1] in ((), (None,)):
            idle.append(self.__dict__)
        else:
            END_METEOR(self, *exception)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meteor, "__enter__", enter)
        patch.setattr(Meteor, "__exit__", leave)
        yield
    for state in idle:
        left = Meteor()
        left.__dict__ = state
        left.__exit__()  # the real one again


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A checkpoint folder as it would come from the Hub."""
    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = tiny_tokenizer(folder)
    tiny_blip(tokenizer).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A data folder with 12 + 6 + 6 images; not to be written to."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantom(folder, train=12, valid=6, test=6, seed=0)
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_base) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """The tiny base and its processor; not to be changed."""
    model, processor = load_blip(str(tiny_base))
    return model.eval(), processor


@pytest.fixture
def blip(loaded) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """The tiny base and its processor, which the test may change."""
    return copy.deepcopy(loaded)


@pytest.fixture(scope="session")
def train_script() -> ModuleType:
    """scripts/train.py as a module, to be run in this process."""
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A Hub with nothing in it but what this module's tests put there."""
    HUB.reset()
    yield HUB
    HUB.reset()


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the recipe that made it, and what it said."""

    folder: Path
    recipe: Path
    stdout: str
    stderr: str


def write_recipe(path: Path, **keys: Any) -> Path:
    """A YAML file of `keys`; returns its path."""
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained_run(train_script, tiny_base, phantoms, tmp_path_factory) -> Run:
    """Two epochs of three steps at another size than the base's, evaluated by generation; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(
        folder / "recipe.yaml",
        data_dir=str(phantoms),
        model_name_or_path=str(tiny_base),
        output_dir=str(folder / "run"),
        image_size=48,
        lora_target_modules="text",
        lora_r=8,
        lora_dropout=0.1,  # so that a resumed run is only the same with the same random numbers
        num_train_epochs=2,
        precision="fp32",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,  # 6 images: the last batch is not full
        learning_rate=0.02,
        logging_steps=1,
        num_beams=2,
        max_new_tokens=24,  # more than generate's own 20
        no_repeat_ngram_size=3,
        metric_for_best_model="loss",
        greater_is_better=True,  # the worse loss: so the first epoch wins, and the last is not taken in its place
        use_cpu=True,
        seed=5,
    )
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        train_script.main(["--config", str(recipe)])
    return Run(folder / "run", recipe, out.getvalue(), err.getvalue())
