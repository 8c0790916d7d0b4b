"""The main job from end to end on a sample line: render, build a bundle, inspect and explain, report.

    python examples/run.py --out run

Every step is a command of the product, printed before it runs, so that it can be repeated by hand.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DAY = "2026-11-22"
PICTURES = 60
SEED = 7


def main() -> None:
    """Run the steps; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder for everything this makes")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    line, bundle, report = out / "line", out / "sample.bundle", out / "report"
    database = f"sqlite:///{out.resolve() / 'inspections.db'}"
    _step(
        "render a sample line: metal, castings and tiles, some with defects",
        [sys.executable, str(HERE / "make_line.py"), "--out", str(line), "--pictures", str(PICTURES),
         "--seed", str(SEED)],
    )  # fmt: skip
    _product(
        "make a bundle of the sample classifier: find its blocks, derive and prove its graphs",
        ["bundle", "build", str(HERE / "sample" / "model.onnx"), "--card", str(HERE / "sample" / "card.toml"),
         "--out", str(bundle), "--force"],
    )  # fmt: skip
    _product(
        "judge every picture, explain the flagged ones, record both",
        ["line", "--source", str(line / "incoming"), "--bundle", str(bundle), "--db", database],
    )
    _product("report the day", ["report", "--db", database, "--date", DAY, "--out", str(report)])
    overlays = out / "overlays"
    _product(
        "explain three of the defects once more, each into a folder with its maps",
        ["explain", str(bundle), *map(str, _defects(line, 3)), "--out", str(overlays)],
    )
    page = next(report.rglob("*.html"))
    print(f"\nreport     {page}\ndatabase   {database}\noverlays   {overlays}")
    product = Path(os.path.relpath(Path(sys.executable).parent / "inspect-xai"))
    print("\nnext:")
    print(f"  {product} show 1 --db {database}")
    print(f"  {product} explain {bundle} YOUR_PICTURE.png --out maps")
    print(f"  {product} serve --db {database}")
    print(f"  {product} --help")


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
