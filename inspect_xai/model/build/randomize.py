"""Copies of a bundle with shuffled weights, from the head down to any block: a sane map must change with them.

Weights are shuffled inside their tensors, so sizes and spreads of activations stay near what they were. The derived
graphs are copied and their weights exchanged by name: nothing is exported, folded or proven again.
"""

import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from inspect_xai.errors import UnsupportedModelError
from inspect_xai.model.build.derive import PREFIX
from inspect_xai.model.build.topology import needed_nodes
from inspect_xai.model.bundle import ModelBundle

HEAD = "head"
_LEARNT = frozenset(
    [
        *(
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "BatchNormalization",
            "DequantizeLinear",
            "FusedConv",
            "FusedGemm",
        ),
        *("FusedGemm", "FusedMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearConv", "QGemm"),
    ]
)
_ITEM_BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.UINT8: 1}


def stages(bundle: ModelBundle) -> dict[str, tuple[str, ...]]:
    """Return the names of learnt weights by block end, shallow to deep; the last, `HEAD`, are behind the deepest."""
    graph = onnx.load(bundle.graph("predict"), load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 1}
    left = list(graph.node)
    found: dict[str, tuple[str, ...]] = {}
    ends = [(end.tensor, PREFIX + end.tensor) for end in bundle.blocks] + [(HEAD, "probabilities")]
    for name, tensor in ends:
        needed = needed_nodes(left, outputs=[tensor])
        weights = [
            weight
            for node in needed
            if node.op_type in _LEARNT
            for weight in node.input
            if kinds.get(weight) in _ITEM_BYTES
        ]
        found[name] = tuple(dict.fromkeys(weights))
        taken = {id(node) for node in needed}
        left = [node for node in left if id(node) not in taken]
    return found


def randomized_copy(bundle: ModelBundle, folder: Path, *, downto: str, seed: int) -> ModelBundle:
    """Write a copy of a bundle's graphs in which all weights behind and including a stage are shuffled.

    Args:
        bundle: The bundle to copy.
        folder: To make; hashes and fingerprint stay as they were, so that it never loads as a bundle.
        downto: The shallowest stage to shuffle, a key of `stages`.
        seed: A weight is shuffled alike at every step of a cascade.

    Raises:
        UnsupportedModelError: If there is nothing to shuffle: the weights are made inside the graph.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018), cascading randomization.
    """
    found = stages(bundle)
    names = list(found)
    chosen = {weight for name in names[names.index(downto) :] for weight in found[name]}
    if not chosen:
        raise UnsupportedModelError(
            f"no learnt weights were found from {downto!r} on",
            expected="weights stored in the graph",
            remedy="run the audit without the sanity checks",
        )
    shutil.copytree(bundle.folder / "graphs", folder / "graphs")
    shuffled_outside: set[tuple[str, int]] = set()
    for path in sorted((folder / "graphs").glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.name not in chosen:
                continue
            rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
            if tensor.data_location != TensorProto.EXTERNAL:
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(
                    numpy_helper.from_array(rng.permutation(array.ravel()).reshape(array.shape), tensor.name)
                )
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            offset, length = int(place["offset"]), int(place["length"])
            if (place["location"], offset) not in shuffled_outside:
                shuffled_outside.add((place["location"], offset))
                _shuffle_file(path.parent / place["location"], offset, length, tensor.data_type, rng)
        path.write_bytes(model.SerializeToString(deterministic=True))
    return replace(bundle, folder=folder)


def _shuffle_file(path: Path, offset: int, length: int, kind: int, rng: np.random.Generator) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        numbers = np.frombuffer(file.read(length), np.dtype(f"V{_ITEM_BYTES[kind]}"))
        file.seek(offset)
        file.write(numbers[rng.permutation(len(numbers))].tobytes())
