"""Head of the network: from the graph's output to probabilities, and to the log-odds margin that is explained.

    logits z (N, K)   softmax: p = softmax(z)   M = z_c - log sum over the others of exp z_j     (method notes 2.3)
                      sigmoid: p = sigmoid(z)   M = z_c
    one logit z       p = (1 - s, s), s = sigmoid(z): a softmax over (0, z), so that M = -z or z
    against label r   M = z_c - z_r

The margin is used because it does not saturate: a probability of 1.0 has no gradient left, its margin has.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from inspect_xai.errors import CardError, UnsupportedModelError
from inspect_xai.model.autodiff.builder import Value
from inspect_xai.model.build.inputs_outputs import scores_in_front
from inspect_xai.model.build.normalize import Network, network_input, open_plain, run_plain, sample_pictures
from inspect_xai.model.build.topology import attribute_of
from inspect_xai.records import Activation, ModelCard

_SHAPE_ONLY = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_FAR = 1e30  # beyond any logit, within float32
_TINIEST = 1.2e-38  # the smallest normal float32: processors may flush smaller ones to zero
_ONE = 1e-3
_MADE_UP = 4
_SAME = 1e-6  # of a score; float32 keeps no more


class ClassCoupling(StrEnum):
    """Whether the classes share one probability (softmax) or have one each (sigmoid)."""

    SHARED = "softmax"
    INDEPENDENT = "sigmoid"


@dataclass(frozen=True, slots=True)
class Head:
    """How the output is read.

    Attributes:
        scores: Tensor of the network that holds the class scores: logits, or probabilities where there are none.
        width: Numbers in it per picture.
        classes: Probabilities made of them: `width`, or 2 where there is a single logit.
        coupling: What the margin compares with.
        are_logits: False: `scores` are probabilities already.
        own_probabilities: Tensor that holds the network's own probabilities; empty: they are made from `scores`.
        positive: Which of two labels a single score belongs to.
    """

    scores: str
    width: int
    classes: int
    coupling: ClassCoupling
    are_logits: bool = True
    own_probabilities: str = ""
    positive: int = 1

    @property
    def sides(self) -> NDArray[np.float32]:
        """(1, 2): how a single probability counts for the two labels: 1 for its own, -1 for the other."""
        return np.array([[-1, 1] if self.positive == 1 else [1, -1]], np.float32)


@dataclass(frozen=True, slots=True)
class Margin:
    """Tensors of the margin: its value (N,), and d(margin)/d(scores tensor), flattened to (N, width)."""

    value: Value
    slope: Value


def read_head(network: Network, card: ModelCard) -> Head:
    """Check the output against the card, and find the logits.

    Raises:
        CardError: If number of classes or activation contradict the graph's output.
        UnsupportedModelError: If the output is no vector of class scores, or is the same for all pictures.
    """
    head = _read_head(network, card)
    _check_answers(network, head, card)
    return head


def _read_head(network: Network, card: ModelCard) -> Head:
    width = _width(network)
    labels = len(card.labels)
    classes = 2 if width == 1 and labels == 2 else width
    if classes != labels:
        raise CardError(
            f"labels: the network outputs {width} score{'s' if width > 1 else ''}, the card names {labels} labels",
            expected="one label per score, in output order (or two labels for a single sigmoid score)",
            remedy="correct labels in the card",
        )
    last, source = _last_activation(network, width)
    activation = card.output.activation
    if activation is Activation.NONE:
        return replace(
            _head_with_probabilities(network, card, last=last, source=source), positive=_positive(card, width)
        )
    if activation is Activation.SOFTMAX and width == 1:
        raise CardError(
            "output.activation: found softmax over a single score, which is always 1",
            remedy='say activation = "sigmoid"',
        )
    doubled = activation is Activation.SOFTMAX and _are_shares(_sample_outputs(network, card))
    if last in ("Softmax", "Sigmoid") or doubled:
        raise CardError(
            f"output.activation: found {activation}, but the graph outputs probabilities already "
            f"({f'it ends in {last}' if last else 'they sum to 1'})",
            remedy='say activation = "none"',
        )
    shared = activation is Activation.SOFTMAX or classes > width
    coupling = ClassCoupling.SHARED if shared else ClassCoupling.INDEPENDENT
    return Head(network.output, width, classes, coupling, positive=_positive(card, width))


def write_probabilities(head: Head, scores: Value, own: Value | None) -> tuple[Value, Value]:
    """Append the nodes from scores to probabilities.

    Args:
        head: How the output is read.
        scores: (N, width): the tensor `head.scores`, flattened.
        own: (N, width): the tensor `head.own_probabilities`, flattened.

    Returns:
        Probabilities (N, classes), and logits (N, classes) that the margin is made of.
    """
    if head.classes > head.width and head.are_logits:
        logits = scores.then("MatMul", np.maximum(head.sides, 0))
        return logits.then("Softmax", axis=1), logits
    if head.are_logits:
        if own is not None:
            return own, scores
        return (
            scores.then("Softmax", axis=1) if head.coupling is ClassCoupling.SHARED else scores.then("Sigmoid")
        ), scores
    probabilities = scores
    if head.classes > head.width:
        probabilities = scores.then("MatMul", head.sides) + np.maximum(-head.sides, 0)
    logits = _log(probabilities)
    if head.coupling is ClassCoupling.INDEPENDENT:
        logits = logits - _log(1.0 - probabilities)
    return probabilities, logits


def write_margin(head: Head, logits: Value, *, probabilities: Value, target: Value, against: Value) -> Margin:
    """Append the nodes for the margin and its slope.

    Args:
        head: How the output is read.
        logits: (N, classes) as `write_probabilities` returns them.
        probabilities: (N, classes).
        target: (N,) int64, -1: the most probable class.
        against: (N,) int64, -1: all others.
    """
    best = probabilities.then("ArgMax", axis=1, keepdims=0, dtype=TensorProto.INT64)
    chosen = _where(_is_negative(target), best, target)
    hot, rival = (_one_hot(index, head.classes) for index in (chosen, against))
    alone = _is_negative(against)
    if head.coupling is ClassCoupling.SHARED:
        others = logits - hot * _FAR
        top = others.then("ReduceMax", [1], keepdims=1)
        shares = (others - top).then("Exp")
        total = shares.sum([1])
        everyone = (logits * hot).sum([1]) - (total.then("Log") + top)
        slope = hot - shares / total
    else:
        everyone, slope = (logits * hot).sum([1]), hot
    alone_column = alone.then("Unsqueeze", [1])
    value = _where(alone_column, everyone, (logits * (hot - rival)).sum([1])).then("Squeeze", [1])
    return Margin(value, _to_scores(head, _where(alone_column, slope, hot - rival), probabilities))


def _to_scores(head: Head, slope: Value, probabilities: Value) -> Value:
    """Carry d(margin)/d(logits) back to the scores tensor, where those are made from it here."""
    if not head.are_logits:
        slope = slope / probabilities.then("Max", _TINIEST)
        if head.coupling is ClassCoupling.INDEPENDENT:  # d log(p/(1-p)) / dp = 1 / (p (1-p))
            slope = slope / (1.0 - probabilities).then("Max", _TINIEST)
    if head.classes > head.width:
        column = np.maximum(head.sides, 0) if head.are_logits else head.sides
        slope = slope.then("MatMul", np.ascontiguousarray(column.T))
    return slope


def _positive(card: ModelCard, width: int) -> int:
    """Return the index of the label that a single score belongs to; the network does not contain it."""
    labels, positive = card.labels, card.output.positive_label
    if width == 1 and len(labels) == 2:
        if not positive:
            raise CardError(
                f"output.positive_label: the network outputs one score for two labels, and the card does not say "
                f"whether it is that of {labels[0]!r} or of {labels[1]!r}",
                expected="the label that a score near 1 means",
                remedy=f'say under [output] positive_label = "{labels[1]}" (what bundles had without this key) or '
                f'"{labels[0]}"; Keras and most trainings number classes in alphabetical order and mean the second',
            )
        return labels.index(positive)
    if positive:
        raise CardError(
            f"output.positive_label: found {positive!r}, but the network outputs {width} scores, one for each label",
            remedy="leave the key out",
        )
    return 1


def _head_with_probabilities(network: Network, card: ModelCard, *, last: str, source: str) -> Head:
    """Read an output that holds probabilities: from the logits in front of them where the graph shows those."""
    outputs = _sample_outputs(network, card)
    if not (np.all(outputs >= -_ONE) and np.all(outputs <= 1 + _ONE)):
        raise CardError(
            f"output.activation: found none, but the graph outputs {outputs.min():.3g} to {outputs.max():.3g}",
            expected="probabilities",
            remedy='say activation = "softmax" or "sigmoid"',
        )
    width, labels = outputs.shape[1], len(card.labels)
    shared = labels > width or last == "Softmax" or (not last and _are_shares(outputs))
    return Head(
        scores=source if last else network.output,
        width=width,
        classes=labels,
        coupling=ClassCoupling.SHARED if shared else ClassCoupling.INDEPENDENT,
        are_logits=bool(last),
        own_probabilities=network.output,
    )


def _check_answers(network: Network, head: Head, card: ModelCard) -> None:
    """Refuse a network that gives black, white and several made-up pictures the same scores.

    Class by class, so that a probability near 1 does not hide differences in the others.
    """
    made_up = sample_pictures(card, _MADE_UP, seed=6)
    pictures = np.concatenate([np.zeros_like(made_up[:1]), np.full_like(made_up[:1], 255), made_up])
    scores = _outputs(network, card, pictures, head.scores).astype(np.float64)
    if np.all(np.ptp(scores, axis=0) <= _SAME * np.abs(scores).max(axis=0)):
        raise UnsupportedModelError(
            f"the network's output does not depend on its input: black, white and {_MADE_UP} made-up pictures score "
            f"{', '.join(f'{score:.4g}' for score in scores[0][:5])}{', ...' if scores.shape[1] > 5 else ''}",
            expected="a network that answers to what it is shown",
            remedy="check scale, mean and std of the card: wrong ones make all pictures alike; if they are right, its "
            "weights are damaged: export it again",
        )


def _width(network: Network) -> int:
    shape = network.shapes.get(network.output)
    if shape is None:
        raise UnsupportedModelError(
            f"the output {network.output!r} is no float tensor that depends on the picture",
            expected="one float score per class (not a class number)",
            remedy=_name_of_scores(network),
        )
    if not shape or shape[0] != 1 or sum(size > 1 for size in shape[1:]) > 1:
        raise UnsupportedModelError(
            f"the output {network.output!r} has shape {list(shape)} for one picture",
            expected="one vector of class scores, (batch, classes); detectors and segmenters are not explained",
            remedy="give a classifier",
        )
    return int(np.prod(shape[1:]))


def _name_of_scores(network: Network) -> str:
    nodes = {name: node for node in network.model.graph.node for name in node.output}
    scores = scores_in_front(nodes, network.output)
    if scores in network.shapes:
        return f'write [output] name = "{scores}" in the card: what lies behind it is ignored'
    return "export the network without its last ArgMax, and in float32"


def _last_activation(network: Network, width: int) -> tuple[str, str]:
    """Walk back from the output over reshaping nodes.

    Returns:
        "Softmax" or "Sigmoid" and the tensor in front of it; two empty strings where the graph ends in something else.
    """
    makers = {name: node for node in network.model.graph.node for name in node.output}
    node = makers.get(network.output, onnx.NodeProto())
    while node.op_type in _SHAPE_ONLY and node.input[0] in makers:
        node = makers[node.input[0]]
    if node.op_type == "Sigmoid":
        return "Sigmoid", node.input[0]
    if node.op_type == "Softmax":
        shape = network.shapes.get(node.input[0], (0,))
        if shape[attribute_of(node, "axis", -1)] == width:
            return "Softmax", node.input[0]
    return "", ""


def _sample_outputs(network: Network, card: ModelCard) -> NDArray[np.float32]:
    """Return the outputs (2, width) for two made-up pictures."""
    return _outputs(network, card, sample_pictures(card, 2, seed=2), network.output)


def _outputs(network: Network, card: ModelCard, pictures: NDArray[np.float32], tensor: str) -> NDArray[np.float32]:
    """Compute one tensor of the network, flat, for each picture."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    if tensor != network.output:
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = open_plain(model.SerializeToString())
    feeds = network_input(pictures, card)
    rows = [run_plain(session, {network.image: feeds[at : at + 1]}, [tensor])[tensor] for at in range(len(feeds))]
    return np.concatenate([row.reshape(1, -1) for row in rows])


def _are_shares(outputs: NDArray[np.float32]) -> bool:
    """Whether the numbers look like the result of a softmax."""
    return bool(outputs.shape[1] > 1 and outputs.min() >= 0 and np.abs(outputs.sum(axis=1) - 1).max() < _ONE)


def _log(value: Value) -> Value:
    return value.then("Max", _TINIEST).then("Log")


def _is_negative(index: Value) -> Value:
    return index.then("Less", 0, dtype=TensorProto.BOOL)


def _where(condition: Value, value: Value, otherwise: Value) -> Value:
    return condition.then("Where", value, otherwise, dtype=value.dtype)


def _one_hot(index: Value, classes: int) -> Value:
    column = index.then("Unsqueeze", [1])
    return column.then("Equal", np.arange(classes)[None], dtype=TensorProto.BOOL).cast(TensorProto.FLOAT)
