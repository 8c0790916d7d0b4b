"""The engine: a bundle's graphs in ONNX Runtime. Windows in pixels go in, numbers come out; no maths of the method.

A window is (H, W, C) in the network's channel order and in pixel units (0 to 255 for an 8-bit picture); scaling by
the card's mean and standard deviation is part of the graphs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from inspect_xai.closing import Closing, closed
from inspect_xai.errors import BundleError, DeviceError, ExplanationError, UnsupportedModelError
from inspect_xai.model.bundle import FROM_OUTSIDE, INT8_GRAPH, WEIGHTS, ModelBundle
from inspect_xai.model.session import OutOfDeviceMemoryError, hold, open_session, physical_cores, run
from inspect_xai.records import CellAxis, CellGrid, ModelCard, Scoring

Number = TypeVar("Number", bound=np.generic)

MOST_PROBABLE = -1
ALL_OTHERS = -1
_CPU_BUCKET = 8  # measured: batches of 4 to 8 are fastest on a CPU, larger ones fall out of its caches
_CUDA_BUCKET = 64
_LIGHT_BYTES = 32_000_000
"""Larger weights a CPU holds once in the order of its fastest kernels: a trace, one run in hundreds, may take a quarter
longer on those in the file, and windows are predicted by the graph that scores masks."""
_QUANTIZED_STEP = 0.05  # of its range where numbers are rounded to a 255th of it: a smaller one shows the roundings
_DIFFERENCE_STEP = 3e-4  # of a tensor's range: measured; wider ones cross kinks, narrower ones meet float32 rounding


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One forward and backward pass over one window.

    Attributes:
        probabilities: (K,) float32.
        target: Index of the class the gradients argue for.
        features: Block end by tensor name, (C, h, w) float32, shallow to deep.
        alphas: (C,) float32 by tensor name: sum over space of the gradient of the log-odds margin (method 2.2, 2.3).
        gradients: The gradients themselves, shaped as the features; empty unless asked for.
    """

    probabilities: NDArray[np.float32]
    target: int
    features: dict[str, NDArray[np.float32]]
    alphas: dict[str, NDArray[np.float32]]
    gradients: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class MaskScores:
    """What the network says of masked pictures: probabilities (n, K); of each upsampled map, minimum and span (n,)."""

    probabilities: NDArray[np.float32]
    minimum: NDArray[np.float32]
    span: NDArray[np.float32]
    in_8_bits: bool = False


class Engine(Closing):
    """Runs one bundle on one device; sessions open on first use and are kept.

    Args:
        bundle: A loaded bundle.
        device: "auto" (CUDA if it runs a forward pass, else the CPU), "cpu", "cuda" or "cuda:N", "tensorrt" or
            "tensorrt:N" (gradients then run on CUDA). Never falls back from a device that was named.
        threads: Threads inside one operator; default: all cores.
        bucket: Windows or masks per run; default 8 on a CPU, 64 on CUDA, 1 where the network's batch size is fixed.
        scoring: What masked pictures are scored with; default: the card's.
        memory_mb: Most memory that a CUDA session takes; default: all there is.

    Attributes:
        threads: Threads inside one operator.
        int8_px: Maps with no side longer than this are scored in 8 bits; 0: none.
        int8_masks: How many were, so far.
        before_run: Called before every run of the network; whoever wants to stop it raises.

    Raises:
        BundleError: If 8 bits are asked for and the bundle was not quantized.
        DeviceError: If the device asked for does not run a forward pass.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        *,
        device: str = "auto",
        threads: int | None = None,
        bucket: int | None = None,
        scoring: Scoring | None = None,
        memory_mb: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.int8_px = _largest_int8(bundle, scoring or bundle.card.explain.scoring)
        self.int8_masks = 0
        self._on_grids = any(end.grid for end in bundle.blocks)
        self.notes: list[str] = []
        self.before_run: Callable[[], None] = _go_on
        self.threads = threads or physical_cores()
        self._memory_mb = memory_mb
        self._closed = False
        self._sessions: dict[str, ort.InferenceSession] = {}
        self.device = self._choose_device(device)
        self.provider: str = self._session(self._predicting_graph).get_providers()[0]
        default = _CPU_BUCKET if self.device == "cpu" else _CUDA_BUCKET
        self.bucket = (bucket or default) if bundle.dynamic_batch else 1

    @property
    def card(self) -> ModelCard:
        """The card of the bundle."""
        return self.bundle.card

    @property
    def windows_at_once(self) -> int:
        """How many windows' masks share runs.

        Every block of a window ends in a run that is half empty, on the average; of windows in step it is one run for
        all of them. More in step save little and hold more memory.
        """
        return max(1, self.bucket // 4)

    @property
    def mean_px(self) -> NDArray[np.float32]:
        """The color (C,) in pixel units that the network sees as zero."""
        spec = self.card.input
        mean = np.broadcast_to(np.asarray(spec.mean, np.float32), (spec.depth,))
        return np.asarray(mean * spec.scale, np.float32)

    def predict(self, windows: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of windows (N, H, W, C) in pixel units.

        Raises:
            ExplanationError: If the network puts out something that is not a number.
        """
        chunks = []
        start = 0
        while start < len(windows):
            try:
                batch = windows[start : start + self.bucket]
                feeds: dict[str, NDArray[Any]] = {"picture": self._filled(_nchw(batch), _power_of_two(len(batch)))}
                if self._predicting_graph == "score":  # a map without contrast masks all: the baseline stands there
                    feeds |= {"baseline": feeds["picture"], "image": np.arange(len(feeds["picture"]))}
                    feeds["maps"] = np.zeros((len(feeds["picture"]), 1, 1, 1), np.float32)
                    feeds |= self.enlarging((1, 1))
                self.before_run()
                (scores,) = run(self._session(self._predicting_graph), ["probabilities"], feeds)
            except OutOfDeviceMemoryError:
                feeds.clear()  # on a CPU the same memory: the smaller batch needs room beside it
                self._halve_bucket()
                continue
            chunks.append(scores[: len(batch)])
            start += len(batch)
        return _finite(np.concatenate(chunks), "probabilities")

    def trace(
        self,
        window: NDArray[np.generic],
        *,
        target: int = MOST_PROBABLE,
        against: int = ALL_OTHERS,
        gradients: bool = False,
    ) -> Trace:
        """Run one forward and one backward pass to every block end; errors as for `trace_together`.

        Args:
            window: (H, W, C) in pixel units.
            target: Index of the class to argue for; -1: the most probable.
            against: Index of a rival class; -1: all others.
            gradients: Also return the gradient maps.
        """
        return next(self.trace_together(window[None], target=target, against=against, gradients=gradients))

    def trace_together(
        self,
        windows: NDArray[np.generic],
        *,
        target: int = MOST_PROBABLE,
        against: int = ALL_OTHERS,
        gradients: bool = False,
    ) -> Iterator[Trace]:
        """Trace several windows, as many in a run as masks.

        Args:
            windows: (N, H, W, C) in pixel units.
            target: Index of the class to argue for; -1: the most probable.
            against: Index of a rival class; -1: all others.
            gradients: Also yield the gradient maps.

        Yields:
            One trace for each window.

        Raises:
            ExplanationError: If a feature, a gradient or a probability is not a finite number, or gradient maps are
                asked of a network that has none.
        """
        if not self.bundle.blocks:
            raise UnsupportedModelError(
                "the bundle was built with --black-box: it shows no feature maps and no gradients",
                remedy=f"choose {FROM_OUTSIDE}, or build it without --black-box",
            )
        has_gradients = self.bundle.manifest["gradient"] == "reverse_mode"
        if gradients and not has_gradients:
            raise ExplanationError(
                f"the network has no gradient graph: {self.bundle.manifest['gradient_reason']}",
                remedy="use sise or ada-sise, which take differences instead, or a method without gradients",
            )
        kinds = ["feature", "alpha"] if has_gradients else ["feature"]
        kinds += ["gradient"] if gradients else []
        names = [end.tensor for end in self.bundle.blocks]
        outputs = ["probabilities"] + [f"{kind}_{index}" for kind in kinds for index in range(len(names))]
        for start in range(0, len(windows), self.bucket):
            chunk = windows[start : start + self.bucket]
            feeds: dict[str, NDArray[Any]] = {
                "picture": _nchw(chunk),
                "target": np.full(len(chunk), target, np.int64),
                "against": np.full(len(chunk), against, np.int64),
            }
            self.before_run()
            arrays = dict(zip(outputs, run(self._session("trace"), outputs, feeds), strict=True))
            for number in range(len(chunk)):
                yield self._one_trace(arrays, number, kinds, target=target, against=against)

    def _one_trace(
        self, arrays: dict[str, NDArray[Any]], number: int, kinds: Sequence[str], *, target: int, against: int
    ) -> Trace:
        """Take one window's numbers out of a run's outputs."""
        names = [end.tensor for end in self.bundle.blocks]
        found = {
            kind: {
                name: _finite(arrays[f"{kind}_{index}"][number], f"{kind} of {name}")
                for index, name in enumerate(names)
            }
            for kind in kinds
        }
        probabilities = _finite(arrays["probabilities"][number], "probabilities")
        chosen = int(np.argmax(probabilities)) if target == MOST_PROBABLE else target
        alphas = found.get("alpha") or self._differences(found["feature"], target=chosen, against=against)
        return Trace(probabilities, chosen, found["feature"], alphas, found.get("gradient", {}))

    def score_masks(
        self,
        window: NDArray[np.generic],
        maps: NDArray[np.float32],
        *,
        baseline: NDArray[np.float32],
        grid: CellGrid | None = None,
    ) -> MaskScores:
        """Score a window seen through each map: where the map is low, the baseline stands in its place.

        Resizing, min-max, masking, scaling, the network and its activation are one graph; only maps at block
        resolution cross to the device.

        Args:
            window: (H, W, C) in pixel units.
            maps: (n, h, w) float32 feature maps of any resolution.
            baseline: (H, W, C) float32 in pixel units.
            grid: Where the maps' cells lie: that of their block end; None: from edge to edge.
        """
        image = np.zeros(len(maps), np.int64)
        return self.score_together(window[None], maps, baselines=baseline[None], image=image, grid=grid)

    def score_together(
        self,
        windows: NDArray[np.generic],
        maps: NDArray[np.float32],
        *,
        baselines: NDArray[np.float32],
        image: NDArray[np.int64],
        grid: CellGrid | None = None,
    ) -> MaskScores:
        """Score several windows seen through maps of one resolution; where one window's masks end the next's go on.

        Args:
            windows: (P, H, W, C) in pixel units.
            maps: (n, h, w) float32 feature maps, those of one window together.
            baselines: (P, H, W, C) float32 in pixel units.
            image: (n,) index of the window that each map masks.
            grid: Where the maps' cells lie: that of their block end; None: from edge to edge.
        """
        classes = len(self.card.labels)
        probabilities = np.empty((len(maps), classes), np.float32)
        minimum, span = np.empty(len(maps), np.float32), np.empty(len(maps), np.float32)
        shown = {"picture": _nchw(windows), "baseline": _nchw(baselines)}
        held = {name: hold(array, device=self.device) for name, array in shown.items()}
        held |= {
            name: hold(array, device=self.device) for name, array in self.enlarging(maps.shape[1:], grid=grid).items()
        }
        graph = self._scoring_graph(maps.shape[1], maps.shape[2])
        start = 0
        while start < len(maps):
            of = image[start : start + self.bucket]
            feeds: dict[str, NDArray[Any]] = {
                "maps": np.ascontiguousarray(self._filled(maps[start : start + self.bucket, None], self.bucket)),
                "image": of[:1] if (of == of[0]).all() else self._filled(of, self.bucket),  # one is not copied n times
            }
            try:
                self.before_run()
                scores = run(self._session(graph), ["probabilities", "minimum", "span"], feeds, held=held)
            except OutOfDeviceMemoryError:
                self._halve_bucket()
                continue
            end = start + len(of)
            probabilities[start:end], minimum[start:end], span[start:end] = (array[: len(of)] for array in scores)
            start = end
        in_8_bits = graph == INT8_GRAPH
        self.int8_masks += len(maps) if in_8_bits else 0
        return MaskScores(_finite(probabilities, "scores of masked pictures"), minimum, span, in_8_bits)

    def enlarging(self, cells: Sequence[int], *, grid: CellGrid | None = None) -> dict[str, NDArray[np.float32]]:
        """Return what the scoring graph needs to enlarge maps, beside the maps: nothing where it stretches them itself.

        Args:
            cells: (h, w) of the maps.
            grid: Where their cells lie; None: from edge to edge.

        Raises:
            ValueError: If the maps have a grid and the graph has no inputs for one.
        """
        if not self._on_grids:
            if grid is not None:
                raise ValueError(f"maps on {grid} for a network whose block ends reach from edge to edge")
            return {}
        spec, (rows, columns) = self.card.input, (grid.rows, grid.columns) if grid else (None, None)
        return {
            "rows": _weights(spec.height, cells[0], rows),
            "columns": np.ascontiguousarray(_weights(spec.width, cells[1], columns).T),
        }

    def score_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the layers behind the deepest block end make of its feature maps.

        Args:
            features: (n, C, h, w).

        Returns:
            Probabilities (n, K).

        Raises:
            UnsupportedModelError: If something goes round the deepest block end, so that nothing can be put in there.
        """
        chain, deepest = self.bundle.manifest["chain"], len(self.bundle.blocks) - 1
        if deepest not in chain:
            raise UnsupportedModelError(
                f"the network does not fall into two parts at its deepest block end, {self.bundle.blocks[-1].tensor!r}",
                remedy="choose a method that does not put feature maps in, or another block end in the card",
            )
        scores = []
        for start in range(0, len(features), self.bucket):
            chunk = np.ascontiguousarray(features[start : start + self.bucket])
            everything = np.full(len(chunk), MOST_PROBABLE, np.int64)
            feeds: dict[str, NDArray[Any]] = {f"feature_{deepest}": chunk, "target": everything, "against": everything}
            self.before_run()
            scores += run(self._session(f"block_{len(chain)}"), ["probabilities"], feeds)
        return _finite(np.concatenate(scores), "scores of masked feature maps")

    def open_scoring(self) -> None:
        """Open what scores masks, before a trace runs.

        For a moment that takes the weights twice; afterwards it would come on top of what the trace left in the arena.
        """
        for end in self.bundle.blocks:
            self._session(self._scoring_graph(end.height, end.width))
        if not self.bundle.blocks:
            self._session("score")

    def warm_up(self) -> None:
        """Open all sessions and run each once, so that the first picture is not the slowest.

        Without a gradient graph none is run: a trace then takes as long as an explanation.
        """
        spec = self.card.input
        self.open_scoring()
        if self.bundle.blocks:
            self._session("trace")
        if self.bundle.manifest["gradient"] != "reverse_mode":
            return
        window = np.zeros((spec.height, spec.width, spec.depth), np.float32)
        with suppress(ExplanationError):  # a black picture's numbers mean nothing; a real one's are looked at
            trace = self.trace(window)
            for end in self.bundle.blocks[:: max(1, len(self.bundle.blocks) - 1)]:  # in 8 bits the deepest at most
                maps = trace.features[end.tensor][: self.bucket]
                self.score_masks(window, maps, baseline=window, grid=end.grid)

    def close(self) -> None:
        """Drop all sessions and the memory they hold; from then on every run is refused."""
        self._closed = True
        self._sessions.clear()

    def _differences(
        self, features: dict[str, NDArray[np.float32]], *, target: int, against: int
    ) -> dict[str, NDArray[np.float32]]:
        """Find alphas without gradients: raise one channel by a constant, and lower it, and see the margin move.

        Two passes through the rest of the network for every channel, so cheap for deep blocks only.

        Source: method notes 2.4.
        """
        if "alphas_by_differences" not in self.notes:
            self.notes.append("alphas_by_differences")
        alphas = {}
        for station, (name, feature) in enumerate(features.items()):
            manifest = self.bundle.manifest
            quantized = manifest.get("quantized", manifest.get("quantised", False))  # version 0.1 wrote `quantised`
            share = _QUANTIZED_STEP if quantized else _DIFFERENCE_STEP
            step = np.float32(share * float(np.ptp(feature)) or share)
            alpha = np.empty(len(feature), np.float32)
            for start in range(0, len(feature), self.bucket):
                channels = np.arange(start, min(start + self.bucket, len(feature)))
                nudge = np.zeros((len(channels), *feature.shape), np.float32)
                nudge[np.arange(len(channels)), channels] = step
                # Whole numbers end at 0 or 255: where a Relu has left zeros, lowering them does nothing.
                sides = (1, 0) if quantized else (1, -1)
                above, below = (
                    self._tail(feature + side * nudge, station, target=target, against=against) for side in sides
                )
                alpha[channels] = (above - below) / ((sides[0] - sides[1]) * step)
            alphas[name] = _finite(alpha, f"alpha of {name}")
        return alphas

    def _tail(self, features: NDArray[np.float32], station: int, *, target: int, against: int) -> NDArray[np.float32]:
        """Run block ends (N, C, h, w) of one block through the rest of the network to the margin (N,)."""
        last = len(self.bundle.blocks)
        for index in range(station + 1, last):
            self.before_run()
            (features,) = run(self._session(f"block_{index}"), [f"feature_{index}"], {f"feature_{index - 1}": features})
        feeds: dict[str, NDArray[Any]] = {
            f"feature_{last - 1}": features,
            "target": np.full(len(features), target, np.int64),
            "against": np.full(len(features), against, np.int64),
        }
        (margin,) = run(self._session(f"block_{last}"), ["margin"], feeds)
        return margin

    def _scoring_graph(self, height: int, width: int) -> str:
        return INT8_GRAPH if max(height, width) <= self.int8_px else "score"

    def _session(self, graph: str) -> ort.InferenceSession:
        if self._closed:
            raise closed(f"the engine of {self.card.name}")
        if graph not in self._sessions:
            # TensorRT takes no scatter with duplicate indices, which gradients of pooling need.
            device = self.device.replace("tensorrt", "cuda") if graph == "trace" else self.device
            self._sessions[graph] = open_session(
                self.bundle.graph(graph),
                device=device,
                threads=self.threads,
                memory_mb=self._memory_mb,
                copy_weights=graph != "trace" or not self._holds_weights_once,
            )
        return self._sessions[graph]

    @property
    def _holds_weights_once(self) -> bool:
        return self.device == "cpu" and self.bundle.manifest["files"][WEIGHTS]["bytes"] > _LIGHT_BYTES

    @property
    def _predicting_graph(self) -> str:
        return "score" if self._holds_weights_once else "predict"

    def _choose_device(self, wanted: str) -> str:
        """Settle "auto": a device counts only when it has run a forward pass."""
        self.bucket = 1
        for device in ("cuda", "cpu") if wanted == "auto" else (wanted,):
            self.device = device
            try:
                spec = self.card.input
                self.predict(np.zeros((1, spec.height, spec.width, spec.depth), np.float32))
            except DeviceError:
                self._sessions.clear()
                if device == wanted or device == "cpu":
                    raise
            else:
                return device
        raise AssertionError("the CPU either ran or raised")

    def _filled(self, batch: NDArray[Number], size: int) -> NDArray[Number]:
        """Fill a batch up to `size` with its last member: a GPU tunes itself for every new shape, so there are few."""
        if self.device == "cpu" or len(batch) >= min(size, self.bucket):
            return batch
        return np.concatenate([batch, np.repeat(batch[-1:], min(size, self.bucket) - len(batch), axis=0)])

    def _halve_bucket(self) -> None:
        """Step down the out-of-memory ladder, and say so.

        Raises:
            DeviceError: If a single window does not fit.
        """
        if self.bucket == 1:
            raise DeviceError(
                "the device has no memory for a single window", remedy="use a device with more memory, or --device cpu"
            )
        self.bucket //= 2
        self.notes.append(f"bucket_halved_to_{self.bucket}")


def _largest_int8(bundle: ModelBundle, scoring: Scoring) -> int:
    if scoring is Scoring.FLOAT:
        return 0
    if "int8" not in bundle.manifest:
        raise BundleError(
            f'the card of {bundle.folder} says scoring = "int8", but the bundle holds no quantized graph',
            remedy=f"inspect-xai bundle quantize {bundle.folder} --calibration DIR",
        )
    return int(bundle.manifest["int8"]["largest_px"])


@lru_cache(maxsize=64)
def _weights(pixels: int, cells: int, axis: CellAxis | None) -> NDArray[np.float32]:
    """How much of each cell (pixels, cells) a pixel gets, bilinearly; beyond the outer cells theirs is continued."""
    if axis is None:
        axis = CellAxis(first_px=(pixels / cells - 1) / 2, step_px=pixels / cells)
    place = np.clip((np.arange(pixels) - axis.first_px) / axis.step_px, 0, cells - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(place[:, np.newaxis] - np.arange(cells))), np.float32)


def _power_of_two(count: int) -> int:
    """Return the next power of two: a lone window must not cost a whole bucket."""
    return 1 << (count - 1).bit_length()


def _nchw(windows: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(windows, -1, 1), np.float32)


def _go_on() -> None:
    """Let the network run."""


def _finite(array: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(array).all():
        raise ExplanationError(
            f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} numbers are NaN or infinite",
            expected="finite numbers from the network",
            remedy="run `inspect-xai bundle check` on the bundle; a network in half precision may overflow",
        )
    return array
