"""What a perfect model would score: real captions, encoded and decoded, against themselves.

python benchmarks/decoding_ceiling.py --captions valid_captions.csv --vocab vocab.txt

captions: ROCOv2's CSV with the columns ID and Caption. vocab: the tokenizer's, bert-base-uncased's for BLIP.
Rows: identity (the captions as they are), decoded (what WordPiece decoding writes), restored (decoded, then
medcap.data.surface.restore_surface). Nothing is truncated. One to two minutes on 2 cores.
"""

import argparse
import csv
import sys
from pathlib import Path

from transformers import BertTokenizerFast

from medcap.data.captions import clean_caption
from medcap.data.surface import restore_surface
from medcap.evaluation.coco import score_captions

METRICS = ("bleu_1", "bleu_4", "rouge_l", "cider")


def read_captions(path: Path) -> list[str]:
    """The cleaned captions; blank ones have no tokens to score and are left out."""
    with path.open(encoding="utf-8", newline="") as file:
        captions = [clean_caption(row["Caption"]) for row in csv.DictReader(file)]
    return [caption for caption in captions if caption]


def decode(captions: list[str], vocab: Path) -> list[str]:
    tokenizer = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)
    return tokenizer.batch_decode(tokenizer(captions)["input_ids"], skip_special_tokens=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="CSV with the columns ID and Caption")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of the tokenizer, one piece a line")
    options = parser.parse_args(argv)
    captions = read_captions(options.captions)
    decoded = decode(captions, options.vocab)
    rows = {"identity": captions, "decoded": decoded, "restored": [restore_surface(text) for text in decoded]}
    print(f"{'':10}" + "".join(f"{name:>9}" for name in METRICS))
    for name, predictions in rows.items():
        scores = score_captions(predictions, [[caption] for caption in captions], metrics=METRICS)
        print(f"{name:10}" + "".join(f"{scores.metrics[metric]:9.4f}" for metric in METRICS))
    print(scores.signature, file=sys.stderr)


if __name__ == "__main__":
    main()
