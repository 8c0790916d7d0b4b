"""policy.toml: what a plant has explained, how, and by which thresholds it judges; one file, one version.

The line and a replay read it; docs/guides/line.md shows it whole. Without one a line works by `DefaultPolicy`.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from inspect_xai.errors import SettingsError
from inspect_xai.explain.settings import MOST_WINDOWS, ExplainSettings, mistakes
from inspect_xai.files import read_toml
from inspect_xai.records import MAX_NAME_CHARS, Method, ModelCard, Profile, VerdictCode, VerdictSpec
from inspect_xai.settings import Channel

_MOST_BYTES = 1 << 20
_STRICT_KEYS = {"extra": "forbid"}
# Rules that versions were kept without: unless they say something else they are no part of the content.
_ADDED_LATER: dict[str, Any] = {
    "faithfulness": True,
    "labels": [],
    "overturned_days": 0,
    "max_windows": None,
    "ok_method": None,
}
_REMEDY = "correct the policy; docs/guides/line.md lists its keys"


NOBODY: Final = "quality"
"""Owner of the alarms that no rule gives an owner."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """Who owns an alarm and how it is sent; the first rule that fits counts.

    Attributes:
        owner: Who has to look at it: a name or a department.
        topics: Of alarms (docs/guides/quality-manager.md lists them); none: all.
        stations: Where it happened; none: anywhere, and alarms that have no station too.
        send: Channels; none: it stands on the page only.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    owner: str = NOBODY
    topics: tuple[str, ...] = ()
    stations: tuple[str, ...] = ()
    send: tuple[Channel, ...] = ()

    def fits(self, topic: str, station: str) -> bool:
        """Return whether the rule covers an alarm."""
        return (not self.topics or topic in self.topics) and (not self.stations or station in self.stations)


def rule_for(rules: Sequence[AlertRule], *, topic: str, station: str) -> AlertRule:
    """Return the rule that covers an alarm; where none does, the default one."""
    return next((rule for rule in rules if rule.fits(topic, station)), AlertRule())


@dataclass(frozen=True, slots=True)
class ExplainRule:
    """What is explained and what it may cost; None: as the model's card says, or no bound.

    `labels`: defect labels explained whatever the verdict. `overturned_days`: the same for labels that people
    overturned in that number of days; 0: none. `faithfulness`: measure with every explanation whether it is true to the
    network, in eight passes beyond the bounds. `max_windows`: of a picture, at most; None: `MOST_WINDOWS`.
    `ok_method`: of pictures that are judged OK; None: `method`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    verdicts: tuple[VerdictCode, ...] = (VerdictCode.NG, VerdictCode.UNSURE)
    ok_share: float = 0.05
    method: Method | None = None
    profile: Profile | None = None
    max_passes: int | None = None
    max_seconds: float | None = None
    max_windows: int | None = None
    faithfulness: bool = True
    labels: tuple[str, ...] = ()
    overturned_days: int = 0
    ok_method: Method | None = None

    def why(
        self, verdict: VerdictCode, sha256: str, *, label: str = "", overturned: Collection[str] = frozenset()
    ) -> str:
        """Say why a picture is to be explained: "ng", "unsure", "ok", "sample", "label", "overturned", or "": not.

        Args:
            verdict: The line's.
            sha256: Of the picture, in hex; its first digits decide whether an OK picture is in the sample, so it is
                the same ones in every run. The sample goes first: estimates rest on it, and it must stay a random one.
            label: The defect label nearest to or furthest over its threshold.
            overturned: Labels that people overturned in the last `overturned_days`.

        >>> ExplainRule().why(VerdictCode.OK, "0" * 64), ExplainRule().why(VerdictCode.OK, "f" * 64)
        ('sample', '')
        """
        if verdict in self.verdicts:
            return verdict.value.lower()
        sampled = verdict is VerdictCode.OK and int(sha256[:8], 16) < self.ok_share * 2**32
        if sampled:
            return "sample"
        if label in self.labels:
            return "label"
        return "overturned" if label in overturned else ""


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """Thresholds of a product at a station, in the place of the card's; what is not said stays the card's."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    product: str = ""
    station: str = ""
    labels: dict[str, float] = field(default_factory=dict)
    ng_threshold: float | None = None
    unsure_margin: float | None = None


@dataclass(frozen=True, slots=True)
class RegionRule:
    """Where on a station's view parts are inspected: boxes (top, left, height, width) in picture pixels."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    station: str
    view: str
    boxes: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A version of the plant's rules. `product` holds, by product, the rules of those that differ."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    version: str
    explain: ExplainRule = field(default_factory=ExplainRule)
    product: dict[str, ExplainRule] = field(default_factory=dict)
    threshold: tuple[ThresholdRule, ...] = ()
    region: tuple[RegionRule, ...] = ()
    alert: tuple[AlertRule, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """Return what the version stands for, as plain values; alert rules decide nothing about a part."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del plain["version"], plain["alert"]
        return _without_usual(plain, _ADDED_LATER)

    @property
    def document(self) -> dict[str, Any] | None:
        """Return the whole policy as a run records it and `policy_from` reads it."""
        return _without_usual(asdict(self), {"ok_method": None})  # runs recorded before 0.2 have no such key

    @property
    def explains(self) -> bool:
        """Return whether any picture may be explained."""
        rules = (self.explain, *self.product.values())
        return any(rule.verdicts or rule.ok_share or rule.labels or rule.overturned_days for rule in rules)

    def rule_of(self, product: str) -> ExplainRule:
        """Return which of a product's pictures are explained, and how."""
        return self.product.get(product, self.explain)

    def explain_settings(self, card: ModelCard, product: str, verdict: VerdictCode) -> ExplainSettings:
        """Return how a product's pictures of a verdict are explained: what its rule says, and the card for the rest."""
        rule = self.rule_of(product)
        own = rule.ok_method if verdict is VerdictCode.OK else None
        return ExplainSettings.of_card(
            card,
            method=own or rule.method,
            profile=rule.profile,
            max_passes=rule.max_passes,
            budget_s=rule.max_seconds,
            max_windows=rule.max_windows or MOST_WINDOWS,
            faithfulness=rule.faithfulness,
        )

    def verdict_of(self, card: ModelCard, *, product: str, station: str) -> VerdictSpec:
        """Return the thresholds for a product at a station: the card's, and over them those of every rule that fits."""
        spec = card.verdict
        for rule in self.threshold:
            if rule.product in ("", product) and rule.station in ("", station):
                spec = VerdictSpec(
                    ng_threshold=spec.ng_threshold if rule.ng_threshold is None else rule.ng_threshold,
                    unsure_margin=spec.unsure_margin if rule.unsure_margin is None else rule.unsure_margin,
                    thresholds=({} if rule.ng_threshold is not None else spec.thresholds) | rule.labels,
                )
        return spec

    def inside(self, *, station: str, view: str, size_px: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Return where on a station's view parts are inspected, (H, W); None: nothing is said of it, or lies on it."""
        inside = np.zeros(size_px, np.bool_)
        for rule in self.region:
            if (rule.station, rule.view) == (station, view):
                for top, left, height, width in rule.boxes:
                    inside[top : top + height, left : left + width] = True
        return inside if inside.any() else None

    def explaining_all(self) -> "Policy":
        """Return the same policy with every verdict explained, under the version `VERSION+all`."""
        everything = tuple(VerdictCode)
        return Policy(
            f"{self.version}+all",
            replace(self.explain, verdicts=everything),
            {name: replace(rule, verdicts=everything) for name, rule in self.product.items()},
            self.threshold,
            self.region,
            self.alert,
        )

    def check_against(self, card: ModelCard) -> None:
        """Refuse labels that are not this model's: a misspelt one would leave the card's threshold in force.

        Raises:
            SettingsError: If there are any.
        """
        named = [label for rule in self.threshold for label in rule.labels]
        named += [label for rule in (self.explain, *self.product.values()) for label in rule.labels]
        unknown = sorted(set(named) - set(card.defect_labels))
        if unknown:
            raise SettingsError(
                f"policy {self.version!r} names the labels {', '.join(unknown)}",
                expected=f"defect labels of {card.name}: {', '.join(card.defect_labels)}",
                remedy=_REMEDY,
            )


@dataclass(frozen=True, slots=True)
class DefaultPolicy(Policy):
    """What a line without a policy file works by: a version and the share of OK pictures explained.

    Its versions keep the spelling they were first recorded with. Thresholds are the model card's, and so a part of the
    model's fingerprint.

    >>> DefaultPolicy("1").content
    {'explained': ['NG', 'UNSURE'], 'ok_share': 0.05}
    """

    @property
    def content(self) -> dict[str, Any]:
        """Return what the version stands for, as plain values."""
        return {"explained": [verdict.value for verdict in self.explain.verdicts], "ok_share": self.explain.ok_share}

    @property
    def document(self) -> None:
        """Return None: a run without a policy file records none, and replays judge by the card."""
        return None


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        SettingsError: If it cannot be read, or says something else than a policy must; every mistake is listed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise SettingsError(f"the policy {path} is larger than {_MOST_BYTES} bytes")
        return policy_from(read_toml(raw), source=str(path))
    except OSError as error:
        raise SettingsError(f"the policy {path} cannot be read: {error.strerror}", remedy=_REMEDY) from error
    except ValueError as error:
        raise SettingsError(f"the policy {path} is no TOML: {error}", remedy=_REMEDY) from error


def policy_from(document: Mapping[str, Any], *, source: str = "policy") -> Policy:
    """Make a policy from plain values, as TOML gives them.

    Raises:
        SettingsError: If a key is unknown, of the wrong kind or out of its range.
    """
    try:
        policy = _ADAPTER.validate_python(_with_defaults(document))
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()]
        raise SettingsError(f"{source}: {'; '.join(mistakes)}", remedy=_REMEDY) from error
    mistakes = list(_out_of_range(policy))
    if mistakes:
        raise SettingsError(f"{source}: {'; '.join(mistakes)}", remedy=_REMEDY)
    return policy


def _without_usual(plain: dict[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Remove from a policy's rules the keys that say what is usual."""
    for rule in (plain["explain"], *plain["product"].values()):
        for name, value in usual.items():
            if rule[name] == value:
                del rule[name]
    return plain


def _with_defaults(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give every product what [explain] says and it does not."""
    explain, product = document.get("explain", {}), document.get("product", {})
    if not isinstance(explain, dict) or not isinstance(product, dict):
        return dict(document)  # the validator says what is wrong with it
    own = {name: explain | rule if isinstance(rule, dict) else rule for name, rule in product.items()}
    return dict(document) | {"product": own}


def _out_of_range(policy: Policy) -> Iterator[str]:
    if not 0 < len(policy.version) <= MAX_NAME_CHARS or not policy.version.isprintable():
        yield f"version: Input should be printable text of at most {MAX_NAME_CHARS} characters"
    rules = {"explain": policy.explain} | {f"product.{name}": rule for name, rule in policy.product.items()}
    for name, rule in rules.items():
        if not 0 <= rule.ok_share <= 1:
            yield f"{name}.ok_share: {rule.ok_share} is no share between 0 and 1"
        bounds = mistakes(max_passes=rule.max_passes, budget_s=rule.max_seconds, max_windows=rule.max_windows)
        for mistake in bounds:
            key = {"budget_s": "max_seconds"}.get(mistake.name, mistake.name)
            yield f"{name}.{key}: found {mistake.value}, expected {mistake.expected}"
        if rule.overturned_days < 0:
            yield f"{name}.overturned_days: {rule.overturned_days} days"
    yield from _numbers_out_of_range(policy)


def _numbers_out_of_range(policy: Policy) -> Iterator[str]:
    for index, rule in enumerate(policy.threshold):
        probabilities = {"ng_threshold": rule.ng_threshold, "unsure_margin": rule.unsure_margin, **rule.labels}
        for key, value in probabilities.items():
            if value is not None and not 0 <= value <= 1:
                yield f"threshold.{index}.{key}: {value} is no probability"
    for index, region in enumerate(policy.region):
        if any(min(box) < 0 or 0 in box[2:] for box in region.boxes):
            yield f"region.{index}: a box is top, left >= 0, height, width >= 1"


_ADAPTER = TypeAdapter(Policy)
