"""A model bundle: the folder that holds a network, its card, the graphs derived from it, and the proof that they fit.

DIR/card.toml           what people say about the network
DIR/model.onnx          the network as given, weights inside
DIR/graphs/*.onnx       derived graphs (see graph.py); their large weights are in graphs/weights.bin
DIR/graphs/score_int8.onnx  only after `bundle quantize`: the scoring graph in 8 bits, with weights of its own
DIR/manifest.json       written last: block ends, proofs, versions, sha256 of every file, fingerprint
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import inspect_xai
from inspect_xai.errors import BundleError, UnsupportedModelError
from inspect_xai.model.blocks import Blocks, find_blocks, turn_channels_first
from inspect_xai.model.card import canonical, card_toml, check_card, read_card
from inspect_xai.model.graph import block_graphs, derivation, predict_graph, score_graph, trace_graph
from inspect_xai.model.head import Head, read_head
from inspect_xai.model.proofs import Subject, prove
from inspect_xai.model.safety import load_model
from inspect_xai.model.weights import move_weights
from inspect_xai.model.working import Network, working_form
from inspect_xai.records import BlockEnd, ModelCard, Scoring

__all__ = ["ModelBundle", "add_int8", "build_bundle", "check_bundle", "load_bundle", "read_card"]

SCHEMA_VERSION = 2  # 2: the scoring graph takes several pictures
RECIPE_VERSION = 1  # raised whenever the derived graphs would compute something else
INT8_GRAPH = "score_int8"
_MANIFEST = "manifest.json"
_MOST_MANIFEST_BYTES = 1 << 24
_REBUILD = "make it anew: inspect-xai bundle build MODEL.onnx --card card.toml --out DIR --force"


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A bundle whose files were found complete and unchanged.

    Attributes:
        folder: Where it is.
        card: Its card.
        blocks: Its block ends, shallow to deep.
        fingerprint: sha256 over card, network, block ends, recipe and, if there, the quantised scoring graph; stands
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

    def graph(self, name: str) -> Path:
        """Return the path of a derived graph: "predict", "trace", "score", "block_0" and so on.

        Raises:
            BundleError: If the bundle has none of that name.
        """
        key = f"graphs/{name}.onnx"
        if key not in self.manifest["files"]:
            raise BundleError(f"{self.folder} has no graph {name!r}", remedy=_REBUILD)
        return self.folder / key


def build_bundle(
    onnx_path: Path | str,
    card: ModelCard | Path | str,
    out: Path | str,
    *,
    blocks: Sequence[str] | None = None,
    force: bool = False,
) -> ModelBundle:
    """Make a bundle from an exported network and its card, and prove it.

    Args:
        onnx_path: The network.
        card: Its card, or the path of its card.toml.
        out: Folder to make.
        blocks: Block ends by tensor name in place of those of the card or those found.
        force: Replace a bundle that stands at `out`.

    Raises:
        BundleError: If something else stands at `out`, or a proof fails.
        CardError: If the card contradicts itself or the network.
        ModelFileError: If the network's file is broken or hostile.
        UnsupportedModelError: If the network is sound but cannot be explained.
    """
    out = Path(out)
    _check_target(out, force=force)
    known = read_card(Path(card)) if isinstance(card, Path | str) else card
    check_card(known)
    loaded = load_model(Path(onnx_path))
    wanted = tuple(known.explain.blocks if blocks is None else blocks)
    network = working_form(loaded.model, known, keep=wanted)
    head = read_head(network, known)
    found = find_blocks(network, scores=head.scores, classes=head.width, given=wanted)
    network = turn_channels_first(network, found.turned) if found.turned else network
    with _workshop(out) as work:
        text = Path(card).read_bytes() if isinstance(card, Path | str) else card_toml(card).encode()
        (work / "card.toml").write_bytes(text)
        (work / "model.onnx").write_bytes(loaded.content)
        reason = _write_graphs(work, network, head=head, blocks=found, card=known)
        chain = tuple(index for index, end in enumerate(found.ends) if end.tensor in found.cuts)
        _check_fallback(reason, complete=len(chain) == len(found.ends))
        subject = Subject(work, known, found.ends, chain, loaded.model, network.dynamic_batch, not reason)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": "",
            "name": known.name,
            "version": known.version,
            "blocks": [asdict(end) for end in found.ends],
            "chain": chain,
            "batch": "dynamic" if network.dynamic_batch else 1,
            "gradient": "finite_difference" if reason else "reverse_mode",
            "gradient_reason": reason,
            "notes": found.notes,
            "output": asdict(head),
            "network": _describe(loaded.model, Path(onnx_path)),
            "versions": _versions(),
            "proofs": prove(subject),
            "proof_bounds": subject.bounds,
            "files": _hashes(work),
        }
        manifest["fingerprint"] = _fingerprint(known, manifest)
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _put_in_place(work, out)
    return load_bundle(out)


def load_bundle(folder: Path | str) -> ModelBundle:
    """Open a bundle after seeing that its files are complete and unchanged.

    Raises:
        BundleError: If they are not, or another version of inspect-xai made it.
        CardError: If its card no longer reads.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    card = read_card(folder / "card.toml")
    try:
        _check_files(folder, manifest["files"])
        ends = tuple(BlockEnd(**end) for end in manifest["blocks"])
        dynamic = manifest["batch"] == "dynamic"
        fingerprint = _fingerprint(card, manifest)
        recorded = manifest["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / _MANIFEST} lacks or garbles {error}", remedy=_REBUILD) from error
    if recorded != fingerprint:
        raise BundleError(
            f"{folder / _MANIFEST} records fingerprint {recorded}, its contents make {fingerprint}", remedy=_REBUILD
        )
    return ModelBundle(folder, card, ends, fingerprint, dynamic, manifest)


def check_bundle(folder: Path | str) -> ModelBundle:
    """Open a bundle and prove its graphs again.

    Returns:
        The bundle; `manifest["proofs"]` holds what was measured just now.

    Raises:
        BundleError: If a file changed or a proof fails.
    """
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    given = load_model(bundle.folder / "model.onnx").model
    errors = prove(
        Subject(
            bundle.folder,
            bundle.card,
            bundle.blocks,
            tuple(manifest["chain"]),
            given,
            bundle.dynamic_batch,
            manifest["gradient"] == "reverse_mode",
        )
    )
    return replace(bundle, manifest=manifest | {"proofs": errors})


def add_int8(bundle: ModelBundle, graph: bytes, out: Path, *, facts: dict[str, Any]) -> ModelBundle:
    """Write a bundle that scores with a quantised graph; its card says so, so it is another model.

    Args:
        bundle: The bundle, which stays as it is unless it is `out`.
        graph: The scoring graph in 8 bits.
        out: Folder to make or, if it is the bundle's own, to replace.
        facts: How the graph was made and how faithful it is; `largest_px` is the side of the largest maps it scores.
    """
    known = replace(bundle.card, explain=replace(bundle.card.explain, scoring=Scoring.INT8))
    with _workshop(out) as work:
        shutil.copytree(bundle.folder, work, dirs_exist_ok=True)
        (work / _MANIFEST).unlink()
        (work / "graphs" / f"{INT8_GRAPH}.onnx").write_bytes(graph)
        if bundle.card != known:  # the user's comments are kept as long as what they comment on is
            (work / "card.toml").write_text(card_toml(known), encoding="utf-8")
        manifest = bundle.manifest | {"int8": facts, "files": _hashes(work)}
        manifest["fingerprint"] = _fingerprint(known, manifest)
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _put_in_place(work, out)
    return load_bundle(out)


def _write_graphs(work: Path, network: Network, *, head: Head, blocks: Blocks, card: ModelCard) -> str:
    """Write weights and derived graphs; return why there are no gradients, or an empty text."""
    folder = work / "graphs"
    folder.mkdir()
    light = move_weights(network.model, folder / "weights.bin")
    plan = derivation(network, light, head=head, spec=card.input, blocks=blocks)
    trace, reason = trace_graph(plan)
    graphs = {"predict": predict_graph(plan), "trace": trace, "score": score_graph(plan)}
    graphs |= {f"block_{index}": graph for index, graph in enumerate(block_graphs(plan))}
    for name, graph in graphs.items():
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    return reason


def _check_fallback(reason: str, *, complete: bool) -> None:
    """Refuse where gradients are missing and finite differences over the chain of blocks cannot stand in."""
    if reason and not complete:
        raise UnsupportedModelError(
            f"{reason}; finite differences do not help, as the network does not fall into parts at every block end",
            remedy="name other block ends with [explain] blocks in the card, or use a method without gradients",
        )


def _describe(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "opset": next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": len(model.graph.node),
    }


def _versions() -> dict[str, str]:
    return {
        "inspect_xai": inspect_xai.__version__,
        "recipe": str(RECIPE_VERSION),
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def _fingerprint(card: ModelCard, manifest: dict[str, Any]) -> str:
    parts = [
        canonical(card),
        manifest["files"]["model.onnx"]["sha256"],
        json.dumps(manifest["blocks"], sort_keys=True),
        manifest["versions"]["recipe"],
    ]
    if "int8" in manifest:
        parts += [manifest["files"][f"graphs/{INT8_GRAPH}.onnx"]["sha256"], str(manifest["int8"]["largest_px"])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder", expected="a bundle", remedy=_REBUILD)
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than any manifest", remedy=_REBUILD)
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} holds no {_MANIFEST}, which is written last: it is no bundle, or its build was cut short",
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


def _check_target(out: Path, *, force: bool) -> None:
    """Refuse to write over anything but, if forced, a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    is_bundle = (out / _MANIFEST).is_file()
    if not is_bundle and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} exists and is no bundle", expected="a free name", remedy="choose another --out")
    if is_bundle and not force:
        raise BundleError(f"{out} exists", expected="a free name", remedy="choose another --out, or say --force")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder beside `out` in which to build; gone afterwards, whatever happens."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(f"{out.parent} cannot be written: {error.strerror}", remedy="choose another --out") from error
    try:
        work.chmod(0o755)  # mkdtemp's folders are closed to everyone else; bundles are shared
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, out: Path) -> None:
    """Rename the finished folder to `out`, which is free, empty, or a bundle to replace."""
    if out.exists():
        old = work.with_name(work.name + ".old")
        out.rename(old)
        work.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(out)
