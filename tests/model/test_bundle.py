"""Bundles: built whole or not at all, proven, opened only when complete and unchanged, and equal for equal inputs."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from inspect_xai.errors import BundleError, CardError, UnsupportedModelError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.model.build import verify
from inspect_xai.model.build.build import build_bundle, check_bundle
from inspect_xai.model.build.load_onnx import load_model
from inspect_xai.model.build.normalize import network_input, sample_pictures
from inspect_xai.model.bundle import ModelBundle, load_bundle
from inspect_xai.model.card import card_toml, read_card
from inspect_xai.model.session import open_session, run
from inspect_xai.records import Activation, ExplainSpec, InputSpec, Layout, ModelCard, OutputSpec, Status
from tests.support.hostile_models import CARD, tiny_model
from tests.support.toy_graphs import nhwc_model, quantized
from tests.support.toys import toy_model

TOY_CARD = ModelCard("toy", "1", tuple("abcde"), InputSpec(64, 64, scale=64.0, mean=(2.0,)), ok_labels=("e",))


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("tiny")
    return build_bundle(written(tiny_model(), folder), CARD, folder / "tiny.bundle")


@pytest.fixture
def bundle_copy(tiny_bundle: ModelBundle, tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    folder = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle.folder, folder)
    return folder


def manifest_of(folder: Path) -> dict[str, object]:
    manifest: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    return manifest


# What a build leaves


def test_a_bundle_holds_card_network_graphs_and_manifest(tiny_bundle: ModelBundle) -> None:
    files = {
        path.relative_to(tiny_bundle.folder).as_posix() for path in tiny_bundle.folder.rglob("*") if path.is_file()
    }
    graphs = {"predict", "trace", "score", "block_0", "block_1", "block_2"}

    assert files == {"card.toml", "model.onnx", "manifest.json", "graphs/weights.bin"} | {
        f"graphs/{name}.onnx" for name in graphs
    }
    assert (tiny_bundle.folder / "model.onnx").read_bytes() == tiny_model().SerializeToString()
    assert read_card(tiny_bundle.folder / "card.toml") == tiny_bundle.card == CARD
    assert [(end.tensor, end.channels, end.height) for end in tiny_bundle.blocks] == [("r0", 6, 16), ("r1", 8, 8)]
    assert tiny_bundle.dynamic_batch
    for name in graphs:
        assert tiny_bundle.graph(name).is_file()


def test_the_manifest_says_how_it_was_made(tiny_bundle: ModelBundle) -> None:
    manifest = manifest_of(tiny_bundle.folder)

    assert manifest == tiny_bundle.manifest
    assert manifest["schema_version"] == 2
    assert manifest["batch"] == "dynamic"
    assert manifest["gradient"] == "reverse_mode"
    assert manifest["gradient_reason"] == ""
    assert manifest["chain"] == [0, 1]
    assert manifest["network"]["opset"] == 18  # type: ignore[index]
    assert manifest["versions"]["onnxruntime"]  # type: ignore[index]
    assert manifest["proofs"].keys() == {  # type: ignore[attr-defined]
        "network_as_given",
        "chain_of_cuts",
        "masking",
        "batch_of_two",
        "gradient_other_blocks",
        "gradient_deepest_block",
    }
    for name, error in manifest["proofs"].items():  # type: ignore[attr-defined]
        assert 0 <= error <= manifest["proof_bounds"][name]  # type: ignore[index]
    for name, recorded in manifest["files"].items():  # type: ignore[attr-defined]
        content = (tiny_bundle.folder / name).read_bytes()
        assert recorded == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_nothing_is_left_beside_a_bundle(tiny_bundle: ModelBundle) -> None:
    assert sorted(path.name for path in tiny_bundle.folder.parent.iterdir()) == ["network.onnx", "tiny.bundle"]


def test_the_predict_graph_is_the_network_behind_the_cards_arithmetic(tmp_path: Path) -> None:
    """Pixels to probabilities, against the file as given with numpy around it."""
    bundle = build_bundle(written(toy_model("resnet18"), tmp_path), TOY_CARD, tmp_path / "b")
    pictures = sample_pictures(TOY_CARD, 3, seed=21)

    (found,) = run(open_session(bundle.graph("predict")), ["probabilities"], {"picture": pictures})

    session = open_session(toy_model("resnet18").SerializeToString())
    (logits,) = session.run(None, {"input": ((pictures / 64.0) - 2.0).astype(np.float32)})
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


def test_equal_inputs_give_equal_bundles(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    again = build_bundle(written(tiny_model(), tmp_path), CARD, tmp_path / "again.bundle")

    assert again.fingerprint == tiny_bundle.fingerprint
    assert again.manifest["files"] == tiny_bundle.manifest["files"]
    assert again.sha256 == tiny_bundle.sha256


def test_the_digest_covers_every_file_and_what_the_manifest_says_of_them(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    whole = json.loads(path.read_text())
    digests = {load_bundle(bundle_copy).sha256}
    for changed in (
        *({"files": whole["files"] | {name: entry | {"sha256": "0" * 64}}} for name, entry in whole["files"].items()),
        {"batch": 1},
        {"chain": []},
        {"gradient": "finite_difference"},
        {"notes": ["a note"]},
    ):
        digests.add(ModelBundle(bundle_copy, CARD, (), "", False, whole | changed).sha256)
    assert len(digests) == 1 + len(whole["files"]) + 4
    assert check_bundle(bundle_copy).sha256 in digests  # proofs are measured anew and may differ by rounding


def test_the_card_file_is_kept_with_its_comments_which_do_not_count(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text("# held-out accuracy: 0.97\n" + card_toml(CARD))

    bundle = build_bundle(written(tiny_model(), tmp_path), path, tmp_path / "b")

    assert (bundle.folder / "card.toml").read_text() == path.read_text()
    assert bundle.fingerprint == tiny_bundle.fingerprint


def test_a_file_of_labels_becomes_the_bundles_own_list(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    listed = next(line for line in card_toml(CARD).splitlines() if line.startswith("labels"))
    path.write_text(card_toml(CARD).replace(listed, 'labels = "labels.txt"'))
    (tmp_path / "labels.txt").write_text("\n".join(CARD.labels))

    bundle = build_bundle(written(tiny_model(), tmp_path), path, tmp_path / "b")

    assert listed in (bundle.folder / "card.toml").read_text()
    assert bundle.fingerprint == tiny_bundle.fingerprint


@pytest.mark.parametrize("what", ["card", "weights", "blocks"])
def test_the_fingerprint_changes_with_what_it_stands_for(what: str, tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    model = tiny_model()
    if what == "weights":
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.01), "w0")
        )
    card = replace(CARD, version="2") if what == "card" else CARD

    bundle = build_bundle(
        written(model, tmp_path), card, tmp_path / "b", blocks=["c0", "r1"] if what == "blocks" else None
    )

    assert bundle.fingerprint != tiny_bundle.fingerprint


def test_given_blocks_are_taken_from_the_card_or_the_call(tmp_path: Path) -> None:
    """Also tensors that folding would merge away: the output of a convolution in front of its Relu."""
    card = replace(CARD, explain=ExplainSpec(blocks=("c0",)))
    path = written(tiny_model(), tmp_path)

    from_card = build_bundle(path, card, tmp_path / "b1")
    from_call = build_bundle(path, card, tmp_path / "b2", blocks=["p0", "c1"])

    assert [(end.tensor, end.rule) for end in from_card.blocks] == [("c0", "given")]
    assert from_card.manifest["notes"] == ["single_block"]
    assert [(end.tensor, end.rule) for end in from_call.blocks] == [("p0", "given"), ("c1", "given")]


def test_a_block_that_no_node_makes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"explain\.blocks names 'r9'"):
        build_bundle(written(tiny_model(), tmp_path), CARD, tmp_path / "b", blocks=["r9"])


def test_weights_beside_the_model_come_into_the_bundle(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save(tiny_model(), inner / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)

    bundle = build_bundle(inner / "m.onnx", CARD, tmp_path / "b")
    shutil.rmtree(inner)

    assert not any(weight.external_data for weight in load_model(bundle.folder / "model.onnx").model.graph.initializer)
    assert check_bundle(bundle.folder).blocks == tiny_bundle.blocks


def test_channels_last_and_quantized_networks(tmp_path: Path) -> None:
    nhwc_card = ModelCard("nhwc", "1", tuple("abcde"), InputSpec(64, 64, layout=Layout.NHWC))
    nhwc = build_bundle(written(nhwc_model(), tmp_path), nhwc_card, tmp_path / "nhwc")
    pictures = network_input(sample_pictures(TOY_CARD, 4, seed=1), TOY_CARD)
    int8 = build_bundle(written(quantized(toy_model("resnet18"), pictures), tmp_path), TOY_CARD, tmp_path / "int8")

    assert nhwc.manifest["gradient"] == int8.manifest["gradient"] == "reverse_mode"
    assert [end.channels for end in nhwc.blocks] == [6, 8, 12]
    assert len(int8.blocks) == 5


def test_a_batch_that_cannot_be_freed_is_recorded_as_one(tmp_path: Path) -> None:
    """The class scores of two pictures depend on each other: every graph then takes one."""
    model = tiny_model()
    model.graph.node[3].output[0] = "c1_"
    model.graph.node.insert(4, helper.make_node("ReduceMean", ["c1_", "batch_axis"], ["mean"]))
    model.graph.node.insert(5, helper.make_node("Sub", ["c1_", "mean"], ["less"]))
    model.graph.node.insert(6, helper.make_node("Sub", ["mean", "less"], ["c1"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))

    bundle = build_bundle(written(model, tmp_path), CARD, tmp_path / "b")

    assert not bundle.dynamic_batch
    assert bundle.manifest["batch"] == 1
    assert "batch_of_two" not in bundle.manifest["proofs"]
    assert open_session(bundle.graph("score")).get_inputs()[3].shape == [1, 1, "h", "w"]


# Without gradients


def softsign_model() -> onnx.ModelProto:
    """An operator without a gradient rule between the two blocks."""
    model = tiny_model()
    model.graph.node[1].op_type = "Softsign"
    model.graph.node[4].op_type = "Softsign"
    return model


def test_without_a_gradient_rule_the_bundle_says_finite_differences(tmp_path: Path) -> None:
    bundle = build_bundle(written(softsign_model(), tmp_path), CARD, tmp_path / "b")

    assert bundle.manifest["gradient"] == "finite_difference"
    assert "Softsign" in bundle.manifest["gradient_reason"]
    assert not any(name.startswith("gradient") for name in bundle.manifest["proofs"])
    outputs = [info.name for info in open_session(bundle.graph("trace")).get_outputs()]
    assert outputs == ["probabilities", "margin", "feature_0", "feature_1"]
    assert check_bundle(bundle.folder).manifest["gradient"] == "finite_difference"


def test_an_explanation_by_finite_differences_is_made_and_says_so(tmp_path: Path) -> None:
    bundle = build_bundle(written(softsign_model(), tmp_path), CARD, tmp_path / "b")
    picture = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    with Explainer(bundle, device="cpu", mu=0.0) as explainer:
        explanation = explainer(picture, target="pit")

    assert explanation.status is Status.EXPLAINED
    assert "alphas_by_differences" in explanation.notes


def test_the_chain_gives_the_margin_for_finite_differences(tmp_path: Path) -> None:
    """What an engine needs where there are no gradients: a block end raised, the margin read at the chain's end."""
    bundle = build_bundle(written(softsign_model(), tmp_path), CARD, tmp_path / "b")
    feeds = {"picture": sample_pictures(CARD, 1, seed=1)}
    choice = {"target": np.array([1]), "against": np.array([-1])}
    (feature,) = run(open_session(bundle.graph("block_0")), ["feature_0"], feeds)
    (deep,) = run(open_session(bundle.graph("block_1")), ["feature_1"], {"feature_0": feature})
    (margin,) = run(open_session(bundle.graph("block_2")), ["margin"], {"feature_1": deep, **choice})
    (whole,) = run(open_session(bundle.graph("trace")), ["margin"], feeds | choice)

    np.testing.assert_allclose(margin, whole, rtol=1e-5)


def test_without_gradients_and_without_parts_the_network_is_refused(tmp_path: Path) -> None:
    """c1 sees only one of two branches, so no chain of cuts can raise it."""
    model = softsign_model()
    model.graph.node.insert(4, helper.make_node("Add", ["c1", "c1_twin"], ["both"]))
    model.graph.node.insert(4, helper.make_node("Conv", ["p0", "w1"], ["c1_twin"], pads=[1] * 4))
    model.graph.node[6].input[0] = "both"

    with pytest.raises(UnsupportedModelError, match="does not fall into parts"):
        build_bundle(written(model, tmp_path), CARD, tmp_path / "b", blocks=["r0", "c1"])


# Where it is written


def test_an_existing_bundle_is_replaced_only_if_forced(bundle_copy: Path, tmp_path: Path) -> None:
    path = written(tiny_model(), tmp_path)

    with pytest.raises(BundleError, match="--force"):
        build_bundle(path, CARD, bundle_copy)
    newer = build_bundle(path, replace(CARD, version="2"), bundle_copy, force=True)

    assert load_bundle(bundle_copy).card.version == newer.card.version == "2"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy.bundle", "network.onnx"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_never_replaced(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    precious = out / "thesis.txt" if kind == "folder" else out
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")

    with pytest.raises(BundleError, match="is no bundle"):
        build_bundle(written(tiny_model(), tmp_path), CARD, out, force=True)

    assert precious.read_text() == "years of work"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_BOUNDS", dict.fromkeys(verify._BOUNDS, -1.0))
    path = written(tiny_model(), tmp_path)

    with pytest.raises(BundleError, match=r"proof \w+ failed"):
        build_bundle(path, CARD, tmp_path / "deep" / "b")

    assert list((tmp_path / "deep").iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()

    assert build_bundle(written(tiny_model(), tmp_path), CARD, tmp_path / "b").folder == tmp_path / "b"


# Opening


def spoil_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        manifest = manifest_of(folder)
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def flip(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder_gone": (shutil.rmtree, "is no folder"),
    "manifest_gone": (lambda folder: (folder / "manifest.json").unlink(), "build was cut short"),
    "manifest_cut": (lambda folder: (folder / "manifest.json").write_text('{"schema'), "cannot be read"),
    "manifest_binary": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "manifest_list": (lambda folder: (folder / "manifest.json").write_text("[]"), "schema None"),
    "older_schema": (
        spoil_manifest(lambda m: m.update(schema_version=1)),
        "bundle schema 1. .*rebuild it: inspect-xai",
    ),
    "newer_schema": (spoil_manifest(lambda m: m.update(schema_version=3)), "install the newer inspect-xai"),
    "no_blocks": (spoil_manifest(lambda m: m.pop("blocks")), "lacks or garbles"),
    "odd_blocks": (spoil_manifest(lambda m: m.update(blocks=[{"tensor": "r0"}])), "lacks or garbles"),
    "other_blocks": (spoil_manifest(lambda m: m["blocks"][0].update(tensor="c0")), "records fingerprint"),  # type: ignore[index]
    "odd_files": (spoil_manifest(lambda m: m.update(files=3)), "lacks or garbles"),
    "graph_gone": (lambda folder: (folder / "graphs/score.onnx").unlink(), "lacks graphs/score.onnx"),
    "graph_added": (
        lambda folder: shutil.copy(folder / "graphs/score.onnx", folder / "graphs/score2.onnx"),
        r"holds graphs/score2\.onnx, which was not there",
    ),
    "file_added": (lambda folder: (folder / "notes.txt").touch(), r"holds notes\.txt"),
    "graph_changed": (flip("graphs/trace.onnx"), "trace.onnx is not what it was"),
    "weights_changed": (flip("graphs/weights.bin"), "weights.bin is not what it was"),
    "network_changed": (flip("model.onnx"), "model.onnx is not what it was"),
    "card_changed": (
        lambda folder: (folder / "card.toml").write_text(card_toml(CARD) + "# a"),
        "edit the card .* outside",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_bundle_is_refused_with_what_to_do(name: str, bundle_copy: Path) -> None:
    spoil, words = SPOILED[name]
    spoil(bundle_copy)

    with pytest.raises(BundleError, match=words) as caught:
        load_bundle(bundle_copy)

    assert "inspect-xai" in caught.value.remedy


def test_a_golden_set_and_what_systems_leave_are_no_part_of_a_bundle(bundle_copy: Path) -> None:
    for name in ("golden/manifest.json", "golden/pictures/001.png", ".DS_Store", "graphs/.x", "@eaDir/a", "Thumbs.db"):
        (bundle_copy / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle_copy / name).touch()
    assert load_bundle(bundle_copy).folder == bundle_copy


def test_a_graph_the_bundle_does_not_hold(tiny_bundle: ModelBundle) -> None:
    with pytest.raises(BundleError, match="no graph 'block_9'"):
        tiny_bundle.graph("block_9")


# Proofs


def test_checking_measures_again(bundle_copy: Path) -> None:
    checked = check_bundle(bundle_copy)

    assert checked.manifest["proofs"] == pytest.approx(load_bundle(bundle_copy).manifest["proofs"], abs=1e-2)


def forge(folder: Path, graph: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Replace a graph by a wrong one and vouch for it, as a defect of this program would."""
    path = folder / "graphs" / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    manifest = manifest_of(folder)
    manifest["files"][f"graphs/{graph}.onnx"] = {  # type: ignore[index]
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rename_operator(before: str, after: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == before).op_type = after

    return change


def scale_output(name: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Let an output be a multiple of what it was."""

    def change(model: onnx.ModelProto) -> None:
        maker = next(node for node in model.graph.node if name in node.output)
        maker.output[list(maker.output).index(name)] = f"{name}_right"
        model.graph.node.append(helper.make_node("Mul", [f"{name}_right", "factor"], [name]))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))

    return change


@pytest.mark.parametrize(
    ("graph", "change", "proof"),
    [
        ("predict", rename_operator("Relu", "Softplus"), "network_as_given"),
        ("block_1", rename_operator("Relu", "Softplus"), "chain_of_cuts"),
        ("score", rename_operator("ReduceMin", "ReduceMean"), "masking"),
        ("trace", scale_output("alpha_1", 1.1), "gradient_deepest_block"),
        ("trace", scale_output("alpha_0", -1.0), "gradient_other_blocks"),
    ],
)
def test_every_proof_finds_its_defect(
    graph: str, change: Callable[[onnx.ModelProto], object], proof: str, bundle_copy: Path
) -> None:
    forge(bundle_copy, graph, change)

    with pytest.raises(BundleError, match=f"proof {proof} failed"):
        check_bundle(bundle_copy)


def test_a_network_with_chance_in_it_is_refused(tmp_path: Path) -> None:
    """Dropout left in training mode gives another answer every time."""
    model = tiny_model()
    model.graph.node[6].output[0] = "f_"
    model.graph.node.insert(7, helper.make_node("RandomUniformLike", ["f_"], ["chance"]))
    model.graph.node.insert(8, helper.make_node("Mul", ["f_", "chance"], ["f"]))

    with pytest.raises(BundleError, match="holds no random operator"):
        build_bundle(written(model, tmp_path), CARD, tmp_path / "b")


# Real networks


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "labels"),
    [("magnetic-tile", ("Blowhole", "Break", "Crack", "Fray", "Free", "Uneven")), ("ball-screw", ("clean", "pitting"))],
)
def test_a_trained_network_becomes_a_bundle(
    name: str, labels: tuple[str, ...], shared_dir: Path, tmp_path: Path
) -> None:
    card = ModelCard(name, "1", labels, InputSpec(224, 224, scale=1.0, mean=(127.0,), std=(128.0,)))

    bundle = build_bundle(shared_dir / "models" / f"{name}-efficientnet-lite0.onnx", card, tmp_path / "b")
    start = time.process_time()
    load_bundle(bundle.folder)
    took = time.process_time() - start

    assert [end.channels for end in bundle.blocks] == [16, 24, 40, 112, 1280]
    assert bundle.manifest["gradient"] == "reverse_mode"
    assert bundle.manifest["batch"] == "dynamic"
    assert took < 0.5


def test_an_activation_the_network_has_already_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[7].output[0] = "logits"
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["z"], axis=1))
    path = written(model, tmp_path)

    with pytest.raises(CardError, match='say activation = "none"'):
        build_bundle(path, CARD, tmp_path / "b")
    bundle = build_bundle(path, replace(CARD, output=OutputSpec(Activation.NONE)), tmp_path / "b")

    assert bundle.manifest["output"]["are_logits"]
