"""Positions of a feature map's cells on the window, added up from the pads, strides, kernels and dilations before it.

    three 5x5 convolutions without padding, two 2x2 pools between them, 64 px:
    conv 60 cells at 2 + i    pool 30 at 2.5 + 2i    conv 26 at 6.5 + 2i    pool 13 at 7.5 + 4i    conv 9 at 15.5 + 4i

Pixels count from the center of the first one. A number of a tensor lies where the middle of what it was made from lies,
and where paths meet, halfway between theirs. Positions are complex numbers, rows + columns * 1j, and every axis of a
tensor is a list of (size, step) factors, the slowest first: so reshapes lose nothing, and cells that went into channels
(space to depth) are still known when a convolution adds those up.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from inspect_xai.model.build.topology import attribute_of
from inspect_xai.records import BlockEnd, CellAxis, CellGrid, Layout

Factor = tuple[int, complex]
Axis = tuple[Factor, ...]

_NEAR = 1e-6
_APART_CELLS = 0.5  # paths that disagree by more get a note
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "QLinearAveragePool"})
_CHANNELS_LAST = frozenset({"NhwcMaxPool", "NhwcConv", "NhwcFusedConv"})
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # from channels last to channels first, and back
_REDUCED = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
_GLOBAL = frozenset({*_REDUCED, "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "QLinearGlobalAveragePool"})
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1, "NhwcConv": 1, "NhwcFusedConv": 1}
_KERNEL_INPUT = {**_CONVOLUTIONS, "ConvTranspose": 1}
_PASSED_ON = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Places:
    """Positions of the numbers of a tensor: `first` plus, for every factor of every axis, index times step.

    Attributes:
        axes: Factors (size, step) of each axis; none: an axis of size 1.
        first: Position of the first number.
        apart: The largest distance, in cells, between paths that met on the way.
    """

    axes: tuple[Axis, ...]
    first: complex
    apart: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(_size(axis) for axis in self.axes)

    @property
    def extent(self) -> complex:
        """From the first number to the last."""
        return sum((step * (size - 1) for axis in self.axes for size, step in axis), start=0j)

    @property
    def reach(self) -> tuple[bool, bool]:
        """Whether its numbers differ in their rows, and in their columns."""
        steps = [step for axis in self.axes for _, step in axis]
        return any(step.real for step in steps), any(step.imag for step in steps)

    def folded(self, index: int, size: int) -> "Places":
        """Sum an axis up: its numbers become `size` new ones that all lie in its middle."""
        middle = sum((step * (count - 1) / 2 for count, step in self.axes[index]), start=0j)
        return self.put(index, _plain(size), middle)

    def put(self, index: int, axis: Axis, shift: complex = 0j) -> "Places":
        """Replace an axis, and move everything by `shift`."""
        axes = (*self.axes[:index], _simple(axis), *self.axes[index + 1 :])
        return replace(self, axes=axes, first=self.first + shift)

    def evened(self, index: int) -> "Places | None":
        """Write an axis as one factor, cells put between two (depth to space) spread evenly; None: it is mixed."""
        axis = self.axes[index]
        if len(axis) < 2:
            return self
        (outer, step), *inner = axis
        within = math.prod(size for size, _ in inner)
        if any(inner_step for _, inner_step in inner):
            return None
        return self.put(index, ((outer * within, step / within),), -step * (within - 1) / within / 2)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A node, what it reads and the shape of what it makes, where that is known."""

    node: onnx.NodeProto
    inputs: tuple[Places | None, ...]
    constants: Mapping[str, np.ndarray[Any, Any]]
    kernels: Mapping[str, Sequence[int]]
    shape: tuple[int, ...] | None

    @property
    def source(self) -> Places:
        return next(places for places in self.inputs if places is not None)

    def attribute(self, name: str, default: Any = None) -> Any:
        return attribute_of(self.node, name, default)

    def constant(self, index: int) -> list[int] | None:
        """Return a constant input as a list of whole numbers; None where it is none."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return [int(number) for number in self.constants[name].ravel()] if name in self.constants else None


def place_cells(
    model: onnx.ModelProto,
    *,
    image: str,
    layout: Layout,
    shapes: Mapping[str, Sequence[int]],
    ends: Sequence[BlockEnd],
    tensors: Mapping[str, str] | None = None,
) -> tuple[tuple[BlockEnd, ...], tuple[str, ...]]:
    """Add to block ends where their cells lie.

    Where all block ends of a network reach from edge to edge (`is_edge_to_edge`), as after padded layers, none gets a
    grid, and its maps are stretched over the window.

    Args:
        model: Nodes in order; weights may be outside.
        image: Its picture.
        layout: Of the picture.
        shapes: Of the picture and of tensors computed from it, at batch 1, as far as they are known.
        ends: Block ends.
        tensors: By block end, its name in the model; default: its own.

    Returns:
        The block ends, and notes: "cells_unknown", "cells_of_paths_differ".
    """
    found = _follow(model, image=image, layout=layout, shapes=shapes)
    height, width = (shapes[image][axis] for axis in ((2, 3) if layout is Layout.NCHW else (1, 2)))
    grids, apart = [], 0.0
    for end in ends:
        places = found.get((tensors or {}).get(end.tensor, end.tensor))
        grid = _grid(places, end)
        grids.append(grid)
        apart = max(apart, places.apart if places is not None and grid is not None else 0.0)
    notes = {"cells_unknown": None in grids, "cells_of_paths_differ": apart > _APART_CELLS + _NEAR}
    padded = all(
        grid is None
        or (is_edge_to_edge(grid.rows, end.height, height) and is_edge_to_edge(grid.columns, end.width, width))
        for grid, end in zip(grids, ends, strict=True)
    )
    placed = (replace(end, grid=None if padded else grid) for grid, end in zip(grids, ends, strict=True))
    return tuple(placed), tuple(note for note, applies in notes.items() if applies)


def is_edge_to_edge(axis: CellAxis, cells: int, side: int) -> bool:
    """Tell whether stretching cells from edge to edge of a window of `side` pixels puts them where they lie.

    It does if there is one for every whole step of the window, a last part of a step more or less, and the first and
    the last one lie within half a step of where stretching puts them.
    """
    steps = side / axis.step_px
    stretched = (side / cells - 1) / 2
    last = axis.first_px + (cells - 1) * axis.step_px
    off = max(abs(axis.first_px - stretched), abs(last - (side - 1 - stretched)))
    return math.floor(steps + _NEAR) <= cells <= math.ceil(steps - _NEAR) and off <= axis.step_px / 2 + _NEAR


def _grid(places: Places | None, end: BlockEnd) -> CellGrid | None:
    """Return the grid of a block end (1, C, h, w); None where its cells are on none."""
    if places is None or len(places.axes) != 4:
        return None
    spread: Places | None = places.folded(0, 1).folded(1, end.channels)
    for axis in (2, 3):
        spread = spread.evened(axis) if spread else None
    if spread is None or spread.shape != (1, end.channels, end.height, end.width):
        return None
    down, across = (axis[0][1] if axis else 1j**number for number, axis in enumerate(spread.axes[2:]))
    if not (down.real > 0 and down.imag == 0 and across.imag > 0 and across.real == 0):
        return None
    return CellGrid(CellAxis(spread.first.real, down.real), CellAxis(spread.first.imag, across.imag))


def _follow(
    model: onnx.ModelProto, *, image: str, layout: Layout, shapes: Mapping[str, Sequence[int]]
) -> dict[str, Places]:
    """Follow the pixels' positions through the nodes, as far as they can be followed."""
    rows = (2, 3) if layout is Layout.NCHW else (1, 2)
    steps = {rows[0]: 1 + 0j, rows[1]: 1j}
    picture = tuple(_simple(((size, steps.get(axis, 0j)),)) for axis, size in enumerate(shapes[image]))
    found = {image: Places(picture, 0j)}
    weights = model.graph.initializer
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in weights
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and not tensor.external_data
    }
    kernels = {tensor.name: tuple(tensor.dims) for tensor in weights}
    for node in model.graph.node:
        inputs = tuple(found.get(name) for name in node.input)
        if all(places is None for places in inputs):
            if node.op_type == "Constant" and (value := attribute_of(node, "value", None)) is not None:
                constants[node.output[0]] = numpy_helper.to_array(value)
            elif node.op_type in ("DequantizeLinear", "Identity", "Cast") and node.input[0] in kernels:
                kernels[node.output[0]] = kernels[node.input[0]]
            continue
        known = [tuple(shapes[name]) if name in shapes else None for name in node.output]
        step = _Step(node, inputs, constants, kernels, known[0])
        if node.op_type == "Split":
            made = _split(step, known)
        else:
            rule = _RULES.get(node.op_type, _same_places)
            made = [rule(step)]
        found |= {
            name: places
            for name, places, shape in zip(node.output, made, known, strict=False)
            if places is not None and shape in (None, places.shape)
        }
    return found


def _size(axis: Axis) -> int:
    return math.prod(size for size, _ in axis)


def _plain(size: int) -> Axis:
    return ((size, 0j),) if size > 1 else ()


def _simple(axis: Iterable[Factor]) -> Axis:
    """Drop factors of size 1, and merge two that follow each other evenly."""
    simple: list[Factor] = []
    for size, step in axis:
        if size == 1:
            continue
        if simple and abs(simple[-1][1] - step * size) < _NEAR:
            simple[-1] = (simple[-1][0] * size, step)
        else:
            simple.append((size, step))
    return tuple(simple)


def _same_places(step: _Step) -> Places | None:
    """Follow an operator that computes each number from those in the same place, several inputs broadcast."""
    return _met([places for places in step.inputs if places is not None], step.shape)


def _met(paths: Sequence[Places], shape: tuple[int, ...] | None) -> Places | None:
    """Join paths: positions that all share are kept, between different ones the middle is taken.

    A path whose numbers all lie in one place (a gate made from the mean of the picture) does not count.
    """
    wanted = shape if shape is not None else _broadcast([path.shape for path in paths])
    paths = [replace(path, axes=((),) * (len(wanted) - len(path.axes)) + path.axes) for path in paths]
    if any(
        len(path.axes) != len(wanted) or any(size not in (1, out) for size, out in zip(path.shape, wanted, strict=True))
        for path in paths
    ):
        return None
    located = [path for path in paths if any(path.reach)] or paths[:1]
    axes = []
    for index, size in enumerate(wanted):
        given = [path.axes[index] for path in located if _size(path.axes[index]) == size]
        if all(_alike(axis, given[0]) for axis in given[1:]):
            axes.append(given[0] if given else _plain(size))
        elif all(len(axis) == 1 for axis in given):
            axes.append(((size, sum(axis[0][1] for axis in given) / len(given)),))
        else:
            located = [path.folded(index, size) for path in located]
            axes.append(_plain(size))
    first, apart = 0j, max(path.apart for path in paths)
    for number, unit in enumerate((1, 1j)):
        own = [path for path in located if path.reach[number]] or located
        first += unit * sum((path.first / unit).real for path in own) / len(own)
        steps = [abs((step / unit).real) for axis in axes for _, step in axis if (step / unit).real]
        for corner in (0, 1) if steps else ():
            ends = [((path.first + corner * path.extent) / unit).real for path in own]
            apart = max(apart, (max(ends) - min(ends)) / min(steps))
    return Places(tuple(axes), first, apart)


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    full = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*full, strict=True))


def _alike(one: Axis, other: Axis) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and abs(a[1] - b[1]) < _NEAR for a, b in zip(one, other, strict=True)
    )


def _concat(step: _Step) -> Places | None:
    paths = [places for places in step.inputs if places is not None]
    axis = step.attribute("axis", 0) % len(paths[0].axes)
    if step.shape is None and len(paths) < len(step.inputs):
        return None
    size = step.shape[axis] if step.shape is not None else sum(path.shape[axis] for path in paths)
    if any(len(path.axes) != len(paths[0].axes) for path in paths):
        return None
    return _met([path.folded(axis, size) for path in paths], step.shape)


def _transpose(step: _Step) -> Places | None:
    source = step.source
    return _turned(source, step.attribute("perm", range(len(source.axes))[::-1]))


def _reshaped(step: _Step) -> Places | None:
    return _regrouped(step.source, step.shape) if step.shape is not None else None


def _regrouped(source: Places, shape: Sequence[int]) -> Places | None:
    """Distribute the factors over other axes, split where an axis ends within one."""
    left = [factor for axis in source.axes for factor in axis]
    axes = []
    for wanted in shape:
        axis: list[Factor] = []
        while wanted > 1:
            if not left:
                return None
            size, step = left.pop(0)
            if size > wanted:
                if size % wanted:
                    return None
                left.insert(0, (size // wanted, step))
                size, step = wanted, step * (size // wanted)
            if wanted % size:
                return None
            axis.append((size, step))
            wanted //= size
        axes.append(_simple(axis))
    return replace(source, axes=tuple(axes)) if not left else None


def _blocks_moved(step: _Step) -> Places | None:
    """Follow SpaceToDepth and DepthToSpace as the reshapes and the transposition that they are."""
    source, block = step.source, step.attribute("blocksize", 1)
    count, depth, height, width = source.shape
    if step.node.op_type == "SpaceToDepth":
        inner: Sequence[int] = (count, depth, height // block, block, width // block, block)
        order, outer = (0, 3, 5, 1, 2, 4), (count, depth * block**2, height // block, width // block)
    else:
        thin = depth // block**2
        rows_first = step.attribute("mode", b"DCR") == b"DCR"
        inner = (count, block, block, thin, height, width) if rows_first else (count, thin, block, block, height, width)
        order = (0, 3, 4, 1, 5, 2) if rows_first else (0, 1, 4, 2, 5, 3)
        outer = (count, thin, height * block, width * block)
    apart = _regrouped(source, inner)
    return _regrouped(replace(apart, axes=tuple(apart.axes[axis] for axis in order)), outer) if apart else None


def _windowed(step: _Step) -> Places | None:
    """Follow convolutions and pools, channels first or last."""
    if step.node.op_type not in _CHANNELS_LAST and not step.attribute("channels_last", 0):
        return _windows(step)
    inputs = tuple(_turned(places, _FIRST) if places and len(places.axes) == 4 else places for places in step.inputs)
    shape = tuple(step.shape[axis] for axis in _FIRST) if step.shape is not None else None
    made = _windows(replace(step, inputs=inputs, shape=shape))
    return _turned(made, _LAST) if made else None


def _turned(source: Places, order: Iterable[int]) -> Places:
    return replace(source, axes=tuple(source.axes[axis] for axis in order))


def _windows(step: _Step) -> Places | None:
    """Follow convolutions and pools: the middle of the kernel, less the padding before the first cell."""
    source, spatial = step.source, len(step.source.axes) - 2
    pools = step.node.op_type in _POOLS
    kernel = _kernel(step, spatial)
    if kernel is None:
        return None
    made: Places | None = source
    if not pools:
        weights = step.kernels.get(step.node.input[_KERNEL_INPUT[step.node.op_type]], (0,))
        made = source.folded(1, weights[0] if step.shape is None else step.shape[1])
    strides, dilations = (step.attribute(name) or [1] * spatial for name in ("strides", "dilations"))
    for number in range(spatial):
        axis = number + 2
        if made is None or (made := made.evened(axis)) is None:
            return None
        given = made.shape[axis]
        reach = (kernel[number] - 1) * dilations[number] + 1
        before, after = _pads(step, number, spatial, given=given, stride=strides[number], reach=reach)
        size = (
            step.shape[axis]
            if step.shape is not None
            else _cells(given + before + after - reach, strides[number], up=bool(step.attribute("ceil_mode", 0)))
        )
        each = made.axes[axis][0][1] if made.axes[axis] else 0j
        made = made.put(axis, ((size, each * strides[number]),), each * ((reach - 1) / 2 - before))
    return made


def _kernel(step: _Step, spatial: int) -> Sequence[int] | None:
    kernel = step.attribute("kernel_shape")
    if kernel is None and step.node.op_type in _KERNEL_INPUT:
        kernel = step.kernels.get(step.node.input[_KERNEL_INPUT[step.node.op_type]], ())[2:]
    return kernel if kernel is not None and len(kernel) == spatial else None


def _cells(room: int, stride: int, *, up: bool) -> int:
    return (-(-room // stride) if up else room // stride) + 1


def _pads(step: _Step, number: int, spatial: int, *, given: int, stride: int, reach: int) -> tuple[int, int]:
    """Return the padding before and after along one spatial axis."""
    auto = step.attribute("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        total = max((-(-given // stride) - 1) * stride + reach - given, 0)
        return (total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2)
    pads = step.attribute("pads") if auto == "NOTSET" else None
    return (pads[number], pads[number + spatial]) if pads else (0, 0)


def _transposed_convolution(step: _Step) -> Places | None:
    """Follow a transposed convolution: its cells lie between those it reads."""
    source, spatial = step.source, len(step.source.axes) - 2
    kernel = _kernel(step, spatial)
    if kernel is None or step.shape is None:
        return None
    made: Places | None = source.folded(1, step.shape[1])
    strides, dilations = (step.attribute(name) or [1] * spatial for name in ("strides", "dilations"))
    auto, pads = step.attribute("auto_pad", b"NOTSET").decode(), step.attribute("pads") or [0] * spatial
    more = step.attribute("output_padding") or [0] * spatial
    for number in range(spatial):
        axis = number + 2
        if made is None or (made := made.evened(axis)) is None:
            return None
        reach, before = (kernel[number] - 1) * dilations[number], pads[number]
        if auto.startswith("SAME") or step.attribute("output_shape"):
            total = strides[number] * (made.shape[axis] - 1) + more[number] + reach + 1 - step.shape[axis]
            before = max(0, total // 2 if auto == "SAME_UPPER" else total - total // 2)
        each = (made.axes[axis][0][1] if made.axes[axis] else 0j) / strides[number]
        made = made.put(axis, ((step.shape[axis], each),), each * (before - reach / 2))
    return made


def _resized(step: _Step) -> Places | None:
    """Follow Resize by the formula of its coordinates; the nearest cell is on average the one in the middle."""
    if step.shape is None:
        return None
    made: Places | None = step.source
    nearest = step.attribute("mode", b"nearest") == b"nearest"
    how = step.attribute("coordinate_transformation_mode", b"half_pixel").decode()
    for axis, size in enumerate(step.shape):
        if made is None or made.shape[axis] == size:
            continue
        if (made := made.evened(axis)) is None or how == "tf_crop_and_resize":
            return None
        given = made.shape[axis]
        each = made.axes[axis][0][1] if made.axes[axis] else 0j
        ratio, shift = given / size, 0.0
        if how == "align_corners":
            ratio = (given - 1) / (size - 1) if size > 1 else ratio
        elif how != "asymmetric" or nearest:
            shift = (ratio - 1) / 2
        made = made.put(axis, ((size, each * ratio),), each * shift)
    return made


def _padded(step: _Step) -> Places | None:
    """Follow Pad: cells are added in front; removed where a number is negative."""
    pads, rank = step.constant(1), len(step.source.axes)
    if pads is None or step.shape is None:
        return None
    made: Places | None = step.source
    axes = [axis % rank for axis in step.constant(3) or range(rank)]
    for number, axis in enumerate(axes):
        if made is not None and (pads[number] or pads[number + len(axes)]):
            made = _cut(made, axis, start=-pads[number], stride=1, size=step.shape[axis])
    return made


def _sliced(step: _Step) -> Places | None:
    starts, ends, axes, strides = (step.constant(index) for index in range(1, 5))
    source = step.source
    if starts is None or ends is None or (axes is None and len(step.node.input) > 3 and step.node.input[3]):
        return None
    made: Places | None = source
    for number, axis in enumerate(axes if axes is not None else range(len(starts))):
        axis %= len(source.axes)
        given, stride = source.shape[axis], strides[number] if strides is not None else 1
        end = None if stride < 0 and ends[number] < -given else ends[number]
        chosen = range(given)[slice(starts[number], end, stride)]
        if made is not None:
            made = _cut(made, axis, start=chosen.start, stride=stride, size=len(chosen))
    return made


def _cut(source: Places, axis: int, *, start: int, stride: int, size: int) -> Places | None:
    """Take every `stride`-th cell from `start` on along an axis."""
    if (start, stride, size) == (0, 1, source.shape[axis]):
        return source
    even = source.evened(axis)
    if even is None:
        return source.folded(axis, size)
    each = even.axes[axis][0][1] if even.axes[axis] else 0j
    return even.put(axis, ((size, each * stride),), each * start)


def _split(step: _Step, shapes: Sequence[tuple[int, ...] | None]) -> list[Places | None]:
    source = step.source
    axis, start = step.attribute("axis", 0) % len(source.axes), 0
    made: list[Places | None] = []
    for shape in shapes:
        if shape is None:
            return [None] * len(shapes)
        made.append(_cut(source, axis, start=start, stride=1, size=shape[axis]))
        start += shape[axis]
    return made


def _gathered(step: _Step) -> Places | None:
    """Follow Gather: cells that are evenly apart are followed, others count as if they lay in the middle."""
    source, indices = step.source, step.constant(1)
    if indices is None or step.inputs[0] is None or step.shape is None:
        return None
    axis = step.attribute("axis", 0) % len(source.axes)
    indices = [index % source.shape[axis] for index in indices]
    strides = {after - before for before, after in pairwise(indices)} or {1}
    if len(strides) > 1:
        made: Places | None = source.folded(axis, len(indices))
    else:
        made = _cut(source, axis, start=indices[0], stride=strides.pop(), size=len(indices))
    return _regrouped(made, step.shape) if made else None


def _reduced(step: _Step) -> Places | None:
    """Follow reductions and global pools: the reduced axes lie in their middle."""
    made, rank = step.source, len(step.source.axes)
    axes = step.attribute("axes") or step.constant(1)
    axes = range(rank) if axes is None else [axis % rank for axis in axes]
    if step.node.op_type not in _REDUCED:
        axes = range(2, rank)
    for axis in axes:
        made = made.folded(axis, 1)
    return _regrouped(made, step.shape) if step.shape is not None else None


def _multiplied(step: _Step) -> Places | None:
    """Follow MatMul and Gemm: the result lies where the rows of the first input lie."""
    first = step.inputs[0]
    if first is None or step.shape is None or len(first.axes) != len(step.shape) or step.attribute("transA", 0):
        return None
    return first.folded(len(step.shape) - 1, step.shape[-1])


_RULES: dict[str, Callable[[_Step], Places | None]] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_POOLS), _windowed),
    **dict.fromkeys(_PASSED_ON, _reshaped),
    **dict.fromkeys(_GLOBAL, _reduced),
    **dict.fromkeys(("SpaceToDepth", "DepthToSpace"), _blocks_moved),
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"), _multiplied),
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(("Concat", "QLinearConcat"), _concat),
    "Transpose": _transpose,
    "Resize": _resized,
    "Pad": _padded,
    "Slice": _sliced,
    "Gather": _gathered,
}
