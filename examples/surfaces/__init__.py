"""A seeded renderer of industrial surfaces with exact defect masks: brushed steel, cast metal, glazed tile.

Everything follows from (seed, index) on one set of library versions. Only numpy, OpenCV and scipy are used.
"""

from surfaces.picture import LABELS, OK_LABEL, SIZES, SURFACES, Condition, Picture, render

__all__ = ["LABELS", "OK_LABEL", "SIZES", "SURFACES", "Condition", "Picture", "render"]
