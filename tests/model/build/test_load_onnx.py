"""Files nobody vouches for: each is refused in one sentence, and nothing outside its folder is touched."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from inspect_xai.errors import InspectXaiError, ModelFileError
from inspect_xai.model.build import load_onnx
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.build.load_onnx import load_model
from tests.support.hostile_models import CARD, HOSTILE, tiny_model


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = HOSTILE[name]
    path = hostile.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(hostile.error) as caught:
        build_bundle(path, CARD, tmp_path / "out.bundle")

    assert hostile.words in str(caught.value)
    assert type(caught.value) is hostile.error
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_a_sound_file_comes_back_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model().SerializeToString())

    loaded = load_model(path)

    assert loaded.content == path.read_bytes()
    assert loaded.model == tiny_model()


def test_weights_beside_the_model_are_brought_in(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()

    loaded = load_model(path)

    assert onnx.load_from_string(loaded.content) == loaded.model
    for found, expected in zip(loaded.model.graph.initializer, tiny_model().graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(expected))


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    model = tiny_model()
    nodes = list(tiny_model().graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    assert load_model(path).model == tiny_model()


def test_a_file_above_the_limit_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model().SerializeToString())
    monkeypatch.setattr(load_onnx, "MOST_MODEL_BYTES", 100)

    with pytest.raises(ModelFileError, match="at most 100"):
        load_model(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()

    with pytest.raises(ModelFileError, match=r"cannot be read|no regular file"):
        load_model(path)


FUZZ = """
import sys
from pathlib import Path
import numpy as np
from inspect_xai.errors import InspectXaiError
from inspect_xai.model.build.load_onnx import load_model
from inspect_xai.model.build.normalize import working_form
from tests.support.hostile_models import CARD, tiny_model

path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sound = tiny_model().SerializeToString()
refused = 0
for seed in range(first, first + count):
    rng, content = np.random.default_rng(seed), bytearray(sound)
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(len(content))), int(rng.integers(1, 9))
        junk = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        content[at : at + [0, size, 1][rng.integers(3)]] = junk[: [size, 0, 1][rng.integers(3)]]
    path.write_bytes(content)
    try:
        working_form(load_model(path).model, CARD)
    except InspectXaiError as error:
        refused += 1
        assert str(error)
print(refused)
"""


@pytest.mark.parametrize("count", [pytest.param(250, id="some"), pytest.param(6000, id="many", marks=pytest.mark.slow)])
def test_damaged_bytes_never_crash_the_process(count: int, tmp_path: Path) -> None:
    """In a process of its own, because a crash of native code would take the suite with it."""
    command = [sys.executable, "-c", FUZZ, str(tmp_path / "model.onnx"), "1000", str(count)]
    root = Path(__file__).resolve().parents[3]

    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) > 0.5 * count


def test_every_refusal_is_an_error_of_the_project() -> None:
    assert len(HOSTILE) >= 30
    assert all(issubclass(hostile.error, InspectXaiError) for hostile in HOSTILE.values())
