"""Comparison of two audits of the same pictures: may the new model replace the old one?"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from inspect_xai.audit.conclusions import METRICS
from inspect_xai.audit.rows import AuditRow
from inspect_xai.audit.run import CHANCE, Audit
from inspect_xai.errors import SettingsError
from inspect_xai.files import read_toml
from inspect_xai.maths.metrics import Average, average
from inspect_xai.maths.similarity import rank_correlation
from inspect_xai.records import Method, VerdictCode

_COUNTS = {
    "new_escapes": "defective pictures are newly judged OK",
    "new_overkill": "good pictures are newly judged NG",
    "new_unsure": "pictures are newly judged UNSURE",
}


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What a new model may do worse. None: not checked.

    Attributes:
        changed_share: Share of pictures whose verdict may change.
        newly_wrong_share: Share of pictures whose verdict was not wrong and may be now (see `Comparison`).
        new_escapes: Defective pictures that were not judged OK and may be now.
        new_overkill: Good pictures that were not judged NG and may be now.
        new_unsure: Pictures that were not judged UNSURE and may be now.
        rank_correlation: Least median rank correlation between old and new maps.
        metrics: By how much a metric's mean may be worse, by its key; intervals are not used.
    """

    changed_share: float | None = None
    newly_wrong_share: float | None = None
    new_escapes: int | None = None
    new_overkill: int | None = None
    new_unsure: int | None = None
    rank_correlation: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangedPart:
    """A picture with its result before and after; `correlation` is that of the maps, None where one has none."""

    image: str
    label: str
    before: str
    after: str
    correlation: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the second audit differs from the first.

    Attributes:
        method: Whose maps and metrics are compared.
        pictures: In both, and measured in the first.
        changed: Pictures with another verdict or another predicted label, or not measured any more.
        newly_wrong: Pictures whose verdict is wrong only now. Wrong are a defective picture judged OK, a good one
            judged NG, and one that could not be measured; UNSURE is not: a person decides then.
        newly_right: The other way round.
        p_value: Exact McNemar test of these two: how likely a difference as large is when both are equally good.
        new_escapes: Defective pictures judged OK only now.
        new_overkill: Good pictures judged NG only now.
        new_unsure: Pictures judged UNSURE only now.
        correlation: Median rank correlation of the maps; None where no picture has both.
        moved: The pictures whose evidence changed most, worst first.
        metrics: Mean of new less old by metric, picture by picture, with its interval.
        breaches: One text for each tolerance that is exceeded.
        differences: One text for each setting that is not the same, where that was allowed.
    """

    method: Method
    pictures: int
    changed: tuple[ChangedPart, ...]
    newly_wrong: int
    newly_right: int
    p_value: float
    new_escapes: int
    new_overkill: int
    new_unsure: int
    correlation: float | None
    moved: tuple[ChangedPart, ...]
    metrics: dict[str, Average]
    breaches: tuple[str, ...]
    differences: tuple[str, ...]


def read_tolerances(path: Path) -> Tolerances:
    """Read a TOML file with the keys of `Tolerances`, metrics in a table of that name.

    Raises:
        SettingsError: For a file that cannot be read, an unknown key, or a value that is no number from 0 on.
    """
    try:
        document = read_toml(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", expected="a TOML file of tolerances") from error
    _check_keys(path, document, known={entry.name for entry in fields(Tolerances)})
    metrics = document.get("metrics", {})
    if not isinstance(metrics, dict):
        raise SettingsError(f"{path}: metrics is {metrics!r}", expected="a table [metrics]")
    _check_keys(path, metrics, known={metric.key for metric in METRICS})
    for key, value in [*metrics.items(), *((key, value) for key, value in document.items() if key != "metrics")]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise SettingsError(f"{path}: {key} is {value!r}", expected="a number, 0 or more")
    return Tolerances(**document)


def _check_keys(path: Path, document: Mapping[str, Any], *, known: set[str]) -> None:
    unknown = sorted(document.keys() - known)
    if unknown:
        raise SettingsError(f"{path} has {', '.join(unknown)}", expected=f"some of {', '.join(sorted(known))}")


def compare_audits(
    before: Audit, after: Audit, *, tolerances: Tolerances, allow_different: bool = False, most_moved: int = 10
) -> Comparison:
    """Compare a new audit with an old one.

    Args:
        before: Of the model in use.
        after: Of the model to replace it, or of another run.
        tolerances: What is allowed.
        allow_different: Compare although the two were made with other settings; the differences are then reported.
        most_moved: Pictures to list whose evidence changed.

    Raises:
        SettingsError: If they are of other pictures or made with other settings, one was cut short, or they have no
            method or no picture in common.
    """
    for audit in (before, after):
        if len(audit.rows) < audit.header["pictures"]:
            raise SettingsError(
                f"{audit.folder} was cut short: {len(audit.rows)} of {audit.header['pictures']} pictures",
                expected="two finished audits",
                remedy="run the same command again: it goes on where it ended",
            )
    if before.header["table_sha256"] != after.header["table_sha256"]:
        raise SettingsError(
            f"{before.folder} and {after.folder} were made with different tables of pictures",
            expected="two audits with the same --manifest",
        )
    differences = _made_differently(before, after)
    if differences and not allow_different:
        raise SettingsError(
            f"{before.folder} and {after.folder} were made with other settings: {'; '.join(differences)}",
            expected="two audits that differ in the model alone",
            remedy="run one of them again with the settings of the other, or say --allow-different",
        )
    method = next((m for m in before.methods if m in after.methods and m not in CHANCE), None)
    old = {row.image: row for row in before.rows if not row.error}
    pairs = [(old[row.image], row) for row in after.rows if row.image in old]  # failing only now is a change, too
    if method is None or not pairs:
        raise SettingsError(
            f"{before.folder} and {after.folder} share {len(pairs)} pictures and {method or 'no method'}",
            expected="audits that have both in common",
            remedy="run both with the same --methods, --sample and --seed",
        )
    parts = [_part(before, after, one, two, method) for one, two in pairs]
    wrong = sum(_is_wrong(two, after) and not _is_wrong(one, before) for one, two in pairs)
    right = sum(_is_wrong(one, before) and not _is_wrong(two, after) for one, two in pairs)
    compared = sorted(
        (part for part in parts if part.correlation is not None), key=lambda part: float(part.correlation or 0.0)
    )
    comparison = Comparison(
        method=method,
        pictures=len(pairs),
        changed=tuple(part for part in parts if part.before != part.after),
        newly_wrong=wrong,
        newly_right=right,
        p_value=float(binomtest(wrong, wrong + right).pvalue) if wrong + right else 1.0,
        new_escapes=sum(_escapes(two, after) and not _escapes(one, before) for one, two in pairs),
        new_overkill=sum(_is_overkill(two, after) and not _is_overkill(one, before) for one, two in pairs),
        new_unsure=sum(two.verdict == VerdictCode.UNSURE != one.verdict for one, two in pairs),
        correlation=float(np.median([part.correlation for part in compared])) if compared else None,
        moved=tuple(compared[:most_moved]),
        metrics=_differences(pairs, method, seed=int(before.header["settings"]["seed"])),
        breaches=(),
        differences=differences,
    )
    return replace(comparison, breaches=_breaches(comparison, tolerances))


def _part(before: Audit, after: Audit, one: AuditRow, two: AuditRow, method: Method) -> ChangedPart:
    old, new = before.maps(one).get(str(method)), after.maps(two).get(str(method))
    correlation = rank_correlation(old, new) if old is not None and new is not None else None
    return ChangedPart(two.image, two.label, _result(one), _result(two), correlation)


def _result(row: AuditRow) -> str:
    return f"not measured: {row.error}" if row.error else f"{row.verdict} {row.predicted}"


def _escapes(row: AuditRow, audit: Audit) -> bool:
    return row.label not in audit.header["ok_labels"] and row.verdict == VerdictCode.OK


def _is_overkill(row: AuditRow, audit: Audit) -> bool:
    return row.label in audit.header["ok_labels"] and row.verdict == VerdictCode.NG


def _is_wrong(row: AuditRow, audit: Audit) -> bool:
    return bool(row.error) or _escapes(row, audit) or _is_overkill(row, audit)


def _made_differently(before: Audit, after: Audit) -> tuple[str, ...]:
    """Name the settings that change verdicts, maps or metrics and differ, with both values."""
    # Settings that were left out are the card's, and two cards may differ. Older audits did not record them.
    in_effect = all("explained_by" in audit.header for audit in (before, after))
    old, new = (_made_with(audit, in_effect=in_effect) for audit in (before, after))
    return tuple(f"{name} {old[name]} and {new[name]}" for name in old if old[name] != new[name])


def _made_with(audit: Audit, *, in_effect: bool) -> dict[str, str]:
    header = audit.header
    # How many pictures the sanity checks take, and whether ADCC is measured too, changes no number that is compared.
    settings = {name: value for name, value in header["settings"].items() if name not in ("sanity", "adcc")}
    limits = settings.pop("limits")
    settings |= {"methods": ", ".join(header["methods"]), "ok_labels": ", ".join(sorted(header["ok_labels"]))}
    if header["region_sha256"]:  # wherever the mask lies
        settings["region"] = f"mask {header['region_sha256'][:12]}"
    settings |= header["explained_by"] if in_effect else {}
    return {name: "the card's" if value is None else str(value) for name, value in (settings | limits).items()}


def _differences(pairs: list[tuple[AuditRow, AuditRow]], method: Method, *, seed: int) -> dict[str, Average]:
    differences = {}
    measured = [(one.of(method), two.of(method)) for one, two in pairs]
    numbers = [(one.numbers, two.numbers) for one, two in measured if one is not None and two is not None]
    for metric in METRICS:
        steps = [new[metric.key] - old[metric.key] for old, new in numbers if metric.key in old and metric.key in new]
        if steps:
            differences[metric.key] = average(steps, seed=seed)
    return differences


def _breaches(found: Comparison, allowed: Tolerances) -> tuple[str, ...]:
    breaches = []
    changed, wrong = len(found.changed) / found.pictures, found.newly_wrong / found.pictures
    if allowed.changed_share is not None and changed > allowed.changed_share:
        breaches.append(
            f"{changed:.1%} of the pictures changed their verdict or label, {allowed.changed_share:.1%} may"
        )
    if allowed.newly_wrong_share is not None and wrong > allowed.newly_wrong_share:
        breaches.append(f"{wrong:.1%} of the pictures are newly wrong, {allowed.newly_wrong_share:.1%} may be")
    for name, words in _COUNTS.items():
        count, most = getattr(found, name), getattr(allowed, name)
        if most is not None and count > most:
            breaches.append(f"{count} {words}, {most} may be")
    if allowed.rank_correlation is not None and (
        found.correlation is None or found.correlation < allowed.rank_correlation
    ):
        shown = "cannot be compared" if found.correlation is None else f"correlate by {found.correlation:.2f}"
        breaches.append(f"the maps {shown}, {allowed.rank_correlation:.2f} is the least")
    for metric in METRICS:
        if metric.key not in allowed.metrics:
            continue
        step = found.metrics.get(metric.key)
        if step is None:
            breaches.append(f"{metric.name} was not measured in both audits")
            continue
        worse = -step.mean if metric.higher_is_better else step.mean
        if worse > allowed.metrics[metric.key]:
            breaches.append(f"{metric.name} is worse by {worse:.3g}, {allowed.metrics[metric.key]:.3g} is allowed")
    return tuple(breaches)
