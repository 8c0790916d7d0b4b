"""What lies beside pictures: how sidecars are called, which folders are nobody's, and what belongs to no picture.

    P1.png.json, P1.json      sidecars of P1.png, in this order; `.JSON` and `.Json` as well
    manifest.csv              of a folder and all below it; `MANIFEST.CSV` and the like as well

Names are compared composed (Unicode NFC): a Mac and Windows write the same letter in two ways.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from inspect_xai.intake.decode import PICTURE_SUFFIXES
from inspect_xai.intake.manifest import MANIFEST

UNFINISHED = (".part", ".tmp")
SIDECAR_SUFFIXES = (".json", ".JSON", ".Json")
MANIFEST_NAMES = (MANIFEST, "MANIFEST.CSV", "Manifest.csv", "manifest.CSV", "MANIFEST.csv")

# What NAS systems and Windows keep in folders that are shared.
_OF_SYSTEMS = frozenset(
    {
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
    }
)
_SPELLED_SUFFIXES = tuple(spelled for suffix in sorted(PICTURE_SUFFIXES) for spelled in (suffix, suffix.upper()))


def is_passed_over(name: str, ignore: Sequence[str] = ()) -> bool:
    """Tell whether a file or folder of this name is never looked at: hidden, the line's own, unfinished, a system's.

    Args:
        name: Without its folder.
        ignore: Patterns of further names, as `thumbs` or `*_preview.png`.
    """
    return (
        name.startswith(("_", "."))
        or name.endswith(UNFINISHED)
        or name.lower() in _OF_SYSTEMS
        or any(fnmatchcase(name, pattern) for pattern in ignore)
    )


def is_picture(name: str) -> bool:
    """Tell whether a file of this name is taken for a picture, unless it is passed over."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122  names only


def is_sidecar(name: str) -> bool:
    """Tell whether a file of this name may be a sidecar."""
    return name.lower().endswith(".json")


def stem_of(name: str) -> str:
    """Return a name without its last suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122  for every picture: a fifth of the time of a Path


def spellings(name: str) -> list[str]:
    """Return a name as it is, composed and decomposed: each different one once."""
    if name.isascii():
        return [name]
    return list(dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]))


def find_sidecar(path: str) -> str | None:
    """Return the path of a picture's sidecar, if there is one: the one of its full name goes first."""
    folder, name = os.path.split(path)
    for start in (name, stem_of(name)):
        for spelled in spellings(start):
            for suffix in SIDECAR_SUFFIXES:
                beside = f"{folder}/{spelled}{suffix}"
                if os.path.lexists(beside):
                    return beside
    return None


def sharing(path: str, sidecar: str) -> list[str]:
    """Return the names of all pictures that a picture's sidecar may mean, the picture's own among them."""
    folder, name = os.path.split(path)
    if is_picture(stem_of(os.path.basename(sidecar))):  # noqa: PTH119  of its full name: no other picture's
        return [name]
    found: dict[tuple[int, int], str] = {}  # where upper and lower case are one, a name is found twice
    for other in (name, *(stem_of(name) + suffix for suffix in _SPELLED_SUFFIXES)):
        try:
            at = os.lstat(f"{folder}/{other}")
        except OSError:
            continue
        has_its_own = other != name and any(os.path.lexists(f"{folder}/{other}{suffix}") for suffix in SIDECAR_SUFFIXES)
        if not has_its_own:
            found.setdefault((at.st_dev, at.st_ino), other)
    return sorted(found.values())


def has_picture(sidecar: str) -> bool:
    """Tell whether a picture lies beside a sidecar that it may belong to."""
    folder, name = os.path.split(sidecar)
    start = stem_of(name)
    suffixes = ("",) if is_picture(start) else _SPELLED_SUFFIXES
    return any(os.path.lexists(f"{folder}/{spelled}{suffix}") for spelled in spellings(start) for suffix in suffixes)


def find_manifest(folder: str) -> str | None:
    """Return the path of a folder's manifest, if there is one."""
    return next((path for name in MANIFEST_NAMES if os.path.lexists(path := f"{folder}/{name}")), None)


def belongs_to_nothing(path: str) -> bool:
    """Tell whether a file is a sidecar without its picture, or a table that is no manifest."""
    folder, name = os.path.split(path)
    if is_sidecar(name):
        return not has_picture(path)
    return name.lower().endswith(".csv") and path != find_manifest(folder)


class Listing:
    """The files of one folder at a URL, which are all known: who is whose sidecar.

    Args:
        names: Of the files.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._sidecars = {_key(stem_of(name)): name for name in names if is_sidecar(name)}
        self.manifest = next((name for name in sorted(names) if name.lower() == MANIFEST), None)
        self.pictures = sorted(name for name in names if is_picture(name))
        self._by_stem: dict[str, list[str]] = {}
        for name in self.pictures:
            self._by_stem.setdefault(_key(stem_of(name)), []).append(name)
        self._names = names

    def sidecar_of(self, picture: str) -> str | None:
        """Return the name of a picture's sidecar."""
        return self._sidecars.get(_key(picture)) or self._sidecars.get(_key(stem_of(picture)))

    def sharing(self, picture: str) -> list[str]:
        """Return the pictures that its sidecar may mean."""
        if _key(picture) in self._sidecars:
            return [picture]
        others = self._by_stem[_key(stem_of(picture))]
        return [other for other in others if _key(other) not in self._sidecars]

    def strays(self) -> Iterator[str]:
        """Yield the sidecars and tables that belong to no picture."""
        used = {self.sidecar_of(picture) for picture in self.pictures}
        for name in self._names:
            if name not in used and name != self.manifest and name.lower().endswith((".json", ".csv")):
                yield name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)
