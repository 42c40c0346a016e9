"""Facts stated in a caption, compared with the known facts of its phantom."""

import pytest

from medcap.phantom.truth import findings_accuracy, stated_facts

CASES = {
    "nothing": ("", (None, None, None, None)),
    "everyday words": ("a bright blob at the top left of a striped picture", (None, "left", None, None)),
    "all four": ("Chest X-ray showing a mass in the right upper lung.", ("x-ray", "right", "upper", "mass")),
    "both sides is no answer": ("CT: cysts, left and right, mid kidney", ("ct", None, "middle", "cyst")),
    "hyphen": ("left-sided haematoma on mri, lower zone", ("mri", "left", "lower", "hematoma")),
    "no word inside another": ("upright impact, bright rightward", (None, None, None, None)),
    "upper case": ("ANGIOGRAM, LOWER LEFT: CALCIFIED LESION", ("angiography", "left", "lower", "calcification")),
    "plural": ("sonograms of abscesses", ("ultrasound", None, None, "abscess")),
}


@pytest.mark.parametrize(("caption", "expected"), CASES.values(), ids=CASES)
def test_said(caption: str, expected: tuple[str | None, ...]) -> None:
    assert tuple(stated_facts(caption).values()) == expected


def test_accuracy_counts_modality_everywhere_and_the_rest_where_there_is_a_finding() -> None:
    truth = {
        "a": {"modality": "ct", "findings": [{"side": "left", "level": "upper", "finding": "cyst"}]},
        "b": {"modality": "mri", "findings": []},
        "c": {"modality": "ct", "findings": [{"side": "right", "level": "lower", "finding": "mass"}]},
    }
    captions = ["ct: cyst in the left lower lobe", "mri, normal", "mri: mass in the left lower lobe"]
    accuracy = findings_accuracy(captions, ["a", "b", "c"], truth)
    assert accuracy == {"modality": 2 / 3, "side": 0.5, "level": 0.5, "finding": 1.0}
