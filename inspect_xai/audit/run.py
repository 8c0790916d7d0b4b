"""Run of an audit: a bundle and labeled pictures -> rows of numbers on disk, written while it runs.

    OUT/settings.json   settings, model and table of the rows; a run with others refuses to continue here
    OUT/rows/*.parquet  each picture's prediction, and each method's numbers (`rows.py`)
    OUT/maps/*.npz      the maps, reduced, one file for each picture and one array for each method

An interrupted audit that is run again continues after its last file of rows. The report is made in `conclusions.py`.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inspect_xai.audit.dataset import LabelledPicture, read_labeled, read_mask, read_truth
from inspect_xai.audit.measure import measure, measure_adcc, prepare_measurement
from inspect_xai.audit.rows import AuditRow, Measured, RowWriter, read_rows
from inspect_xai.errors import InspectXaiError, SettingsError
from inspect_xai.explain.request import explain
from inspect_xai.explain.save import versions
from inspect_xai.explain.settings import ExplainSettings
from inspect_xai.explain.window_scores import WindowScores, look
from inspect_xai.intake.sources import read_picture
from inspect_xai.maths import picture_regions
from inspect_xai.model.engine import Engine
from inspect_xai.records import Baseline, Explanation, Method, ModelCard, PictureLimits, Profile

SCHEMA_VERSION = 2
CHANCE = (Method.RANDOM, Method.CENTER)
"""Methods that ignore the network; every audit has them as a baseline for its numbers."""

MAP_PX = 160
"""Longest side of the stored maps."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Settings of an audit; the same settings on the same bundle and table give the same rows.

    Attributes:
        methods: Those compared; the answer is by the first. The baseline methods (`CHANCE`) are added.
        profile: Share of the masks that are scored by a forward pass; None: the card's.
        mu: Selection threshold; None: the card's.
        baseline: Fill of masked pixels; None: the card's.
        sample: Number of pictures to measure, drawn at random; 0: all.
        seed: Of everything random.
        steps: Of the insertion and deletion curves.
        only_right: Explain only pictures judged right; else every defective picture, by its true label.
        region: Where the part is: "auto" (segmented from the background), "picture", "top,left,height,width", or the
            path of a picture that is bright where the part is.
        sanity: Number of pictures for the sanity checks; 0: none.
        adcc: Measure ADCC too, for one more explanation of each picture by each method.
        limits: How the files of pictures and masks become pixels.
    """

    methods: tuple[Method, ...] = (Method.SISE, Method.GRAD_SISE, Method.GRAD_CAM, Method.LAYER_CAM)
    profile: Profile | None = None
    mu: float | None = None
    baseline: Baseline | None = None
    sample: int = 0
    seed: int = 0
    steps: int = 50
    only_right: bool = True
    region: str = "auto"
    sanity: int = 3
    adcc: bool = False
    limits: PictureLimits = field(kw_only=True)

    @property
    def compared(self) -> tuple[Method, ...]:
        """The methods and the baseline methods."""
        return (*self.methods, *(method for method in CHANCE if method not in self.methods))

    def explain_settings(self, card: ModelCard, method: Method) -> ExplainSettings:
        """Return the settings of a method, without faithfulness: an audit measures more than that."""
        return ExplainSettings.of_card(
            card, method=method, mu=self.mu, baseline=self.baseline, profile=self.profile, faithfulness=False
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit: its folder, the content of its settings.json, and its rows in the order of the table."""

    folder: Path
    header: dict[str, Any]
    rows: tuple[AuditRow, ...] = field(repr=False)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Compared methods, the baseline methods last."""
        return tuple(Method(name) for name in self.header["methods"])

    @property
    def pictures(self) -> Path:
        """Folder that the rows' images are relative to."""
        return Path(self.header["table"]).parent

    @property
    def limits(self) -> PictureLimits:
        """How files became pixels."""
        return PictureLimits.recorded(self.header["settings"])

    def labeled(self) -> dict[str, LabelledPicture]:
        """Read the table again, by image; empty where it, or a picture, is missing now."""
        try:
            return {
                labeled.image: labeled for labeled in read_labeled(Path(self.header["table"]), self.header["labels"])
            }
        except SettingsError:
            return {}

    def maps(self, row: AuditRow) -> dict[str, NDArray[np.float32]]:
        """Read a row's reduced maps (h, w) by method, each 0 to 1; empty where nothing was explained."""
        if not row.map_file:
            return {}
        with np.load(self.folder / row.map_file) as stored:
            return {name: stored[name].astype(np.float32) for name in stored.files}


def run_audit(
    engine: Engine, table: Path, out: Path, *, settings: AuditSettings, on_row: Callable[[int, int], None] | None = None
) -> Audit:
    """Measure a model on labeled pictures; continue an earlier run with the same settings that was interrupted.

    Args:
        engine: Of the model.
        table: CSV file of pictures (see `dataset.py`).
        out: Folder to make or to continue in.
        settings: What to measure.
        on_row: Called with the rows done and their total, first with those already there.

    Raises:
        SettingsError: If the table is wrong, or `out` holds something else.
    """
    chosen = _sampled(read_labeled(table, engine.card.labels), settings)
    _check_settings(settings)
    header = _header(engine, table, settings, chosen)
    _open_folder(out, header)
    done = {row.image: row for row in read_rows(out / "rows")}
    report = on_row or (lambda *_: None)
    report(len(done), len(chosen))
    (out / "maps").mkdir(exist_ok=True)
    with RowWriter(out / "rows") as writer:
        for number, labeled in enumerate(chosen):
            if labeled.image in done:
                continue
            row = _measure_picture(engine, labeled, out, number=number, settings=settings)
            writer.add(row)
            done[row.image] = row
            report(len(done), len(chosen))
    return Audit(out, header, tuple(done[labeled.image] for labeled in chosen))


def open_audit(folder: Path) -> Audit:
    """Read the audit in a folder; a `SettingsError` if there is none."""
    try:
        header = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{folder} holds no audit: {error}", expected="a folder written by: inspect-xai audit BUNDLE --out DIR"
        ) from error
    if header.get("schema_version") != SCHEMA_VERSION:
        raise SettingsError(
            f"{folder} has audit schema {header.get('schema_version')}",
            expected=str(SCHEMA_VERSION),
            remedy="run the audit again with this version",
        )
    header["settings"].setdefault("limits", asdict(PictureLimits()))  # before they were recorded, all audits had these
    return Audit(folder, header, tuple(read_rows(folder / "rows")))


def _sampled(pictures: Sequence[LabelledPicture], settings: AuditSettings) -> list[LabelledPicture]:
    if not 0 < settings.sample < len(pictures):
        return list(pictures)
    drawn = sorted(random.Random(settings.seed).sample(range(len(pictures)), settings.sample))  # noqa: S311
    return [pictures[number] for number in drawn]


def _check_settings(settings: AuditSettings) -> None:
    for name, least in (("steps", 2), ("sample", 0), ("sanity", 0)):
        if getattr(settings, name) < least:
            raise SettingsError(f"{name} is {getattr(settings, name)}", expected=f"at least {least}")
    if not settings.methods or len(set(settings.methods)) != len(settings.methods):
        raise SettingsError(f"methods are {', '.join(settings.methods) or 'none'}", expected="one or more, each once")
    if settings.region not in ("auto", "picture") and not Path(settings.region).is_file():
        _box(settings.region)


def _header(engine: Engine, table: Path, settings: AuditSettings, chosen: Sequence[LabelledPicture]) -> dict[str, Any]:
    """Return the content of settings.json."""
    bundle = engine.bundle
    in_effect = settings.explain_settings(bundle.card, settings.methods[0])
    region = Path(settings.region)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": bundle.card.name, "version": bundle.card.version, "fingerprint": bundle.fingerprint},
        "labels": list(bundle.card.labels),
        "ok_labels": list(bundle.card.ok_labels),
        "methods": [str(method) for method in settings.compared],
        "table": str(table.resolve()),
        "table_sha256": sha256(table.read_bytes()).hexdigest(),
        "pictures": len(chosen),
        "region_sha256": sha256(region.read_bytes()).hexdigest() if region.is_file() else "",
        "settings": json.loads(json.dumps(asdict(settings))),
        "explained_by": {  # settings in effect, given or the card's
            "profile": str(in_effect.profile),
            "mu": in_effect.mu,
            "baseline": str(in_effect.baseline),
        },
        "provider": engine.provider,
        "versions": versions(),
    }


def _open_folder(out: Path, header: dict[str, Any]) -> None:
    """Begin an audit's folder, or check that the one there was begun with the same settings."""
    path = out / "settings.json"
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise SettingsError(
                f"{out} exists and holds no audit",
                expected="a new folder, or an audit to continue",
                remedy="give another --out",
            )
        out.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        draft.rename(path)
        return
    before = open_audit(out).header
    missing = {"explained_by": header["explained_by"]}  # of older audits: the same card, so it was the same
    free = ("table", "provider", "versions")  # the pictures may move and the machine may change
    differing = [key for key in header if key not in free and before.get(key, missing.get(key)) != header[key]]
    if differing:
        raise SettingsError(
            f"{out} holds an audit with other {', '.join(differing)}",
            expected="the settings, model and table it was begun with",
            remedy="give another --out",
        )


def _measure_picture(
    engine: Engine, labeled: LabelledPicture, out: Path, *, number: int, settings: AuditSettings
) -> AuditRow:
    """Judge, explain and measure one picture; an error becomes its row."""
    row = AuditRow(labeled.image, labeled.label, labeled.part, labeled.station)
    try:
        pixels = read_picture(labeled.path, limits=settings.limits).pixels
        size = (pixels.shape[0], pixels.shape[1])
        truth = read_truth(labeled, size, limits=settings.limits)
        seen = look(engine, pixels)
        prediction = seen.prediction
        row = replace(row, predicted=prediction.label, score=prediction.score, verdict=str(seen.verdict.code))
        if labeled.label in engine.card.ok_labels or (settings.only_right and not row.is_right):
            return row
        region = _region(settings.region, pixels, limits=settings.limits)
        target = engine.card.labels.index(labeled.label)
        scene = prepare_measurement(engine, seen, target=target, truth=truth, part=region, seed=settings.seed)
        measured, maps = [], {}
        for how, found, seconds in _explain_all(engine, seen, labeled.label, settings):
            numbers = measure(engine, scene, found, steps=settings.steps, seed=settings.seed)
            if settings.adcc:
                numbers |= measure_adcc(engine, scene, found, how)
            measured.append(
                Measured(how.method, str(found.status), numbers, found.forward_passes, seconds, found.notes)
            )
            maps[str(how.method)] = _reduced(found.fused)
        map_file = f"maps/{number:06d}.npz"
        np.savez_compressed(out / map_file, allow_pickle=False, **maps)
        return replace(
            row,
            target=labeled.label,
            closed_drop=scene.closed_drop,
            measured=tuple(measured),
            map_file=map_file,
            truth_share=None if truth is None else float(truth.mean()),
        )
    except (InspectXaiError, OSError) as error:
        return replace(row, error=f"{type(error).__name__}: {error}")


def _explain_all(
    engine: Engine, seen: WindowScores, target: str, settings: AuditSettings
) -> Iterator[tuple[ExplainSettings, Explanation, float]]:
    for method in settings.compared:
        how = settings.explain_settings(engine.card, method)
        began = time.perf_counter()
        found = explain(engine, seen, how, target=target)
        yield how, found, time.perf_counter() - began


def _region(region: str, picture: NDArray[np.uint8], *, limits: PictureLimits) -> NDArray[np.bool_]:
    """Return where the part is in a picture, bool (H, W)."""
    size = (picture.shape[0], picture.shape[1])
    if region == "auto":
        return picture_regions.part_region(picture)
    if region == "picture":
        return np.ones(size, np.bool_)
    if Path(region).is_file():
        return read_mask(Path(region), size, limits=limits)
    return picture_regions.boxes_mask((_box(region),), size)


def _box(region: str) -> tuple[int, int, int, int]:
    try:
        top, left, height, width = (int(number) for number in region.split(","))
    except ValueError as error:
        raise SettingsError(
            f"region is {region!r}", expected="auto, picture, top,left,height,width in pixels, or the path of a mask"
        ) from error
    return top, left, height, width


def _reduced(fused: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return a map to store: no larger than `MAP_PX`, 0 to 1, half precision."""
    scale = min(1.0, MAP_PX / max(fused.shape))
    size = (max(1, round(fused.shape[1] * scale)), max(1, round(fused.shape[0] * scale)))
    small = cv2.resize(fused, size, interpolation=cv2.INTER_AREA) if scale < 1 else fused
    return np.asarray(small / (small.max() or 1.0), np.float16)
