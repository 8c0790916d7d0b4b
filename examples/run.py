"""The main job from end to end on a sample line: render, build a bundle, inspect and explain, answer, report.

    python examples/run.py --out run

Ten quiet days of a line, which its drift baseline is learnt from, and four on which things go wrong: a lamp grows
darker, a fixture moves, a new kind of defect appears. The truth of the line answers for want of people.
Every step but that is a command of the product, printed before it runs, so that it can be repeated by hand.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAST = date(2026, 11, 22)
QUIET_DAYS, DAYS = 10, 14
PER_DAY = 48  # 16 at each station
SEED = 7
FIRST = LAST - timedelta(days=DAYS - 1)
EVENTS = tuple(f"{event}:{QUIET_DAYS + 1}" for event in ("lamp:S1", "fixture:S2", "dent:S3"))


def main() -> None:
    """Run the steps; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder for everything this makes")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    line, bundle = out / "line", out / "sample.bundle"
    settings = _settings(out, line=line, bundle=bundle)
    _step(
        f"render a sample line: {DAYS} days of metal, castings and tiles, some with defects, and three troubles",
        [
            sys.executable,
            str(HERE / "make_line.py"),
            "--out",
            str(line),
            "--pictures",
            str(PER_DAY),
            "--days",
            str(DAYS),
            "--start",
            str(FIRST),
            "--seed",
            str(SEED),
            *(word for event in EVENTS for word in ("--event", event)),
        ],
    )
    _product(
        "make a bundle of the sample classifier: find its blocks, derive and prove its graphs",
        [
            "bundle",
            "build",
            str(HERE / "sample" / "model.onnx"),
            "--card",
            str(HERE / "sample" / "card.toml"),
            "--out",
            str(bundle),
            "--force",
        ],
    )
    _product(
        "keep what it says of a few pictures, so that every machine can show that it computes the same",
        ["model", "golden-create", str(bundle), *map(str, _golden(line, 4))],
    )
    _product("make it known to the record", ["model", "register", str(bundle), "--settings", str(settings)])
    _product(
        "approve it: its verdicts carry no mark",
        ["model", "approve", str(bundle), "--settings", str(settings), "--note", "sample line", "--by", "sample"],
    )
    _product("judge every picture, explain the flagged ones, record both", ["line", "--settings", str(settings)])
    _product(
        "learn from the quiet days what later ones are held against",
        [
            "drift",
            "baseline",
            "--settings",
            str(settings),
            "--since",
            str(FIRST),
            "--until",
            str(FIRST + timedelta(days=QUIET_DAYS - 1)),
            "--by",
            "sample",
        ],
    )
    _step(
        "answer the flagged parts and the random share of the passed ones, all but the last day's",
        [
            sys.executable,
            str(HERE / "answer_line.py"),
            "--db",
            _database(out),
            "--truth",
            str(line / "truth.csv"),
            "--until",
            str(LAST),
        ],
    )
    _product(
        "report the days that went wrong against as many before, and drop an alert for each alarm",
        [
            "report",
            "--settings",
            str(settings),
            "--since",
            str(FIRST + timedelta(days=QUIET_DAYS)),
            "--until",
            str(LAST),
            "--alerts",
        ],
    )
    overlays = out / "overlays"
    _product(
        "explain three of the defects once more, each into a folder with its maps",
        ["explain", str(bundle), *map(str, _defects(line, 3)), "--out", str(overlays)],
    )
    page = next((out / "report").rglob("report.html"))
    print(f"\nopen this  {page}\nsettings   {settings}\nalerts     {out / 'alerts'}\noverlays   {overlays}")
    product = Path(os.path.relpath(Path(sys.executable).parent / "inspect-xai"))
    print("\nnext:")
    print(f"  {product} serve --settings {settings}")
    print(f"  {product} alarm list --settings {settings}")
    print(f"  {product} show 1 --settings {settings}")
    print(f"  {product} explain {bundle} YOUR_PICTURE.png --out maps")
    print(f"  {product} --help")


def _settings(out: Path, *, line: Path, bundle: Path) -> Path:
    """Write the settings that the commands share."""
    here = out.resolve()
    path = out / "line.toml"
    path.write_text(
        f"""db = "{_database(out)}"
bundle = "{bundle.resolve()}"

[line]
source = "{(line / "incoming").resolve()}"
settle_s = 0
policy = "{HERE / "sample" / "policy.toml"}"

[report]
out = "{here / "report"}"

[alert]
folder = "{here / "alerts"}"
""",
        encoding="utf-8",
    )
    return path


def _database(out: Path) -> str:
    return f"sqlite:///{out.resolve() / 'inspections.db'}"


def _truth(line: Path) -> list[dict[str, str]]:
    with (line / "truth.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _golden(line: Path, count: int) -> list[Path]:
    """Return the first pictures of different labels."""
    firsts = {row["label"]: line / row["image"] for row in reversed(_truth(line)) if row["label"] != "dent"}
    return list(firsts.values())[:count]


def _defects(line: Path, count: int) -> list[Path]:
    """Return pictures of the line's first defects, from where the line put them away."""
    names = [Path(row["image"]).stem for row in _truth(line) if row["label"] != "free"]
    archive = line / "incoming" / "_archive"
    return [next(archive.rglob(f"{name}~*.png")) for name in names[:count]]


def _product(what: str, arguments: list[str]) -> None:
    _step(what, [sys.executable, "-m", "inspect_xai", *arguments])


def _step(what: str, command: list[str]) -> None:
    shown = ["inspect-xai" if part == "inspect_xai" else part for part in command if part not in (sys.executable, "-m")]
    print(f"\n# {what}\n$ {shlex.join(shown)}", flush=True)
    if subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": str(HERE.parent)}).returncode:
        sys.exit(f"failed: {shlex.join(shown)}")


if __name__ == "__main__":
    main()
