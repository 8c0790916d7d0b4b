"""Our rivals against the public implementations of the same methods: picture, seed, layer and target fixed.

The packages are the extra `parity`; a test whose package is absent is skipped and says what to install. Two of them do
not install cleanly beside the rest: pytorch-grad-cam brings a second OpenCV along and needs torchvision, and
openvino-xai pins NumPy 1 and an old OpenVINO (see the reasons below).
"""

import functools
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from inspect_xai.explain import methods
from inspect_xai.explain.batching import WindowTask, run_together
from inspect_xai.explain.budget import PassBudget
from inspect_xai.explain.methods import MethodInput
from inspect_xai.maths import cams
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.engine import ALL_OTHERS, Engine
from inspect_xai.records import ExplainSpec, InputSpec, Method, ModelCard
from tests.support.torch_graph import TorchGraph
from tests.support.toys import TOYS, toy_model

NO_GRAD_CAM = (
    "pytorch-grad-cam is absent. It asks for opencv-python-headless, which would overwrite opencv-python's files, so "
    "it is in no extra: pip install 'inspect-xai[parity]' && pip install --no-deps 'grad-cam>=1.5.5'"
)
NO_PARITY = "{} is absent: pip install 'inspect-xai[parity]'"
NO_OPENVINO = (
    "openvino-xai pins numpy 1 and openvino 2024.4 and cannot share this environment. In one of its own: "
    "pip install 'numpy<2' scipy tqdm matplotlib 'opencv-python-headless<5' openvino==2024.4.0 && "
    "pip install --no-deps openvino-xai==1.1.0; then set INSPECT_XAI_OPENVINO_PYTHON to its interpreter"
)
AGREEMENT = 0.999
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the peers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Network(nn.Module):
    """A network in torch whose deepest block end is a module of its own, so that hooks can be laid on it."""

    def __init__(self, upto: Callable[[torch.Tensor], torch.Tensor], head: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.upto, self.head, self.tap, self.unit = upto, head, nn.Identity(), 1.0
        self.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # peers ask the first parameter for the device

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return self.head(self.unit * self.tap(self.upto(picture) / self.unit + 0 * self.anchor))


class Scene:
    """One window of one network, for our engine and for torch."""

    def __init__(self, engine: Engine, network: Network, window: NDArray[np.float32], target: int) -> None:
        self.engine, self.network, self.window, self.target = engine, network.eval(), window, target
        spec = engine.card.input
        scaled = (window.astype(np.float64) / spec.scale - np.array(spec.mean)) / np.array(spec.std)
        self.tensor = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1))[None])
        self.size = (window.shape[0], window.shape[1])

    def margin(self, logits: torch.Tensor) -> torch.Tensor:
        """The log-odds margin that our gradients are of; of one picture's logits or of a batch's."""
        others = [k for k in range(logits.shape[-1]) if k != self.target]
        return logits[..., self.target] - torch.logsumexp(logits[..., others], -1)

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits, -1)[..., self.target]

    def ours(self, method: Method) -> NDArray[np.float32]:
        hidden = np.broadcast_to(self.engine.mean_px, self.window.shape).copy()
        aim = MethodInput(self.window, hidden, self.target, ALL_OTHERS, PassBudget(1.0, None, None))
        (found,) = run_together(self.engine, [WindowTask(methods.find_evidence(self.engine, aim, method=method))])
        return found.signed

    def map_of(self, signed: NDArray[np.floating]) -> NDArray[np.float32]:
        return cams.evidence_map(signed, self.size)[0]


def toy_scene(folder: Path) -> Scene:
    labels = tuple(f"c{number}" for number in range(TOYS["vgg"].classes))
    onnx.save(toy_model("vgg"), folder / "toy.onnx")
    card = ModelCard("toy", "1", labels, InputSpec(64, 64, scale=50.0, mean=(2.5,) * 3))
    engine = Engine(build_bundle(folder / "toy.onnx", card, folder / "toy"), device="cpu", threads=1)
    toy = TOYS["vgg"].make().double()
    rng = np.random.default_rng(8)
    rows, columns = np.mgrid[:64, :64]
    surface = 140 + 50 * np.sin(columns / 6) - 80 * np.exp(-((rows - 40) ** 2 + (columns - 20) ** 2) / 50)
    window = np.clip(surface[..., None] + rng.normal(0, 9, (64, 64, 3)), 0, 255).astype(np.float32)
    return Scene(engine, Network(lambda x: toy.taps(x)[-1], toy.head), window, target=0)


def real_scene(folder: Path, shared: Path) -> Scene:
    """A blowhole under the trained network, tapped where it has 112 channels: Score-CAM takes a pass for each."""
    import cv2

    name = "magnetic-tile"
    path = shared / "models" / f"{name}-efficientnet-lite0.onnx"
    front, behind = TorchGraph(onnx.load(path)), TorchGraph(onnx.load(path))
    front.nodes = front.nodes[: 1 + next(i for i, node in enumerate(front.nodes) if node.output[0] == "add_530")]
    front.output = "add_530"
    card = ModelCard(
        name,
        "1",
        ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven"),
        InputSpec(224, 224, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3),
        ok_labels=("MT_Free",),
        explain=ExplainSpec(blocks=("add_236", "add_530")),
    )
    engine = Engine(build_bundle(path, card, folder / name), device="cpu", threads=1)

    picture = cv2.imread(str(shared / "data" / name / "images" / "MT_Blowhole" / "exp1_num_51674.jpg"))
    padded = np.pad(picture, [(max(0, 112 - side // 2 + 1),) * 2 for side in picture.shape[:2]] + [(0, 0)], "reflect")
    top, left = (padded.shape[0] - 224) // 2, (padded.shape[1] - 224) // 2
    window = padded[top : top + 224, left : left + 224].astype(np.float32)
    return Scene(engine, Network(lambda x: front(input=x), lambda deep: behind(add_530=deep)), window, target=0)


@pytest.fixture(scope="module", params=["toy", pytest.param("real", marks=[pytest.mark.data, pytest.mark.slow])])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("parity")
    found = toy_scene(folder) if request.param == "toy" else real_scene(folder, request.getfixturevalue("shared_dir"))
    with found.engine:
        yield found


def assert_agree(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> None:
    assert ours.shape == theirs.shape
    assert np.ptp(ours) > 0
    assert spearmanr(ours.ravel(), np.asarray(theirs).ravel()).statistic >= AGREEMENT


def peer(name: str, reason: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{reason} ({error})")


@functools.cache
def grad_cam_package() -> Any:
    """pytorch-grad-cam imports names from torchvision that its CAMs do not call.

    No torchvision of the package index fits a CPU build of torch; where it cannot be imported, names that refuse to
    be called stand in for it.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):

        def refuse(*_: object, **__: object) -> None:
            raise NotImplementedError("torchvision is not installed; the CAMs were not expected to need it")

        stand_ins = {
            "torchvision": {},
            "torchvision.transforms": {"Compose": refuse, "Normalize": refuse, "ToTensor": refuse},
            "torchvision.transforms.functional": {"resize": refuse},
        }
        for name, members in stand_ins.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            sys.modules[name] = module
    return peer("pytorch_grad_cam", NO_GRAD_CAM)


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        (Method.GRAD_CAM, "GradCAM"),
        (Method.GRAD_CAM_PLUS_PLUS, "GradCAMPlusPlus"),
        (Method.HIRES_CAM, "HiResCAM"),
        (Method.SCORE_CAM, "ScoreCAM"),
    ],
)
def test_pytorch_grad_cam(scene: Scene, method: Method, theirs: str, monkeypatch: pytest.MonkeyPatch):
    package = grad_cam_package()
    # Its Score-CAM enlarges masks with aligned corners, which moves them by up to half a cell; ours are the paper's.
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))
    target = scene.probability if method is Method.SCORE_CAM else scene.margin
    # Grad-CAM++ does not depend on the unit of the features; the 1e-6 that the package adds to its denominator does.
    scene.network.unit = 1000.0 if method is Method.GRAD_CAM_PLUS_PLUS else 1.0
    with getattr(package, theirs)(scene.network, [scene.network.tap]) as cam:
        found = cam(input_tensor=scene.tensor, targets=[target])[0]
    scene.network.unit = 1.0
    assert_agree(scene.map_of(scene.ours(method)), found)


def test_pytorch_grad_cams_layer_cam(scene: Scene):
    package = grad_cam_package()
    with package.LayerCAM(scene.network, [scene.network.tap]) as cam:
        found = cam(input_tensor=scene.tensor, targets=[scene.margin])[0]
    assert_agree(scene.map_of(layer_cam_of(scene)), found)


def layer_cam_of(scene: Scene) -> NDArray[np.float32]:
    """LayerCAM of the deepest block end alone, as the peers make it."""
    trace = scene.engine.trace(scene.window, target=scene.target, gradients=True)
    deep = scene.engine.bundle.blocks[-1].tensor
    return cams.layer_cam(trace.features[deep], trace.gradients[deep])


@pytest.mark.parametrize(
    ("method", "theirs"),
    [(Method.GRAD_CAM, "GradCAM"), (None, "LayerCAM"), (Method.SCORE_CAM, "ScoreCAM")],
    ids=["grad-cam", "layer-cam", "score-cam"],
)
def test_torch_cam(scene: Scene, method: Method | None, theirs: str):
    """Its CAMs take the derivative of what the network puts out, so the network is made to put out the margin."""
    package = peer("torchcam.methods", NO_PARITY.format("torch-cam"))
    if method is Method.SCORE_CAM and len(scene.engine.bundle.blocks) == 2:
        pytest.skip("torch-cam stretches Score-CAM's masks before enlarging them, the paper after: maps differ here")
    reads = scene.probability if method is Method.SCORE_CAM else scene.margin

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = scene.network

        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            read = reads(self.network(picture))
            return torch.stack([read, torch.zeros_like(read)], -1)

    with getattr(package, theirs)(Reading().eval(), target_layer=scene.network.tap) as cam:
        scores = cam.model(scene.tensor)
        (found,) = cam(0, scores)
    ours = np.maximum(layer_cam_of(scene) if method is None else scene.ours(method), 0)
    assert_agree(ours, found.detach().numpy().squeeze())


def test_captums_grad_cam(scene: Scene):
    attr = peer("captum.attr", NO_PARITY.format("captum"))
    peer_cam = attr.LayerGradCam(lambda picture: scene.margin(scene.network(picture)), scene.network.tap)
    found = peer_cam.attribute(scene.tensor, relu_attributions=True)
    ours = np.maximum(scene.ours(Method.GRAD_CAM), 0)
    assert_agree(ours, found.detach().numpy().squeeze())


def test_captums_occlusion(scene: Scene):
    """Our patch is an eighth of the window and moves by half a patch; what hides is the mean color, the tensor's 0."""
    attr = peer("captum.attr", NO_PARITY.format("captum"))
    patch = scene.size[0] // 8
    found = attr.Occlusion(lambda picture: scene.probability(scene.network(picture))).attribute(
        scene.tensor,
        sliding_window_shapes=(3, patch, patch),
        strides=(3, patch // 2, patch // 2),
        baselines=0,
        perturbations_per_eval=15,
    )
    assert_agree(scene.ours(Method.OCCLUSION), found.detach().numpy()[0, 0])


def test_xaitks_rise_on_our_masks_and_ours_on_its(scene: Scene):
    """Random generators differ from package to package; masks handed over both ways fix the draw."""
    grid = peer("xaitk_saliency.impls.perturb_image.rise", NO_PARITY.format("xaitk-saliency"))
    scoring = peer("xaitk_saliency.impls.gen_classifier_conf_sal.rise_scoring", NO_PARITY.format("xaitk-saliency"))
    (drawn,) = cams.rise_masks(scene.size, seed=3, count=64, chunk=64)
    theirs = grid.RISEGrid(n=64, s=7, p1=0.5, seed=3, threads=0).perturb(scene.window)
    stretched = [(mask - mask.min()) / np.ptp(mask) for mask in theirs]  # as the scoring graph does
    hidden = np.broadcast_to(scene.engine.mean_px, scene.window.shape).copy()
    for masks in (drawn, np.stack(stretched).astype(np.float32)):
        said = scene.engine.score_masks(scene.window, masks, baseline=hidden).probabilities[:, scene.target]
        ours = cams.RiseEstimate.empty(scene.size).add(masks, said).signed()
        found = scoring.RISEScoring(p1=0.0).generate(np.zeros(1), said[:, None], masks)[0]
        assert_agree(ours, found)


def test_openvino_xais_recipro_cam(tmp_path: Path):
    """On the toy: logits, one cell at a time, at the same node."""
    interpreter = os.environ.get("INSPECT_XAI_OPENVINO_PYTHON")
    if not interpreter:
        pytest.skip(NO_OPENVINO)
    onnx.save(toy_model("vgg"), tmp_path / "toy.onnx")
    toy = TOYS["vgg"].make()
    picture = TOYS["vgg"].pictures(1, seed=5)
    np.save(tmp_path / "picture.npy", picture.numpy())
    script = Path(__file__).parents[1] / "reference" / "openvino_recipro_cam.py"
    done = subprocess.run([interpreter, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    features = toy.taps(picture)[-1].detach()[0].numpy()
    with torch.no_grad():
        masked = np.concatenate(list(cams.recipro_features(features, chunk=8, spread=False)))
        logits = toy.head(torch.from_numpy(masked))[:, 0].numpy()
    ours = cams.recipro_cam(logits, (features.shape[1], features.shape[2]))
    assert_agree(ours, np.load(tmp_path / "map.npy"))
