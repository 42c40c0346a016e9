"""`medcap score`, `medcap facts` and `medcap submission`: captions in files, without a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medcap.commands.options import add_command, json_option, output_option, print_result, protocol_options


def add_commands(commands: Any) -> None:
    """Add `score`, `facts` and `submission`."""
    score = add_command(
        commands,
        "score",
        _score,
        "score captions without model and images",
        "medcap score --predictions predictions.csv --references references.csv",
    )
    score.add_argument("--predictions", type=Path, required=True, help="CSV with the columns ID,Caption")
    score.add_argument("--references", type=Path, required=True, help="CSV with the columns ID,Caption")
    output_option(score, "file", help="also write the scores into this JSON file")
    json_option(score)
    protocol_options(score)
    score.add_argument(
        "--clinical", action="store_true", help="also compute RadGraph F1, RaTEScore and GREEN (extra: clinical)"
    )

    facts = add_command(
        commands,
        "facts",
        _facts,
        "extract facts from captions; write one JSON line per caption",
        "medcap facts predictions.csv --out facts.jsonl",
    )
    facts.add_argument("captions", type=Path, metavar="CAPTIONS.csv", help="CSV with the columns ID,Caption")
    output_option(facts, "file", required=True, help="output file: id, modality, laterality, region, finding, ...")

    submission = add_command(
        commands,
        "submission",
        _submission,
        "write the zip that ImageCLEFmedical accepts",
        "medcap submission eval/mine --ids ids.csv --out submission.zip",
    )
    submission.add_argument(
        "captions",
        type=Path,
        metavar="CAPTIONS",
        help="folder of medcap evaluate, CSV with the columns ID,Caption, or the .jsonl of medcap caption",
    )
    submission.add_argument(
        "--ids", type=Path, help="ids.csv of the organizers, or any CSV with a column ID: the images and their order"
    )
    output_option(submission, "file", required=True, help="the zip file, with submission.csv in it")


def _score(args: argparse.Namespace) -> None:
    from medcap.evaluation.csv_files import read_pairs
    from medcap.io import write_json
    from medcap.metrics.coco import score_captions
    from medcap.metrics.statistics import bootstrap

    ids, predictions, references = read_pairs(args.predictions, args.references)
    scores = score_captions(predictions, [[reference] for reference in references])
    result: dict[str, Any] = {
        "metrics": scores.metrics,
        "intervals": bootstrap(scores.statistics),
        "n": len(predictions),
        "signature": str(scores.signature),
    }
    if args.protocol != "coco":
        captions = dict(zip(ids, predictions, strict=True))
        result["imageclef"] = imageclef_scores(args, captions, references, args.predictions)
    missing = _add_clinical(result, predictions, references) if args.clinical else []
    if args.out:
        write_json(args.out, result)
    print_result(args, result, _text(result))
    if missing:
        raise ValueError("; ".join(missing))


def _add_clinical(result: dict[str, Any], predictions: list[str], references: list[str]) -> list[str]:
    """Add the learned clinical metrics that can be computed; return what the others need."""
    from medcap.metrics.clinical.learned import learned_scores

    scores, missing = learned_scores(predictions, references)
    if scores:
        result["clinical"] = scores
    return missing


def _text(result: dict[str, Any]) -> str:
    """Return the scores as a table; those of other protocols as JSON."""
    from medcap.reporting.columns import scores_text

    others = {key: result[key] for key in ("imageclef", "clinical") if key in result}
    parts = [scores_text(result["metrics"], result["intervals"]), f"{result['n']:,} captions, {result['signature']}"]
    return "\n".join([*parts, json.dumps(others, indent=2, ensure_ascii=False)] if others else parts)


def imageclef_scores(
    args: argparse.Namespace, captions: dict[str, str], references: list[str], submission: Path
) -> dict[str, Any]:
    """Return the scores of ImageCLEFmedical for `captions` by image id, and the problems of the submission."""
    from medcap.evaluation.submission import check_submission
    from medcap.metrics.imageclef import score_imageclef

    scored = score_imageclef(list(captions.values()), references, protocol=args.protocol, bertscore=args.bertscore)
    problems = check_submission(submission.read_bytes(), list(captions))
    return {
        **{key: scored[key] for key in ("metrics", "not_computed", "signature")},
        "submission": problems or "valid",
    }


def _facts(args: argparse.Namespace) -> None:
    """Write the facts of each caption; names in cui_mapping.csv beside the file are further terms."""
    from medcap.data.concepts import concept_names
    from medcap.evaluation.csv_files import read_captions
    from medcap.io import write_text
    from medcap.metrics.clinical.concept_terms import concept_terms
    from medcap.metrics.clinical.facts import extract_facts

    captions = read_captions(args.captions)
    concepts = concept_terms(concept_names(args.captions.parent))
    lines = []
    for image_id, caption in captions.items():
        facts = {kind: sorted(values) for kind, values in extract_facts(caption, concepts).items()}
        lines.append(json.dumps({"id": image_id, **facts}, ensure_ascii=False) + "\n")
    write_text(args.out, "".join(lines))
    print(f"Facts of {len(captions)} captions: {args.out}")


def _submission(args: argparse.Namespace) -> None:
    from medcap.evaluation.submission import NAME, write_submission

    if args.out.suffix.lower() != ".zip":
        raise ValueError(f"--out {args.out}: the submission is a zip file; give a name that ends in .zip")
    n = write_submission(args.captions, args.out, args.ids)
    order = "" if args.ids else "; images and order are those of the captions, --ids checks those of the organizers"
    print(f"{args.out}: {NAME} with {n} captions{order}")
