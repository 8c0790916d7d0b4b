"""Prove a bundle's graphs against each other, against numpy and against the network as it was given.

Each proof returns the largest relative error it saw; `Subject.bounds` holds the largest errors allowed.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from inspect_xai.errors import BundleError
from inspect_xai.model.build.derive import PREFIX
from inspect_xai.model.build.half_precision import half_tensors
from inspect_xai.model.build.inputs_outputs import read_ends
from inspect_xai.model.build.integer_networks import is_quantized
from inspect_xai.model.build.normalize import Arrays, network_input, open_plain, run_plain, sample_pictures
from inspect_xai.model.build.topology import needed_nodes, put_nodes
from inspect_xai.model.session import open_session
from inspect_xai.records import Activation, BlockEnd, CellAxis, CellGrid, ModelCard

_BOUNDS = {
    "network_as_given": 1e-4,
    "batch_of_two": 1e-4,
    "chain_of_cuts": 1e-4,
    "masking": 1e-4,
    "gradient_deepest_block": 0.02,
    "gradient_other_blocks": 0.1,
}
# In a quantized network a rounding of the input moves numbers by whole quanta, and slopes are those between quanta.
_QUANTIZED_BOUNDS = dict.fromkeys(_BOUNDS, 0.1) | {"gradient_deepest_block": 0.5, "gradient_other_blocks": 0.5}
# Half precision keeps 11 bits, so that a rounding moves a number by up to 2^-11 of it. The network as given rounds once
# for each of its n operators, the bundle's graphs, in single precision, never. Roundings are as often up as down: n of
# them in a row come to sqrt(n) of one; four times that is allowed.
_HALF_ROUNDING = 4 * 2.0**-11
_STEPS = (1e-4, 1e-3, 1e-2)  # of the block's range; kinks spoil large steps, rounding small ones
_QUANTIZED_STEPS = (0.1, 0.3, 0.03)
_SEEDS = (3, 4, 5, 6)
_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """What is proven.

    Attributes:
        folder: The bundle, or the folder in which it is being built.
        card: Its card.
        ends: Its block ends.
        chain: Positions in `ends` at which the chain of block graphs is cut.
        given: The network as it was given, safe to run.
        dynamic_batch: Whether the graphs take several pictures.
        has_gradients: Whether the trace graph holds gradients.
    """

    folder: Path
    card: ModelCard
    ends: tuple[BlockEnd, ...]
    chain: tuple[int, ...]
    given: onnx.ModelProto
    dynamic_batch: bool
    has_gradients: bool

    @property
    def on_grids(self) -> bool:
        """Whether the score graph takes the positions of the maps' cells as inputs."""
        return any(end.grid for end in self.ends)

    @property
    def quantized(self) -> bool:
        """Whether the network computes with whole numbers."""
        return is_quantized(self.given.graph.node)

    @property
    def bounds(self) -> dict[str, float]:
        """The largest relative error allowed, by proof."""
        if self.quantized:
            return _QUANTIZED_BOUNDS
        return _BOUNDS | {"network_as_given": max(_BOUNDS["network_as_given"], _rounding(half_tensors(self.given)))}

    def session(self, graph: str) -> ort.InferenceSession:
        """Open one of the bundle's graphs, optimized as the engine optimizes it."""
        return self.open(self.folder / "graphs" / f"{graph}.onnx", cut=graph not in ("predict", "score"))

    def open(self, model: Path | bytes, *, cut: bool) -> ort.InferenceSession:
        """Open a session with one thread: sums come out in the same order everywhere.

        Graphs that are cut somewhere run as written if quantized: fused kernels round otherwise where they are cut.
        """
        return open_plain(model) if cut and self.quantized else open_session(model, threads=1)


def _rounding(operators: int) -> float:
    """Bound the error that rounding to half precision behind each of a number of operators may cause."""
    return min(_HALF_ROUNDING * math.sqrt(operators), 0.1)


def prove(subject: Subject) -> dict[str, float]:
    """Run all proofs that apply.

    Returns:
        The largest relative error seen, by proof.

    Raises:
        BundleError: If one is above its bound.
    """
    predict = subject.session("predict")
    errors = {"network_as_given": _network_as_given(subject, predict), "masking": _masking(subject, predict)}
    if subject.dynamic_batch:
        errors["batch_of_two"] = _batch_of_two(subject, predict)
    if subject.ends:
        trace = subject.session("trace")
        errors["chain_of_cuts"] = _chain_of_cuts(subject, trace)
        errors |= _gradients(subject, trace) if subject.has_gradients else {}
    for name, error in errors.items():
        if np.isinf(error):
            raise BundleError(
                f"proof {name} cannot be made: on {len(_SEEDS)} made-up pictures the output does not depend on a block "
                "end, as all units behind it are dead on them",
                expected="a network that answers to patches of gray with noise on them",
                remedy="check scale, mean and std of the card: wrong ones put every picture outside what the network "
                "knows; or name other block ends with [explain] blocks",
            )
        bound = subject.bounds[name]
        if not error <= bound:  # so written, NaN fails too
            raise BundleError(
                f"proof {name} failed: the largest relative error is {error:.3g}",
                expected=f"at most {bound:g}",
                remedy="check that the network is in evaluation mode, holds no random operator and needs no more than "
                "float32; if so, this is a defect of inspect-xai worth reporting",
            )
    return errors


def _network_as_given(subject: Subject, predict: ort.InferenceSession) -> float:
    """Compare the predict graph with the network as given and the card's arithmetic in numpy."""
    pictures = sample_pictures(subject.card, 2, seed=10)
    ends = read_ends(subject.given, subject.card)
    session = subject.open(subject.given.SerializeToString(), cut=False)
    (output,) = (info.name for info in session.get_outputs())
    errors = []
    for index in range(len(pictures)):
        picture = pictures[index : index + 1]
        raw = run_plain(session, ends.feeds(network_input(picture, subject.card)), [output])[output]
        expected = _probabilities(raw.reshape(1, -1).astype(np.float64), subject.card)
        errors.append(_error(_predict(predict, picture), expected))
    return max(errors)


def _probabilities(scores: NDArray[np.float64], card: ModelCard) -> NDArray[np.float64]:
    """Compute the card's activation in numpy; scores and probabilities are (N, K)."""
    single = scores.shape[1] < len(card.labels)
    activation = card.output.activation
    if activation is Activation.SOFTMAX:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)
    if activation is Activation.SIGMOID:
        scores = 1 / (1 + np.exp(-scores))
    if not single:
        return scores
    is_first = card.output.positive_label == card.labels[0]
    return np.concatenate([scores, 1 - scores] if is_first else [1 - scores, scores], axis=1)


def _batch_of_two(subject: Subject, predict: ort.InferenceSession) -> float:
    pictures = sample_pictures(subject.card, 2, seed=11)
    singles = [_predict(predict, pictures[index : index + 1]) for index in range(2)]
    return _error(_predict(predict, pictures), np.concatenate(singles))


def _chain_of_cuts(subject: Subject, trace: ort.InferenceSession) -> float:
    """Compare the block graphs, run one after the other, with the whole network at every cut and at the end."""
    feeds = {"picture": sample_pictures(subject.card, 1, seed=12), **_choice(-1)}
    stations = [f"feature_{index}" for index in subject.chain]
    whole = run_plain(trace, feeds, [*stations, "probabilities", "margin"])
    errors = []
    carried: Arrays = {"picture": feeds["picture"]}
    for index in range(len(stations) + 1):
        session = subject.session(f"block_{index}")
        inputs = {info.name: {**feeds, **carried}[info.name] for info in session.get_inputs()}
        carried = run_plain(session, inputs, [info.name for info in session.get_outputs()])
        errors += [_error(array, whole[name]) for name, array in carried.items()]
    return max(errors)


def _masking(subject: Subject, predict: ort.InferenceSession) -> float:
    """Compare the score graph with masks made by numpy, one of them of a map without contrast; alone and in one run.

    Where cells do not reach from edge to edge, on the grid of every block end.
    """
    grids = {end.grid for end in subject.ends} or {None}
    return max(_masking_on(subject, predict, grid) for grid in sorted(grids, key=str))


def _masking_on(subject: Subject, predict: ort.InferenceSession, grid: CellGrid | None) -> float:
    shown = sample_pictures(subject.card, 2, seed=13)
    hidden, image = shown[::-1].copy(), np.array([0, 1, 0])
    maps = np.random.default_rng(14).normal(size=(3, 1, 5, 7)).astype(np.float32)
    maps[2] = 0.3
    spec = subject.card.input
    rows = _interpolation(spec.height, 5, grid.rows if grid else None)
    columns = _interpolation(spec.width, 7, grid.columns if grid else None)
    up = rows @ maps[:, 0].astype(np.float64) @ columns.T
    minimum, span = up.min(axis=(1, 2)), np.ptp(up, axis=(1, 2))
    span[2] = 0.0
    score = subject.session("score")
    ready = {"rows": rows.astype(np.float32), "columns": columns.T.astype(np.float32)} if subject.on_grids else {}
    outputs = ["probabilities", "minimum", "span"]
    expected, errors = [], []
    for index, mask in enumerate((up - minimum[:, None, None]) / np.where(span > 0, span, np.inf)[:, None, None]):
        own = slice(image[index], image[index] + 1)
        expected.append(_predict(predict, (mask * shown[own] + (1 - mask) * hidden[own]).astype(np.float32)))
        feeds = ready | {
            "picture": shown[own],
            "baseline": hidden[own],
            "image": image[:1],
            "maps": maps[index : index + 1],
        }
        found = run_plain(score, feeds, outputs)
        errors.append(_error(found["probabilities"], expected[-1]))
        errors.append(_error(found["minimum"], minimum[index : index + 1]))
        errors.append(float(np.abs(found["span"][0] - span[index])))
    if subject.dynamic_batch:
        feeds = ready | {"picture": shown, "baseline": hidden, "image": image, "maps": maps}
        errors.append(_error(run_plain(score, feeds, outputs)["probabilities"], np.concatenate(expected)))
    return max(errors)


def _interpolation(size_out: int, size_in: int, axis: CellAxis | None) -> NDArray[np.float64]:
    """Return bilinear weights (size_out, size_in), half-pixel or on a grid, clamped at the edges."""
    pixels = np.arange(size_out, dtype=np.float64)
    cells = (pixels + 0.5) * size_in / size_out - 0.5 if axis is None else (pixels - axis.first_px) / axis.step_px
    position = np.clip(cells, 0, size_in - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size_in))), np.float64)


def _gradients(subject: Subject, trace: ort.InferenceSession) -> dict[str, float]:
    """Compare alphas with central differences: a channel raised by a constant changes the margin by alpha times it.

    At the kinks of a piecewise linear network both are right and differ: other steps and pictures are tried, and of a
    shallow block, with many kinks behind it, the median over the channels counts.
    """
    raised = subject.open(_raised(subject).SerializeToString(), cut=True)
    deepest = len(subject.ends) - 1
    names = ["gradient_other_blocks"] * deepest + ["gradient_deepest_block"]
    best = [float("inf")] * len(names)
    outputs = ["probabilities"] + [f"{kind}_{index}" for kind in ("feature", "alpha") for index in range(len(names))]
    for seed in _SEEDS:
        feeds = {"picture": sample_pictures(subject.card, 1, seed=seed)}
        start = run_plain(trace, feeds | _choice(-1), outputs)
        feeds |= _choice(int(start["probabilities"][0].argmax()))
        for block, name in enumerate(names):
            bound = subject.bounds[name]
            if best[block] > bound:
                errors = _slope_errors(subject, raised, feeds, start, block=block, bound=bound)
                best[block] = min(best[block], errors[-1 if block == deepest else len(errors) // 2])
    return {name: max(error for error, of in zip(best, names, strict=True) if of == name) for name in names}


def _slope_errors(
    subject: Subject, raised: ort.InferenceSession, feeds: Arrays, start: Arrays, *, block: int, bound: float
) -> list[float]:
    """Compare those channels of one block that have the largest alphas, on one made-up picture; errors ascend."""
    alphas = start[f"alpha_{block}"][0].astype(np.float64)
    largest = float(np.abs(alphas).max())
    reach = float(np.ptp(start[f"feature_{block}"])) or 1.0  # a dead block end is flat
    errors = []
    for channel in np.argsort(-np.abs(alphas))[:_CHANNELS]:
        error = float("inf")
        for step in _QUANTIZED_STEPS if subject.quantized else _STEPS:
            above, below = (
                _raised_margin(subject, raised, feeds, block=block, channel=int(channel), by=sign * step * reach)
                for sign in (1, -1)
            )
            slope = (above - below) / (2 * step * reach)
            off = abs(slope - float(alphas[channel]))
            # Dead units: the raise itself wakes them, so that the slope is theirs and says nothing of the gradient.
            error = min(error, off / largest if largest else float("inf") if off else 0.0)
            if error <= bound:
                break
        errors.append(error)
    return sorted(errors)


def _raised_margin(
    subject: Subject, raised: ort.InferenceSession, feeds: Arrays, *, block: int, channel: int, by: float
) -> float:
    offsets = {
        f"raise_{index}": np.zeros((1, end.channels, 1, 1), np.float32) for index, end in enumerate(subject.ends)
    }
    offsets[f"raise_{block}"][0, channel] = by
    return float(run_plain(raised, feeds | offsets, ["margin"])["margin"][0])


def _raised(subject: Subject) -> onnx.ModelProto:
    """Return the trace graph's forward part with one more input per block end: what is added to each channel."""
    model = onnx.load(subject.folder / "graphs" / "trace.onnx")
    names = {PREFIX + end.tensor: f"raised_{index}" for index, end in enumerate(subject.ends)}
    nodes = needed_nodes(model.graph.node, outputs=["margin"])
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
    makers = {name: position for position, node in enumerate(nodes) for name in node.output}
    for index, (tensor, name) in sorted(enumerate(names.items()), key=lambda item: -makers[item[1][0]]):
        nodes.insert(makers[tensor] + 1, helper.make_node("Add", [tensor, f"raise_{index}"], [name]))
    put_nodes(model.graph, nodes)
    model.graph.input.extend(
        helper.make_tensor_value_info(f"raise_{index}", TensorProto.FLOAT, [1, end.channels, 1, 1])
        for index, end in enumerate(subject.ends)
    )
    kept = [info for info in model.graph.output if info.name == "margin"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


def _predict(session: ort.InferenceSession, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = run_plain(session, {"picture": pictures}, ["probabilities"])["probabilities"]
    return probabilities


def _choice(target: int) -> Arrays:
    return {"target": np.array([target], np.int64), "against": np.array([-1], np.int64)}


def _error(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return the largest difference as a share of the largest expected number."""
    scale = max(float(np.abs(expected).max()), 1e-6)
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).max()) / scale
