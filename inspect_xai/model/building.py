"""What building and proving a bundle takes beyond running one: reading the network, writing its graphs, the proofs.

`bundle.py` loads this module, and with it onnx, only to build or to check: a line that runs a bundle does without.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import inspect_xai
from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.blocks import NO_BLOCKS, Blocks, find_blocks, give_twins
from inspect_xai.model.bundle import WEIGHTS, describe_end
from inspect_xai.model.cells import place_cells
from inspect_xai.model.graph import PREFIX, block_graphs, derivation, predict_graph, score_graph, trace_graph
from inspect_xai.model.head import Head, read_head
from inspect_xai.model.proofs import Subject, prove
from inspect_xai.model.safety import LoadedModel, load_model
from inspect_xai.model.weights import move_weights
from inspect_xai.model.wiring import AS_BLACK_BOX
from inspect_xai.model.working import Network, working_form
from inspect_xai.records import BlockEnd, InputSpec, Layout, ModelCard

RECIPE_VERSION = 1  # raised whenever the derived graphs would compute something else


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A network that was found fit for a bundle, and all that its graphs are made from."""

    source: Path
    loaded: LoadedModel
    card: ModelCard
    network: Network
    head: Head
    blocks: Blocks


def read_network(path: Path, card: ModelCard, *, given: Sequence[str], black_box: bool = False) -> Plan:
    """Read a network and find its head and its block ends.

    Args:
        path: The network.
        card: Its card, checked.
        given: Block ends by tensor name; none: those found.
        black_box: Look for no block ends: the network is explained from outside.

    Raises:
        CardError: If the card contradicts the network.
        ModelFileError: If the network's file is broken or hostile.
        UnsupportedModelError: If the network is sound but cannot be explained.
    """
    loaded = load_model(path, card)
    network = working_form(loaded.model, card, keep=() if black_box else given)
    head = read_head(network, card)
    if black_box:
        return Plan(path, loaded, card, network, head, NO_BLOCKS)
    found = find_blocks(network, scores=head.scores, classes=head.width, given=given)
    network = give_twins(network, found.turned) if found.turned else network
    shapes = {**network.whole, **network.shapes}
    ends, notes = place_cells(network.model, image=network.image, layout=network.layout, shapes=shapes, ends=found.ends)
    return Plan(path, loaded, card, network, head, replace(found, ends=ends, notes=(*found.notes, *notes)))


def write_network(plan: Plan, work: Path) -> dict[str, Any]:
    """Write the network as given and its graphs, and prove them.

    Args:
        plan: From `read_network`.
        work: The folder in which the bundle is made; its card is there.

    Returns:
        What the manifest says of the network.

    Raises:
        BundleError: If a proof fails.
        UnsupportedModelError: If there are no gradients and no finite differences in their stead.
    """
    (work / "model.onnx").write_bytes(plan.loaded.content)
    reason = _write_graphs(plan, work)
    ends, model, dynamic_batch = plan.blocks.ends, plan.loaded.model, plan.network.dynamic_batch
    chain = tuple(index for index, end in enumerate(ends) if end.tensor in plan.blocks.cuts)
    _check_fallback(reason, complete=len(chain) == len(ends) or not ends)
    subject = Subject(work, plan.card, ends, chain, model, dynamic_batch, not reason)
    return {
        "blocks": [describe_end(end) for end in ends],
        "cells": "edge_to_edge" if all(end.grid is None for end in ends) else "on_grids",
        "chain": chain,
        "batch": "dynamic" if dynamic_batch else 1,
        "gradient": "none" if not ends else "finite_difference" if reason else "reverse_mode",
        "gradient_reason": reason,
        "quantised": subject.quantised,
        "notes": plan.blocks.notes,
        "output": asdict(plan.head),
        "network": _describe(model, plan.source),
        "versions": _versions(),
        "proofs": prove(subject),
        "proof_bounds": subject.bounds,
    }


def prove_again(
    folder: Path, card: ModelCard, ends: tuple[BlockEnd, ...], manifest: dict[str, Any], *, dynamic_batch: bool
) -> dict[str, float]:
    """Prove the graphs of a finished bundle, whose manifest says what they are.

    Raises:
        BundleError: If a proof fails.
    """
    given = load_model(folder / "model.onnx", card).model
    has_gradients = manifest["gradient"] == "reverse_mode"
    return prove(Subject(folder, card, ends, tuple(manifest["chain"]), given, dynamic_batch, has_gradients))


def has_displaced_cells(predict: Path, ends: Sequence[BlockEnd], spec: InputSpec) -> bool:
    """Tell whether block ends do not reach from edge to edge, of a bundle that says nothing of its cells.

    Args:
        predict: Its graph of that name.
        ends: Its block ends.
        spec: What the network takes.
    """
    model = onnx.load(predict, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, tuple[int, ...]] = {"picture": (1, spec.depth, spec.height, spec.width)}
    for info in (*inferred.value_info, *inferred.output):
        axes = [axis.dim_value or 0 for axis in info.type.tensor_type.shape.dim]
        if axes and all(axes[1:]):
            shapes[info.name] = (1 if not axes[0] else axes[0], *axes[1:])
    tensors = {end.tensor: PREFIX + end.tensor for end in ends}
    placed, _ = place_cells(
        model, image="picture", layout=Layout.NCHW, shapes=shapes, ends=ends, tensors=tensors
    )  # fmt: skip
    return any(end.grid is not None for end in placed)


def _write_graphs(plan: Plan, work: Path) -> str:
    """Write weights and derived graphs; return why there are no gradients, or an empty text."""
    folder = (work / WEIGHTS).parent
    folder.mkdir()
    light = move_weights(plan.network.model, work / WEIGHTS)
    derived = derivation(plan.network, light, head=plan.head, spec=plan.card.input, blocks=plan.blocks)
    graphs, reason = {"predict": predict_graph(derived), "score": score_graph(derived)}, "built as a black box"
    if plan.blocks.ends:
        graphs["trace"], reason = trace_graph(derived)
        graphs |= {f"block_{index}": graph for index, graph in enumerate(block_graphs(derived))}
    for name, graph in graphs.items():
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    return reason


def _check_fallback(reason: str, *, complete: bool) -> None:
    """Refuse where gradients are missing and finite differences over the chain of blocks cannot stand in."""
    if reason and not complete:
        raise UnsupportedModelError(
            f"{reason}; finite differences do not help, as the network does not fall into parts at every block end",
            remedy=f"name other block ends with [explain] blocks in the card, or {AS_BLACK_BOX}",
        )


def _describe(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "opset": next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": len(model.graph.node),
    }


def _versions() -> dict[str, str]:
    return {
        "inspect_xai": inspect_xai.__version__,
        "recipe": str(RECIPE_VERSION),
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }
