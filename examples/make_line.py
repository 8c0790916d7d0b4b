"""Write a sample line: pictures as its cameras would drop them, and the truth about every one.

    python examples/make_line.py --out DIR --pictures 60 --days 1 --seed 7

DIR/incoming/L1/S3/SN000042_LOT18_CAM3_TOP_EARLY_20261122T061500Z.png
    line and station are folders; serial number, lot, camera, view, shift and UTC time are in the name.
DIR/truth/L1/S3/...      the mask of every defective part under the same name (255 where the defect is)
DIR/truth.csv            image,label,mask,part,lot,station,shift, one row per picture, paths relative to this file
DIR/truth/events.csv     event,line,station,from_date: what went wrong on the line, one row per --event

An event is KIND:STATION:DAY and lasts from the start of that day (1 is the first) to the end:
    lamp:S1:3      the lamp of S1 grows darker by 6 % a day, from day 3
    fixture:S2:4   the fixture of S2 holds its parts 9 px lower and 14 px further right
    lens:S1:5      dirt lies on the lens of S1
    dent:S3:5      half of the parts at S3 have a dent, a kind of defect the sample network was never shown
"""

import argparse
import csv
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
from surfaces import OK_LABEL, Condition, render

LINE = "L1"
FIRST_DAY = date(2026, 11, 22)
# station: (surface of its product, camera, view)
STATIONS = {"S1": ("steel", "CAM1", "TOP"), "S2": ("cast", "CAM2", "SIDE"), "S3": ("tile", "CAM3", "TOP")}
EVENTS = ("lamp", "fixture", "lens", "dent")
_PARTS_PER_LOT = 20
_FIRST_LOT = 17


@dataclass(frozen=True, slots=True)
class Event:
    """Something that goes wrong at a station from a day on (1 is the first)."""

    kind: str
    station: str
    day: int

    @classmethod
    def parse(cls, text: str) -> "Event":
        """Read KIND:STATION:DAY.

        Raises:
            argparse.ArgumentTypeError: It is not of that form, or the kind or the station does not exist.
        """
        kind, _, rest = text.partition(":")
        station, _, day = rest.partition(":")
        if kind not in EVENTS or station not in STATIONS or not day.isdecimal() or int(day) < 1:
            raise argparse.ArgumentTypeError(
                f"found {text!r}, expected KIND:STATION:DAY with a kind of {', '.join(EVENTS)}, "
                f"a station of {', '.join(STATIONS)} and a day from 1"
            )
        return cls(kind, station, int(day))


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to be taken: `name` is its path below the camera folder; without a `label` one is drawn."""

    name: str
    index: int
    part: str
    lot: str
    station: str
    shift: str
    label: str | None
    condition: Condition


def plan(*, pictures: int, days: int, seed: int, start: date, events: Sequence[Event] = ()) -> list[Shot]:
    """Say what each picture of the line shows, day by day, spread evenly over the 24 hours.

    Args:
        pictures: Per day.
        days: How many.
        seed: Series of the renderer.
        start: The first day.
        events: What goes wrong.
    """
    shots = []
    for index in range(pictures * days):
        day = index // pictures
        taken = datetime(start.year, start.month, start.day, tzinfo=UTC) + timedelta(
            days=day, seconds=round((index % pictures + 0.5) * 86400 / pictures)
        )
        station = list(STATIONS)[index % len(STATIONS)]
        _, camera, view = STATIONS[station]
        shift = "EARLY" if 6 <= taken.hour < 14 else "LATE" if 14 <= taken.hour < 22 else "NIGHT"
        part, lot = f"SN{index + 1:06d}", f"LOT{_FIRST_LOT + index // _PARTS_PER_LOT}"
        name = f"{LINE}/{station}/{part}_{lot}_{camera}_{view}_{shift}_{taken:%Y%m%dT%H%M%SZ}.png"
        lasts = {event.kind: day + 2 - event.day for event in events if event.station == station}
        going_on = {kind: days_by_now for kind, days_by_now in lasts.items() if days_by_now > 0}
        dented = "dent" in going_on and np.random.default_rng([seed, index, 50]).random() < 0.5
        shots.append(Shot(name, index, part, lot, station, shift, "dent" if dented else None, _condition(going_on)))
    return shots


def _condition(going_on: dict[str, int]) -> Condition:
    """Turn events and how many days they last by now into what the renderer takes."""
    return Condition(
        lamp=0.94 ** going_on.get("lamp", 0),
        shift_px=(9.0, 14.0) if "fixture" in going_on else (0.0, 0.0),
        lens_dirt=1.0 if "lens" in going_on else 0.0,
    )


def shoot(shot: Shot, *, seed: int, out: Path) -> dict[str, str]:
    """Render and write one picture and its mask.

    Returns:
        Its row of truth.csv.
    """
    surface = STATIONS[shot.station][0]
    picture = render(seed, shot.index, label=shot.label, surface=surface, condition=shot.condition)
    image, mask = f"incoming/{shot.name}", ""
    if picture.label != OK_LABEL:
        mask = f"truth/{shot.name}"
        _write(out / mask, cv2.imencode(".png", picture.mask.astype(np.uint8) * 255)[1].tobytes())
    # No filter search: noise does not compress, and the line is to be there in seconds.
    _write(out / image, cv2.imencode(".png", picture.rgb[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    return {
        "image": image,
        "label": picture.label,
        "mask": mask,
        "part": shot.part,
        "lot": shot.lot,
        "station": shot.station,
        "shift": shot.shift,
    }


def _write(path: Path, content: bytes) -> None:
    """Write aside and rename, as cameras do, so that no reader ever sees half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(content)
    aside.replace(path)


def make_line(
    out: Path,
    *,
    pictures: int = 60,
    days: int = 1,
    seed: int = 7,
    start: date = FIRST_DAY,
    events: Sequence[Event] = (),
) -> list[dict[str, str]]:
    """Write the whole line into a folder.

    Returns:
        The rows of truth.csv.
    """
    shots = plan(pictures=pictures, days=days, seed=seed, start=start, events=events)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda shot: shoot(shot, seed=seed, out=out), shots))
    _write_csv(out / "truth.csv", rows, columns=("image", "label", "mask", "part", "lot", "station", "shift"))
    dates = [str(start + timedelta(event.day - 1)) for event in events]
    happened = [
        {"event": event.kind, "line": LINE, "station": event.station, "from_date": begun}
        for event, begun in zip(events, dates, strict=True)
    ]
    _write_csv(out / "truth" / "events.csv", happened, columns=("event", "line", "station", "from_date"))
    return rows


def _write_csv(path: Path, rows: Iterable[dict[str, str]], *, columns: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--pictures", type=int, default=60, help="pictures per day (default: %(default)s)")
    parser.add_argument("--days", type=int, default=1, help="days (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=7, help="series; 1 to 3 made the sample network (default: %(default)s)"
    )
    parser.add_argument("--start", type=date.fromisoformat, default=FIRST_DAY, help="first day (default: %(default)s)")
    parser.add_argument("--event", type=Event.parse, action="append", default=[], metavar="KIND:STATION:DAY")
    given = parser.parse_args(arguments)
    rows = make_line(
        given.out, pictures=given.pictures, days=given.days, seed=given.seed, start=given.start, events=given.event
    )
    defective = sum(row["label"] != OK_LABEL for row in rows)
    print(f"{len(rows)} pictures, {defective} of them defective: {given.out / 'incoming'}, {given.out / 'truth.csv'}")


if __name__ == "__main__":
    main()
