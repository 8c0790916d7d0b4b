"""Builds and proves bundles: reads the network, writes its graphs, runs the proofs.

This module imports onnx, which a line that runs a bundle does without.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnxruntime as ort

import inspect_xai
from inspect_xai.errors import BundleError, UnsupportedModelError
from inspect_xai.files import replaced_folder
from inspect_xai.model.build.blocks import NO_BLOCKS, Blocks, find_blocks, give_twins
from inspect_xai.model.build.derive import PREFIX, Derivation, block_graphs, predict_graph, score_graph, trace_graph
from inspect_xai.model.build.external_weights import move_weights
from inspect_xai.model.build.feature_grid import place_cells
from inspect_xai.model.build.head import Head, read_head
from inspect_xai.model.build.load_onnx import LoadedModel, load_model
from inspect_xai.model.build.normalize import Network, working_form
from inspect_xai.model.build.topology import AS_BLACK_BOX
from inspect_xai.model.build.verify import Subject, prove
from inspect_xai.model.bundle import (
    INT8_GRAPH,
    MANIFEST,
    SCHEMA_VERSION,
    WEIGHTS,
    ModelBundle,
    check_from_outside,
    describe_end,
    file_hashes,
    fingerprint_of,
    load_bundle,
)
from inspect_xai.model.card import card_text, card_toml, check_card, read_card
from inspect_xai.records import ModelCard, Scoring

RECIPE_VERSION = 1  # raised whenever the derived graphs would compute something else


@dataclass(frozen=True, slots=True, eq=False)
class BuildPlan:
    """A network that was found fit for a bundle, and all that its graphs are made from."""

    source: Path
    loaded: LoadedModel
    card: ModelCard
    network: Network
    head: Head
    blocks: Blocks


def read_network(path: Path, card: ModelCard, *, given: Sequence[str], black_box: bool = False) -> BuildPlan:
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
        return BuildPlan(path, loaded, card, network, head, NO_BLOCKS)
    found = find_blocks(network, scores=head.scores, classes=head.width, given=given)
    network = give_twins(network, found.turned) if found.turned else network
    shapes = {**network.whole, **network.shapes}
    ends, notes = place_cells(network.model, image=network.image, layout=network.layout, shapes=shapes, ends=found.ends)
    return BuildPlan(path, loaded, card, network, head, replace(found, ends=ends, notes=(*found.notes, *notes)))


def write_network(plan: BuildPlan, work: Path) -> dict[str, Any]:
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
    if reason and ends and len(chain) < len(ends):
        raise UnsupportedModelError(
            f"{reason}; finite differences do not help, as the network does not fall into parts at every block end",
            remedy=f"name other block ends with [explain] blocks in the card, or {AS_BLACK_BOX}",
        )
    subject = Subject(work, plan.card, ends, chain, model, dynamic_batch, not reason)
    return {
        "blocks": [describe_end(end) for end in ends],
        "cells": "edge_to_edge" if all(end.grid is None for end in ends) else "on_grids",
        "chain": chain,
        "batch": "dynamic" if dynamic_batch else 1,
        "gradient": "none" if not ends else "finite_difference" if reason else "reverse_mode",
        "gradient_reason": reason,
        "quantized": subject.quantized,
        "notes": plan.blocks.notes,
        "output": asdict(plan.head),
        "network": _describe(model, plan.source),
        "versions": _versions(),
        "proofs": prove(subject),
        "proof_bounds": subject.bounds,
    }


def _write_graphs(plan: BuildPlan, work: Path) -> str:
    """Write weights and derived graphs; return why there are no gradients, or an empty text."""
    folder = (work / WEIGHTS).parent
    folder.mkdir()
    light = move_weights(plan.network.model, work / WEIGHTS)
    body = onnx.compose.add_prefix(light, PREFIX)
    derived = Derivation(body, plan.network, plan.head, plan.card.input, plan.blocks.ends, plan.blocks.cuts)
    graphs, reason = {"predict": predict_graph(derived), "score": score_graph(derived)}, "built as a black box"
    if plan.blocks.ends:
        graphs["trace"], reason = trace_graph(derived)
        graphs |= {f"block_{index}": graph for index, graph in enumerate(block_graphs(derived))}
    for name, graph in graphs.items():
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    return reason


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


def build_bundle(
    onnx_path: Path | str,
    card: ModelCard | Path | str,
    out: Path | str,
    *,
    blocks: Sequence[str] | None = None,
    force: bool = False,
    black_box: bool = False,
) -> ModelBundle:
    """Build a bundle from an exported network and its card, and prove it.

    Args:
        onnx_path: The network.
        card: Its card, or the path of its card.toml.
        out: Folder to make.
        blocks: Block ends by tensor name in place of those of the card or those found.
        force: Replace a bundle that is at `out`.
        black_box: Look for no blocks: methods that use the network's scores alone explain it (rise, occlusion).

    Raises:
        BundleError: If something else is at `out`, or a proof fails.
        CardError: If the card contradicts itself or the network.
        ModelFileError: If the network's file is broken or hostile.
        UnsupportedModelError: If the network is sound but cannot be explained.
    """
    out = Path(out)
    _check_target(out, force=force)
    known = read_card(Path(card)) if isinstance(card, Path | str) else card
    check_card(known)
    if black_box:
        check_from_outside(known.explain.method, said_by="explain.method")
    given = tuple(known.explain.blocks if blocks is None else blocks)
    plan = read_network(Path(onnx_path), known, given=given, black_box=black_box)
    with _workshop(out) as work:
        text = card_text(Path(card), known) if isinstance(card, Path | str) else card_toml(card).encode()
        (work / "card.toml").write_bytes(text)
        facts: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": "",
            "name": known.name,
            "version": known.version,
        }
        _write_manifest(work, known, facts | write_network(plan, work))
    return load_bundle(out)


def check_bundle(folder: Path | str) -> ModelBundle:
    """Open a bundle and prove its graphs again.

    Returns:
        The bundle; `manifest["proofs"]` holds what was measured just now.

    Raises:
        BundleError: If a file changed or a proof fails.
    """
    bundle = load_bundle(folder)
    given = load_model(bundle.folder / "model.onnx", bundle.card).model
    chain, has_gradients = tuple(bundle.manifest["chain"]), bundle.manifest["gradient"] == "reverse_mode"
    subject = Subject(bundle.folder, bundle.card, bundle.blocks, chain, given, bundle.dynamic_batch, has_gradients)
    return replace(bundle, manifest=bundle.manifest | {"proofs": prove(subject)})


def add_int8(bundle: ModelBundle, graph: bytes, out: Path, *, facts: dict[str, Any]) -> ModelBundle:
    """Write a bundle that scores with a quantized graph; its card says so, so it is another model.

    Args:
        bundle: The bundle, which stays as it is unless it is `out`.
        graph: The scoring graph in 8 bits.
        out: Folder to make or, if it is the bundle's own, to replace.
        facts: How the graph was made and how faithful it is; `largest_px` is the side of the largest maps it scores.
    """
    known = replace(bundle.card, explain=replace(bundle.card.explain, scoring=Scoring.INT8))
    with _workshop(out) as work:
        shutil.copytree(bundle.folder, work, dirs_exist_ok=True)
        (work / MANIFEST).unlink()
        (work / "graphs" / f"{INT8_GRAPH}.onnx").write_bytes(graph)
        if bundle.card != known:  # the user's comments are kept as long as what they comment on is
            (work / "card.toml").write_text(card_toml(known), encoding="utf-8")
        _write_manifest(work, known, bundle.manifest | {"int8": facts})
    return load_bundle(out)


def _check_target(out: Path, *, force: bool) -> None:
    """Refuse to write over anything but, if forced, a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    is_bundle = (out / MANIFEST).is_file()
    if not is_bundle and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} exists and is no bundle", expected="a free name", remedy="choose another --out")
    if is_bundle and not force:
        raise BundleError(f"{out} exists", expected="a free name", remedy="choose another --out, or say --force")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to build in; without an error it takes the place of `out`, else it is removed."""
    with ExitStack() as stack:
        try:
            work = stack.enter_context(replaced_folder(out))
        except OSError as error:
            raise BundleError(
                f"{out.parent} cannot be written: {error.strerror}", remedy="choose another --out"
            ) from error
        yield work


def _write_manifest(work: Path, card: ModelCard, facts: dict[str, Any]) -> None:
    manifest = facts | {"files": file_hashes(work)}
    manifest["fingerprint"] = fingerprint_of(card, manifest)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
