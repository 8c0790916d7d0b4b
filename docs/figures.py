"""Draw the figures of the documentation into docs/figures/: two drawings, and the method's steps on the sample network.

    python docs/figures.py

The drawings are SVG without scripts, so that the site works offline. The figures of the method show one rendered
casting with a crack and the network of examples/sample; everything follows from the seed.
"""

import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inspect_xai import Explainer, Explanation, build_bundle
from inspect_xai.maths import sise
from inspect_xai.model.engine import Engine, Trace
from inspect_xai.records import Method, Profile

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "figures"
SERIES, INDEX, LABEL, SURFACE = 4, 2, "crack", "cast"  # a series that the sample network never saw
MU = 0.3

LAYERS = (
    ("flows/   cli/   web/", "parse, call app, present"),
    ("app.py", "one function for each job"),
    ("line/   reports/", "the running line; pages, alerts and Parquet of a period"),
    ("audit/   verify/", "measure a model on labeled pictures; prove a recorded decision"),
    ("policy.py", "what is explained, thresholds, regions, alert rules"),
    ("explain/", "engine and arrays to an Explanation"),
    ("intake/", "folder or URL to pixels and part identity"),
    ("maths/   statistics/   model/   storage/", "arrays; numbers; ONNX; SQL. They do not know each other"),
    ("settings.py", "one Settings value"),
    ("files.py   logs.py", "atomic writes, hashes; log format"),
    ("records.py   errors.py", "the nouns; the error tree"),
)
STAGES = (
    ("camera", "writes NAME.part,\nrenames it"),
    ("claim", "intake: one line\nowns the file"),
    ("read, decode", "intake: pixels and\npart identity"),
    ("judge", "explain: verdict of\nthe worst window"),
    ("policy", "is this verdict\nexplained?"),
    ("explain", "explain: masks,\nblock maps, fusion"),
    ("record", "storage: all rows in\none transaction"),
    ("archive", "intake: the file\nmoves last"),
)


def main() -> None:
    """Draw everything."""
    OUT.mkdir(exist_ok=True)
    (OUT / "layers.svg").write_text(layers(), encoding="utf-8")
    (OUT / "picture-way.svg").write_text(picture_way(), encoding="utf-8")
    mpl.rcParams.update({"svg.hashsalt": "inspect-xai", "svg.fonttype": "none", "font.size": 9, "figure.dpi": 100})
    sys.path.insert(0, str(ROOT / "examples"))
    from surfaces import render

    picture = render(SERIES, INDEX, label=LABEL, surface=SURFACE).rgb
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "sample.bundle"
        build_bundle(ROOT / "examples/sample/model.onnx", card=ROOT / "examples/sample/card.toml", out=bundle)
        with Explainer(bundle, method=Method.SISE, profile=Profile.EXACT, mu=MU, faithfulness=False) as explainer:
            explanation = explainer(picture, target=LABEL)
            draw_windows(picture, explanation)
            draw_method(picture, explanation, explainer.engine)
        with Explainer(bundle, method=Method.GRAD_SISE, faithfulness=False) as explainer:
            draw_grad_sise(picture, explanation, explainer(picture, target=LABEL))


def draw_windows(picture: NDArray[np.uint8], explanation: Explanation) -> None:
    """Show the picture with its explained windows, and the map that they make together."""
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    for explained in explanation.tiles:
        tile = explained.tile
        corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)])
        left.plot(
            tile.left_px + corners[:, 1] * tile.width_px,
            tile.top_px + corners[:, 0] * tile.height_px,
            color="tab:orange",
        )
    left.set_xlim(0, picture.shape[1])
    left.set_ylim(picture.shape[0], 0)
    _overlay(right, picture, explanation.fused)
    _titled((left, "explained windows"), (right, f"their maps on the picture: {LABEL}"))
    _save(figure, "windows.jpg")


def draw_method(picture: NDArray[np.uint8], explanation: Explanation, engine: Engine) -> None:
    """Draw each step on the window that scores highest."""
    label = engine.card.labels.index(LABEL)
    best = max(explanation.tiles, key=lambda explained: explained.scores[label])
    tile = best.tile
    window = picture[tile.top_px : tile.top_px + tile.height_px, tile.left_px : tile.left_px + tile.width_px]
    trace = engine.trace(window.astype(np.float32), target=label)
    draw_selection(trace)
    draw_masks(window, trace, engine, label)
    maps = draw_fusion(window, trace, engine, label)
    draw_otsu(maps[-1])


def draw_selection(trace: Trace) -> None:
    """Show the alphas of each block in descending order, and the threshold mu times the largest."""
    figure = Figure(figsize=(8, 2.4))
    axes = figure.subplots(1, len(trace.alphas))
    for number, (axis, alphas) in enumerate(zip(axes, trace.alphas.values(), strict=True), start=1):
        ordered = np.sort(alphas)[::-1]
        kept = ordered > MU * ordered[0]
        axis.bar(np.arange(len(ordered)), ordered, width=1, color=np.where(kept, "tab:blue", "lightgray"))
        axis.axhline(MU * ordered[0], color="tab:red", linewidth=1)
        axis.set_title(f"block {number}: {kept.sum()} of {len(ordered)}", fontsize=9)
        axis.set_yticks([0])
        axis.set_xticks([])
    _save(figure, "selection.svg")


def draw_masks(window: NDArray[np.uint8], trace: Trace, engine: Engine, label: int) -> None:
    """Show, for each block, the feature map with the largest alpha, its mask, and the window through it."""
    pixels = window.astype(np.float32)
    hidden = sise.baseline_picture(pixels, engine.card.explain.baseline, mean=engine.mean_px)
    figure = Figure(figsize=(8, 6.4))
    rows = figure.subplots(3, len(trace.features))
    for column, (name, features) in enumerate(trace.features.items()):
        channel = int(np.argmax(trace.alphas[name]))
        one = features[channel : channel + 1]
        mask = sise.attribution_masks(one, window.shape[:2], grid=engine.bundle.grids[name])[0][0]
        scores = engine.score_masks(pixels, one, baseline=hidden, grid=engine.bundle.grids[name])
        seen = mask[..., None] * pixels + (1 - mask[..., None]) * hidden
        rows[0, column].imshow(one[0], cmap="gray")
        rows[1, column].imshow(mask, cmap="gray")
        rows[2, column].imshow(np.clip(seen, 0, 255).astype(np.uint8))
        _titled(
            (rows[0, column], f"block {column + 1}: {one.shape[1]} x {one.shape[2]}"),
            (rows[1, column], "mask"),
            (rows[2, column], f"{LABEL} {scores.probabilities[0, label]:.2f}"),
        )
    _save(figure, "masks.jpg")


def draw_fusion(window: NDArray[np.uint8], trace: Trace, engine: Engine, label: int) -> list[NDArray[np.float32]]:
    """Show the block maps, what each deeper one lets through, and the sum after each step; return the block maps."""
    pixels = window.astype(np.float32)
    hidden = sise.baseline_picture(pixels, engine.card.explain.baseline, mean=engine.mean_px)
    size = (window.shape[0], window.shape[1])
    maps: list[NDArray[np.float32]] = []
    for name, features in trace.features.items():
        alphas, grid = trace.alphas[name], engine.bundle.grids[name]
        chosen = features[alphas > MU * alphas.max()]
        chosen = chosen[sise.with_contrast(*sise.extremes(chosen, size, grid=grid))]
        scores = engine.score_masks(pixels, chosen, baseline=hidden, grid=grid).probabilities[:, label]
        enlarged = sise.upsample(sise.weighted_sums(chosen, scores, size=size, grid=grid), size, grid=grid)
        maps.append((enlarged - enlarged.min()) / (enlarged.max() - enlarged.min()))
    figure = Figure(figsize=(8, 6.4))
    rows = figure.subplots(3, len(maps))
    running = np.zeros(size, np.float32)
    for column, block_map in enumerate(maps):
        mask = block_map > sise.otsu(block_map) if column else np.ones(size, bool)
        running = (running + block_map) * mask
        _overlay(rows[0, column], window, block_map)
        rows[1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
        _overlay(rows[2, column], window, running)
        _titled(
            (rows[0, column], f"block map n{column + 1}"),
            (rows[1, column], f"o{column + 1} = n{column + 1} > Otsu" if column else "no mask"),
            (rows[2, column], f"e{column + 1}" if column < len(maps) - 1 else "S, the map"),
        )
    _save(figure, "fusion.jpg")
    return maps


def draw_otsu(deepest: NDArray[np.float32]) -> None:
    """Show the histogram of the deepest block map and where Otsu's threshold parts it."""
    threshold = sise.otsu(deepest)
    figure = Figure(figsize=(6, 2.2))
    axis = figure.subplots()
    axis.hist(deepest[deepest <= threshold], bins=np.linspace(0, 1, 65), color="lightgray", label="becomes 0")
    axis.hist(deepest[deepest > threshold], bins=np.linspace(0, 1, 65), color="tab:blue", label="stays")
    axis.axvline(threshold, color="tab:red", label=f"Otsu's threshold, {threshold:.2f}")
    axis.set_xlabel("value of the deepest block map")
    axis.set_ylabel("pixels")
    axis.legend(fontsize=8)
    _save(figure, "otsu.svg")


def draw_grad_sise(picture: NDArray[np.uint8], coarse: Explanation, fine: Explanation) -> None:
    """Show the maps of SISE and Grad-SISE beside each other."""
    figure = Figure(figsize=(8, 3))
    left, right = figure.subplots(1, 2)
    _overlay(left, picture, coarse.fused)
    _overlay(right, picture, fine.fused)
    _titled((left, f"sise, {coarse.forward_passes} passes"), (right, f"grad-sise, {fine.forward_passes} passes"))
    _save(figure, "grad-sise.jpg")


def _overlay(axis: mpl.axes.Axes, picture: NDArray[np.uint8], values: NDArray[np.floating]) -> None:
    axis.imshow(picture)
    share = values / (values.max() or 1)
    axis.imshow(share, cmap="inferno", alpha=0.65 * (share > 0.01), vmin=0, vmax=1)


def _titled(*titles: tuple[mpl.axes.Axes, str]) -> None:
    for axis, title in titles:
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()


def _save(figure: Figure, name: str) -> None:
    figure.tight_layout()
    options = {"pil_kwargs": {"quality": 80}} if name.endswith(".jpg") else {"metadata": {"Date": None}}
    figure.savefig(OUT / name, facecolor="white", **options)


def layers() -> str:
    """Draw the layers, one box each, from top to bottom."""
    height, gap, width = 40, 8, 760
    parts: list[str] = []
    for row, (names, meaning) in enumerate(LAYERS):
        top = 10 + row * (height + gap)
        parts.append(_box(10, top, width, height))
        parts.append(_text(24, top + 25, names, bold=True))
        parts.append(_text(330, top + 25, meaning))
    bottom = 10 + len(LAYERS) * (height + gap)
    parts.append(_arrow((width + 30, 14), (width + 30, bottom - 14)))
    return _svg(width + 50, bottom, parts, title="Layers of the package; imports run downwards")


def picture_way() -> str:
    """Draw the stages of one picture, four in a row."""
    width, height, across = 170, 84, 4
    parts: list[str] = []
    for number, (name, meaning) in enumerate(STAGES):
        row, column = divmod(number, across)
        left, top = 10 + column * (width + 30), 10 + row * (height + 40)
        parts += [_box(left, top, width, height), _text(left + 12, top + 24, name, bold=True)]
        parts += [_text(left + 12, top + 46 + 18 * line, text) for line, text in enumerate(meaning.split("\n"))]
        if number == len(STAGES) - 1:
            continue
        if column < across - 1:
            parts.append(_arrow((left + width, top + height // 2), (left + width + 28, top + height // 2)))
        else:
            turn = top + height + 20
            parts.append(_line((left + width // 2, top + height), (left + width // 2, turn)))
            parts.append(_line((left + width // 2, turn), (10 + width // 2, turn)))
            parts.append(_arrow((10 + width // 2, turn), (10 + width // 2, turn + 18)))
    rows = -(-len(STAGES) // across)
    size = (10 + across * (width + 30), 10 + rows * (height + 40))
    return _svg(*size, parts, title="One picture's way from the camera to the archive")


def _svg(width: int, height: int, parts: Sequence[str], *, title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="13"><title>{escape(title)}</title>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#37474f"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _box(left: int, top: int, width: int, height: int) -> str:
    return f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="4" fill="#eceff1" stroke="#37474f"/>'


def _text(left: int, top: int, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{left}" y="{top}" fill="#263238" xml:space="preserve"{weight}>{escape(text)}</text>'


def _line(start: tuple[int, int], end: tuple[int, int], extra: str = "") -> str:
    return f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" stroke="#37474f"{extra}/>'


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    return _line(start, end, ' marker-end="url(#tip)"')


if __name__ == "__main__":
    main()
