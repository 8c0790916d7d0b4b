"""The domain's terms, one meaning each: frozen dataclasses and enums, no input or output.

Shapes are written (rows, columns); a picture is uint8 (H, W) or RGB (H, W, 3); a map is float32 (H, W).
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

MAX_NAME_CHARS = 255
"""Most characters of a label, serial, lot or version: a database indexes them."""

_FAINT_SHARE = 1e-3  # of a map's largest value: below it nobody sees anything
_JOINERS = "\u200c\u200d"  # inside words of Persian and Hindi, and inside emoji


_DOCUMENT_KEYS: Final = {
    "identity_source": "known_from",
    "explain_reason": "explained_because",
    "contrast_label": "against",
    "forward_passes": "passes",
    "coverage": "support_share",
    "positive_channels": "positive",
    "kept_channels": "kept",
    "constant_channels": "constant",
    "predicted_scores": "predicted",
    "otsu_threshold": "otsu",
    "clipped_share": "clipped",
    "golden_result": "golden",
    "map_rating": "map_on_defect",
    "run_order": "place",
}
"""Keys of documents whose field or column has another name since schema 0015. They stay: the ledger's digests are taken
of such documents, and other programs read them."""


def document_key(name: str) -> str:
    """Return the key under which documents (ledger, evidence, JSON) hold a field or column.

    >>> document_key("forward_passes"), document_key("score")
    ('passes', 'score')
    """
    return _DOCUMENT_KEYS.get(name, name)


DOCUMENT_CONFIG: Final = {"alias_generator": document_key}
"""Makes pydantic write a dataclass with the keys of `document_key`."""


def is_printable(text: str) -> bool:
    r"""Tell whether text holds neither control characters nor marks that turn the direction of what follows.

    >>> is_printable("Prüfling 7"), is_printable("a\u202eb"), is_printable("a\n")
    (True, False, False)
    """
    if text.isprintable():
        return True
    return all(char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs" for char in text)


# The card is read from a file that people write by hand: a misspelt key must be an error, not a silent default.
_STRICT_KEYS = {"extra": "forbid"}


class Channels(StrEnum):
    """The color channels the network takes, in its order."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"


class Layout(StrEnum):
    """The order of axes of the network's input."""

    NCHW = "nchw"
    NHWC = "nhwc"


class Fit(StrEnum):
    """Ways to feed a picture of another size than the network's input."""

    TILE = "tile"
    STRETCH = "stretch"
    LETTERBOX = "letterbox"
    CENTER_CROP = "center-crop"


class Resize(StrEnum):
    """By which framework's arithmetic a picture is resized; AREA averages what shrinks (maths/resizing.py)."""

    AREA = "area"
    NEAREST = "nearest"  # this and the next three: Pillow's
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"
    TENSOR_BILINEAR = "tensor-bilinear"  # this and the next: torch's on float tensors, with antialias=True
    TENSOR_BICUBIC = "tensor-bicubic"
    TF_BILINEAR = "tf-bilinear"  # TensorFlow's, without antialias
    OPENCV_LINEAR = "opencv-linear"
    OPENCV_CUBIC = "opencv-cubic"


class Activation(StrEnum):
    """The function from the graph's output to probabilities; NONE: it puts out probabilities already."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class Baseline(StrEnum):
    """The fill of masked pixels (method notes 4.2)."""

    BLACK = "black"
    MEAN = "mean"
    BLUR = "blur"


class Method(StrEnum):
    """A way to explain a verdict; the last two know nothing and show what a number is worth."""

    SISE = "sise"
    ADA_SISE = "ada-sise"
    GRAD_SISE = "grad-sise"  # SISE's block maps times gradient maps: docs/measurements/methods.md
    PRODUCT_CAM = "product-cam"  # the same without a mask: the gradient maps alone
    GRAD_CAM = "grad-cam"
    GRAD_CAM_PLUS_PLUS = "grad-cam++"
    HIRES_CAM = "hirescam"
    LAYER_CAM = "layer-cam"
    SCORE_CAM = "score-cam"
    RECIPRO_CAM = "recipro-cam"
    RISE = "rise"
    OCCLUSION = "occlusion"
    RANDOM = "random"
    CENTER = "center"

    @classmethod
    def _missing_(cls, value: object) -> "Method | None":
        """Read the spelling that version 0.1 wrote."""
        return cls.CENTER if value == "centre" else None  # codespell:ignore

    @property
    def looks_inside(self) -> bool:
        """Whether it needs feature maps or gradients; the others ask the network for scores alone."""
        return self not in (Method.RISE, Method.OCCLUSION, Method.RANDOM, Method.CENTER)


class Profile(StrEnum):
    """The share of masks scored by a forward pass; the other scores are predicted from those."""

    EXACT = "exact"  # all of them
    FAST = "fast"  # a quarter of what mu = 0 would take
    QUICK = "quick"  # a tenth


class Scoring(StrEnum):
    """The arithmetic for scoring masked pictures; verdicts and gradients are always float."""

    FLOAT = "float"
    INT8 = "int8"  # for the blocks that `bundle quantize` found precise enough


class VerdictCode(StrEnum):
    """The line's decision about the part."""

    OK = "OK"
    NG = "NG"
    UNSURE = "UNSURE"


class Reason(StrEnum):
    """The rule behind a verdict."""

    DEFECT_OVER_THRESHOLD = "DEFECT_OVER_THRESHOLD"
    DEFECT_NEAR_THRESHOLD = "DEFECT_NEAR_THRESHOLD"
    DEFECT_LEADS_BELOW_THRESHOLD = "DEFECT_LEADS_BELOW_THRESHOLD"
    NO_OK_LABEL = "NO_OK_LABEL"
    CLEAR = "CLEAR"
    BAD_IMAGE = "BAD_IMAGE"
    MODEL_FAILED = "MODEL_FAILED"
    UNFORESEEN = "UNFORESEEN"


class Status(StrEnum):
    """The outcome of an explanation; every code but EXPLAINED comes with an all-zero map, never with noise."""

    EXPLAINED = "explained"
    NO_EVIDENCE = "no_evidence"  # no channel of any block argues for the class
    NOT_EXPLAINED = "not_explained"  # every masked picture scores nothing: the baseline drowns the evidence
    FAILED = "failed"


class Decision(StrEnum):
    """A person's decision about a verdict."""

    CONFIRM = "confirm"
    OVERTURN = "overturn"
    UNDECIDED = "undecided"


class ModelStatus(StrEnum):
    """Approval of a model: verdicts of any but an approved one are marked."""

    CANDIDATE = "candidate"
    APPROVED = "approved"
    RETIRED = "retired"


class SelectionRule(StrEnum):
    """The rule for choosing channels as masks: a fixed share of the strongest (mu) or Otsu's split (ada)."""

    MU = "mu"
    ADA = "ada"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Preprocessing of a picture: (pixel / scale - mean) / std per channel, in the network's order.

    `pad_color` is 0 to 255 per channel and empty where the mean is meant. `resize_short` is the length in pixels that
    the picture's shorter side gets before the middle is cut out; 0: the middle is cut out first, then resized.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    height: int
    width: int
    channels: Channels = Channels.RGB
    layout: Layout = Layout.NCHW
    fit: Fit = Fit.TILE
    tile_overlap: float = 0.25
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize = Resize.AREA
    resize_short: int = 0
    pad_color: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """Number of channels the network takes: 1 or 3."""
        return 1 if self.channels is Channels.GRAY else 3


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Meaning of the network's output; `positive_label`: the one of two labels that a single score belongs to."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    activation: Activation = Activation.SOFTMAX
    name: str = ""  # of the tensor with the class scores, where the network puts out more; empty: its output
    positive_label: str = ""  # empty, in bundles from before there was this key: the second


@dataclass(frozen=True, slots=True)
class VerdictSpec:
    """Thresholds of the verdict: NG at or above the label's threshold, UNSURE within the margin below it."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    ng_threshold: float = 0.5
    unsure_margin: float = 0.0
    thresholds: dict[str, float] = field(default_factory=dict)

    def of(self, label: str) -> float:
        """Probability at or above which `label` makes a part NG."""
        return self.thresholds.get(label, self.ng_threshold)


@dataclass(frozen=True, slots=True)
class ExplainSpec:
    """Default explanation settings of a model; without `blocks` they are found in the graph."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    method: Method = Method.SISE
    mu: float = 0.3
    baseline: Baseline = Baseline.MEAN
    profile: Profile = Profile.EXACT
    blocks: tuple[str, ...] = ()
    scoring: Scoring = Scoring.FLOAT
    int8_fidelity: float = 0.95  # least correlation of maps, int8 against float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Identity, input, output and defaults of a model."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT_KEYS

    name: str
    version: str
    labels: tuple[str, ...]
    input: InputSpec
    ok_labels: tuple[str, ...] = ()
    output: OutputSpec = field(default_factory=OutputSpec)
    verdict: VerdictSpec = field(default_factory=VerdictSpec)
    explain: ExplainSpec = field(default_factory=ExplainSpec)
    description: str = ""

    @property
    def defect_labels(self) -> tuple[str, ...]:
        """Labels that are not OK labels, in output order."""
        return tuple(label for label in self.labels if label not in self.ok_labels)


@dataclass(frozen=True, slots=True)
class CellAxis:
    """Positions of a feature map's cells along one axis of the window: cell i at `first_px + i * step_px`.

    Pixels count from the center of the window's first pixel, which is 0. Unpadded layers move the first cell inwards.
    """

    first_px: float
    step_px: float


@dataclass(frozen=True, slots=True)
class CellGrid:
    """Positions of a feature map's cells on the window."""

    rows: CellAxis
    columns: CellAxis

    @classmethod
    def from_json(cls, document: Mapping[str, Mapping[str, float]]) -> "CellGrid":
        """Read what `dataclasses.asdict` made of a grid."""
        return cls(CellAxis(**document["rows"]), CellAxis(**document["columns"]))


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """The last tensor of one convolutional block (method notes 1.3), shallow to deep in the bundle.

    `grid` says where its cells lie on the window; None: they reach from edge to edge, as padded layers leave them.
    """

    tensor: str
    op: str
    channels: int
    height: int
    width: int
    rule: str  # "last_cut_tensor", "before_expansion", "before_class_map", "fallback" or "given"
    grid: CellGrid | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The physical piece."""

    serial: str
    product: str = ""
    lot: str = ""


@dataclass(frozen=True, slots=True)
class Capture:
    """One picture of one part at one station. `sha256` is that of the file's bytes."""

    __pydantic_config__: ClassVar = DOCUMENT_CONFIG

    sha256: str
    file_name: str  # path below the source, with forward slashes
    part: Part
    captured_at: datetime  # UTC
    line: str = ""
    station: str = ""
    camera: str = ""
    view: str = ""
    shift: str = ""
    height_px: int = 0  # 0 by 0: the file did not decode
    width_px: int = 0
    archived_to: str = ""  # where the file lies once it is recorded
    pixels_sha256: str = ""  # of the decoded pixels: equal for the same picture in another file format
    identity_source: str | None = None  # source of part and time: "sidecar", "path" or "file"


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Statistics of a picture that depend on the camera; all on luma in gray levels 0 to 255.

    Attributes:
        brightness: Mean.
        contrast: Standard deviation.
        clipped_share: Share of pixels at 0 or 255: under- or overexposed.
        sharpness: Variance of the Laplacian: falls with defocus and dirt, rises with noise and texture.
        noise: Standard deviation of the noise; texture as fine as a pixel is taken for it.
    """

    brightness: float
    contrast: float
    clipped_share: float
    sharpness: float
    noise: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The network's output for the worst window. `scores` has one probability per label, in the card's order."""

    scores: tuple[float, ...]
    label: str  # the most probable label
    score: float  # its probability
    margin: float  # its probability minus the runner-up's
    tile: int = 0  # which window of the picture was the worst


@dataclass(frozen=True, slots=True)
class Verdict:
    """The line's verdict, stored beside the prediction so that a later threshold never rewrites it."""

    code: VerdictCode
    reason: Reason
    label: str  # the defect label nearest to (or furthest over) its threshold; empty where none could be judged
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of the explanation map, in source-picture pixels; `mass` is its share of the map's sum."""

    top_px: int
    left_px: int
    height_px: int
    width_px: int
    area_px: int
    peak: float
    mass: float


@dataclass(frozen=True, slots=True, eq=False)
class BlockMap:
    """One convolutional block's contribution to one tile.

    `sums` is the score-weighted sum of the kept feature maps at block resolution, float32 (h, w); the block map is
    its bilinear upsampling, min-max normalized, so the map can be rebuilt from it. It is None where the block was
    dropped (`note` says why). `grid` is that of the block end.
    """

    tensor: str
    channels: int
    positive_channels: int  # channels with a positive alpha
    kept_channels: int  # masks the block map is made of
    constant_channels: int  # channels selected but without contrast, dropped before scoring
    beta: float  # largest alpha
    threshold: float  # alpha at or below this was not selected
    score_min: float
    score_max: float
    otsu_threshold: float | None  # its fusion mask's; None for the first block of the cascade and dropped blocks
    note: str = ""  # "", "no_positive_evidence", "all_constant", "flat"
    sums: NDArray[np.float32] | None = None
    predicted_scores: int = 0  # of the kept masks, those whose score was predicted instead of given by a forward pass
    grid: CellGrid | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One window of the picture as the network saw it, in source pixels; it can reach past the picture's edge."""

    index: int
    top_px: int
    left_px: int
    height_px: int
    width_px: int


@dataclass(frozen=True, slots=True, eq=False)
class TileExplanation:
    """The explanation of one window: its block maps in order shallow to deep."""

    tile: Tile
    status: Status
    scores: tuple[float, ...]
    blocks: tuple[BlockMap, ...]
    baseline_score: float  # what the bare baseline scores: above 0.5 every mask gets its class for nothing
    score_spread: float  # largest minus smallest mask score; below 0.05 the map hardly discriminates


@dataclass(frozen=True, slots=True)
class RecordedSettings:
    """Recorded settings of an explanation: the same settings on the same bundle give the same map."""

    method: Method
    target: str
    against: str = ""  # rival label of a contrast explanation; empty: against all others
    mu: float = 0.3
    baseline: Baseline = Baseline.MEAN
    profile: Profile = Profile.EXACT
    max_passes: int = 0  # bound that was set for the picture; 0: none
    budget_s: float = 0.0  # likewise in seconds


def no_ranks() -> NDArray[np.int32]:
    """Return the ranks of an explanation that holds none."""
    return np.empty((0, 0), np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """An explanation map with its windows, settings and cost.

    Attributes:
        fused: The explanation map S, float32 (H, W) of the source picture, in [0, number of blocks], not rescaled.
        block_maps: Normalized block maps by tensor name, float32 (H, W) of the source picture.
        tiles: What was explained window by window, with counts and block-resolution sums.
        forward_passes: Forward passes spent: traces, baselines and masks.
        timings_ms: Milliseconds by step.
        notes: What a reader must know, as codes (for instance "low_score_spread").
        embedding: What the deepest block saw, as 16 numbers (maths/embedding.py); empty: the method did not look.
        rank_pixels: Computes `rank`; a line drops it with the window maps that it holds.
    """

    status: Status
    settings: RecordedSettings
    prediction: Prediction
    fused: NDArray[np.float32]
    block_maps: Mapping[str, NDArray[np.float32]]
    tiles: tuple[TileExplanation, ...]
    regions: tuple[Region, ...]
    forward_passes: int
    provider: str
    timings_ms: dict[str, float]
    notes: tuple[str, ...] = ()
    faithfulness: dict[str, float] = field(default_factory=dict)
    embedding: tuple[float, ...] = ()
    rank_pixels: Callable[[], NDArray[np.int32]] = no_ranks

    @property
    def rank(self) -> NDArray[np.int32]:
        """Rank of every pixel, int32 (H, W), computed on each access; empty where it was dropped.

        0 is the first pixel to take when "the top k pixels" are wanted (method notes 5.3).
        """
        return self.rank_pixels()

    @property
    def coverage(self) -> float:
        """Share of the picture's pixels where the map exceeds a thousandth of its largest value."""
        least = _FAINT_SHARE * self.fused.max(initial=0)
        return sum(int(np.count_nonzero(row > least)) for row in self.fused) / max(1, self.fused.size)

    @property
    def duration_ms(self) -> float:
        """Wall time of the whole explanation in milliseconds."""
        return sum(self.timings_ms.values())


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that kept a capture from being judged or explained."""

    kind: str  # name of the error class
    message: str


@dataclass(frozen=True, slots=True)
class Run:
    """One opening of a line: what judged the pictures recorded under it."""

    run_id: str
    started_at: datetime
    provider: str
    versions: dict[str, str]
    settings: dict[str, object]


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """One capture judged by one model under one policy; unique on (capture sha256, fingerprint, policy version)."""

    capture: Capture
    fingerprint: str
    policy_version: str
    run_id: str
    inspected_at: datetime
    verdict: Verdict
    prediction: Prediction | None  # None where the picture did not reach the network
    explanation: Explanation | None
    explain_reason: str = ""  # "ng", "unsure", "ok", "sample", "label", "overturned"; empty: not asked for
    failure: Failure | None = None
    duration_ms: float = 0.0
    image_statistics: ImageStatistics | None = None  # None where the picture did not decode


@dataclass(frozen=True, slots=True)
class Review:
    """A person's answer to a verdict; appended, never edited. `box` is (top, left, height, width) in source pixels."""

    reviewer: str
    decision: Decision
    verdict: VerdictCode  # the person's own
    true_label: str = ""
    reason_code: str = ""
    map_rating: str = ""  # "yes", "partly", "no"; empty: not said
    blind: bool = False  # given before verdict and map were shown
    box: tuple[int, int, int, int] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class StudyRating:
    """One row of an attribute agreement study: what an appraiser said of a part in a trial; empty: not yet."""

    part: str
    picture: str
    reference: str  # what the part is, as experts agreed
    appraiser: str
    trial: str
    answer: str


# 16-bit RGBA without compression, and room for a header: no honest file of max_pixels is larger.
_BYTES_PER_PIXEL = 8


_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Limits and decoding options of pictures: nothing is decoded without them.

    They come from the settings (`Settings.line.limits`) or from what was recorded with a result (`recorded`).

    Attributes:
        max_pixels: Larger pictures are refused before they are decoded; 100 million is a 16k x 6k line scan.
        white_level: The value of a 16-bit file that counts as full white; 4095 for a 12-bit camera. The card speaks
            of 8-bit pixels: a value v becomes round(255 * v / white_level), and everything above is white.
        honour_exif: Turn the picture as its EXIF orientation says. Off: the sensor's own rows and columns, which is
            what a fixed camera's masks and regions of interest are drawn on.
    """

    max_pixels: int = 100_000_000
    white_level: int = 65_535
    honour_exif: bool = False

    @property
    def max_bytes(self) -> int:
        """A file longer than this is not read."""
        return self.max_pixels * _BYTES_PER_PIXEL + _HEADER_BYTES

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> Self:
        """Return those recorded with a run, an audit or a golden set; where none are, the defaults held."""
        known = settings.get("limits")
        return cls(**known) if isinstance(known, Mapping) else cls()
