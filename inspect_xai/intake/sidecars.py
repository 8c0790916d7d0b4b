"""What lies beside pictures: how sidecars are called, which folders are nobody's, and what belongs to no picture.

    P1.png.json, P1.json      sidecars of P1.png, in this order; `.JSON` and `.Json` as well
    manifest.csv              of a folder and all below it; `MANIFEST.CSV` and the like as well

Names are compared composed (Unicode NFC): a Mac and Windows write the same letter in two ways. A picture without a
sidecar of its very name takes the one whose name differs in upper and lower case only, if no other picture may.
"""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from inspect_xai.errors import PictureError
from inspect_xai.intake.decode import PICTURE_SUFFIXES
from inspect_xai.intake.identity import ambiguous, shared
from inspect_xai.intake.manifest import MANIFEST

UNFINISHED = (".part", ".tmp")
SIDECAR_SUFFIXES = (".json", ".JSON", ".Json")

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
    """Return whether a file or folder of this name is never looked at: hidden, the line's own, unfinished, a system's.

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
    """Return whether a file of this name is taken for a picture, unless it is passed over."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122  names only


def is_sidecar(name: str) -> bool:
    """Return whether a file of this name may be a sidecar."""
    return name.lower().endswith(".json")


def stem_of(name: str) -> str:
    """Return a name without its last suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122  for every picture: a fifth of the time of a Path


def normalized(name: str) -> str:
    """Return a name as names are compared that differ in upper and lower case only."""
    return unicodedata.normalize("NFC", name).casefold()


def spellings(name: str) -> list[str]:
    """Return a name as it is, composed and decomposed: each different one once."""
    if name.isascii():
        return [name]
    return list(dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]))


def find_sidecar(path: str) -> str | None:
    """Return the path of the sidecar of a picture's very name, if there is one: that of its full name goes first."""
    folder, name = os.path.split(path)
    for start in (name, stem_of(name)):
        for spelled in spellings(start):
            for suffix in SIDECAR_SUFFIXES:
                beside = f"{folder}/{spelled}{suffix}"
                if os.path.lexists(beside):
                    return beside
    return None


def sharing(path: str, sidecar: str) -> list[str]:
    """Return the names of all pictures that a sidecar of a picture's very name may mean, that picture among them."""
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
    """Return whether a picture of a sidecar's very name lies beside it."""
    folder, name = os.path.split(sidecar)
    if not name.endswith(SIDECAR_SUFFIXES):
        return False
    start = stem_of(name)
    suffixes = ("",) if is_picture(start) else _SPELLED_SUFFIXES
    return any(os.path.lexists(f"{folder}/{spelled}{suffix}") for spelled in spellings(start) for suffix in suffixes)


@dataclass(frozen=True, slots=True)
class UnmatchedFiles:
    """The sidecars of a folder that have no picture of their very name, and the pictures that may be theirs.

    Attributes:
        sidecars: Names by normalized stem.
        pictures: Names of the pictures without a sidecar of their very name, by the same.
        manifest: Name of the folder's manifest, in whatever case; None: there is none.
        listed_at: Time of the listing, by the clock that stamps the files.
    """

    sidecars: Mapping[str, Sequence[str]]
    pictures: Mapping[str, Sequence[str]]
    manifest: str | None = None
    listed_at: float = 0.0

    @classmethod
    def match(
        cls, sidecars: Iterable[str], pictures: Iterable[str], *, manifest: str | None = None, listed_at: float = 0.0
    ) -> "UnmatchedFiles":
        """Match names by their normalized stems; a sidecar of a picture's full name goes first."""
        by_key: dict[str, list[str]] = {}
        for name in sidecars:
            by_key.setdefault(normalized(stem_of(name)), []).append(name)
        takers: dict[str, list[str]] = {}
        for name in pictures if by_key else ():
            if key := _key_in(by_key, name):
                takers.setdefault(key, []).append(name)
        return cls(by_key, takers, manifest, listed_at)

    def candidates(self, picture: str) -> tuple[Sequence[str], Sequence[str]]:
        """Return the sidecars that may be a picture's, and the pictures that may be theirs, itself among them."""
        key = _key_in(self.sidecars, picture)
        if key is None:
            return (), ()
        return sorted(self.sidecars[key]), sorted({picture, *self.pictures.get(key, ())})

    def is_stray(self, sidecar: str) -> bool:
        """Return whether one of the sidecars may be no picture's."""
        return normalized(stem_of(sidecar)) not in self.pictures


def _key_in(keys: Mapping[str, object], picture: str) -> str | None:
    return next((key for key in (normalized(picture), normalized(stem_of(picture))) if key in keys), None)


def list_unmatched(folder: str, *, listed_at: float = 0.0) -> UnmatchedFiles:
    """List a folder's sidecars without a picture of their very name; memory grows with their number alone.

    Raises:
        OSError: If the folder cannot be listed.
    """
    sidecars, manifests = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_sidecar(entry.name) and not has_picture(entry.path):
                sidecars.append(entry.name)
            elif entry.name.lower() == MANIFEST:
                manifests.append(entry.name)
    pictures: list[str] = []
    if sidecars:
        not_taken = {None, *(f"{folder}/{name}" for name in sidecars)}
        by_key = {normalized(stem_of(name)) for name in sidecars}
        with os.scandir(folder) as entries:
            pictures = [
                entry.name
                for entry in entries
                if is_picture(entry.name)
                and not by_key.isdisjoint((normalized(entry.name), normalized(stem_of(entry.name))))
                and find_sidecar(f"{folder}/{entry.name}") in not_taken
            ]
    return UnmatchedFiles.match(sidecars, pictures, manifest=max(manifests, default=None), listed_at=listed_at)


class Listing:
    """The files of one folder at a URL, which are all known: which sidecar belongs to which picture.

    Args:
        names: Of the files.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sidecars = {_composed(stem_of(name)): name for name in names if name.endswith(SIDECAR_SUFFIXES)}
        self.manifest = max((name for name in names if name.lower() == MANIFEST), default=None)
        self.pictures = sorted(name for name in names if is_picture(name))
        self._by_stem: dict[str, list[str]] = {}
        for name in self.pictures:
            self._by_stem.setdefault(_composed(stem_of(name)), []).append(name)
        exact = {self._exact(name) for name in self.pictures}
        self._unmatched = UnmatchedFiles.match(
            (name for name in names if is_sidecar(name) and name not in exact),
            (name for name in self.pictures if self._exact(name) is None),
        )

    def sidecar_of(self, picture: str) -> tuple[str | None, PictureError | None]:
        """Return the name of a picture's sidecar, or what is wrong where that is not known."""
        exact = self._exact(picture)
        if exact is not None:
            others = [picture] if _composed(picture) in self._sidecars else self._without_own(picture)
            return exact, shared(others) if len(others) > 1 else None
        sidecars, pictures = self._unmatched.candidates(picture)
        if len(sidecars) > 1:
            return None, ambiguous(sidecars)
        return next(iter(sidecars), None), shared(pictures) if len(pictures) > 1 else None

    def strays(self) -> Iterator[str]:
        """Yield the sidecars and tables that belong to no picture."""
        used = {self.sidecar_of(picture)[0] for picture in self.pictures}
        for name in self._names:
            if name not in used and name != self.manifest and name.lower().endswith((".json", ".csv")):
                yield name

    def _exact(self, picture: str) -> str | None:
        return self._sidecars.get(_composed(picture)) or self._sidecars.get(_composed(stem_of(picture)))

    def _without_own(self, picture: str) -> list[str]:
        """Return the pictures of a picture's stem that have no sidecar of their full name."""
        others = self._by_stem[_composed(stem_of(picture))]
        return [other for other in others if _composed(other) not in self._sidecars]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
