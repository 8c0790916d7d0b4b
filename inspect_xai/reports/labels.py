"""What the codes of a record mean, in words for the people who read a report."""

from collections.abc import Mapping
from typing import Final

from inspect_xai.records import Reason, Status
from inspect_xai.storage.results import is_no_better_than_chance

REASONS: Final = {
    Reason.DEFECT_OVER_THRESHOLD: "a defect label reached its threshold",
    Reason.DEFECT_NEAR_THRESHOLD: "a defect label came within the margin below its threshold",
    Reason.DEFECT_LEADS_BELOW_THRESHOLD: "the most probable label is a defect, but it stays below its threshold",
    Reason.NO_OK_LABEL: "no defect label reached its threshold, and the model has no label that means OK",
    Reason.CLEAR: "an OK label leads and no defect label comes near its threshold",
    Reason.BAD_IMAGE: "the file holds no picture that could be judged",
    Reason.MODEL_FAILED: "the model put out something that is not a number",
    Reason.UNFORESEEN: "an error nobody foresaw; the log has it",
}

STATUSES: Final = {
    Status.EXPLAINED: "masking shows where the label's score depends on the picture",
    Status.NO_EVIDENCE: (
        "no channel of the network argues for the label: there is no map to show (rise and occlusion, which ask for "
        "scores alone, may draw one)"
    ),
    Status.NOT_EXPLAINED: (
        "every masked picture scores nothing, so masking says nothing: there is no map to show (layer-cam and "
        "hirescam, which mask nothing, may draw one)"
    ),
    Status.FAILED: "the explanation failed; the verdict stands without it",
}

NOTES: Final = {
    "low_score_spread": "the masks score nearly alike, so the map hardly distinguishes places",
    "baseline_scores_class": "the picture scores for the label even with everything hidden; read the map with doubt",
    "tiny_support": "the map covers less than a thousandth of the picture",
    "wide_support": "the map covers most of the picture",
    "only_the_middle": "the network sees only the middle of the picture; around it nothing was looked at, the map is 0",
    "ok_label_has_no_place": "the label means OK, which has no place in the picture",
    "stride_grid": "the method marks a grid where the network takes every second pixel; trust regions, not single dots",
    "not_settled": "the random masks were too few for the map to settle: it is partly noise",
    "scores_predicted": "most masks' scores are predicted from those that went through the network",
    "int8_scoring": "masks were scored in 8 bits; the bundle's manifest says how near that comes to float scoring",
    "windows_left_out": "the bound on passes or seconds was not enough for every window; the strongest were explained",
    "knows_nothing": "the map is drawn without looking at the picture, to compare others with",
}

NO_CAUSE: Final = (
    "A map shows where hiding the picture changed the model's score. "
    "It is evidence about the model, not the cause of a defect, and it does not judge the part."
)


def faithfulness_in_words(found: Mapping[str, float]) -> str:
    """Say in one line whether a map is true to the network; empty where that was not measured.

    Args:
        found: By name, as `explain/faithfulness.py` has them.
    """
    if "deletion_percent" not in found:
        return ""
    judged = "no better than chance: " if is_no_better_than_chance(found) else ""
    left, anywhere = found["deletion_percent"], found["deletion_percent_random"]
    shown, shown_anywhere = (100 - found[f"drop_percent{beside}"] for beside in ("", "_random"))
    return (
        f"{judged}without what the map marks {left:.0f} % of the score is left (as much anywhere: {anywhere:.0f} %); "
        f"its top 15 % alone keep {shown:.0f} % (anywhere: {shown_anywhere:.0f} %)"
    )


def note_in_words(code: str) -> str:
    """Say what a note of an explanation means; a code unknown here is shown as it is."""
    if code.startswith("bucket_halved_to_"):
        return f"the device ran short of memory: {code.removeprefix('bucket_halved_to_')} masks at a time"
    if code.startswith("head_passes_"):
        return f"beside the passes, {code.removeprefix('head_passes_')} through the layers behind the last block"
    if code.startswith("region_"):
        found_by = code.removeprefix("region_").replace("_", " ")
        return f"the map ends where 15 % of the window, found by {found_by}, kept most of the score when shown alone"
    return NOTES.get(code, code)
