"""Model bundle: the folder that holds a network, its card, the graphs derived from it, and the proof that they fit.

DIR/card.toml           labels, input, thresholds and other facts about the network
DIR/model.onnx          the network as given, weights inside
DIR/graphs/*.onnx       derived graphs (see build/derive.py); their large weights are in graphs/weights.bin
DIR/graphs/score_int8.onnx  only after `bundle quantize`: the scoring graph in 8 bits, with weights of its own
DIR/manifest.json       written last: block ends, proofs, versions, sha256 of every file, fingerprint
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import inspect_xai
from inspect_xai.errors import BundleError, UnsupportedModelError
from inspect_xai.model.card import canonical, read_card
from inspect_xai.records import BlockEnd, CellGrid, Method, ModelCard

SCHEMA_VERSION = 2  # 2: the scoring graph takes several pictures
INT8_GRAPH = "score_int8"
WEIGHTS = "graphs/weights.bin"
FROM_OUTSIDE = "rise or occlusion"  # methods that use the network's scores alone
MANIFEST = "manifest.json"
_NOT_COVERED = frozenset({MANIFEST, "golden", "Thumbs.db", "desktop.ini"})  # and what begins with a point or @
_COARSE = (7, 7)  # where there is no block: as coarse as the deepest maps of most networks
_MOST_MANIFEST_BYTES = 1 << 24
_REBUILD = "rebuild it: inspect-xai bundle build MODEL.onnx --card card.toml --out DIR --force"


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A bundle whose files were found complete and unchanged.

    Attributes:
        folder: Where it is.
        card: Its card.
        blocks: Its block ends, shallow to deep.
        fingerprint: sha256 over card, network, block ends, recipe and, if there, the quantized scoring graph; stands
            on every record made with it.
        dynamic_batch: Whether its graphs take any number of pictures; else one.
        manifest: All that was recorded when it was built.
    """

    folder: Path
    card: ModelCard
    blocks: tuple[BlockEnd, ...]
    fingerprint: str
    dynamic_batch: bool
    manifest: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Digest of all files: of the manifest, which holds the hash of every other, without what proving measured."""
        covered = {name: value for name, value in self.manifest.items() if name != "proofs"}
        return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def grids(self) -> dict[str, CellGrid | None]:
        """Where the cells of each block end lie, by its name; None: from edge to edge."""
        return {end.tensor: end.grid for end in self.blocks}

    @property
    def map_size(self) -> tuple[int, int]:
        """(h, w) of the smallest maps that masks of this network are made from."""
        return (self.blocks[-1].height, self.blocks[-1].width) if self.blocks else _COARSE

    def graph(self, name: str) -> Path:
        """Return the path of a derived graph: "predict", "trace", "score", "block_0" and so on.

        Raises:
            BundleError: If the bundle has none of that name.
        """
        key = f"graphs/{name}.onnx"
        if key not in self.manifest["files"]:
            raise BundleError(f"{self.folder} has no graph {name!r}", remedy=_REBUILD)
        return self.folder / key


def check_from_outside(method: Method, *, said_by: str) -> None:
    """Refuse a method that a network without blocks cannot be explained by; `said_by` names the option that chose it.

    Raises:
        UnsupportedModelError: If it needs feature maps or gradients.
    """
    if method.looks_inside:
        raise UnsupportedModelError(
            f"{said_by}: found {method}, which looks inside the network; of a bundle built with --black-box only its "
            "scores are known",
            expected="a method that uses scores alone",
            remedy=f"choose {FROM_OUTSIDE}",
        )


def load_bundle(folder: Path | str) -> ModelBundle:
    """Open a bundle after checking that its files are complete and unchanged.

    Raises:
        BundleError: If they are not, or another version of inspect-xai made it.
        CardError: If its card no longer reads.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    card = read_card(folder / "card.toml", alone=True)
    try:
        _check_files(folder, manifest["files"])
        ends = tuple(_read_end(end) for end in manifest["blocks"])
        dynamic = manifest["batch"] == "dynamic"
        fingerprint = fingerprint_of(card, manifest)
        recorded = manifest["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST} lacks or garbles {error}", remedy=_REBUILD) from error
    if recorded != fingerprint:
        raise BundleError(
            f"{folder / MANIFEST} records fingerprint {recorded}, its contents make {fingerprint}", remedy=_REBUILD
        )
    bundle = ModelBundle(folder, card, ends, fingerprint, dynamic, manifest)
    _check_cells(bundle)
    return bundle


def describe_end(end: BlockEnd) -> dict[str, Any]:
    """Return a block end as the manifest, and so the fingerprint, has it: without a grid where it has none."""
    return {name: value for name, value in asdict(end).items() if name != "grid" or value is not None}


def _read_end(entry: dict[str, Any]) -> BlockEnd:
    grid = entry.get("grid")
    return BlockEnd(**(entry | {"grid": CellGrid.from_json(grid) if grid is not None else None}))


def _check_cells(bundle: ModelBundle) -> None:
    """Refuse a bundle from before grids were recorded if its maps would point to the wrong place."""
    if "cells" in bundle.manifest:
        return
    from inspect_xai.model.build.displaced import has_displaced_cells

    if has_displaced_cells(bundle.graph("predict"), bundle.blocks, bundle.card.input):
        raise BundleError(
            f"{bundle.folder} was built by a version that took the network's feature maps to reach from edge to edge "
            "of the window; they do not (convolutions without padding, crops), and its maps point to the wrong place",
            expected="a bundle that says where the cells of its block ends lie",
            remedy=f"its verdicts were right; {_REBUILD}",
        )


def fingerprint_of(card: ModelCard, manifest: dict[str, Any]) -> str:
    """Return the sha256 that identifies the model; see `ModelBundle.fingerprint`."""
    parts = [
        canonical(card),
        manifest["files"]["model.onnx"]["sha256"],
        json.dumps(manifest["blocks"], sort_keys=True),
        manifest["versions"]["recipe"],
    ]
    if "int8" in manifest:
        parts += [manifest["files"][f"graphs/{INT8_GRAPH}.onnx"]["sha256"], str(manifest["int8"]["largest_px"])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return sha256 and size of every file, as the manifest records them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder", expected="a bundle", remedy=_REBUILD)
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than any manifest", remedy=_REBUILD)
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} holds no {MANIFEST}, which is written last: it is no bundle, or its build was cut short",
            remedy=_REBUILD,
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}", remedy=_REBUILD) from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise BundleError(
            f"{folder} has bundle schema {version}",
            expected=f"{SCHEMA_VERSION}, which inspect-xai {inspect_xai.__version__} writes",
            remedy="install the newer inspect-xai that made it" if newer else _REBUILD,
        )
    return dict(manifest)


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        first = name.partition("/")[0]
        is_covered = first not in _NOT_COVERED and not path.name.startswith((".", "@")) and not first.startswith("@")
        if is_covered and name not in files and not path.is_dir():
            raise BundleError(
                f"{folder} holds {name}, which was not there when the bundle was built",
                remedy=f"remove it, copy the whole folder again, or {_REBUILD}",
            )
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} lacks {name}", remedy=f"copy the whole folder again, or {_REBUILD}")
        if path.stat().st_size != recorded["bytes"] or _sha256(path) != recorded["sha256"]:
            raise BundleError(
                f"{path} is not what it was when the bundle was built",
                expected=f"sha256 {recorded['sha256']}",
                remedy="edit the card or the network outside the bundle, then " + _REBUILD,
            )
