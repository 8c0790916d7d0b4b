"""The model card: every mistake is listed with its key, nothing is guessed, and equal cards have one canonical form."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspect_xai.errors import CardError
from inspect_xai.model.card import canonical, card_from, card_text, card_toml, check_card, read_card
from inspect_xai.records import (
    Activation,
    Baseline,
    Channels,
    ExplainSpec,
    Fit,
    InputSpec,
    Layout,
    Method,
    ModelCard,
    OutputSpec,
    VerdictSpec,
)

FULL = """
name = "magnetic-tile"
version = "2026.11"
labels = ["blowhole", "crack", "free"]
ok_label = "free"
[input]
height = 224
width = 192
channels = "bgr"
layout = "nhwc"
fit = "letterbox"
tile_overlap = 0.5
scale = 1
mean = [103.9, 116.8, 123.7]
std = [1, 1, 1]
[output]
activation = "sigmoid"
[verdict]
ng_threshold = 0.4
unsure_margin = 0.15
[verdict.thresholds]
crack = 0.25
[explain]
method = "ada-sise"
mu = 0
baseline = "blur"
blocks = ["relu_3", "relu_7"]
"""


def document(**changes: Any) -> dict[str, Any]:
    """A sound card as TOML gives it, with keys like input__height changed; None takes a key out."""
    plain = tomllib.loads(FULL)
    for key, value in changes.items():
        *above, last = key.split("__")
        table = plain
        for name in above:
            table = table[name]
        if value is None:
            del table[last]
        else:
            table[last] = value
    return plain


def test_every_key_is_read(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(FULL)

    assert read_card(path) == ModelCard(
        name="magnetic-tile",
        version="2026.11",
        labels=("blowhole", "crack", "free"),
        ok_labels=("free",),
        input=InputSpec(
            224, 192, Channels.BGR, Layout.NHWC, Fit.LETTERBOX, 0.5, 1.0, (103.9, 116.8, 123.7), (1.0, 1.0, 1.0)
        ),
        output=OutputSpec(Activation.SIGMOID),
        verdict=VerdictSpec(0.4, 0.15, {"crack": 0.25}),
        explain=ExplainSpec(method=Method.ADA_SISE, mu=0.0, baseline=Baseline.BLUR, blocks=("relu_3", "relu_7")),
    )


def test_defaults_are_the_documented_ones() -> None:
    card = card_from({"name": "a", "version": "1", "labels": ["x", "y"], "input": {"height": 8, "width": 8}})

    assert card == ModelCard("a", "1", ("x", "y"), InputSpec(8, 8))
    assert card.explain.blocks == ()


def test_blocks_auto_is_no_list() -> None:
    assert card_from(document(explain__blocks="auto")).explain.blocks == ()


WRONG = {
    "name: found nothing, expected this key": {"name": None},
    "input: found nothing, expected this key": {"input": None},
    "version: found 2026.11, expected string": {"version": 2026.11},
    "input.height: found '224', expected integer": {"input__height": "224"},
    "input.height: found True, expected integer": {"input__height": True},
    "input.height: found 0, expected 2 to 16384 pixels": {"input__height": 0},
    "input.channels: found 'rbg', expected 'rgb', 'bgr' or 'gray'": {"input__channels": "rbg"},
    "lables: unknown key, did you mean labels": {"lables": ["a"]},
    "input.hight: unknown key, did you mean height": {"input__hight": 3},
    "verdict.zzz: unknown key, expected one of ng_threshold, unsure_margin, thresholds": {"verdict__zzz": 1},
    "labels: found [], expected at least one name": {"labels": [], "ok_label": None, "verdict__thresholds": {}},
    "labels: found ['blowhole', ' ', 'free'], expected at least one name and no empty one": {
        "labels": ["blowhole", " ", "free"],
        "verdict__thresholds": {},
    },
    "labels: found crack more than once": {"labels": ["crack", "crack", "free"]},
    "labels: found one label with a softmax over it": {
        "labels": ["free"],
        "verdict__thresholds": {},
        "output__activation": "softmax",
    },
    "ok_labels: found 'good', expected one of blowhole, crack, free": {"ok_label": "good"},
    "ok_label: found beside ok_labels": {"ok_labels": ["free"]},
    "verdict.thresholds.scratch: no defect label, expected one of blowhole, crack": {
        "verdict__thresholds__scratch": 0.5
    },
    "verdict.thresholds.free: no defect label": {"verdict__thresholds__free": 0.5},
    "verdict.thresholds.crack: found 0.0, expected a probability above 0": {"verdict__thresholds__crack": 0},
    "verdict.ng_threshold: found 1.5": {"verdict__ng_threshold": 1.5},
    "verdict.ng_threshold: found nan": {"verdict__ng_threshold": float("nan")},
    "verdict.unsure_margin: found -0.1": {"verdict__unsure_margin": -0.1},
    "explain.mu: found 1.0": {"explain__mu": 1.0},
    "explain.blocks: found ['a', 'a'], expected different tensor names": {"explain__blocks": ["a", "a"]},
    "input.mean: found 2 numbers, expected 1 or 3 for bgr channels": {"input__mean": [0.5, 0.5]},
    "input.std: found 3 numbers, expected 1 for gray channels": {"input__channels": "gray"},
    "input.std: found [0.0], expected numbers from 1e-06 to 1e+06": {"input__std": [0.0]},
    "input.std: found [1e+308], expected numbers from 1e-06 to 1e+06": {"input__std": [1e308]},
    "input.mean: found [inf], expected numbers from -1e+06 to 1e+06": {"input__mean": [float("inf")]},
    "input.mean: found [-2000000.0], expected numbers from -1e+06 to 1e+06": {"input__mean": [-2e6]},
    "input.scale: found 0.0, expected a number from 1e-06 to 1e+06": {"input__scale": 0.0},
    "input.scale: found 1e+300, expected a number from 1e-06 to 1e+06": {"input__scale": 1e300},
    "input.tile_overlap: found 0.95, expected 0 to 0.9": {"input__tile_overlap": 0.95},
    "name: found an empty text": {"name": "  "},
    "input.resize: found 'cubic', expected 'area', 'nearest', 'bilinear'": {"input__resize": "cubic"},
    "input.resize: found bilinear, but tiles are cut at native scale": {
        "input__fit": "tile",
        "input__resize": "bilinear",
    },
    'input.resize_short: found with fit = "letterbox", expected with fit = "center-crop" only': {
        "input__resize_short": 256
    },
    "input.resize_short: found 223, expected 224 to 16384 pixels": {
        "input__fit": "center-crop",
        "input__resize_short": 223,
    },
    'input.pad_color: found with fit = "stretch"': {"input__fit": "stretch", "input__pad_color": [114]},
    "input.pad_color: found 2 numbers, expected 1 or 3": {"input__pad_color": [114, 114]},
    "input.pad_color: found [256], expected whole numbers from 0 to 255": {"input__pad_color": [256]},
    "output.positive_label: found 'crack', expected this key for two labels only": {"output__positive_label": "crack"},
    "labels: found 'labels.txt', expected a list of labels": {"labels": "labels.txt"},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_named_with_key_found_and_expected(words: str) -> None:
    with pytest.raises(CardError) as caught:
        card_from(document(**WRONG[words]), source="card.toml")

    assert words in str(caught.value)
    assert str(caught.value).startswith("card.toml: ")


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(CardError) as caught:
        card_from(document(name=None, input__hieght=1, explain__method="magic"))

    for words in ("name: found nothing", "input.hieght: unknown key", "explain.method: found 'magic'"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = ", "is no TOML"),
        (b"\xff\xfe\x00", "is no TOML"),
        (b"a = [" + b"[" * 5000, "is no TOML"),
        (b"#" * (1 << 20) + b"\n", "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_card_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(content)

    with pytest.raises(CardError, match=words):
        read_card(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="cannot be read"):
        read_card(tmp_path / "card.toml")


def test_a_card_made_in_code_is_held_to_the_same_rules() -> None:
    check_card(card_from(document()))

    with pytest.raises(CardError, match=r"explain\.mu: found 2"):
        check_card(dataclasses.replace(card_from(document()), explain=ExplainSpec(mu=2)))


plain = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cf", "Cn", "Co", "Zl", "Zp"))
names = st.text(plain, min_size=1, max_size=255).filter(lambda name: name.strip())


@pytest.mark.parametrize("name", ["x" * 256, "a\nb", "a\u202eb"])
def test_names_are_what_a_database_indexes_and_a_page_shows(name: str) -> None:
    for key in ("name", "version", "labels"):
        with pytest.raises(CardError, match=f"{key}: found .*at most 255 printable characters"):
            check_card(dataclasses.replace(card_from(document()), **{key: (name, "b") if key == "labels" else name}))


def test_labels_may_stand_in_a_file_beside_the_card(tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    card.write_text(FULL.replace('["blowhole", "crack", "free"]', '"lists/labels.txt"'))
    (tmp_path / "lists").mkdir()
    for text in (b"blowhole\ncrack\nfree", b"\xef\xbb\xbfblowhole\r\ncrack \r\nfree\r\n\r\n"):  # or by Windows
        (tmp_path / "lists/labels.txt").write_bytes(text)
        assert read_card(card) == card_from(document())
        assert card_from(tomllib.loads(card_text(card, read_card(card)).decode())) == card_from(document())
    with pytest.raises(CardError, match=r"labels: found 'lists/labels\.txt', expected a list"):
        read_card(card, alone=True)  # as a bundle's card is read: it must not name files of this machine
    (tmp_path / "lists/labels.txt").write_bytes(b"blowhole\n\nfree")
    with pytest.raises(CardError, match="no empty one"):
        read_card(card)
    (tmp_path / "lists/labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CardError, match=r"labels\.txt cannot be read"):
        read_card(card)
    (tmp_path / "lists/labels.txt").unlink()
    with pytest.raises(CardError, match=r"labels\.txt cannot be read: No such file") as caught:
        read_card(card)
    assert "relative to the card" in caught.value.remedy


def test_the_canonical_form_of_cards_from_before_stays() -> None:
    """What every fingerprint is made of: keys that came later must not show where a card leaves them out."""
    assert canonical(card_from(document())) == (
        '{"explain":{"baseline":"blur","blocks":["relu_3","relu_7"],"method":"ada-sise","mu":0.0},'
        '"input":{"channels":"bgr","fit":"letterbox","height":224,"layout":"nhwc","mean":[103.9,116.8,123.7],'
        '"scale":1.0,"std":[1.0,1.0,1.0],"tile_overlap":0.5,"width":192},"labels":["blowhole","crack","free"],'
        '"name":"magnetic-tile",'
        '"ok_labels":["free"],"output":{"activation":"sigmoid"},"verdict":{"ng_threshold":0.4,'
        '"thresholds":{"crack":0.25},"unsure_margin":0.15},"version":"2026.11"}'
    )


@settings(max_examples=40, deadline=None)
@given(
    name=names,
    labels=st.lists(names, min_size=2, max_size=4, unique=True),
    mean=st.floats(-1e6, 1e6),
    std=st.floats(1e-6, 1e6),
    threshold=st.floats(0.001, 1),
)
def test_a_card_survives_being_written_and_read(
    name: str, labels: list[str], mean: float, std: float, threshold: float
) -> None:
    card = ModelCard(
        name=name,
        version="1",
        labels=tuple(labels),
        ok_labels=(labels[0],),
        input=InputSpec(32, 32, mean=(mean,), std=(std,)),
        verdict=VerdictSpec(thresholds={labels[1]: threshold}),
        description=name * 2,
    )

    written = card_toml(card)

    assert card_from(tomllib.loads(written)) == card
    assert canonical(card_from(tomllib.loads(written))) == canonical(card)


def test_canonical_form_ignores_order_and_comments_but_no_value() -> None:
    card = card_from(document())
    turned = card_from(dict(reversed(document().items())))

    assert canonical(turned) == canonical(card)
    assert canonical(card_from(document(verdict__unsure_margin=0.16))) != canonical(card)
