"""What lecturers and students print: numbers of the work sheet, and quotes of the guide."""

import re

import nbformat
import pandas as pd
import pytest
import torch
from pages import ROOT, section, text_of
from torch.nn.functional import one_hot
from torch.special import entr

from rmlib.mixers import Plan, RegionMixup
from rmlib.study import exercises
from rmlib.study.report.stats import mean_std, paired, welch

SHEET, GUIDE = text_of("notebooks/worksheet.md"), text_of("notebooks/teaching.md")


def solution(number):
    """The solution of a task of the work sheet."""
    return re.search(rf"^{number}\. (.*)", section(SHEET, "## Solutions"), re.M)[1]


def says(number, *values, digits=2):
    """Whether a solution has these numbers, in this order."""
    numbers = " ".join(re.findall(r"-?\d+(?:\.\d+)?", solution(number)))
    return " ".join(f"{float(value):.{digits}f}" for value in values) in numbers


def mixed_by_hand(side):
    """The star of task 1 among its partners, mixed by rmlib: the image and its target."""
    row = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8])[:side]
    star = row.expand(1, side, side)
    images = torch.stack([star, *(torch.full_like(star, value) for value in (1, 0, 1))])
    mixer = RegionMixup(3, k=2)
    boxes = mixer.draw(images.shape, torch.Generator().manual_seed(0)).boxes
    lam = torch.tensor([[0.75], [0.5], [0.25], [0.5]])
    partners = torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [3, 0, 0, 0]])
    plan = Plan(boxes, lam, partners, side, side)
    mixed, targets = mixer.apply(images, torch.tensor([0, 1, 2, 0]), plan)
    return mixed[0, 0], targets[0], plan.label_weights()[0, 0]


def test_region_mixup_of_the_work_sheet_is_that_of_rmlib():
    mixed, target, kept = mixed_by_hand(4)
    assert says(1, *mixed[0]) and says(1, *mixed[3])
    star, ring, heart = target
    assert f"{star:.3f} ({kept:.1f} of its own, {star - kept:.3f} of the other" in solution(1)
    assert f"ring {ring:.3f}, heart {heart:.3f}; together {target.sum():.0f}" in solution(1)
    *_, kept = mixed_by_hand(5)
    assert says(2, kept) and "mean of the weights is 0.50" in solution(2)


def test_the_box_of_the_work_sheet_is_that_of_the_exercise():
    """By the solution of exercise 2, which is checked by the colour test."""
    cells = nbformat.read(exercises.solutions()["01_mixing"], 4).cells
    names = {}
    exec("import math, torch\nfrom torch.nn.functional import one_hot", names)
    exec(next(cell.source for cell in cells if cell.source.startswith("def cutmix")), names)
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    mixed, targets = names["cutmix"](
        images, torch.tensor([0, 1]), 0.75, 7, 1, torch.tensor([1, 0]), 2
    )
    pasted = mixed[0, 0].nonzero()
    (y1, x1), (y2, x2) = pasted.min(0).values.tolist(), pasted.max(0).values.tolist()
    assert f"Columns {x1} to {x2} and rows {y1} to {y2}" in solution(3)
    assert f"inside: {len(pasted)} of 64. Kept {targets[0, 0]:.2f}" in solution(3)
    assert f"error {targets[0, 0] - 0.75:.2f}" in solution(3)


def test_the_other_numbers_of_the_work_sheet():
    weights = torch.linspace(0, 1, 10_001)
    assert f"mean of the larger weight is {torch.maximum(weights, 1 - weights).mean():.2f}" in (
        solution(4)
    )
    # the source of mistake c: tiles of 7 // 2 and 11 // 2 pixels
    assert f"{7 * 11 - 4 * (7 // 2) * (11 // 2)} pixels are never mixed" in solution(5)
    targets = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    assert says(6, *entr(targets).sum(1), digits=3) and entr(one_hot(torch.tensor([1]))).sum() == 0
    moved = (torch.tensor([0.5, 0.98, 0.01]) + 0.03 * torch.tensor([1, 1, -1])).clamp(0, 1)
    assert says(8, *moved) and f"by {0.03 * 0.25:.4f}" in solution(8)
    a, b = [75, 76, 77], [74, 76, 75]
    unpaired, pairs = welch(a, b), paired(pd.Series(a), pd.Series(b))
    halves = [(each.high - each.low) / 2 for each in (unpaired, pairs)]
    assert f"Difference {unpaired.mean:.2f}. Welch: {halves[0]:.2f}, zero is inside" in solution(9)
    spread = mean_std([x - y for x, y in zip(a, b)])[1]
    assert f"spread {spread:.2f}, half {halves[1]:.2f}" in solution(9)
    assert f"correlation of {pairs.correlation:.2f}" in solution(9)


@pytest.mark.parametrize("heading, minutes", [("90 minutes: ", 90), ("Four hours: ", 240)])
def test_a_plan_has_no_gap(heading, minutes):
    (title,) = re.findall(rf"^## {heading}.*", GUIDE, re.M)
    times = re.findall(r"^\| (\d+)-(\d+) \|", section(GUIDE, title), re.M)
    starts, ends = zip(*(map(int, time) for time in times))
    assert starts == (0, *ends[:-1]) and ends[-1] == minutes


def test_the_guide_quotes_the_lessons():
    """The tests of the lessons compare outputs with their source."""
    said = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
        told = [o.get("text", "") + o.get("data", {}).get("text/markdown", "") for o in outputs]
        said[path.name[:2]] = "".join(told)
    rows = re.findall(r"^\| (0\d) \| .* \| `(.*)` \|$", GUIDE, re.M)
    rows += [("02", accuracy) for accuracy in re.findall(r"`(test [\d.]+ %)`", GUIDE)]
    assert len(rows) == 16
    assert not [row for row in rows if row[1] not in said[row[0]]]


def test_the_guide_speaks_of_tasks_that_there_are():
    titles = "".join(path.read_text() for path in exercises.solutions().values())
    tasks = set(re.findall(r'lesson\.check\([^.]*?"(\w+)\. ', titles.replace("\\", "")))
    named = re.findall(r"^\| (\w+) \|", section(GUIDE, "## Likely wrong answers"), re.M)
    assert len(named) > 25 and set(named) - {"exercise"} <= tasks
