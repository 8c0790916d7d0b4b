"""What a monitor reads at /metrics: what was inspected, what it cost, and what waits for a person."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from inspect_xai.storage.metrics_totals import Group, Totals
from inspect_xai.storage.review_queue_sql import Overview

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Family = CounterMetricFamily | GaugeMetricFamily


def exposition(totals: Totals, overview: Overview, *, broken: int = 0) -> bytes:
    """Return everything in Prometheus' text format; `broken` inspections are passed over as their page failed."""
    registry = CollectorRegistry()
    registry.register(_Families([*_counters(totals), *_gauges(totals, overview, broken)]))
    return generate_latest(registry)


class _Families(Collector):
    """Families that are made already, in the form a registry takes."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def _counters(totals: Totals) -> Iterator[Family]:
    explained = {group: number for group, number in totals.inspections.items() if group.explained}
    for name, words, labels, numbers in (
        (
            "inspections",
            "Pictures judged, and those that could not be.",
            ("line", "station", "verdict"),
            totals.inspections,
        ),
        ("explanations", "Explanations by their status.", ("line", "station", "explained"), explained),
        ("failures", "Pictures that could not be judged or explained.", ("line", "station"), totals.failures),
        ("passes", "Forward passes spent on explanations.", ("line", "station"), totals.passes),
        ("inspecting_seconds", "Wall time of inspecting, with the explaining.", ("line", "station"), totals.seconds),
        ("explaining_seconds", "Wall time of explaining.", ("line", "station"), totals.explaining_s),
    ):
        family = CounterMetricFamily(f"inspect_xai_{name}", words, labels=labels)
        for values, number in _added_up(numbers, labels).items():
            family.add_metric(values, number)
        yield family


def _added_up(numbers: Mapping[Group, float], labels: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    added: dict[tuple[str, ...], float] = {}
    for group, number in numbers.items():
        values = tuple(getattr(group, label) for label in labels)
        added[values] = added.get(values, 0.0) + number
    return added


def _gauges(totals: Totals, overview: Overview, broken: int) -> Iterator[Family]:
    waiting = GaugeMetricFamily("inspect_xai_queue_waiting", "Inspections that wait for a person.", labels=("why",))
    for why, number in overview.counts["reason"].items():
        waiting.add_metric((why,), number)
    yield waiting
    yield GaugeMetricFamily("inspect_xai_queue_broken", "Inspections passed over: their page failed.", value=broken)
    for name, words, moment in (
        ("queue_oldest", "When the longest waiting one was inspected.", overview.oldest_at),
        ("newest_inspection", "When the newest picture was inspected.", totals.newest_at),
    ):
        if moment is not None:
            family = GaugeMetricFamily(f"inspect_xai_{name}_timestamp_seconds", words)
            family.add_metric((), moment.timestamp())
            yield family
