"""Quantization of the scoring graph: as many blocks in 8 bits as the card's `int8_fidelity` allows.

Every other picture gives the quantizer its ranges; on the pictures between, the maps are compared with those of float
scoring. Masks of shallow blocks are few and matter much, those of deep ones are many and matter little: so all blocks
are tried in 8 bits first, then all but those with the largest maps, and so on, until the maps agree.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import BundleError, SettingsError
from inspect_xai.explain.request import explain
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.explain.window_scores import WindowScores, look
from inspect_xai.maths import sise, tiles
from inspect_xai.model.build.build import add_int8
from inspect_xai.model.build.quantize import Feeds, quantize_scoring
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import Explanation, Method, Profile, Scoring, Status

FEWEST_PICTURES = 8
MOST_PICTURES = 32
_MASKS_PER_BLOCK = 4  # of every calibration picture; ranges settle soon, and masks of one block are alike
_SEED = 0


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How maps agree with those of float scoring when maps up to a size are scored in 8 bits.

    Attributes:
        largest_px: Longer side of the largest maps scored in 8 bits.
        blocks: How many blocks that is.
        mean: Correlation, mean over the pictures.
        least: The lowest.
        pictures: On how many pictures it was measured; none of them gave ranges.
        int8_share: Share of the masks that were scored in 8 bits.
    """

    largest_px: int
    blocks: int
    mean: float
    least: float
    pictures: int
    int8_share: float


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized bundle and the fidelity of every try, the last being its own."""

    bundle: ModelBundle
    tried: tuple[Fidelity, ...]


def quantize_bundle(
    bundle: ModelBundle,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    threads: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Quantized:
    """Add a scoring graph in 8 bits to a bundle, in place.

    Args:
        bundle: Its fingerprint changes, as its maps do.
        pictures: uint8 (H, W) or RGB (H, W, 3), typical of the line, some with defects.
        threads: Threads inside one operator; default: all cores.
        advance: Called after every picture and try.

    Raises:
        BundleError: If no choice of blocks comes up to the card's `int8_fidelity`; the bundle stays as it was.
        SettingsError: If there are too few pictures to calibrate and to measure.
        UnsupportedModelError: If the network cannot be quantized.
    """
    if len(pictures) < FEWEST_PICTURES:
        raise SettingsError(f"{len(pictures)} pictures", expected=f"at least {FEWEST_PICTURES}, better {MOST_PICTURES}")
    with Engine(bundle, device="cpu", threads=threads, scoring=Scoring.FLOAT) as engine:
        feeds = [feed for picture in pictures[::2] for feed in _feeds(engine, picture)]
        graph = quantize_scoring(bundle, feeds)
        truths = [found for picture in pictures[1::2] if (found := _explained(engine, picture, advance)) is not None]
    if len(truths) < FEWEST_PICTURES // 2:
        raise SettingsError(
            f"the network has evidence for its answer on {len(truths)} of the pictures",
            remedy="give pictures with defects",
        )
    sizes = sorted({max(end.height, end.width) for end in bundle.blocks}, reverse=True)
    tried: list[Fidelity] = []
    with tempfile.TemporaryDirectory(prefix="inspect-xai-") as scratch:
        draft = add_int8(bundle, graph, Path(scratch) / "draft", facts={"largest_px": sizes[0]})
        with Engine(draft, device="cpu", threads=threads) as engine:
            for size in sizes:
                engine.int8_px = size
                tried.append(_measured(engine, truths, advance))
                if tried[-1].mean >= bundle.card.explain.int8_fidelity:
                    break
    best = tried[-1]
    if best.mean < bundle.card.explain.int8_fidelity:
        raise BundleError(
            "the maps of 8-bit scoring differ too much: "
            + "; ".join(
                f"up to {one.largest_px} px: correlation {one.mean:.3f}, lowest {one.least:.3f}" for one in tried
            ),
            expected=f"a mean correlation of at least {bundle.card.explain.int8_fidelity} with the float maps",
            remedy="give more pictures, with defects; or lower int8_fidelity in the card; or leave scoring in float",
        )
    facts = {
        "largest_px": best.largest_px,
        "fidelity": {"mean": best.mean, "least": best.least, "pictures": best.pictures},
        "int8_share": best.int8_share,
        "calibration": {"pictures": len(pictures[::2]), "runs": len(feeds), "ranges": "minimum and maximum"},
    }
    return Quantized(add_int8(bundle, graph, bundle.folder, facts=facts), tuple(tried))


def _settings(engine: Engine) -> ExplainSettings:
    return ExplainSettings.of_card(engine.card, method=Method.SISE, profile=Profile.EXACT, mu=0.0, faithfulness=False)


def _feeds(engine: Engine, picture: NDArray[np.uint8]) -> list[Feeds]:
    """Make inputs of the scoring graph from masks of every block of the deciding window."""
    spec = engine.card.input
    seen = look(engine, picture)
    window = tiles.cut(seen.picture, seen.tiles[seen.prediction.tile], spec)
    hidden = sise.baseline_picture(window, engine.card.explain.baseline, mean=engine.mean_px)
    trace, rng = engine.trace(window), np.random.default_rng(_SEED)
    shown: dict[str, NDArray[Any]] = {
        "picture": _nchw(window),
        "baseline": _nchw(hidden),
        "image": np.zeros(1, np.int64),
    }
    feeds: list[Feeds] = []
    for name, grid in engine.bundle.grids.items():
        maps = trace.features[name][trace.alphas[name] > 0]
        maps = maps[sise.with_contrast(*sise.extremes(maps, (spec.height, spec.width), grid=grid))]
        fixed = shown | engine.enlarging(maps.shape[1:], grid=grid)
        chosen = maps[rng.permutation(len(maps))[:_MASKS_PER_BLOCK], None]
        step = len(chosen) if engine.bundle.dynamic_batch else 1
        feeds += [{**fixed, "maps": chosen[start : start + step]} for start in range(0, len(chosen), step or 1)]
    return feeds


def _nchw(window: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(window, -1, 0)[None], np.float32)


def _explained(
    engine: Engine, picture: NDArray[np.uint8], advance: Callable[[], object]
) -> tuple[WindowScores, Explanation] | None:
    """Explain the deciding window alone: the windows of one picture are much alike."""
    seen = look(engine, picture)
    deciding = seen.alone(seen.prediction.tile)
    found = explain(engine, deciding, _settings(engine), target=deciding.prediction.label)
    advance()
    return (deciding, found) if found.status is Status.EXPLAINED else None


def _agreement(one: Explanation, other: Explanation) -> float:
    """Correlate two maps within their window; pixels outside it would count as agreement."""
    tile = one.tiles[0].tile
    place = np.s_[
        max(0, tile.top_px) : tile.top_px + tile.height_px, max(0, tile.left_px) : tile.left_px + tile.width_px
    ]
    first, second = one.fused[place].ravel(), other.fused[place].ravel()
    return float(np.corrcoef(first, second)[0, 1]) if np.ptp(second) else 0.0


def _measured(
    engine: Engine, truths: Sequence[tuple[WindowScores, Explanation]], advance: Callable[[], object]
) -> Fidelity:
    before, masks, agree = engine.int8_masks, 0, []
    for seen, truth in truths:
        found = explain(engine, seen, _settings(engine), target=truth.settings.target)
        masks += sum(block.kept_channels for tile in found.tiles for block in tile.blocks)
        agree.append(_agreement(truth, found))
        advance()
    blocks = sum(max(end.height, end.width) <= engine.int8_px for end in engine.bundle.blocks)
    share = (engine.int8_masks - before) / masks
    return Fidelity(engine.int8_px, blocks, float(np.mean(agree)), min(agree), len(agree), share)
