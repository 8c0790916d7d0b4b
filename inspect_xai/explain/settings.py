"""Settings of an explanation: one frozen value that card, policy, audit, command line and replay all lead to."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Self, TypedDict, Unpack

from inspect_xai.errors import SettingsError
from inspect_xai.records import Baseline, Method, ModelCard, Profile, RecordedSettings

FEWEST_PASSES = 16  # a prediction from fewer scores is a guess
MOST_WINDOWS = 64
"""Default for the most windows of a picture that are explained: those that score highest."""

MOST_SECONDS = 600.0
"""After this time no further window of a picture is begun."""

PROFILE_SHARE = {Profile.EXACT: 1.0, Profile.FAST: 0.25, Profile.QUICK: 0.10}  # of the passes that every mask takes


class ExplainOptions(TypedDict, total=False):
    """Options in place of the card's settings, or beside them; see `ExplainSettings`."""

    method: Method | str | None
    mu: float | None
    baseline: Baseline | str | None
    profile: Profile | str | None
    max_passes: int | None
    budget_s: float | None
    max_windows: int | None
    faithfulness: bool


class Mistake(NamedTuple):
    """A setting that is out of its range."""

    name: str
    value: float
    expected: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """How to explain a picture.

    Attributes:
        method: One of `explain/methods.py`, where their costs are.
        mu: Selection threshold in [0, 1) as a share of the largest alpha.
        baseline: Fill of masked pixels.
        profile: How many masks are scored by a forward pass of their own.
        max_passes: Most passes spent on a picture; masks beyond that get predicted scores, and windows for which
            nothing is left are not explained. None: no bound.
        budget_s: The same in seconds; at least a few passes are made on one window even if they take longer.
        max_windows: Most windows of a picture that are explained, those that score highest; None: all. In any case no
            window is begun after `MOST_SECONDS`.
        faithfulness: Measure the faithfulness of every explanation, in a few more passes that count neither as `passes`
            nor against a bound (see `explain/faithfulness.py`).

    Raises:
        SettingsError: If mu lies outside [0, 1), or a bound is too low.
    """

    method: Method = Method.SISE
    mu: float = 0.3
    baseline: Baseline = Baseline.MEAN
    profile: Profile = Profile.EXACT
    max_passes: int | None = None
    budget_s: float | None = None
    max_windows: int | None = MOST_WINDOWS
    faithfulness: bool = True

    def __post_init__(self) -> None:
        for name, value, expected, remedy in mistakes(
            mu=self.mu, max_passes=self.max_passes, budget_s=self.budget_s, max_windows=self.max_windows
        ):
            raise SettingsError(f"{name} is {value}", expected=expected, remedy=remedy)

    @classmethod
    def of_card(cls, card: ModelCard, **options: Unpack[ExplainOptions]) -> Self:
        """Return the card's settings, with `options` in their place where they are not None.

        The profiles "fast" and "quick" approximate the map of mu = 0, and take that mu unless another is given.
        """
        spec = card.explain
        profile = Profile(options.get("profile") or spec.profile)
        mu = options.get("mu")
        usual_mu = spec.mu if profile is Profile.EXACT else 0.0
        return cls(
            Method(options.get("method") or spec.method),
            usual_mu if mu is None else mu,
            Baseline(options.get("baseline") or spec.baseline),
            profile,
            options.get("max_passes"),
            options.get("budget_s"),
            options.get("max_windows", MOST_WINDOWS),
            options.get("faithfulness", True),
        )

    def recorded(self, *, target: str, against: str | None = None) -> RecordedSettings:
        """Return the settings to record with an explanation of `target` rather than `against`."""
        return RecordedSettings(
            self.method,
            target,
            against or "",
            self.mu,
            self.baseline,
            self.profile,
            self.max_passes or 0,
            self.budget_s or 0.0,
        )


def mistakes(
    *,
    mu: float | None = None,
    max_passes: int | None = None,
    budget_s: float | None = None,
    max_windows: int | None = None,
) -> Iterator[Mistake]:
    """Yield the settings that are out of their range; None is in it."""
    if mu is not None and not 0 <= mu < 1:
        yield Mistake("mu", mu, "0 <= mu < 1", "0 keeps every positive channel; 0.3 is usual")
    if max_passes is not None and max_passes < FEWEST_PASSES:
        yield Mistake("max_passes", max_passes, f"at least {FEWEST_PASSES}")
    if budget_s is not None and not 0 < budget_s < inf:
        yield Mistake("budget_s", budget_s, "more than 0 seconds, and a number")
    if max_windows is not None and max_windows < 1:
        yield Mistake("max_windows", max_windows, "at least 1")
