"""Public API: an engine and default settings, to judge and explain pictures."""

from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from inspect_xai.closing import Closing
from inspect_xai.errors import SettingsError
from inspect_xai.explain.batch_size import Origin, resolve_batch_size
from inspect_xai.explain.request import explain
from inspect_xai.explain.settings import ExplainOptions, ExplainSettings
from inspect_xai.explain.window_scores import WindowScores, look
from inspect_xai.model.bundle import ModelBundle, check_from_outside, load_bundle
from inspect_xai.model.engine import Engine
from inspect_xai.records import Explanation, ModelCard, PictureLimits, VerdictSpec


class Explainer(Closing):
    """Judges and explains pictures with one model bundle; immutable.

    Example:
        >>> with Explainer("magnetic-tile.bundle") as explainer:  # doctest: +SKIP
        ...     explanation = explainer("part42.png", target="crack")
        ...     explanation.fused.shape  # rows and columns of the picture

    Args:
        bundle: A bundle folder, a loaded bundle, or an open engine to share.
        settings: How to explain unless a call gives others; default: the card's, with `options` in their place.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Threads inside one operator; default: all cores.
        bucket: Masks per run; default: what was measured on this machine (see `explain/batch_size.py`), else the
            device's.
        memory_mb: Most memory that a CUDA session takes; default: all there is.
        limits: Accepted picture files and how they become pixels; default: a line's defaults. Those of the settings are
            `load_settings().line.limits`.
        options: Fields of `ExplainSettings` to use instead of the card's: `method="grad-cam"`.

    Raises:
        BundleError: If the folder is no sound bundle.
        DeviceError: If the device asked for does not run.
        SettingsError: If an option is out of its range, or there are settings beside options.
    """

    __slots__ = ("_bucket_from", "_engine", "_limits", "_settings")

    def __init__(
        self,
        bundle: Engine | ModelBundle | Path | str,
        settings: ExplainSettings | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        bucket: int | None = None,
        memory_mb: int | None = None,
        limits: PictureLimits | None = None,
        **options: Unpack[ExplainOptions],
    ) -> None:
        shared = bundle if isinstance(bundle, Engine) else None
        source = bundle.bundle if isinstance(bundle, Engine) else bundle
        loaded = source if isinstance(source, ModelBundle) else load_bundle(Path(source))
        if settings is not None and options:
            raise SettingsError(f"settings beside {', '.join(options)}", expected="either")
        self._settings = settings or ExplainSettings.of_card(loaded.card, **options)
        if not loaded.blocks:
            check_from_outside(self._settings.method, said_by="method")
        self._limits = limits or PictureLimits()
        self._engine = shared or Engine(loaded, device=device, threads=threads, memory_mb=memory_mb)
        self._bucket_from = None if shared else resolve_batch_size(self._engine, asked=bucket)

    @property
    def engine(self) -> Engine:
        """The engine that computes."""
        return self._engine

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self._engine.card

    @property
    def settings(self) -> ExplainSettings:
        """How it explains unless a call gives other settings."""
        return self._settings

    @property
    def limits(self) -> PictureLimits:
        """How picture files become pixels."""
        return self._limits

    @property
    def bucket_from(self) -> Origin | None:
        """Where the number of masks per run comes from; None: the engine is shared."""
        return self._bucket_from

    def look(self, picture: NDArray[np.uint8], *, thresholds: VerdictSpec | None = None) -> WindowScores:
        """Judge a picture by its worst window.

        Args:
            picture: uint8 (H, W), or RGB (H, W, 3).
            thresholds: To judge by; default: the card's.

        Raises:
            PictureError: If the array is no picture.
            ExplanationError: If the network's output is not a number.
        """
        return look(self._engine, picture, thresholds)

    def explain(
        self, look: WindowScores, *, target: str, against: str | None = None, settings: ExplainSettings | None = None
    ) -> Explanation:
        """Explain why a picture's windows score for a label.

        Args:
            look: What `look` returned for the picture.
            target: Label to explain.
            against: Rival label of a contrast explanation: the evidence for target rather than against.
            settings: How; default: those of this explainer.

        Raises:
            SettingsError: For a label that is not the model's.
            ExplanationError: If the network's numbers are not finite.
            UnsupportedModelError: If the network does not allow the method.
        """
        return explain(self._engine, look, settings or self._settings, target=target, against=against)

    def __call__(
        self,
        picture: NDArray[np.uint8] | Path | str,
        target: str | int | None = None,
        against: str | int | None = None,
        *,
        settings: ExplainSettings | None = None,
        thresholds: VerdictSpec | None = None,
    ) -> Explanation:
        """Look at a picture and explain it.

        Args:
            picture: uint8 (H, W) or RGB (H, W, 3), or the path of a picture file, read within `limits`.
            target: Label or its index; default: the label the network predicts.
            against: Rival label or its index; default: all other labels.
            settings: How; default: those of this explainer.
            thresholds: To judge by; default: the card's.
        """
        if isinstance(picture, Path | str):
            from inspect_xai.intake.sources import read_picture

            picture = read_picture(Path(picture), limits=self._limits).pixels
        seen = self.look(picture, thresholds=thresholds)
        named = seen.prediction.label if target is None else self._label(target)
        rival = None if against is None else self._label(against)
        return self.explain(seen, target=named, against=rival, settings=settings)

    def close(self) -> None:
        """Free the engine's sessions."""
        self._engine.close()

    def _label(self, target: str | int) -> str:
        if isinstance(target, str):
            return target
        if not 0 <= target < len(self.card.labels):
            raise SettingsError(f"class index {target}", expected=f"0 to {len(self.card.labels) - 1}")
        return self.card.labels[target]
