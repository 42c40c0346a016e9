"""What a perfect model would score: real captions, encoded and decoded, against themselves.

python benchmarks/decoding_ceiling.py --captions valid_captions.csv --vocab vocab.txt

captions: ROCOv2's CSV with the columns ID and Caption. vocab: the tokenizer's, bert-base-uncased's for BLIP.
Rows: identity (the captions as they are), decoded (what WordPiece decoding writes), restored (decoded, then
medcap.data.detokenize.detokenize), ceiling (as restored, but with every blank where the original has it; only a full
stop before a letter still ends a sentence, since WordPiece reads "abdomen.The" and "abdomen. The" alike). Each on the
half of the captions that the latest rules were made with (made), on the other half (held) and on all. CIDEr's idf is
that of the captions scored. Nothing is truncated. Two to three minutes on 2 cores.
"""

import argparse
import csv
import random
import re
import sys
import unicodedata
from pathlib import Path

from transformers import BertTokenizerFast

from medcap.data.captions import clean_caption
from medcap.data.detokenize import detokenize
from medcap.metrics.coco import score_captions, tokenize

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
SEED = 20240607  # of the two halves


def read_captions(path: Path) -> list[str]:
    """The cleaned captions; blank ones have no tokens to score and are left out."""
    with path.open(encoding="utf-8", newline="") as file:
        captions = [clean_caption(row["Caption"]) for row in csv.DictReader(file)]
    return [caption for caption in captions if caption]


def decode(captions: list[str], vocab: Path) -> list[str]:
    tokenizer = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    return tokenizer.batch_decode(tokenizer(captions)["input_ids"], skip_special_tokens=True)


def ceiling(caption: str, restored: str) -> str:
    """`restored` with the blanks of `caption`, but its own at full stops before letters.

    A caption with characters that the vocabulary lacks cannot be laid beside it, and stays as restored.
    """
    marks = unicodedata.normalize("NFD", caption.lower())
    plain = "".join(letter for letter in marks if unicodedata.category(letter) != "Mn")
    own, made = (re.findall(r"( ?)(\S)", text) for text in (plain, restored))
    if [letter for _, letter in own] != [letter.lower() for _, letter in made]:
        return restored
    text = ""
    for (own_blank, _), (made_blank, letter) in zip(own, made, strict=True):
        text += (made_blank if text.endswith(".") and letter.isalpha() else own_blank) + letter
    return text


def halves(n: int) -> dict[str, list[int]]:
    """Rows, in order, of the half that the rules were made with, of the other, and of all."""
    rows = list(range(n))
    random.Random(SEED).shuffle(rows)
    return {"made": sorted(rows[: n // 2]), "held": sorted(rows[n // 2 :]), "all": list(range(n))}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="CSV with the columns ID and Caption")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of the tokenizer, one piece a line")
    options = parser.parse_args(argv)
    captions = read_captions(options.captions)
    decoded = decode(captions, options.vocab)
    restored = [detokenize(text) for text in decoded]
    best = [ceiling(*pair) for pair in zip(captions, restored, strict=True)]
    texts = {"identity": captions, "decoded": decoded, "restored": restored, "ceiling": best}
    tokens = {name: tokenize(row) for name, row in texts.items()}
    print(f"{'':15}" + "".join(f"{name:>9}" for name in METRICS))
    for name, predictions in tokens.items():
        for part, rows in halves(len(captions)).items():
            references = [[tokens["identity"][row]] for row in rows]
            scores = score_captions([predictions[row] for row in rows], references, tokenized=True, metrics=METRICS)
            print(f"{name:10}{part:5}" + "".join(f"{scores.metrics[metric]:9.4f}" for metric in METRICS), flush=True)
    print(scores.signature, file=sys.stderr)


if __name__ == "__main__":
    main()
