"""The main job from end to end on a sample line: render, build a bundle, inspect and explain, report.

    python examples/run.py --out run

Twelve days of a line on which things go wrong: a lamp grows darker, a fixture moves, a new kind of defect appears.
Every step is a command of the product, printed before it runs, so that it can be repeated by hand.
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
DAYS = 12
PER_DAY = 18
SEED = 7
EVENTS = ("lamp:S1:8", "fixture:S2:10", "dent:S3:10")


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
        [sys.executable, str(HERE / "make_line.py"), "--out", str(line), "--pictures", str(PER_DAY), "--days",
         str(DAYS), "--start", str(LAST - timedelta(days=DAYS - 1)), "--seed", str(SEED),
         *(word for event in EVENTS for word in ("--event", event))],
    )  # fmt: skip
    _product(
        "make a bundle of the sample classifier: find its blocks, derive and prove its graphs",
        ["bundle", "build", str(HERE / "sample" / "model.onnx"), "--card", str(HERE / "sample" / "card.toml"),
         "--out", str(bundle), "--force"],
    )  # fmt: skip
    _product("judge every picture, explain the flagged ones, record both", ["line", "--settings", str(settings)])
    _product(
        "report the last three days against the three before, and drop an alert for each alarm",
        ["report", "--settings", str(settings), "--since", str(LAST - timedelta(days=2)), "--until", str(LAST),
         "--alerts"],
    )  # fmt: skip
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
        f"""db = "sqlite:///{here / "inspections.db"}"
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


def _defects(line: Path, count: int) -> list[Path]:
    """Return pictures of the line's first defects, from where the line put them away."""
    with (line / "truth.csv").open(newline="", encoding="utf-8") as file:
        names = [Path(row["image"]).stem for row in csv.DictReader(file) if row["label"] != "free"]
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
