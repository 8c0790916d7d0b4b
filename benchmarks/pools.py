"""Pools of inspected castings: the same parts on quiet days and with each planted trouble, as the record knows them.

    python -m benchmarks.pools --keep build/drift --parts 200

Each pool is a database of the shipped line: pictures rendered, judged by the sample network, and what the policy asks
for explained with the profile `quick` (flagged parts and 5 % of the passed ones). Number n is the same part in every
pool, so that pools differ by their trouble and nothing else. Begun again it goes on; about 7 seconds for 50 parts.
"""

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from inspect_xai.intake.folder_source import FolderSource
from inspect_xai.line.line import Line, drain
from inspect_xai.model.build.build import build_bundle
from inspect_xai.policy import read_policy
from inspect_xai.storage.report_queries import FeatureTable, ReportQueries
from inspect_xai.storage.schema import upgrade_schema
from inspect_xai.storage.store import open_store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from make_line import Shot, shoot
from surfaces import OK_LABEL, Condition, render

SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "sample"
PLACE = ("L1", "S2", "EARLY")
_SEED = 11
_ROUND = 50  # parts between two marks on disk
_DAY = datetime(2026, 11, 2, 6, tzinfo=UTC)
_DIM = 0.97
_LEVELS = 6


@dataclass(frozen=True, slots=True)
class Pool:
    """What is unusual: the condition, the kind that every second defect has instead of its own, the card."""

    condition: Condition
    kind: str | None = None
    wrong_card: bool = False


USUAL = Condition(lamp=_DIM)
LAMPS = tuple(f"lamp {100 * _DIM**k:.0f} %" for k in range(_LEVELS))
"""Levels of the lamp; on quiet days it wanders between the first three."""

POOLS: dict[str, Pool] = {name: Pool(Condition(lamp=_DIM**k)) for k, name in enumerate(LAMPS)} | {
    "fixture": Pool(Condition(lamp=_DIM, shift_px=(9.0, 14.0))),
    "dirt": Pool(Condition(lamp=_DIM, lens_dirt=0.6)),
    "dent": Pool(USUAL, kind="dent"),
    "wrong": Pool(USUAL, wrong_card=True),
}


def fill(keep: Path, *, parts: int) -> None:
    """Render, judge and explain what is missing in a folder."""
    keep.mkdir(parents=True, exist_ok=True)
    policy = read_policy(SAMPLE / "policy.toml")
    for start, (name, pool) in itertools.product(range(0, parts, _ROUND), POOLS.items()):
        mark = keep / f"{name}.{start}.done"
        if mark.exists():
            continue
        began = time.perf_counter()
        upgrade_schema(_url(keep, name))
        with ExitStack() as stack:
            line = stack.enter_context(
                Line(_bundle(keep, wrong=pool.wrong_card), _url(keep, name), device="cpu", threads=1, policy=policy)
            )
            for index in range(start, start + _ROUND):
                shoot(_shot(index, pool), seed=_SEED, out=keep)
            drain(line, stack.enter_context(FolderSource(keep / "incoming", settle_s=0)))
        for folder in ("incoming", "truth"):
            shutil.rmtree(keep / folder, ignore_errors=True)
        mark.touch()
        print(f"{name}: parts {start} to {start + _ROUND}, {time.perf_counter() - began:.0f} s", flush=True)


def read(keep: Path) -> Mapping[str, FeatureTable]:
    """Return what is watched of the parts of each pool, in the order of their numbers."""
    found = {}
    for name in POOLS:
        with open_store(_url(keep, name)) as store:
            found[name] = ReportQueries(store.database).features(_DAY, _DAY + timedelta(days=1), most=1_000_000)[PLACE]
    return found


def _url(keep: Path, name: str) -> str:
    return f"sqlite:///{(keep / name.replace(' ', '-').replace('%', 'percent')).resolve()}.db"


def _bundle(keep: Path, *, wrong: bool) -> Path:
    """Build the sample network, or one with ImageNet's mean and spread in its card, as if copied."""
    bundle = keep / ("wrong.bundle" if wrong else "right.bundle")
    if not bundle.exists():
        card = (SAMPLE / "card.toml").read_text(encoding="utf-8")
        if wrong:
            card = card.replace("[0.531, 0.526, 0.518]", "[0.485, 0.456, 0.406]")
            card = card.replace("[0.125, 0.124, 0.125]", "[0.229, 0.224, 0.225]")
        (keep / "card.toml").write_text(card, encoding="utf-8")
        build_bundle(SAMPLE / "model.onnx", keep / "card.toml", bundle)
    return bundle


def _shot(index: int, pool: Pool) -> Shot:
    line, station, shift = PLACE
    part, at = f"SN{index:06d}", f"{_DAY + timedelta(minutes=index):%Y%m%dT%H%M%SZ}"
    name = f"{line}/{station}/{part}_LOT1_CAM2_SIDE_{shift}_{at}.png"
    kind = pool.kind
    if kind and (index % 2 == 0 or render(_SEED, index).label == OK_LABEL):
        kind = None  # as many defects as in the other pools: only their kind changes
    return Shot(name, index, part, "LOT1", station, shift, kind, pool.condition)


def main() -> None:
    """Fill the pools."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, default=Path("build/drift"), help="folder that keeps them")
    parser.add_argument("--parts", type=int, default=200, help="per pool (default: %(default)s)")
    given = parser.parse_args()
    fill(given.keep, parts=given.parts)


if __name__ == "__main__":
    main()
