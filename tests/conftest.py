"""What the tests share: a tiny BLIP that was never trained, a tiny phantom data set, and one run made from the two."""

import importlib.util
import string
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from medcap.data.phantom import write_phantom

ROOT = Path(__file__).parents[1]
SIZE, PATCH, WIDTH = 32, 8, 32  # pixels a side, pixels a patch, width of every layer
WORDS = """
    a abdomen abscess an angiogram angiography arrow axial branch calcification chest cm computed crescent ct cyst
    cystic demonstrating digital enhanced enhancing field findings hematoma hemisphere image in kidney large left lesion
    like liver lobe lower lung magnetic man mass matter measuring mid middle mode mri no normal of old on picture plain
    pole posteroanterior quadrant radiograph ray resonance revealing right rim ring scan shaped showing shows simple
    small solid subtraction territory the tomography transverse tumor ultrasound upper weighted white with without
    woman x year zone
""".split()


def tiny_tokenizer(folder: Path) -> BertTokenizer:
    """WordPiece as the Hub's BLIP has it, with [CLS] and [SEP] but no [DEC] and [ENC]; whatever has no word is spelt."""
    letters = [*string.ascii_lowercase, *string.digits]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = dict.fromkeys([*special, *WORDS, *string.punctuation, *letters, *(f"##{c}" for c in letters)])
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
        "initializer_range": 0.3,  # wide enough that 32 numbers can be sure of a word, and that words differ
    }  # fmt: skip
    vision = {
        **shape, "image_size": SIZE, "patch_size": PATCH, "projection_dim": WIDTH,
        "initializer_range": 0.02,  # the default, 1e-10, makes a tower that sees nothing (trap 18)
    }  # fmt: skip
    torch.manual_seed(0)
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


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
