"""The error tree: what can go wrong, and the exit code each kind ends a command with.

    InspectXaiError                 3   anything below; never raised itself
    ├── BundleError                10   the bundle folder is incomplete, changed or made by another version
    │   ├── CardError              11   card.toml does not say what it must
    │   ├── ModelFileError         12   the .onnx is broken, hostile or too large
    │   ├── UnsupportedModelError  13   a sound .onnx that this method cannot explain
    │   └── GoldenSetError         14   the model does not reproduce its golden set, or there is none to hold it against
    ├── DeviceError                20   the device asked for does not run a forward pass
    ├── PictureError               30   a file is no picture that can be fed to the network
    ├── ExplanationError           40   the network's numbers cannot be explained (NaN, dead output)
    ├── StoreError                 50   the database refuses
    │   ├── DatabaseAwayError      51   it cannot be reached; worth trying again
    │   ├── SchemaError            52   it is older or newer than this build
    │   ├── NotFoundError          53   nothing is stored under that id
    │   └── RefusedError           54   the database does not take these very rows; others it does
    ├── SettingsError              60   settings contradict each other or name unknown keys
    ├── IntakeError                70   the source folder or URL cannot be read or written
    ├── StudyError                 80   counts, ratings or scores from which no honest number follows
    └── AlertError                 90   alerts did not go out; what they speak of is recorded all the same

Exit codes 0 (ok), 1 (findings) and 2 (usage) belong to the command line.
"""

from typing import ClassVar


def printable(text: str) -> str:
    r"""Return one line of text in which no character commands a terminal or begins another line.

    >>> print(printable("P1\nOK \x1b[32m"))
    P1\nOK \x1b[32m
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class InspectXaiError(Exception):
    """Something went wrong that a person can act on.

    Args:
        found: What was found, with the value that was wrong.
        expected: What would have been right; empty where nothing helps.
        remedy: What to do next, as an instruction.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        sentences = [found]
        if expected:
            sentences.append(f"Expected {expected}")
        if remedy:
            sentences.append(f"Fix: {remedy}")
        super().__init__(printable(". ".join(sentence.rstrip(". ") for sentence in sentences) + "."))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way between processes, which a keyword-only constructor does not by itself."""
        return _rebuild, (type(self), self.found, self.expected, self.remedy)


def _rebuild(kind: type[InspectXaiError], found: str, expected: str, remedy: str) -> InspectXaiError:
    return kind(found, expected=expected, remedy=remedy)


class BundleError(InspectXaiError):
    """The bundle folder is incomplete, was changed, or was made by another version."""

    exit_code = 10


class CardError(BundleError):
    """card.toml does not say what it must."""

    exit_code = 11


class ModelFileError(BundleError):
    """The .onnx file is broken, hostile or too large."""

    exit_code = 12


class UnsupportedModelError(BundleError):
    """A sound .onnx file that holds no CNN this method can explain."""

    exit_code = 13


class GoldenSetError(BundleError):
    """The model does not reproduce its golden set here, or there is none to hold it against."""

    exit_code = 14


class DeviceError(InspectXaiError):
    """The device asked for does not run a forward pass."""

    exit_code = 20


class PictureError(InspectXaiError):
    """A file is no picture that can be fed to the network."""

    exit_code = 30


class ExplanationError(InspectXaiError):
    """The network's numbers cannot be explained."""

    exit_code = 40


class StoreError(InspectXaiError):
    """The database refuses."""

    exit_code = 50


class DatabaseAwayError(StoreError):
    """The database cannot be reached; the same call may work later."""

    exit_code = 51


class SchemaError(StoreError):
    """The database schema is older or newer than this build."""

    exit_code = 52


class NotFoundError(StoreError):
    """Nothing is stored under that id."""

    exit_code = 53


class RefusedError(StoreError):
    """The database does not take these very rows, whatever is tried; it takes others."""

    exit_code = 54


class SettingsError(InspectXaiError):
    """Settings contradict each other or name unknown keys."""

    exit_code = 60


class IntakeError(InspectXaiError):
    """The source folder or URL cannot be read or written."""

    exit_code = 70


class StudyError(InspectXaiError):
    """The counts, ratings or scores handed in allow no honest number."""

    exit_code = 80


class AlertError(InspectXaiError):
    """Alerts did not go out on some channel."""

    exit_code = 90
