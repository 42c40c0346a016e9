"""Measure the scores that a perfect model loses because its captions are encoded and decoded.

    python benchmarks/decoding_ceiling.py --captions valid_captions.csv --vocab vocab.txt

Scores real captions after encoding and decoding against the original captions. --captions is ROCOv2's CSV with the
columns ID and Caption, --vocab the vocabulary of the tokenizer (bert-base-uncased for BLIP).

Rows: original (unchanged), decoded (WordPiece decoding), detokenized (decoded, then detokenized by medcap), ceiling
(detokenized with the blanks of the original, except after a full stop before a letter, because WordPiece encodes
"abdomen.The" and "abdomen. The" alike). Each is scored on the half of the captions that was used to develop the latest
detokenization rules (dev), on the other half (held-out) and on all. The idf of CIDEr is that of the scored captions.
Nothing is truncated. Takes 2 to 3 minutes on two CPU cores.
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
SEED = 20240607  # of the split into halves


def read_captions(path: Path) -> list[str]:
    """Return the cleaned captions without blank ones, which have no tokens to score."""
    with path.open(encoding="utf-8", newline="") as file:
        captions = [clean_caption(row["Caption"]) for row in csv.DictReader(file)]
    return [caption for caption in captions if caption]


def decode(captions: list[str], vocab: Path) -> list[str]:
    tokenizer = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    return tokenizer.batch_decode(tokenizer(captions)["input_ids"], skip_special_tokens=True)


def ceiling(caption: str, detokenized: str) -> str:
    """Return `detokenized` with the blanks of `caption`, except after a full stop before a letter.

    A caption with characters outside the vocabulary cannot be aligned; then `detokenized` is returned unchanged.
    """
    decomposed = unicodedata.normalize("NFD", caption.lower())
    original = "".join(letter for letter in decomposed if unicodedata.category(letter) != "Mn")
    source, target = (re.findall(r"( ?)(\S)", text) for text in (original, detokenized))
    if [letter for _, letter in source] != [letter.lower() for _, letter in target]:
        return detokenized
    text = ""
    for (source_blank, _), (target_blank, letter) in zip(source, target, strict=True):
        text += (target_blank if text.endswith(".") and letter.isalpha() else source_blank) + letter
    return text


def halves(n: int) -> dict[str, list[int]]:
    """Return the row numbers of the development half, of the held-out half and of all rows."""
    rows = list(range(n))
    random.Random(SEED).shuffle(rows)
    return {"dev": sorted(rows[: n // 2]), "held-out": sorted(rows[n // 2 :]), "all": list(range(n))}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="CSV with the columns ID and Caption")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of the tokenizer, one token per line")
    options = parser.parse_args(argv)
    captions = read_captions(options.captions)
    decoded = decode(captions, options.vocab)
    detokenized = [detokenize(text) for text in decoded]
    best = [ceiling(*pair) for pair in zip(captions, detokenized, strict=True)]
    texts = {"original": captions, "decoded": decoded, "detokenized": detokenized, "ceiling": best}
    tokens = {name: tokenize(row) for name, row in texts.items()}
    print(f"{'':21}" + "".join(f"{name:>9}" for name in METRICS))
    for name, predictions in tokens.items():
        for part, rows in halves(len(captions)).items():
            references = [[tokens["original"][row]] for row in rows]
            scores = score_captions([predictions[row] for row in rows], references, tokenized=True, metrics=METRICS)
            print(f"{name:12}{part:9}" + "".join(f"{scores.metrics[metric]:9.4f}" for metric in METRICS), flush=True)
    print(scores.signature, file=sys.stderr)


if __name__ == "__main__":
    main()
