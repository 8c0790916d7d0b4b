"""Sessions of ONNX Runtime: open one on the device asked for, run it, translate its errors.

CUDA options follow ONNX Runtime's documentation and were not run on a CUDA device by this project's tests.
"""

import ctypes
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
from threadpoolctl import ThreadpoolController

from inspect_xai.errors import DeviceError, ModelFileError, SettingsError

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_state.Fail,
    ort_state.EPFail,
    ort_state.EngineError,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.NoModel,
    ort_state.NoSuchFile,
    ort_state.RuntimeException,
)
_RUN_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError)  # a bound run raises the plain kind
_OUT_OF_MEMORY = re.compile(r"failed to allocate memory|out of memory|bad_alloc|BFCArena", re.IGNORECASE)
_POWERS_OF_TWO = 0
_FATAL_ONLY = 4  # a missing CUDA library is reported here, once, not in the runtime's log


class OutOfDeviceMemoryError(DeviceError):
    """The device has no room for a batch of this size; a smaller one may fit."""


def physical_cores() -> int:
    """Return the number of cores this process may use; hyper-threads count as cores where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(
    model: Path | bytes,
    *,
    device: str = "cpu",
    threads: int | None = None,
    memory_mb: int | None = None,
    copy_weights: bool = True,
) -> ort.InferenceSession:
    """Open a session on the device asked for.

    Args:
        model: Path of a graph, or the serialized graph.
        device: "cpu", "cuda", "cuda:N", "tensorrt" or "tensorrt:N".
        threads: Threads inside one operator; default: all cores this process may use.
        memory_mb: Most memory that the session takes on a CUDA device; default: all there is.
        copy_weights: Whether a CPU session may hold its weights once more in the order its fastest kernels want them;
            else it computes with those of the file, as they are mapped.

    Raises:
        SettingsError: For a device name that does not exist.
        DeviceError: If a GPU was asked for and ONNX Runtime would run on something else.
        ModelFileError: If ONNX Runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    if device == "cpu":
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Else a session's idle threads spin for some 30 ms on the cores that the next session needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not copy_weights:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # all but NCHWc layouts
            options.add_session_config_entry("session.disable_prepacking", "1")
    unused = ["ConstantFolding"] if device == "cpu" and not copy_weights else []  # it stores transposed weights
    providers = _providers(device, memory_mb)
    source = str(model) if isinstance(model, Path) else model
    if device != "cpu":
        ort.set_default_logger_severity(_FATAL_ONLY)  # the provider's loader logs past the session's own level
    try:
        session = ort.InferenceSession(source, options, providers=providers, disabled_optimizers=unused)
    except ORT_ERRORS as error:
        name = model if isinstance(model, Path) else "a graph in memory"
        raise ModelFileError(
            f"ONNX Runtime cannot load {name}: {first_line(error)}",
            remedy="rebuild the bundle with this version of inspect-xai",
        ) from error
    _return_free_memory()
    active, wanted = session.get_providers()[0], _name_of(providers[0])
    if active != wanted:
        raise DeviceError(
            f"device {device} was asked for but ONNX Runtime {ort.__version__} loaded {active}, not {wanted}",
            expected="CUDA 13 and cuDNN 9 libraries (for tensorrt: TensorRT's too) and a CUDA device",
            remedy="install the extra `gpu` and a driver, or say --device cpu",
        )
    return session


@contextmanager
def cores_left_to_sessions() -> Iterator[None]:
    """Limit numpy and scipy to one thread inside: their idle threads spin on the cores that the sessions need.

    Products of block maps and scores are small; on all cores, between the network's runs, they made an explanation take
    1.5 times as long.
    """
    with _pools().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


@functools.cache
def _share_memory() -> None:
    """Let all sessions of the process take their activations from one arena, as they run in turn.

    It grows by pieces twice as large as the last: one of just the size needed now would be too small for the next run,
    of more masks, and stay unused. Pages of a piece that are never written take no memory.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": _POWERS_OF_TWO}))


def _return_free_memory() -> None:
    """Return memory freed after optimizing a graph, as much as the weights, to the system; glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _providers(device: str, memory_mb: int | None = None) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    match = re.fullmatch(r"(cuda|tensorrt)(?::(\d+))?", device)
    if match is None:
        raise SettingsError(f"device {device!r} is unknown", expected="auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N")
    number = int(match[2] or 0)
    cuda = {
        "device_id": number,
        "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE re-tunes for every new shape
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": 0,  # rounding to 10 bits would move Otsu's split between devices
    }
    if memory_mb is not None:
        cuda["gpu_mem_limit"] = memory_mb * 1_000_000
    rest = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    # TensorRT is passed through by its name; its cache and precision are set by its ORT_TENSORRT_* variables.
    return [("TensorrtExecutionProvider", {"device_id": number}), *rest] if match[1] == "tensorrt" else rest


def _name_of(provider: Any) -> str:
    return str(provider if isinstance(provider, str) else provider[0])


def hold(array: NDArray[Any], *, device: str) -> ort.OrtValue:
    """Copy an array to a device, for several runs of its sessions."""
    if device == "cpu":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy(array, "cuda", int(device.partition(":")[2] or 0))


def run(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    feeds: Mapping[str, NDArray[Any]],
    *,
    held: Mapping[str, ort.OrtValue] | None = None,
) -> list[NDArray[np.float32]]:
    """Run a session and translate its errors.

    Args:
        session: From `open_session`.
        outputs: Names of the outputs wanted.
        feeds: Inputs by name, copied to the device for this run.
        held: Inputs that lie on the device already.

    Raises:
        OutOfDeviceMemoryError: If the batch does not fit.
        DeviceError: If ONNX Runtime fails for another reason.
    """
    try:
        if held is None:
            return list(session.run(list(outputs), dict(feeds)))
        binding = session.io_binding()
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())
    except _RUN_ERRORS as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise OutOfDeviceMemoryError(
                f"no memory for a batch of shapes { {name: value.shape for name, value in feeds.items()} }",
                remedy="use a smaller bucket",
            ) from error
        raise DeviceError(f"ONNX Runtime failed: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error of ONNX Runtime, without paths of its sources."""
    return re.sub(r"/\S*/(?=[^/\s]+\.(?:cc|h|cpp)\b)", "", str(error).strip().splitlines()[0])
