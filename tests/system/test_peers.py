"""The benchmark's torch twin of an .onnx, its table by hand, and one worker asked as the benchmark asks it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks import peers
from benchmarks.engine import export_resnet
from benchmarks.peer_network import read_network
from benchmarks.real import SETS, real_model


def assert_same_network(path: Path) -> None:
    pictures = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: pictures})[0]

    network = read_network(str(path))
    found = network(torch.from_numpy(pictures)).detach().numpy()

    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert network.passes == 2


@pytest.mark.data
@pytest.mark.parametrize("name", SETS)
def test_the_torch_twin_is_the_trained_network(name: str, shared_dir: Path) -> None:
    assert_same_network(real_model(shared_dir, name))


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [False, True])
def test_the_torch_twin_is_the_resnet(tmp_path: Path, *, bottleneck: bool) -> None:
    export_resnet(tmp_path / "resnet.onnx", bottleneck=bottleneck)

    assert_same_network(tmp_path / "resnet.onnx")


def an_answer(seconds: list[float], *, passes: int, peak_mb: float, faithful: list[float]) -> dict[str, object]:
    return {"seconds": seconds, "passes": passes, "peak_mb": peak_mb, "faithful": faithful}


def test_a_row_is_medians_and_the_highest_peak() -> None:
    answers = [
        an_answer([2.0, 1.0], passes=100, peak_mb=300, faithful=[0.2, 0.4, 10, 0.1, float("nan")]),
        an_answer([4.0], passes=200, peak_mb=500, faithful=[0.4, 0.6, 30, 0.3, 0.9]),
    ]

    assert peers.per_pass_ms(answers) == 20
    assert peers.row("some", answers, judged=True) == (
        "| some | 2 | 2 (1 to 4) | 150 | 20.0 | 500 | 0.300 | 0.500 | 20.000 | 0.200 | 0.900 |"
    )


def test_ratios_are_the_peers_over_ours() -> None:
    ours = an_answer([2.0, 4.0, 3.0], passes=100, peak_mb=300, faithful=[])
    theirs = an_answer([60.0], passes=400, peak_mb=1500, faithful=[])
    untimed = an_answer([], passes=400, peak_mb=600, faithful=[])

    assert peers.ratio("per explanation", ours, theirs) == 20
    assert peers.ratio("per pass", ours, theirs) == pytest.approx(5)
    assert peers.ratio("peak memory", ours, untimed) == 2
    assert peers.ratio("per pass", ours, untimed) is None


def test_only_what_stands_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("above\n<!-- peers -->\nold\nolder\n<!-- /peers -->\nbelow\n")

    peers.write(page, ["new"], mark="peers")
    peers.write(page, ["newer"], mark="peers")

    assert page.read_text() == "above\n<!-- peers -->\nnewer\n<!-- /peers -->\nbelow\n"


def test_what_was_not_timed_says_so() -> None:
    answers = [an_answer([], passes=10, peak_mb=50, faithful=[])]

    assert peers.row("some", answers, judged=False) == "| some | 1 | not timed | 10 |  | 50 |"


def test_a_peer_that_does_not_start_is_left_out_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    window = tmp_path / "window0.npz"
    np.savez(window, target=np.array(1))
    case = peers.Case("toy", tmp_path / "absent.onnx", tmp_path / "absent.bundle", window)
    monkeypatch.setenv("INSPECT_XAI_DIANNA_PYTHON", sys.executable)
    workers = peers.Workers()

    asked = [workers.ask("dianna:RISE", case, tmp_path / "map.npz") for _ in range(2)]
    workers.stop()

    assert asked == [None, None]
    assert capsys.readouterr().out.count("LEFT OUT dianna:RISE on toy: ") == 1


def test_peak_memory_is_the_worker_s_own_whatever_its_parent_holds() -> None:
    held = np.ones(400 << 20, np.uint8)

    done = subprocess.run(
        [sys.executable, "-c", "import peer_worker; print(peer_worker.peak_mb())"],
        cwd=peers.WORKER.parent,
        capture_output=True,
        text=True,
        check=True,
    )

    assert 10 < float(done.stdout) < held.nbytes / 2**20 / 2


@pytest.mark.data
@pytest.mark.slow
def test_a_worker_answers(tmp_path: Path, shared_dir: Path) -> None:
    rng = np.random.default_rng(1)
    window = tmp_path / "window0.npz"
    np.savez(window, pixels=np.zeros((224, 224, 3), np.uint8), tensor=rng.normal(size=(1, 3, 224, 224)).astype("f4"))
    asked = json.dumps({"window": str(window), "target": 0, "map": str(tmp_path / "map.npz")})

    done = subprocess.run(
        [sys.executable, str(peers.WORKER), "captum:Occlusion", str(real_model(shared_dir, "ball-screw")), ""],
        input=asked + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'captum'" in done.stderr:
        pytest.skip("captum is absent: pip install 'inspect-xai[bench]'")

    answer = json.loads(done.stdout)
    with np.load(tmp_path / "map.npz") as file:
        assert file["fused"].shape == (224, 224)
        assert np.array_equal(np.sort(file["rank"].ravel()), np.arange(224 * 224))
    assert answer["passes"] == 1 + 13 * 13
    assert answer["peak_mb"] > 50
