"""From a picture to its explanation: the engine's numbers and the paper's equations, in turn."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from inspect_xai.errors import PictureError, SettingsError
from inspect_xai.maths import regions, rivals, sise, tiles
from inspect_xai.maths.embedding import embed
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.engine import ALL_OTHERS, Engine
from inspect_xai.model.session import cores_left_to_sessions
from inspect_xai.pipeline import methods, sufficient
from inspect_xai.pipeline.faithful import measure_faithfulness
from inspect_xai.pipeline.judge import excess, judge, predict, worst_window
from inspect_xai.pipeline.onpicture import BlockMapsOnPicture
from inspect_xai.pipeline.scoring import FEWEST_PASSES, OVERHEAD_PASSES, Limit, confidence, score_within
from inspect_xai.records import (
    Baseline,
    BlockMap,
    ExplainSettings,
    Explanation,
    Method,
    ModelCard,
    Prediction,
    Profile,
    SelectionRule,
    Status,
    Tile,
    TileExplanation,
    Verdict,
    VerdictSpec,
)

_BLOCK_BY_BLOCK = (Method.SISE, Method.ADA_SISE, Method.GRAD_SISE)  # the others are run by methods.py
_NO_SCORE = 1e-7  # below this a probability is rounding: float32 softmax puts 1 in front of it
_FLAT_SPREAD = 0.05  # method notes 9.1: mask scores this close together say little
_BASELINE_SCORES = 0.5  # method notes 9.6
_SUPPORT_SHARE = (0.001, 0.6)  # method notes 9.11
PROFILE_SHARE = {Profile.EXACT: 1.0, Profile.FAST: 0.25, Profile.QUICK: 0.10}  # of the passes that every mask takes


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One picture as the network saw it, window by window, before anything is explained.

    Attributes:
        picture: uint8 (H, W, C) in the network's channel order.
        tiles: The windows, N of them.
        scores: (N, K) float32 probabilities.
        prediction: What the network said of the worst window.
        verdict: What the line should do.
    """

    picture: NDArray[np.uint8]
    tiles: tuple[Tile, ...]
    scores: NDArray[np.float32]
    prediction: Prediction
    verdict: Verdict


@dataclass(slots=True)
class _Clock:
    """Adds up milliseconds by step."""

    spent_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent_ms[name] = self.spent_ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """The explanation of one window, the three maps (h, w) that fusing and ranking need, and which blocks have one."""

    explained: TileExplanation
    fusion: sise.Fusion
    drawn: tuple[str, ...]
    passes: int
    notes: tuple[str, ...] = ()
    embedding: tuple[float, ...] = ()


class Explainer:
    """Judges and explains pictures with one model bundle.

    Example:
        >>> with Explainer("magnetic-tile.bundle") as explainer:  # doctest: +SKIP
        ...     explanation = explainer("part42.png", target="crack")
        ...     explanation.fused.shape  # rows and columns of the picture

    Args:
        bundle: A bundle folder, a loaded bundle, or an open engine to share; whoever opened that closes it.
        device: "auto", "cpu", "cuda" or "cuda:N".
        method: How to explain; default: the card's. What each costs: see `pipeline/methods.py`.
        mu: Selection threshold in [0, 1) as a share of the largest alpha; default: the card's.
        baseline: What stands where a mask hides the picture; default: the card's.
        profile: How many masks are scored by a forward pass of their own; default: the card's. "fast" and "quick"
            approximate the map of mu = 0, and take that mu unless another is given.
        max_passes: Spend at most so many passes on a picture; masks beyond that get predicted scores, and windows for
            which nothing is left are not explained.
        budget_s: The same in seconds; at least a few passes are made on one window even if they take longer.
        threads: Threads inside one operator; default: all cores.
        bucket: Masks per forward pass; default: chosen for the device.
        verdict: Thresholds to judge by; default: the card's.
        faithfulness: Measure with every explanation whether it is true to the network, in a few passes more that count
            neither as `passes` nor against a bound (see `pipeline/faithful.py`).

    Raises:
        BundleError: If the folder is no sound bundle.
        DeviceError: If the device asked for does not run.
        SettingsError: If mu lies outside [0, 1), or a bound is too low to say anything.
    """

    def __init__(
        self,
        bundle: Engine | ModelBundle | Path | str,
        *,
        device: str = "auto",
        method: Method | str | None = None,
        mu: float | None = None,
        baseline: Baseline | str | None = None,
        profile: Profile | str | None = None,
        max_passes: int | None = None,
        budget_s: float | None = None,
        threads: int | None = None,
        bucket: int | None = None,
        verdict: VerdictSpec | None = None,
        faithfulness: bool = True,
    ) -> None:
        shared = bundle if isinstance(bundle, Engine) else None
        given = bundle.bundle if isinstance(bundle, Engine) else bundle
        loaded = given if isinstance(given, ModelBundle) else load_bundle(Path(given))
        spec = loaded.card.explain
        self.verdict = verdict or loaded.card.verdict
        self.method = Method(method or spec.method)
        self.profile = Profile(profile or spec.profile)
        usual_mu = spec.mu if self.profile is Profile.EXACT else 0.0
        self.mu = usual_mu if mu is None else mu
        self.baseline = Baseline(baseline or spec.baseline)
        self.max_passes, self.budget_s, self.threads = max_passes, budget_s, threads
        self.faithfulness = faithfulness
        if not 0 <= self.mu < 1:
            raise SettingsError(
                f"mu is {self.mu}", expected="0 <= mu < 1", remedy="0 keeps every positive channel; 0.3 is usual"
            )
        if max_passes is not None and max_passes < FEWEST_PASSES:
            raise SettingsError(f"max_passes is {max_passes}", expected=f"at least {FEWEST_PASSES}")
        if budget_s is not None and not budget_s > 0:
            raise SettingsError(f"the budget is {budget_s} seconds", expected="more than 0")
        self.engine = shared or Engine(loaded, device=device, threads=threads, bucket=bucket)

    @property
    def card(self) -> ModelCard:
        """The card of the bundle, with the thresholds that count here."""
        return replace(self.engine.card, verdict=self.verdict)

    def look(self, picture: NDArray[np.uint8]) -> Look:
        """Judge a picture by its worst window.

        Args:
            picture: uint8 (H, W), or RGB (H, W, 3).

        Raises:
            PictureError: If the array is no picture.
        """
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
            raise PictureError(
                f"the picture is {picture.dtype} of shape {picture.shape}",
                expected="uint8 of shape (H, W), or RGB of shape (H, W, 3)",
            )
        spec = self.card.input
        seen = tiles.as_channels(picture, spec.channels)
        windows = tiles.windows((seen.shape[0], seen.shape[1]), spec)
        scores = np.concatenate([self.engine.predict(chunk) for chunk in self._cut(seen, windows)])
        worst = worst_window(scores, self.card)
        return Look(
            seen, windows, scores, predict(scores[worst], self.card, tile=worst), judge(scores[worst], self.card)
        )

    @cores_left_to_sessions()
    def explain(self, look: Look, *, target: str, against: str | None = None) -> Explanation:
        """Explain why a picture's windows score for a class.

        Explained are the windows in which the class reaches its threshold (less the card's margin), or the one window
        where it scores highest; for an OK label the worst window, which decided the verdict.

        Args:
            look: What `look` returned for the picture.
            target: Label to explain.
            against: Rival label of a contrast explanation: the evidence for target rather than against.

        Raises:
            SettingsError: For a label that is not the model's.
            ExplanationError: If the network's numbers are not finite.
        """
        settings = ExplainSettings(
            self.method, target, against or "", self.mu, self.baseline, self.profile, self.max_passes or 0,
            self.budget_s or 0.0,
        )  # fmt: skip
        index = self._class(target)
        rival = ALL_OTHERS if against is None else self._class(against)
        if rival == index:
            raise SettingsError(f"target and against are both {target!r}", expected="two different labels")
        clock = _Clock()
        wanted = self._windows_to_explain(look, target)
        chosen = self._within_bound(wanted, look, index)
        started, before = time.perf_counter(), self.engine.int8_masks
        results: list[_Window] = []
        for number, tile in enumerate(chosen, start=1):
            if self.budget_s is not None and results and time.perf_counter() > started + self.budget_s:
                break
            limit = Limit(
                PROFILE_SHARE[self.profile],
                None if self.max_passes is None else self.max_passes // len(chosen),
                None if self.budget_s is None else started + self.budget_s * number / len(chosen),
            )
            results.append(self._explain_window(look, tile, index, rival, limit=limit, clock=clock))
        results.sort(key=lambda window: window.explained.tile.index)
        told = {"int8_scoring": self.engine.int8_masks > before, "windows_left_out": len(results) < len(wanted)}
        results[0] = replace(results[0], notes=(*results[0].notes, *(note for note, true in told.items() if true)))
        with clock.step("maps"):
            size = (look.picture.shape[0], look.picture.shape[1])
            found = _join(results, look, settings, size=size, engine=self.engine, timings_ms=clock.spent_ms)
        if not self.faithfulness:
            return found
        with clock.step("faithfulness"):
            measured = measure_faithfulness(self.engine, look.picture, found, target=index, against=rival)
        return replace(found, faithfulness=measured)

    def __call__(
        self, picture: NDArray[np.uint8] | Path | str, target: str | int | None = None, against: str | int | None = None
    ) -> Explanation:
        """Look at a picture and explain it.

        Args:
            picture: uint8 (H, W) or RGB (H, W, 3), or the path of a picture file.
            target: Label or its index; default: the label the network predicts.
            against: Rival label or its index; default: all other labels.
        """
        if isinstance(picture, Path | str):
            from inspect_xai.pipeline.intake import read_picture

            picture = read_picture(Path(picture)).pixels
        look = self.look(picture)
        named = look.prediction.label if target is None else self._label(target)
        return self.explain(look, target=named, against=None if against is None else self._label(against))

    def close(self) -> None:
        """Free the engine's sessions."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _class(self, label: str) -> int:
        if label not in self.card.labels:
            raise SettingsError(
                f"the model {self.card.name} has no label {label!r}", expected=f"one of {', '.join(self.card.labels)}"
            )
        return self.card.labels.index(label)

    def _label(self, target: str | int) -> str:
        if isinstance(target, str):
            return target
        if not 0 <= target < len(self.card.labels):
            raise SettingsError(f"class index {target}", expected=f"0 to {len(self.card.labels) - 1}")
        return self.card.labels[target]

    def _cut(self, picture: NDArray[np.uint8], windows: Sequence[Tile]) -> Iterator[NDArray[np.float32]]:
        """Yield the windows in bucket-sized batches, so that a huge picture is never held twice."""
        spec = self.engine.card.input
        for start in range(0, len(windows), self.engine.bucket):
            yield np.stack([tiles.cut(picture, tile, spec) for tile in windows[start : start + self.engine.bucket]])

    def _within_bound(self, wanted: list[Tile], look: Look, target: int) -> list[Tile]:
        """Under a bound take the windows that score highest first, and no more than the passes are enough for."""
        if self.max_passes is None and self.budget_s is None:
            return wanted
        scores = {tile.index: float(score) for tile, score in zip(look.tiles, look.scores[:, target], strict=True)}
        first = sorted(wanted, key=lambda tile: -scores[tile.index])
        return first if self.max_passes is None else first[: max(1, self.max_passes // FEWEST_PASSES)]

    def _windows_to_explain(self, look: Look, target: str) -> list[Tile]:
        worst = look.prediction.tile
        if target in self.card.ok_labels:
            return [look.tiles[worst]]
        column = self.card.defect_labels.index(target)
        over = excess(look.scores, self.card)[:, column]
        flagged = over >= -self.card.verdict.unsure_margin
        if not flagged.any():
            flagged[int(np.argmax(over))] = True
        return [tile for tile, wanted in zip(look.tiles, flagged, strict=True) if wanted]

    def _explain_window(
        self, look: Look, tile: Tile, target: int, against: int, *, limit: Limit, clock: _Clock
    ) -> _Window:
        window = tiles.cut(look.picture, tile, self.card.input)
        size = (window.shape[0], window.shape[1])
        if self.method not in _BLOCK_BY_BLOCK:
            hidden = sise.baseline_picture(window, self.baseline, mean=self.engine.mean_px)
            with clock.step(str(self.method)):
                aim = methods.Aim(window, hidden, target, against, limit)
                return _as_window(methods.find_evidence(self.engine, aim, method=self.method), tile, size)
        with clock.step("trace"):
            fine = self.method is Method.GRAD_SISE
            trace = self.engine.trace(window, target=target, against=against, gradients=fine)
        with clock.step("baseline"):
            hidden = sise.baseline_picture(window, self.baseline, mean=self.engine.mean_px)
            baseline_score = float(confidence(self.engine.predict(hidden[None]), target, against)[0])
        selected = [self._select(name, trace.features[name], trace.alphas[name], size) for name in trace.features]

        def score(maps: NDArray[np.float32]) -> NDArray[np.float64]:
            said = self.engine.score_masks(window, maps, baseline=hidden)
            return confidence(said.probabilities, target, against)

        asks = False
        if fine:
            limit, asks = sufficient.reserve(limit, sum(len(features) for _, features in selected))
        with clock.step("masks"):
            scores, scored = score_within([features for _, features in selected], score, limit)
        with clock.step("maps"):
            blocks, maps = _block_maps(selected, scores, scored, size)
            everything = np.concatenate(scores)
            status = Status.EXPLAINED if maps else Status.NO_EVIDENCE
            if len(everything) and everything.max() <= _NO_SCORE:
                status, maps = Status.NOT_EXPLAINED, {}
            fusion = sise.fuse(list(maps.values())) if maps and not fine else _empty(size)
        passes = OVERHEAD_PASSES + sum(int(known.sum()) for known in scored)
        notes: tuple[str, ...] = ()
        if maps and fine:
            with clock.step("region"):
                found = sufficient.fuse_sufficient(
                    self.engine, window, trace, list(maps.values()), target=target, against=against, ask=asks
                )  # fmt: skip
            fusion, passes, notes = found.fusion, passes + found.passes, (found.note,)
        otsu = dict(zip(maps, fusion.otsu, strict=True)) if fusion.otsu else {}
        explained = TileExplanation(
            tile, status, tuple(float(p) for p in trace.probabilities),
            tuple(replace(block, otsu=otsu.get(block.tensor)) for block in blocks),
            baseline_score, float(np.ptp(everything)) if len(everything) else 0.0,
        )  # fmt: skip
        seen = tuple(embed(trace.features[next(reversed(trace.features))]).tolist())
        return _Window(explained, fusion, tuple(maps), passes, notes, seen)

    def _select(
        self, name: str, features: NDArray[np.float32], alphas: NDArray[np.float32], size: tuple[int, int]
    ) -> tuple[BlockMap, NDArray[np.float32]]:
        """Choose a block's masks; the block map comes back with its counts and nothing else yet."""
        rule = SelectionRule.ADA if self.method is Method.ADA_SISE else SelectionRule.MU
        selection = sise.select(alphas, rule=rule, mu=self.mu)
        chosen = features[selection.kept]
        varying = chosen[sise.with_contrast(chosen, size)]
        note = "" if len(varying) else "all_constant" if len(chosen) else "no_positive_evidence"
        block = BlockMap(
            tensor=name, channels=len(features), positive=selection.positive, kept=len(varying),
            constant=len(chosen) - len(varying), beta=selection.beta, threshold=selection.threshold,
            score_min=0.0, score_max=0.0, otsu=None, note=note,
        )  # fmt: skip
        return block, varying


def _as_window(found: methods.Evidence, tile: Tile, size: tuple[int, int]) -> _Window:
    """Give a rival method's evidence the form that SISE's has, so that all maps are ranked and kept by one rule."""
    status = Status.EXPLAINED if found.signed.max() > 0 and np.ptp(found.signed) > 0 else Status.NO_EVIDENCE
    if len(found.scores) and found.scores.max() <= _NO_SCORE:
        status = Status.NOT_EXPLAINED
    fusion, maps = _empty(size), {}
    if status is Status.EXPLAINED:
        evidence, _ = rivals.evidence_map(found.signed, size)
        companion = sise.upsample(found.signed, size)
        fusion = sise.Fusion(evidence, companion, companion, ())
        shown = {block.tensor: sise.normalised(block.sums, size) for block in found.blocks if block.sums is not None}
        maps = {name: shown_map for name, shown_map in shown.items() if shown_map is not None}
    spread = float(np.ptp(found.scores)) if len(found.scores) else 1.0  # nothing was masked, so nothing scored alike
    scores = tuple(float(p) for p in found.probabilities)
    explained = TileExplanation(tile, status, scores, found.blocks, baseline_score=0.0, score_spread=spread)
    return _Window(explained, fusion, tuple(maps), found.passes, found.notes)


def _block_maps(
    selected: Sequence[tuple[BlockMap, NDArray[np.float32]]],
    scores: Sequence[NDArray[np.float64]],
    scored: Sequence[NDArray[np.bool_]],
    size: tuple[int, int],
) -> tuple[list[BlockMap], dict[str, NDArray[np.float32]]]:
    """Weigh each block's masks; return the blocks and, of those that are not flat, the normalised maps (H, W)."""
    blocks: list[BlockMap] = []
    maps: dict[str, NDArray[np.float32]] = {}
    for (block, features), said, known in zip(selected, scores, scored, strict=True):
        if len(features):
            sums = sise.weighted_sums(features, said, size=size)
            normalised = sise.normalised(sums, size)
            block = replace(
                block, sums=sums, score_min=float(said.min()), score_max=float(said.max()),
                predicted=int((~known).sum()), note="flat" if normalised is None else "",
            )  # fmt: skip
            if normalised is not None:
                maps[block.tensor] = normalised
        blocks.append(block)
    return blocks, maps


def _empty(size: tuple[int, int]) -> sise.Fusion:
    """Stand in for a map where there is no evidence: zeros, never normalised noise (method notes 2.6)."""
    nothing = np.zeros(size, np.float32)
    return sise.Fusion(nothing, nothing, nothing, ())


def _join(
    windows: Sequence[_Window],
    look: Look,
    settings: ExplainSettings,
    *,
    size: tuple[int, int],
    engine: Engine,
    timings_ms: dict[str, float],
) -> Explanation:
    """Put the maps of the explained windows back onto the picture."""
    spec = engine.card.input
    explained = tuple(window.explained for window in windows)
    placed = [window.tile for window in explained]

    def on_picture(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return tiles.stitch(maps, placed, size)

    fused = on_picture([window.fusion.fused for window in windows])
    rank = sise.rank_map(
        fused,
        on_picture([window.fusion.before_last for window in windows]),
        on_picture([window.fusion.deepest for window in windows]),
    )
    named = [end.tensor for end in engine.bundle.blocks if any(end.tensor in window.drawn for window in windows)]
    statuses = [window.explained.status for window in windows]
    status = next((s for s in (Status.EXPLAINED, Status.NOT_EXPLAINED) if s in statuses), Status.NO_EVIDENCE)
    return Explanation(
        status=status,
        settings=settings,
        prediction=look.prediction,
        fused=fused,
        rank=rank,
        block_maps=BlockMapsOnPicture(named, explained, window_hw=(spec.height, spec.width), picture_hw=size),
        tiles=explained,
        regions=regions.find_regions(fused),
        passes=sum(window.passes for window in windows),
        provider=engine.provider,
        timings_ms=timings_ms,
        notes=_notes(windows, fused, settings, engine),
        embedding=tuple(np.mean([w.embedding for w in windows], axis=0).tolist()),  # of no numbers: no numbers
    )


def _notes(
    windows: Sequence[_Window], fused: NDArray[np.float32], settings: ExplainSettings, engine: Engine
) -> tuple[str, ...]:
    """Say what a reader of the map must know (method notes, section 9)."""
    explained = [window.explained for window in windows if window.explained.status is Status.EXPLAINED]
    support = float((fused > 0).mean())
    found = {
        "ok_label_has_no_place": settings.target in engine.card.ok_labels,
        "scores_predicted": any(block.predicted for window in windows for block in window.explained.blocks),
        "low_score_spread": any(tile.score_spread < _FLAT_SPREAD for tile in explained),
        "baseline_scores_class": any(window.explained.baseline_score > _BASELINE_SCORES for window in windows),
        "tiny_support": bool(explained) and support < _SUPPORT_SHARE[0],
        "wide_support": bool(explained) and support > _SUPPORT_SHARE[1],
    }
    from_methods = (note for window in windows for note in window.notes)
    return tuple(dict.fromkeys([*(note for note, true in found.items() if true), *from_methods, *engine.notes]))
