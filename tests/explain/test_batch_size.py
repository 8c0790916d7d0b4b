"""The bucket: chosen from figures, kept on the machine, taken unasked, and never measured behind a test's back."""

import json
from pathlib import Path

import numpy as np
import pytest

from inspect_xai.explain import batch_size as bucket_module
from inspect_xai.explain.batch_size import (
    Measured,
    Origin,
    choose_bucket,
    load_batch_size,
    resolve_batch_size,
    save_batch_size,
)
from inspect_xai.explain.explainer import Explainer
from inspect_xai.line.line import Line
from inspect_xai.model import engine as engine_module
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.engine import Engine
from tests.conftest import Run
from tests.support import spots

FIGURES = {4: Measured(100.0, 30.0), 8: Measured(102.0, 60.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spots.spot_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> ModelBundle:
    return load_bundle(folder)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a user who has kept nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/inspect-xai/buckets.json"


@pytest.mark.parametrize(
    ("figures", "memory_mb", "expected"),
    [
        ({1: (90, 0), 4: (98, 10), 8: (100, 40), 16: (99, 90)}, None, 4),  # 98 is 100 within 3 %
        ({1: (90, 0), 4: (96, 10), 8: (100, 40), 16: (101, 90)}, None, 8),  # 96 is not
        ({8: (100, 0), 16: (190, 80), 32: (350, 300)}, None, 32),
        ({8: (100, 0), 16: (190, 80), 32: (350, 300)}, 100, 16),
        ({8: (100, 70), 16: (190, 80)}, 10, 8),  # something must run
    ],
)
def test_the_smallest_bucket_as_fast_as_any_within_the_memory(
    figures: dict[int, tuple[float, float]], memory_mb: float | None, expected: int
) -> None:
    measured = {size: Measured(*figure) for size, figure in figures.items()}
    assert choose_bucket(measured, memory_mb=memory_mb) == expected


def test_what_is_kept_is_taken_and_what_is_asked_for_goes_before_it(bundle: ModelBundle, kept: Path) -> None:
    with Engine(bundle, device="cpu", threads=1) as engine:
        assert resolve_batch_size(engine) is Origin.DEFAULT
        assert (engine.bucket, kept.exists()) == (8, False)  # a CPU is not measured unasked
        assert save_batch_size(engine, 4, FIGURES) == kept
        assert load_batch_size(engine) == 4
        assert list(kept.parent.iterdir()) == [kept]
    with Explainer(bundle, device="cpu", threads=1) as explainer:
        assert (explainer.engine.bucket, explainer.bucket_from) == (4, Origin.KEPT)
    with Explainer(bundle, device="cpu", threads=1, bucket=3) as explainer:
        assert (explainer.engine.bucket, explainer.bucket_from) == (3, Origin.ASKED)
    with Explainer(bundle, device="cpu", threads=2) as explainer:  # measured with one thread: says nothing of two
        assert (explainer.engine.bucket, explainer.bucket_from) == (8, Origin.DEFAULT)
        save_batch_size(explainer.engine, 16, FIGURES)
        assert len(json.loads(kept.read_text())) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"KEY": 3}', '{"KEY": {"bucket": true}}', '{"KEY": {"bucket": -1}}']
)
def test_a_spoilt_file_counts_as_none(content: str, bundle: ModelBundle, kept: Path) -> None:
    with Engine(bundle, device="cpu", threads=1) as engine:
        kept.parent.mkdir(parents=True)
        kept.write_text(content.replace("KEY", bucket_module._key(engine)))
        assert load_batch_size(engine) is None
        assert resolve_batch_size(engine) is Origin.DEFAULT
        save_batch_size(engine, 2, FIGURES)
        assert load_batch_size(engine) == 2


def test_a_folder_that_cannot_be_written_costs_a_line_in_the_log(
    bundle: ModelBundle, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.parent.parent.mkdir()
    kept.parent.write_text("a file where the folder should be")
    with Engine(bundle, device="cpu", threads=1) as engine:
        assert save_batch_size(engine, 4, FIGURES) is None
        assert load_batch_size(engine) is None
    assert "the bucket 4 cannot be saved" in caplog.text


def test_a_gpu_is_measured_once(bundle: ModelBundle, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is told that its CPU sessions are a GPU's; what it then does is measured and kept."""
    hold = engine_module.hold  # type: ignore[attr-defined]
    monkeypatch.setattr(engine_module, "hold", lambda array, device: hold(array, device="cpu"))  # noqa: ARG005
    with Engine(bundle, device="cpu", threads=1) as engine:
        engine.warm_up()
        engine.device = "cuda"
        assert resolve_batch_size(engine) is Origin.MEASURED
        chosen = engine.bucket
        (entry,) = json.loads(kept.read_text()).values()
        assert (entry["bucket"], entry["device"], entry["model"]) == (chosen, "cuda", "spots 1")
        assert chosen in (8, 16, 32, 64, 128)
        assert list(entry["per_s"]) == ["8", "16", "32", "64", "128"]
        assert engine.notes == []
        engine.bucket = 64
        assert resolve_batch_size(engine) is Origin.KEPT
        assert engine.bucket == chosen


def test_a_bucket_that_does_not_fit_ends_the_measuring(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, run = engine_module.hold, engine_module.run  # type: ignore[attr-defined]

    def scarce(session: object, outputs: object, feeds: dict[str, np.ndarray], **more: object) -> object:
        if len(feeds.get("maps", ())) > 16:
            raise engine_module.OutOfDeviceMemoryError("no memory", remedy="")  # type: ignore[attr-defined]
        return run(session, outputs, feeds, **more)

    monkeypatch.setattr(engine_module, "hold", lambda array, device: hold(array, device="cpu"))  # noqa: ARG005
    monkeypatch.setattr(engine_module, "run", scarce)
    with Engine(bundle, device="cpu", threads=1) as engine:
        engine.warm_up()
        engine.device = "cuda"
        assert resolve_batch_size(engine) is Origin.MEASURED
        assert engine.bucket in (8, 16)
        assert engine.notes == []  # nothing was halved while a picture was explained


def test_bench_keeps_and_a_line_takes_and_records(cli: Run, folder: Path, kept: Path, tmp_path: Path) -> None:
    usual = ["bench", folder, "--device", "cpu", "--threads", 1, "--rounds", 1]
    code, out, _ = cli(*usual)
    assert code == 0
    assert "is as fast as any; now 8 (save it with --save, or say --batch-size)" in out
    assert not kept.exists()
    code, out, _ = cli(*usual, "--save", "--json")
    (chosen,) = json.loads(out)["chosen"]
    assert chosen["kept"] == str(kept)
    db = f"sqlite:///{tmp_path / 'line.db'}"
    with Line(folder, db, device="cpu", threads=1) as line:
        said = line.run.settings
        assert (said["bucket"], said["bucket_from"]) == (chosen["bucket"], "kept")
    with Line(folder, db, device="cpu", threads=1, bucket=5) as line:
        assert (line.run.settings["bucket"], line.run.settings["bucket_from"]) == (5, "asked")


def test_growth_is_bounded_by_what_bench_is_told(folder: Path, cli: Run) -> None:
    """With almost no room the smallest bucket alone is left, unless larger ones make nothing grow."""
    code, out, _ = cli("bench", folder, "--device", "cpu", "--threads", 1, "--rounds", 1, "--memory-mb", 1, "--json")
    assert code == 0
    report = json.loads(out)
    allowed = [rate["bucket"] for rate in report["rates"] if rate["grown_mb"] <= 1 or rate["bucket"] == 1]
    assert report["chosen"][0]["bucket"] in allowed
