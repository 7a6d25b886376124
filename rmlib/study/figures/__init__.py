"""Every figure of the study: functions that draw and return a figure; the notebook shows it.

The files follow the notebooks. Their public functions are imported here, so that a notebook says
``from rmlib.study import figures`` and ``figures.forest(...)``.
"""

# ruff: noqa: E402, F401
from rmlib.extras import needs

needs("study")
from rmlib.study.figures.maps import cam_grid, grid_points, lines, mean_maps, measures
from rmlib.study.figures.method import (
    batch_strip,
    clear_plan,
    draw_tiles,
    mixing_table,
    overview,
    softness,
    target_text,
)
from rmlib.study.figures.results import against_softness, forest, methods
from rmlib.study.figures.robustness import (
    accuracy_against_eps,
    accuracy_over,
    intervals,
    perturbations,
)
from rmlib.study.figures.style import COLOURS, show, show_image, use_style
from rmlib.study.figures.training import (
    class_accuracy,
    confidence,
    confusion,
    learning_curves,
    reference_curves,
    schedules,
)
