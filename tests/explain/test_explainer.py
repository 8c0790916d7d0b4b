"""SISE end to end in ONNX Runtime against plain torch, and what an explanation promises its reader."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from inspect_xai.errors import InspectXaiError, PictureError, SettingsError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.save import save_explanation
from inspect_xai.explain.window_scores import prepare_picture, score_windows
from inspect_xai.maths.tiles import as_channels, cut
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.records import (
    Baseline,
    Explanation,
    Fit,
    InputSpec,
    Layout,
    Method,
    ModelCard,
    Status,
    Tile,
    VerdictSpec,
)
from tests.conftest import Run
from tests.reference.torch_sise import Lattice, ReferenceMap, measured_lattices, reference_sise, slow_otsu
from tests.support.torch_graph import TorchGraph
from tests.support.toy_graphs import NHWC_ENDS, nhwc_model
from tests.support.toys import LABELS, TOYS, Family, card_for, labels_of, toy_model

FAST = ("resnet18", "mobilenet_v2", "vgg", "single_logit")


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """A function that builds a toy's bundle, once per session."""
    built: dict[tuple[str, Fit, str], ModelBundle] = {}

    def build(name: str, fit: Fit = Fit.TILE, exporter: str = "script") -> ModelBundle:
        key = (name, fit, exporter)
        if key not in built:
            folder = tmp_path_factory.mktemp(name)
            onnx.save(toy_model(name, exporter=exporter), folder / "toy.onnx")
            built[key] = build_bundle(folder / "toy.onnx", card_for(name, fit=fit), folder / "bundle")
        return built[key]

    return build


def picture_of(shape: tuple[int, int], seed: int = 3) -> NDArray[np.uint8]:
    """A smooth surface with a dark spot and noise, RGB."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    surface = 150 + 40 * np.sin(columns / 7) + 20 * np.cos(rows / 11)
    surface -= 90 * np.exp(-((rows - shape[0] * 0.6) ** 2 + (columns - shape[1] * 0.3) ** 2) / 60)
    colored = surface[..., None] + rng.normal(0, 8, (*shape, 3)) + np.array([0, 8, -12])
    return np.clip(colored, 0, 255).astype(np.uint8)


def as_logits(output: torch.Tensor, family: Family) -> torch.Tensor:
    """Write any head as logits whose softmax (or sigmoid, of a multi-label head) the card calls probabilities."""
    if family.activation == "none":
        output = torch.log(output) - (torch.log1p(-output) if family.classes == 1 else 0)
    return torch.cat([torch.zeros_like(output), output], dim=1) if family.classes == 1 else output


def reference_for(name: str, picture: NDArray[np.uint8], baseline: str, **options: object) -> ReferenceMap:
    """SISE of a toy in float64 torch."""
    family = TOYS[name]
    spec = card_for(name).input
    toy = family.make().double()
    mean, std = (torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1) for numbers in (spec.mean, spec.std))

    def forward(pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        taps = toy.taps((pixels / spec.scale - mean) / std)
        return taps, as_logits(toy.head(taps[-1]), family)

    seen = np.moveaxis(picture.reshape(*picture.shape[:2], -1), -1, 0).astype(np.float64)
    hidden = np.zeros_like(seen) if baseline == "black" else np.broadcast_to(mean.numpy() * spec.scale, seen.shape)
    activation = "sigmoid" if family.activation == "sigmoid" and family.classes > 1 else "softmax"
    lattices = measured_lattices(list(toy.stages), family.shape)
    return reference_sise(forward, seen, hidden.copy(), activation=activation, lattices=lattices, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Each 3x3 layer without padding moves the first cell by a step, each stride of 2 doubles the step.
        ("inception", [(3, 2), (9, 4), (13, 8), (21, 16)]),
        ("squeezenet", [(1, 2), (3, 4), (7, 8)]),
        ("googlenet", None),  # its pools in ceil mode leave as many cells as padded ones
        ("resnet18", None),
    ],
)
def test_the_oracle_lays_unpadded_toys_on_the_lattice_counted_by_hand(
    name: str, expected: list[tuple[float, float]] | None
) -> None:
    found = measured_lattices(list(TOYS[name].make().stages), TOYS[name].shape)

    if expected is None:
        assert found is None
    else:
        assert found == [Lattice(pytest.approx((at, at)), pytest.approx((step, step))) for at, step in expected]


def assert_same_map(mine: NDArray[np.float32], theirs: ReferenceMap, *, atol: float = 1e-4) -> None:
    """Equal, but for pixels whose block map lies within one of Otsu's bins of a threshold."""
    undecided = np.zeros(mine.shape, bool)
    for block in [block for block in theirs.blocks if block is not None][1:]:
        undecided |= np.abs(block - slow_otsu(block)) < 1 / 256 + 1e-4

    assert undecided.mean() < 0.1
    np.testing.assert_allclose(mine[~undecided], theirs.fused[~undecided], atol=atol)


def every_toy_from_both_exporters() -> list[Any]:
    """A few in the quick suite; the newer exporter, which leaves the batch open here too, takes seconds for each."""
    return [
        pytest.param(name, exporter, marks=() if name in FAST and exporter == "script" else pytest.mark.slow)
        for name, exporter in itertools.product(TOYS, ("script", "dynamo"))
    ]


@pytest.mark.parametrize(("name", "exporter"), every_toy_from_both_exporters())
def test_sise_in_onnx_runtime_equals_sise_in_torch(name: str, exporter: str, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    """To 1e-3 on any picture; to 1e-4 on one of two, for a ReLU at its kink falls either way in float32."""
    with Explainer(toy_bundle(name, exporter=exporter), device="cpu", mu=0.0, baseline="black") as explainer:
        errors = [compare_with_torch(name, explainer, seed=seed) for seed in (3, 4)]

    assert max(errors) <= 1e-3
    assert min(errors) <= 1e-4


def compare_with_torch(name: str, explainer: Explainer, *, seed: int) -> float:
    """Hold selection, block maps and fused map against float64 torch; return the largest difference of a block map."""
    channels, height, width = TOYS[name].shape
    picture = picture_of((height, width), seed)
    picture = picture if channels == 3 else picture[..., 0]
    target = len(labels_of(name)) - 2
    mine = explainer(picture, target=target)
    return compare_maps(mine, reference_for(name, picture, "black", target=target, mu=0.0))


def compare_maps(mine: Explanation, theirs: ReferenceMap) -> float:
    """The same of an explanation and a reference made elsewhere."""
    assert mine.status is Status.EXPLAINED
    blocks = mine.tiles[0].blocks
    assert [block.positive_channels for block in blocks] == [int((alpha > 0).sum()) for alpha in theirs.alphas]
    assert list(mine.block_maps) == [b.tensor for b, ref in zip(blocks, theirs.blocks, strict=True) if ref is not None]
    pairs = zip(mine.block_maps.values(), (block for block in theirs.blocks if block is not None), strict=True)
    largest = max(float(np.abs(block - reference).max()) for block, reference in pairs)
    assert_same_map(mine.fused, theirs, atol=max(1e-4, len(blocks) * largest))
    return largest


def test_sise_of_a_channels_last_graph_equals_sise_in_torch(tmp_path: Path) -> None:
    """As tf2onnx writes them: no torch module exists, so torch runs the graph itself, node by node, in float64."""
    model = nhwc_model()
    onnx.save(model, tmp_path / "nhwc.onnx")
    card = ModelCard("nhwc", "1", LABELS, InputSpec(64, 64, scale=64.0, mean=(2.0,), layout=Layout.NHWC), ("free",))
    oracle = TorchGraph(model)

    def forward(pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        given, taps = {"input:0": (pixels / 64.0 - 2.0).permute(0, 2, 3, 1)}, []
        for name in NHWC_ENDS:
            oracle(**given)
            taps.append(oracle.values[name].permute(0, 3, 1, 2))
            given = {name: taps[-1].permute(0, 2, 3, 1)}  # what follows is computed from the tap, so it has a gradient
        return taps, oracle(**given)

    def reference(picture: NDArray[np.uint8]) -> ReferenceMap:
        seen = np.moveaxis(picture, -1, 0).astype(np.float64)
        return reference_sise(forward, seen, np.zeros_like(seen), target=1, mu=0.0)

    with Explainer(
        build_bundle(tmp_path / "nhwc.onnx", card, tmp_path / "bundle"), device="cpu", mu=0.0, baseline="black"
    ) as explainer:
        pictures = [picture_of((64, 64), seed) for seed in (3, 4)]
        errors = [compare_maps(explainer(picture, target=1), reference(picture)) for picture in pictures]

    assert max(errors) <= 1e-3
    assert min(errors) <= 1e-4


def test_running_a_bundle_loads_neither_onnx_nor_scipy(toy_bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Together they are 50 MB of every process that explains."""
    probe = (
        "import sys; import numpy as np; from inspect_xai.explain.explainer import Explainer; "
        "explain = Explainer(sys.argv[1], device='cpu', profile='fast'); "
        "explain(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)); "
        "print([m for m in ('onnx', 'scipy', 'pandas', 'torch') if m in sys.modules])"
    )

    command = [sys.executable, "-c", probe, str(toy_bundle("resnet18").folder)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("mu", "baseline", "against"), [(0.3, "mean", None), (0.0, "mean", "free"), (0.5, "black", "pit")]
)
def test_selection_baseline_and_contrast_equal_torch(mu: float, baseline: str, against: str | None, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    height, width = TOYS["resnet18"].shape[1:]
    picture = picture_of((height, width), seed=5)
    with Explainer(toy_bundle("resnet18"), device="cpu", mu=mu, baseline=baseline) as explainer:
        mine = explainer(picture, target="stain", against=against)

    rival = None if against is None else LABELS.index(against)
    theirs = reference_for("resnet18", picture, baseline, target=2, against=rival, mu=mu)

    assert_same_map(mine.fused, theirs)


def test_the_map_does_not_depend_on_the_bucket(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["resnet18"].shape[1:])
    maps = []
    for bucket in (1, 3, 16):
        with Explainer(toy_bundle("resnet18"), device="cpu", bucket=bucket) as explainer:
            maps.append(explainer(picture, target="pit"))

    for other in maps[1:]:
        np.testing.assert_allclose(other.fused, maps[0].fused, atol=1e-5)
        assert other.forward_passes == maps[0].forward_passes


def test_the_same_settings_give_the_same_bytes(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["resnet18"].shape[1:])
    with Explainer(toy_bundle("resnet18"), device="cpu") as explainer:
        first, second = explainer(picture, target="pit"), explainer(picture, target="pit")

    assert first.fused.tobytes() == second.fused.tobytes()
    assert first.rank.tobytes() == second.rank.tobytes()


def test_ada_sise_keeps_what_otsu_of_the_positive_alphas_keeps(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["resnet18"].shape[1:])
    with Explainer(toy_bundle("resnet18"), device="cpu", method="ada-sise") as explainer:
        ada = explainer(picture, target="pit")
        every = Explainer(explainer.engine.bundle, device="cpu", mu=0.0)(picture, target="pit")

    assert ada.settings.method is Method.ADA_SISE
    for some, all_positive in zip(ada.tiles[0].blocks, every.tiles[0].blocks, strict=True):
        assert 0 < some.kept_channels + some.constant_channels <= all_positive.positive_channels
    assert ada.forward_passes < every.forward_passes


def test_a_large_picture_is_explained_window_by_window_at_native_scale(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    height, width = TOYS["resnet18"].shape[1:]
    picture = picture_of((height * 2 + 5, width // 2))
    with Explainer(toy_bundle("resnet18"), device="cpu") as explainer:
        look = explainer.look(picture)
        explanation = explainer.explain(look, target="pit")

    assert len(look.tiles) == 3  # two overlapping windows do not reach, and the width is mirrored
    assert all((tile.height_px, tile.width_px) == (height, width) for tile in look.tiles)
    assert explanation.fused.shape == explanation.rank.shape == picture.shape[:2]
    assert sorted(explanation.rank.ravel()) == list(range(explanation.rank.size))
    explained = {tile.tile.index for tile in explanation.tiles}
    over = look.scores[:, 0] - 0.5 + 0.15
    assert explained == (set(np.flatnonzero(over >= 0)) or {int(over.argmax())})


def test_stretch_brings_the_map_back_to_the_pictures_size(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of((50, 120))
    with Explainer(toy_bundle("resnet18", Fit.STRETCH), device="cpu") as explainer:
        explanation = explainer(picture)

    assert explanation.fused.shape == (50, 120)
    assert len(explanation.tiles) == 1


def test_around_a_center_crop_the_map_is_0_and_a_note_says_so(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with Explainer(toy_bundle("resnet18", Fit.CENTER_CROP), device="cpu") as explainer:
        spec = explainer.card.input
        explanation = explainer(picture_of((2 * spec.height, 4 * spec.width)))
        whole = explainer(picture_of((spec.height, spec.width)))

    assert [explained.tile for explained in explanation.tiles] == [
        Tile(0, 0, spec.width, 2 * spec.height, 2 * spec.width)
    ]
    assert explanation.fused[:, spec.width : 3 * spec.width].any()
    assert not explanation.fused[:, : spec.width].any()
    assert not explanation.fused[:, 3 * spec.width :].any()
    assert "only_the_middle" in explanation.notes
    assert "only_the_middle" not in whole.notes


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize("shape", [(150, 200), (150, 200, 3), (20, 90), (20, 20, 3)])
def test_what_is_prepared_are_the_windows_as_they_are_cut(shape: tuple[int, ...], fit: Fit, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    with Explainer(toy_bundle("resnet18", fit), device="cpu", bucket=4) as explainer:
        prepared = prepare_picture(explainer.engine, picture)
        spec, color = explainer.card.input, as_channels(picture, explainer.card.input.channels)
        assert np.array_equal(prepared.picture, color)
        assert np.array_equal(prepared.first, np.stack([cut(color, tile, spec) for tile in prepared.tiles[:4]]))
        assert np.moveaxis(prepared.first, -1, 1).flags.c_contiguous  # as the network takes it: no copy is made
        assert np.array_equal(score_windows(explainer.engine, prepared), explainer.look(picture).scores)


def test_an_ok_label_is_explained_on_request_and_the_reader_is_told(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with Explainer(toy_bundle("resnet18"), device="cpu") as explainer:
        explanation = explainer(picture_of(TOYS["resnet18"].shape[1:]), target="free")

    assert "ok_label_has_no_place" in explanation.notes


def test_targets_by_index_and_by_name_are_the_same(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["resnet18"].shape[1:])
    with Explainer(toy_bundle("resnet18"), device="cpu") as explainer:
        assert np.array_equal(explainer(picture, target=1).fused, explainer(picture, target="crack").fused)
        assert explainer(picture).settings.target == explainer.look(picture).prediction.label


@pytest.mark.parametrize("wrong", [{"target": "rust"}, {"target": 5}, {"target": "pit", "against": "pit"}])
def test_a_label_the_model_does_not_have_is_named_with_those_it_has(wrong, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with Explainer(toy_bundle("resnet18"), device="cpu") as explainer, pytest.raises(SettingsError, match="Expected"):
        explainer(picture_of(TOYS["resnet18"].shape[1:]), **wrong)


@pytest.mark.parametrize("mu", [-0.1, 1.0, float("nan")])
def test_mu_outside_its_range_is_refused(mu: float, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingsError, match="mu"):
        Explainer(toy_bundle("resnet18"), device="cpu", mu=mu)


@pytest.mark.parametrize("shape", [(0, 4), (4, 4, 4), (4,)])
def test_an_array_that_is_no_picture_is_refused(shape: tuple[int, ...], toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with Explainer(toy_bundle("resnet18"), device="cpu") as explainer, pytest.raises(PictureError):
        explainer(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(("profile", "share"), [("fast", 0.25), ("quick", 0.10)])
def test_a_profile_keeps_to_its_share_of_the_passes(profile: str, share: float, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["mobilenet_v2"].shape[1:])
    with Explainer(toy_bundle("mobilenet_v2"), device="cpu") as explainer:
        full = explainer(picture, target="pit")
        cheap = Explainer(explainer.engine.bundle, device="cpu", profile=profile)(picture, target="pit")

    masks = sum(block.kept_channels for block in full.tiles[0].blocks)
    assert sum(block.kept_channels for block in cheap.tiles[0].blocks) == masks, "every mask stays in the map"
    assert cheap.forward_passes == 2 + sum(
        block.kept_channels - block.predicted_scores for block in cheap.tiles[0].blocks
    )
    assert cheap.forward_passes <= max(16, share * full.forward_passes)
    assert "scores_predicted" in cheap.notes
    assert "scores_predicted" not in full.notes
    assert np.corrcoef(cheap.fused.ravel(), full.fused.ravel())[0, 1] > 0.8


def test_a_bound_on_passes_is_kept_and_one_that_binds_nothing_changes_nothing(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["resnet18"].shape[1:])
    bundle = toy_bundle("resnet18")
    full, tight, ample = (
        Explainer(bundle, device="cpu", max_passes=bound)(picture, target="pit") for bound in (None, 20, 10_000)
    )

    assert tight.forward_passes == 20
    assert tight.settings.max_passes == 20
    assert np.array_equal(ample.fused, full.fused)


@pytest.mark.parametrize("bound", [{"max_passes": 40}, {"budget_s": 1e-6}])
def test_a_bound_that_is_too_little_for_all_windows_goes_to_the_strongest(bound, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    height, width = TOYS["resnet18"].shape[1:]
    bundle = toy_bundle("resnet18")
    lenient = VerdictSpec(0.5, 0.499)  # every window is flagged
    with Explainer(bundle, device="cpu", faithfulness=False, **bound) as explainer:
        look = explainer.look(picture_of((height * 2 + 5, width)), thresholds=lenient)
        explanation = explainer.explain(look, target="pit")

    flagged = np.flatnonzero(look.scores[:, 0] >= 0.5 - 0.499)
    strongest = flagged[np.argsort(-look.scores[flagged, 0])]
    most = 2 if "max_passes" in bound else 1
    assert len(flagged) > most
    assert {tile.tile.index for tile in explanation.tiles} == set(strongest[:most])
    assert "windows_left_out" in explanation.notes
    assert explanation.forward_passes <= 40


def test_a_budget_in_seconds_ends_the_scoring_early(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    picture = picture_of(TOYS["resnet18"].shape[1:])
    bundle = toy_bundle("resnet18")
    hurried = Explainer(bundle, device="cpu", budget_s=1e-6)(picture, target="pit")
    at_leisure = Explainer(bundle, device="cpu", budget_s=1e6)(picture, target="pit")

    assert hurried.forward_passes == 2 + 16  # one look at the clock after the first round
    assert "scores_predicted" in hurried.notes
    np.testing.assert_allclose(
        at_leisure.fused, Explainer(bundle, device="cpu")(picture, target="pit").fused, atol=1e-5
    )


def test_the_command_says_how_far_a_bound_got(cli: Run, toy_bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cv2.imwrite(str(tmp_path / "part.png"), picture_of(TOYS["resnet18"].shape[1:]))
    given = ["explain", toy_bundle("resnet18").folder, tmp_path / "part.png", "--out", tmp_path / "maps"]

    bounded, in_time, free = (cli(*given, *bound) for bound in (["--max-passes", 20], ["--budget", "1e-6s"], []))

    assert (bounded[0], in_time[0], free[0]) == (0, 0, 0)
    assert re.search(r"20 passes \(\d+ of \d+ scores predicted\)", bounded[1])
    assert "18 passes (" in in_time[1]
    assert "predicted" not in free[1]


@pytest.mark.parametrize("bounds", [{"max_passes": 3}, {"budget_s": 0.0}, {"budget_s": float("nan")}])
def test_a_bound_too_low_to_say_anything_is_refused(bounds: dict[str, float], toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingsError, match="Expected"):
        Explainer(toy_bundle("resnet18"), device="cpu", **bounds)  # type: ignore[arg-type]


def test_the_folder_holds_what_it_says(tmp_path: Path, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    bundle = toy_bundle("resnet18")
    picture = picture_of(TOYS["resnet18"].shape[1:])
    with Explainer(bundle, device="cpu") as explainer:
        look = explainer.look(picture)
        explanation = explainer.explain(look, target="crack")
    folder = tmp_path / "maps" / "part"
    for _ in range(2):  # the second time replaces the first
        save_explanation(folder, explanation, picture=picture, bundle=bundle, verdict=look.verdict, source="part.png")

    manifest = json.loads((folder / "manifest.json").read_text())
    saved, rank = np.load(folder / "map.npy"), np.load(folder / "rank.npy")
    blocks = np.load(folder / "blocks.npz")

    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "map.npy", "rank.npy", "blocks.npz", "overlay.png"}
    assert (saved.dtype, saved.shape) == (np.float32, picture.shape[:2])
    assert (rank.dtype, rank.shape) == (np.int32, picture.shape[:2])
    assert np.array_equal(saved, explanation.fused)
    assert blocks.files == list(explanation.block_maps)
    assert all(blocks[name].min() == 0 and blocks[name].max() == 1 for name in blocks.files)
    assert manifest["model"]["fingerprint"] == bundle.fingerprint
    assert manifest["provider"] == "CPUExecutionProvider"
    assert manifest["settings"] == {
        "mu": 0.0,
        "baseline": "mean",
        "profile": "exact",
        "max_passes": None,
        "budget_s": None,
        "blocks": [end.tensor for end in bundle.blocks],
    }
    assert sum(manifest["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert manifest["passes"] == 2 + sum(block["kept"] for block in manifest["tiles"][0]["blocks"])
    assert not list((tmp_path / "maps").glob(".*")), "no half-written folder stays behind"


def test_nothing_but_an_explanation_is_ever_replaced(tmp_path: Path, toy_bundle) -> None:  # type: ignore[no-untyped-def]
    bundle = toy_bundle("resnet18")
    precious = tmp_path / "part"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    picture = picture_of(TOYS["resnet18"].shape[1:])
    with Explainer(bundle, device="cpu", baseline=Baseline.BLUR) as explainer:
        look = explainer.look(picture)
        explanation = explainer.explain(look, target="crack")

    with pytest.raises(PictureError, match="holds no explanation"):
        save_explanation(precious, explanation, picture=picture, bundle=bundle, verdict=look.verdict)

    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_closed_explainer_says_so(toy_bundle) -> None:  # type: ignore[no-untyped-def]
    with Explainer(toy_bundle("resnet18"), device="cpu", threads=1) as explainer:
        pass
    explainer.close()
    with pytest.raises(InspectXaiError, match="is closed"):
        explainer.look(np.zeros((64, 64), np.uint8))
