"""Strict devices: what was named runs or fails loudly, memory that runs out is told of, and shapes stay few."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inspect_xai.errors import DeviceError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.line.line import Line
from inspect_xai.model import engine as engine_module
from inspect_xai.model.bundle import load_bundle
from inspect_xai.model.engine import Engine
from inspect_xai.model.session import hold
from tests.conftest import Run
from tests.support import spots

_SHORT_OF_MEMORY = """
import json, resource, sys
import numpy as np
from inspect_xai.model.bundle import load_bundle
from inspect_xai.model.engine import Engine
bundle, bucket, room = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine = Engine(load_bundle(bundle), device="cpu", bucket=bucket, threads=1)
windows = np.random.default_rng(7).integers(0, 256, (2048, 32, 32, 3), np.uint8)
engine.predict(windows[:1])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2 * 2048 * 3 * 32 * 32 * 4 + room
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
scores = engine.predict(windows)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps({"scores": scores.tolist(), "notes": engine.notes, "bucket": engine.bucket}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


def test_a_line_on_a_device_that_does_not_run_never_begins(cli: Run, bundle: Path, tmp_path: Path) -> None:
    with Engine(load_bundle(bundle), device="auto") as engine:
        if engine.provider != "CPUExecutionProvider":
            pytest.skip("this machine has a device that runs")
    db = f"sqlite:///{tmp_path / 'line.db'}"
    with pytest.raises(DeviceError, match="cuda was asked for"):
        Line(bundle, db, device="cuda")
    (tmp_path / "in").mkdir()
    code, out, err = cli("line", "--source", tmp_path / "in", "--bundle", bundle, "--db", db, "--device", "cuda")
    assert (code, out) == (DeviceError.exit_code, "")
    assert "device cuda was asked for" in err
    with Line(bundle, db, device="auto") as line:  # auto says what it got
        assert line.run.provider == "CPUExecutionProvider"
        assert line.run.settings["device"] == "auto"


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is bounded by Linux's RLIMIT_AS")
def test_memory_that_runs_out_halves_the_bucket_and_says_so(bundle: Path) -> None:
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, str(bundle), "2048", str(8 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bucket"] < 2048
    assert said["notes"] == [f"bucket_halved_to_{2048 >> step}" for step in range(1, len(said["notes"]) + 1)]
    windows = np.random.default_rng(7).integers(0, 256, (2048, 32, 32, 3), np.uint8)
    with Engine(load_bundle(bundle), device="cpu", bucket=8) as engine:
        np.testing.assert_allclose(said["scores"], engine.predict(windows), atol=1e-6)


def test_a_halved_bucket_stands_in_the_explanation(bundle: Path) -> None:
    with Explainer(bundle, device="cpu") as explainer:
        explainer.engine._halve_bucket()
        explanation = explainer(spots.part(1, spot_px=10), target="spot")
        assert "bucket_halved_to_4" in explanation.notes
        explainer.engine.bucket = 1
        with pytest.raises(DeviceError, match="no memory for a single window"):
            explainer.engine._halve_bucket()


def test_few_shapes_reach_a_gpu_and_filling_changes_no_number(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is told that its CPU sessions are a GPU's: what it then feeds them is looked at."""
    fed: list[int] = []
    run = engine_module.run  # type: ignore[attr-defined]

    def noting(session: Any, outputs: Any, feeds: Any, **more: Any) -> list[NDArray[np.float32]]:
        fed.append(len(feeds["maps"] if "maps" in feeds else feeds["picture"]))
        found: list[NDArray[np.float32]] = run(session, outputs, feeds, **more)
        return found

    rng = np.random.default_rng(3)
    windows = rng.integers(0, 256, (21, 32, 32, 3), np.uint8)
    maps = rng.random((21, 8, 8)).astype(np.float32)
    hidden = np.zeros((32, 32, 3), np.float32)
    with Engine(load_bundle(bundle), device="cpu", bucket=8) as engine:
        expected = [engine.predict(windows[:count]) for count in range(1, 22)]
        masked = engine.score_masks(windows[0], maps, baseline=hidden)
        monkeypatch.setattr(engine_module, "run", noting)
        monkeypatch.setattr(engine_module, "hold", lambda array, device: hold(array, device="cpu"))  # noqa: ARG005
        engine.device = "cuda"
        for count, scores in enumerate(expected, start=1):
            np.testing.assert_array_equal(engine.predict(windows[:count]).shape, scores.shape)
            np.testing.assert_allclose(engine.predict(windows[:count]), scores, atol=1e-6)
        assert set(fed) == {1, 2, 4, 8}
        fed.clear()
        found = engine.score_masks(windows[0], maps, baseline=hidden)
        assert fed == [8, 8, 8]
    np.testing.assert_allclose(found.probabilities, masked.probabilities, atol=1e-6)
    np.testing.assert_array_equal(found.span, masked.span)
