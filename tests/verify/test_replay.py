"""Replay: a recorded decision holds, differs in what was changed, or cannot be recomputed for what is missing."""

import dataclasses
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from inspect_xai.errors import PictureError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.save import versions
from inspect_xai.intake.decode import hash_of_pixels
from inspect_xai.model.build.build import build_bundle
from inspect_xai.records import Capture, ExplainSpec, InputSpec, Inspection, Method, ModelCard, Part, Run, VerdictSpec
from inspect_xai.storage.results import StoredInspection
from inspect_xai.storage.store import Store, open_store
from inspect_xai.verify.replay import Replay, Replayer, ReplayOutcome, archived_picture
from inspect_xai.verify.tolerance import compare_maps, scores_off, sums_off
from tests.support import hostile, spots
from tests.support.line import explaining, replay, rows, run, write
from tests.support.toys import toy_model

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def recorded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredInspection]:
    """What a line recorded of a good part, a near miss, a bad part and a file without a picture, by serial."""
    folder = tmp_path_factory.mktemp("line")
    for name, spot_px in (("good", 0), ("near", 5), ("bad", 10)):
        write(folder / f"in/{name}.png", 3, spot_px)
    (folder / "in/empty.png").write_bytes(b"")
    db = f"sqlite:///{folder / 'line.db'}"
    run(folder / "in", bundle, db, policy=explaining(1.0))
    with open_store(db) as store:
        return {row.serial: store.get(row.inspection_id, maps=True) for row in rows(db)}


@pytest.fixture(scope="module")
def replayer(bundle: Path) -> Iterator[Replayer]:
    with Replayer(bundle, device="cpu") as opened:
        yield opened


def names(result: Replay) -> list[str]:
    return [difference.what for difference in result.differences]


def rebuilt(folder: Path, card: ModelCard, **weights: float) -> Path:
    """The spots model with some weights multiplied, as a bundle of its own."""
    model = spots.spot_model()
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            changed = numpy_helper.to_array(tensor) * np.float32(weights[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, folder / "changed.onnx")
    build_bundle(folder / "changed.onnx", card, folder / "changed.bundle")
    return folder / "changed.bundle"


@pytest.mark.parametrize("serial", ["good", "bad"])
def test_what_nobody_touched_holds(replayer: Replayer, recorded: dict[str, StoredInspection], serial: str) -> None:
    stored = recorded[serial]
    result = replayer.replay(stored, archived_picture(stored))
    assert (result.outcome, result.differences, result.changed, result.missing) == (ReplayOutcome.HOLDS, (), (), ())
    assert result.score_off == 0.0
    assert result.agreement is not None
    assert result.agreement.off <= 1 / 8190 * 1.01  # what twelve bits leave out, and no more
    assert result.agreement.overlap == 1.0


def test_a_changed_weight_is_named_with_what_it_does(recorded: dict[str, StoredInspection], tmp_path: Path) -> None:
    stored = recorded["near"]
    result = replay(stored, archived_picture(stored), rebuilt(tmp_path, spots.CARD, last=0.999))
    assert result.outcome is ReplayOutcome.DIFFERS
    assert names(result)[:2] == ["model", "scores"]
    assert result.changed == ()  # the card is the same: it is the network that changed
    assert result.score_off is not None
    assert result.score_off > 1e-4


def test_a_changed_threshold_is_named_as_a_field_of_the_card(
    recorded: dict[str, StoredInspection], tmp_path: Path
) -> None:
    stored = recorded["bad"]
    assert stored.verdict.score < 1.0
    card = dataclasses.replace(spots.CARD, verdict=VerdictSpec(1.0, 0.05))
    result = replay(stored, archived_picture(stored), rebuilt(tmp_path, card))
    assert names(result) == ["model", "verdict", "reason", "threshold"]
    assert (result.differences[1].recorded, result.differences[1].now) == ("NG", "UNSURE")
    assert result.score_off == 0.0
    assert {(change.what, change.recorded, change.now) for change in result.changed} == {
        ("card verdict.ng_threshold", "0.5", "1.0"),
        ("card verdict.unsure_margin", "0.4", "0.05"),
    }


def test_another_picture_in_its_place_is_found(replayer: Replayer, recorded: dict[str, StoredInspection]) -> None:
    stored = recorded["bad"]
    other = hostile.encoded(spots.part(3, spot_px=9))
    result = replayer.replay(stored, other)
    assert result.outcome is ReplayOutcome.DIFFERS
    assert names(result)[:3] == ["picture file", "decoded pixels", "scores"]
    assert result.differences[0].now == hashlib.sha256(other).hexdigest()


def test_a_key_that_cards_did_not_have_then_is_no_change(
    replayer: Replayer, recorded: dict[str, StoredInspection]
) -> None:
    stored = recorded["bad"]
    card = {name: value for name, value in stored.model.card.items() if name != "description"}
    card["input"] = {name: value for name, value in card["input"].items() if name not in ("resize", "pad_color")}
    older = dataclasses.replace(stored, model=dataclasses.replace(stored.model, card=card))
    assert replayer.replay(older, archived_picture(older)).changed == ()


def test_one_changed_byte_is_found_even_where_the_pixels_stay(
    replayer: Replayer, recorded: dict[str, StoredInspection]
) -> None:
    stored = recorded["bad"]
    assert names(replayer.replay(stored, archived_picture(stored) + b"\0")) == ["picture file"]
    broken = archived_picture(stored)[:-30]
    assert names(replayer.replay(stored, broken)) == ["picture file", "inspection"]


def test_a_moved_map_is_found(replayer: Replayer, recorded: dict[str, StoredInspection]) -> None:
    stored = recorded["bad"]
    assert stored.explanation is not None
    assert stored.explanation.fused is not None
    moved = dataclasses.replace(stored.explanation, fused=np.roll(stored.explanation.fused, 4, axis=1))
    result = replayer.replay(dataclasses.replace(stored, explanation=moved), archived_picture(stored))
    assert names(result) == ["explanation map"]
    assert result.agreement is not None
    assert result.differences[0].off == result.agreement.off > 0.01


def test_changed_sums_are_found_block_by_block(replayer: Replayer, recorded: dict[str, StoredInspection]) -> None:
    stored = recorded["bad"]
    assert stored.explanation is not None
    [tile] = stored.explanation.tiles
    assert tile.blocks[0].sums is not None
    blocks = (dataclasses.replace(tile.blocks[0], sums=tile.blocks[0].sums[::-1]), *tile.blocks[1:])
    altered = dataclasses.replace(stored.explanation, tiles=(dataclasses.replace(tile, blocks=blocks),))
    result = replayer.replay(dataclasses.replace(stored, explanation=altered), archived_picture(stored))
    assert names(result) == [f"block {tile.blocks[0].tensor} of window 0"]


def test_other_versions_are_told_although_everything_holds(
    replayer: Replayer, recorded: dict[str, StoredInspection]
) -> None:
    stored = recorded["bad"]
    old = dataclasses.replace(
        stored.run, versions=versions() | {"numpy": "1.0", "gone": "2"}, provider="CUDAExecutionProvider"
    )
    result = replayer.replay(dataclasses.replace(stored, run=old), archived_picture(stored))
    assert result.outcome is ReplayOutcome.HOLDS
    assert [(change.what, change.recorded) for change in result.changed] == [
        ("provider", "CUDAExecutionProvider"),
        ("version of gone", "2"),
        ("version of numpy", "1.0"),
    ]


def test_without_stored_maps_the_numbers_are_compared(
    replayer: Replayer, recorded: dict[str, StoredInspection]
) -> None:
    stored = recorded["bad"]
    assert stored.explanation is not None
    bare = dataclasses.replace(stored.explanation, fused=None, maps_deleted=True)
    result = replayer.replay(dataclasses.replace(stored, explanation=bare), archived_picture(stored))
    assert (result.outcome, result.agreement) == (ReplayOutcome.HOLDS, None)
    assert "retention deleted them" in result.missing[0]
    other = dataclasses.replace(bare, coverage=bare.coverage + 0.2)
    result = replayer.replay(dataclasses.replace(stored, explanation=other), archived_picture(stored))
    assert names(result) == ["support share"]


def test_a_file_without_a_picture_fails_again(replayer: Replayer, recorded: dict[str, StoredInspection]) -> None:
    stored = recorded["empty"]
    assert replayer.replay(stored, archived_picture(stored)).outcome is ReplayOutcome.HOLDS
    result = replayer.replay(stored, hostile.encoded(spots.part(1)))
    assert result.outcome is ReplayOutcome.CANNOT
    assert "does not fail now" in result.missing[0]


def test_a_picture_that_is_gone_or_moved(recorded: dict[str, StoredInspection], tmp_path: Path) -> None:
    stored = recorded["bad"]
    data = archived_picture(stored)
    there = Path(stored.capture.archived_to)
    elsewhere = dataclasses.replace(stored.capture, archived_to=f"/no/such/place/_archive/day/{there.name}")
    moved = dataclasses.replace(stored, capture=elsewhere)
    with pytest.raises(PictureError, match="cannot be read"):
        archived_picture(moved)
    (tmp_path / "backup/_archive/day").mkdir(parents=True)
    (tmp_path / "backup/_archive/day" / there.name).write_bytes(data)
    assert archived_picture(moved, archive=tmp_path / "backup") == data
    secret = dataclasses.replace(stored.capture, archived_to=f"/gone/../../{there.name}")
    (tmp_path / there.name).write_bytes(b"outside")
    with pytest.raises(PictureError):
        archived_picture(dataclasses.replace(stored, capture=secret), archive=tmp_path / "backup/_archive")


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        (Method.SISE, {"budget_s": 1e-6}),
        (Method.GRAD_SISE, {"budget_s": 1e-6}),
        (Method.GRAD_CAM, {"budget_s": 1e-6}),
        (Method.SISE, {"max_passes": 40}),
    ],
)
def test_a_time_budget_is_replayed_by_the_passes_it_bought(
    method: Method, bound: dict[str, Any], tmp_path: Path
) -> None:
    """A budget that is over at once buys a first round of masks in one window; 40 passes, in each of two."""
    onnx.save(toy_model("resnet18"), tmp_path / "toy.onnx")
    card = ModelCard(
        "toy",
        "1",
        ("pit", "crack", "stain", "dent", "free"),
        InputSpec(64, 64, mean=(0.5,), std=(0.25,)),
        verdict=VerdictSpec(ng_threshold=1e-9),
        explain=ExplainSpec(mu=0.0, method=method),
    )
    toy = build_bundle(tmp_path / "toy.onnx", card, tmp_path / "toy.bundle")
    picture = np.random.default_rng(5).integers(0, 255, (64, 100, 3)).astype(np.uint8)
    data = hostile.encoded(picture)
    with Explainer(toy, device="cpu", **bound) as explainer, open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        look = explainer.look(picture)
        explanation = explainer.explain(look, target=look.verdict.label)
        as_bought = dataclasses.replace(explanation.settings, max_passes=0, budget_s=0.5)
        explanation = dataclasses.replace(explanation, settings=as_bought)
        stored = _record(store, toy.fingerprint, card, data, picture, look, explanation)  # type: ignore[arg-type]
    assert stored.explanation is not None
    assert len(look.tiles) == 2
    assert len(stored.explanation.tiles) == (2 if "max_passes" in bound else 1)
    assert ("windows_left_out" in explanation.notes) == ("budget_s" in bound)
    predicted = sum(block.predicted_scores for tile in stored.explanation.tiles for block in tile.blocks)
    assert (predicted > 0) == (method is not Method.GRAD_CAM)
    result = replay(stored, data, toy)
    assert (result.outcome, result.differences) == (ReplayOutcome.HOLDS, ())


def _record(
    store: Store, fingerprint: str, card: ModelCard, data: bytes, picture: object, look: object, explanation: object
) -> StoredInspection:
    store.registry.register_model(fingerprint, card)
    store.begin_run(Run("r", NOW, "CPUExecutionProvider", versions(), {}))
    capture = Capture(
        hashlib.sha256(data).hexdigest(),
        "a.png",
        Part("SN1"),
        NOW,
        height_px=64,
        width_px=100,
        pixels_sha256=hash_of_pixels(picture),  # type: ignore[arg-type]
    )
    inspection = Inspection(
        capture,
        fingerprint,
        "1",
        "r",
        NOW,
        look.verdict,
        look.prediction,
        explanation,
        "ng",  # type: ignore[attr-defined,arg-type]
    )
    [row] = store.record([inspection])
    return store.get(row.inspection_id, maps=True)


def test_map_agreement_by_hand() -> None:
    expected = np.zeros((10, 100), np.float32)
    expected[0, :50] = 5.0
    found = expected.copy()
    found[9, 0] = 4.0  # one stray pixel of a thousand
    agreement = compare_maps(expected, found, blocks=5)
    assert (agreement.off, agreement.stray_share, agreement.overlap) == (0.8, 0.001, 1.0)
    assert agreement.holds
    found[9, :6] = 4.0
    assert not compare_maps(expected, found, blocks=5).holds
    turned = compare_maps(expected, np.roll(expected, 25, axis=1), blocks=5)
    assert turned.overlap == 0.5
    assert compare_maps(expected, np.zeros_like(expected), blocks=5).overlap == 0.0
    assert compare_maps(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32), blocks=5).holds


def test_sums_and_scores_by_hand() -> None:
    sums = np.array([[0.0, 1.0, 2.0]], np.float32)
    assert sums_off(sums, np.array([[0.0, 1.5, 2.0]], np.float32)) == 0.25
    assert sums_off(sums, 3 + 4 * sums) == 0.0  # the block map is the same one
    assert sums_off(sums, np.ones_like(sums)) == 1.0
    assert sums_off(None, None) == 0.0
    assert sums_off(sums, None) == float("inf") == sums_off(sums, sums.T)
    assert sums_off(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)) == 0.0
    assert scores_off((0.5, float("nan")), (0.5, 0.5)) == float("inf")
