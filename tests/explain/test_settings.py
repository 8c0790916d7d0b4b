"""How to explain: one value, validated once, which nobody changes afterwards."""

from dataclasses import asdict
from math import inf, nan
from typing import Any

import onnx
import pytest

from inspect_xai.errors import SettingsError
from inspect_xai.explain.explainer import Explainer
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.model.build.build import build_bundle
from inspect_xai.model.bundle import ModelBundle
from inspect_xai.policy import policy_from
from inspect_xai.records import Baseline, ExplainSpec, InputSpec, Method, ModelCard, Profile, VerdictCode
from tests.support.toys import TOYS, toy_model

CARD = ModelCard(
    "m", "1", ("pit", "free"), InputSpec(8, 8), explain=ExplainSpec(Method.GRAD_CAM, 0.4, Baseline.BLUR, Profile.EXACT)
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("settings")
    onnx.save(toy_model("vgg"), folder / "vgg.onnx")
    toy = TOYS["vgg"]
    labels = tuple(f"c{number}" for number in range(toy.classes))
    card = ModelCard("vgg", "1", labels, InputSpec(*toy.shape[1:]))
    return build_bundle(folder / "vgg.onnx", card, folder / "vgg.bundle")


def test_the_card_says_what_is_not_said() -> None:
    assert ExplainSettings.of_card(CARD) == ExplainSettings(Method.GRAD_CAM, 0.4, Baseline.BLUR)
    assert ExplainSettings.of_card(CARD, method="rise", mu=0.0, max_windows=None) == ExplainSettings(
        Method.RISE, 0.0, Baseline.BLUR, max_windows=None
    )


def test_a_profile_that_predicts_takes_mu_0_unless_another_is_given() -> None:
    assert ExplainSettings.of_card(CARD, profile="fast").mu == 0.0
    assert ExplainSettings.of_card(CARD, profile="fast", mu=0.2).mu == 0.2


def test_a_policy_says_it_product_by_product() -> None:
    policy = policy_from(
        {"version": "1", "explain": {"max_passes": 40}, "product": {"A": {"profile": "quick", "max_seconds": 2.5}}}
    )
    assert policy.explain_settings(CARD, "B", VerdictCode.NG) == ExplainSettings(
        Method.GRAD_CAM, 0.4, Baseline.BLUR, max_passes=40
    )
    assert policy.explain_settings(CARD, "A", VerdictCode.NG) == ExplainSettings(
        Method.GRAD_CAM, 0.0, Baseline.BLUR, Profile.QUICK, 40, 2.5
    )


def test_ok_pictures_may_be_explained_by_a_cheaper_method() -> None:
    policy = policy_from({"version": "1", "explain": {"method": "grad-sise", "ok_method": "product-cam"}})
    methods = [policy.explain_settings(CARD, "", verdict).method for verdict in VerdictCode]
    assert dict(zip(VerdictCode, methods, strict=True)) == {
        VerdictCode.OK: Method.PRODUCT_CAM,
        VerdictCode.NG: Method.GRAD_SISE,
        VerdictCode.UNSURE: Method.GRAD_SISE,
    }
    assert "ok_method" not in policy_from({"version": "1"}).content["explain"], "versions of before keep their content"


def test_what_is_recorded_keeps_its_keys() -> None:
    recorded = ExplainSettings(Method.RISE, 0.1, max_passes=20).recorded(target="pit", against="free")
    assert asdict(recorded) == {
        "method": "rise",
        "target": "pit",
        "against": "free",
        "mu": 0.1,
        "baseline": "mean",
        "profile": "exact",
        "max_passes": 20,
        "budget_s": 0.0,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"mu": 1.0},
        {"mu": -0.1},
        {"mu": nan},
        {"max_passes": 15},
        {"budget_s": 0.0},
        {"budget_s": inf},
        {"max_windows": 0},
    ],
    ids=str,
)
def test_what_is_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ExplainSettings(**wrong)


@pytest.mark.parametrize("name", ["method", "mu", "profile", "settings", "engine", "card", "limits", "faithfulness"])
def test_nothing_of_an_explainer_can_be_set(name: str, bundle: ModelBundle) -> None:
    with Explainer(bundle, device="cpu", threads=1) as explainer, pytest.raises(AttributeError):
        setattr(explainer, name, None)


def test_settings_beside_options_are_refused(bundle: ModelBundle) -> None:
    with pytest.raises(SettingsError, match="settings beside mu"):
        Explainer(bundle, ExplainSettings(), device="cpu", mu=0.1)
