"""Exercises: every check passes for the solution, waits for the blank, and knows wrong answers.

The cells are run here, without a kernel; nbval runs the notebooks with their solutions.
"""

import contextlib
import io
import re
import shutil

import nbformat
import pytest

from rmlib import UserError
from rmlib.study import exercises
from rmlib.study.batch.notebooks import FRESH, source_hash
from rmlib.study.cli import main

# task -> wrong answers with a word of the hint; "OLD -> NEW" changes the solution
WRONG = {
    "1. half and half": {
        "mean_error = 0.2\ncaught = 99": "distance between 0.5 and the mean area",
        "mean_error = 0.5\ncaught = 99": "when nothing is pasted",
        "mean_error = 0.28\ncaught = 100": "Think of the partners",
        "mean_error = 0.28\ncaught = 50": "exactly half the pixels",
        "mean_error = 0.35\ncaught = 99": "Too much: the mean area",
        "mean_error = 0.28\ncaught = 0.99": "In percent, please: 99 rather than 0.99",
    },
    "2. CutMix by hand": {
        "kept = 1 - (x2 - x1) * (y2 - y1) / (height * width) -> kept = lam": "Count the pixels",
        "images.clone() -> images": "clone them before you paste",
        "math.sqrt(1 - lam) -> (1 - lam)": "Is there a root?",
        "y1:y2, x1:x2 -> x1:x2, y1:y2": "rows are y, columns x",
        "height, width = -> width, height = ": "rows are y, columns x",
        "lam, x, y, -> lam, y, x,": "rows are y, columns x",
        "int( -> round(": "rounded down to 1 and 2",
        "return mixed, kept * one + (1 - kept) * one[partners] -> ": "does it return both?",
    },
    "3. the number that was drawn": {
        "clipped = 0.83\nlabel_error = 0.18": "83 rather than 0.83",
        "clipped = 83\nlabel_error = 0.25": "only takes away",
        "clipped = 50\nlabel_error = 0.18": "in 75 % of cases",
        "clipped = 83\nlabel_error = 0.32": "the mean area itself",
        "clipped = 83\nlabel_error = 0.5": "mean of the drawn area",
    },
    "4. how soft is a label": {
        "(2 * math.sqrt(2 * alpha + 1) * k) -> (4 * (2 * alpha + 1) * k**2)": "a variance",
        "* k) -> )": "spread of one tile",
        "* k) -> * k**2)": "root of n",
    },
    "5. the ceiling of mixed accuracy": {
        "78 -> 100": "scores the larger weight",
        '"k=4": 55 -> "k=4": 25': "half of the weight",
        "76 -> 65": "4 points: cutmix",
        '"mixup": 78 -> "mixup": 0.78': "In percent, please",
        ', "k=4": 55 -> ': "Some are missing: k=4",
    },
    "6. the floor of the mixed loss": {
        "-torch.special.xlogy(targets, targets) -> -(targets * targets.log())": "not a number",
        ".mean() -> ": "One number",
        "-torch.special.xlogy -> torch.special.xlogy": "The sign is wrong",
        ".mean() -> .sum()": "the sum over the batch",
        "-torch.special.xlogy(targets, targets).sum(1).mean() -> F.cross_entropy(targets, targets)": (
            "takes logits"
        ),
    },
    "7. one epoch": {
        "run.model.train() -> run.model.eval()": "in train mode",
        "F.cross_entropy(run.model(images), labels) -> 0": "two forwards in a step",
        "loss = clean + -> loss =": "compare with training_step",
        "        run.optimizer.zero_grad()\n -> ": "zero_grad is missing",
        '        run.optimizer.param_groups[0]["lr"] = row.lr.item()\n -> ': "The learning rate is",
        "clean = F -> first = F.cross_entropy(run.model(mixed), targets)\n        clean = F": (
            "12 batches in 4 steps"
        ),
        "model(images), labels -> model(mixed), targets)\n        "
        "mixed, targets = (images, labels": "does the clean batch go first?",
    },
    "8. PGD on the margin": {
        '"the same" -> "more"': "sign of a gradient",
        "(true - other).sum() -> F.cross_entropy(logits, labels)": "softmax",
        "moved.detach() - eps -> moved.detach() + eps": "smaller, not larger",
        "(images + (moved - images).clamp(-eps, eps)) -> moved": "ball around the original",
        "range(steps) -> range(1)": "new gradient in every step",
    },
    "9. how many seeds": {
        "seeds = 64 -> seeds = 32": "Here both methods spread",
        "seeds = 64 -> seeds = 17": "four times as many",
        "equal_var=False -> equal_var=False, alternative='greater'": "one-sided",
        "pvalue < 0.05 -> pvalue > 0.05": "*not* resolved",
    },
    "10. the best epoch": {
        "percent_below = 90\ntold = 81.15": "unequal noise",
        "percent_below = 5\ntold = 80": "not the last",
        "percent_below = 20\ntold = 81.15": "without an effect",
        "percent_below = 0.05\ntold = 81.15": "In percent, please",
    },
    "11. when does pairing pay": {
        "least_correlation = 0": "many seeds",
        " ** 2 -> ": "under a root",
        "1 - ( -> (": "solve for r",
        "1 - ( -> 0.1 + 1 - (": "Set both intervals equal",
    },
    "12. six seeds": {
        "factor = 2": "root of 2 only",
        "factor = 1.414": "one part",
        "factor = 1.246": "the part of t",
        "factor = 1.6": "the ratio of t",
    },
    "12. two machines": {
        'machines = "a"': "draws like any others",
        'machines = "c"': "not the rounding",
    },
    "A. the colour test": {
        "7, 11 -> 8, 8": "use odd sizes",
        "assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-5) -> "
        "assert torch.allclose(targets.sum(1), torch.ones(5))": "does not notice nominal_lambda",
        "assert torch.allclose -> return torch.allclose": "returns something asserts nothing",
        "mixed.mean((2, 3)) -> mixed.mean((2, 3)) + 1": "fails on Mixup, which is right",
    },
    "B. what it misses": {
        'missed = {"in_place"}': "1 of three",
        'missed = {"in_place", "integer_division", "inverted_lambda"}': "opposite weights",
        'missed = {"inplace"}': "There is no inplace",
        'missed = "in_place"': "Write a set of names",
    },
    "C. the clean loss": {
        "images.clone() -> images": "only another name",
        "assert torch.equal(images, before) -> assert not torch.equal(images, before)": "is right",
    },
    "D. a part that is never mixed": {
        "7, 11 -> 8, 12": "leave anything out",
        "assert changed.all() -> assert not changed.any()": "which is right",
    },
    "E. the shape of a box": {
        "8, 32 -> 32, 32": "In a square image",
        "widest > 8 -> widest > 32": "fails on CutMix",
    },
    "F. train mode": {
        "after_an_epoch()\n -> after_an_epoch()\n    model.eval()\n": "leave the mode",
        "images[:2]) -> images)[:2]": "two different batches",
    },
    "G. an attack after normalising": {
        "abs(largest - 8 / 255) < 1e-5 -> largest < 8 / 255 + 1e-5": "it is too weak",
        "abs(largest - 8 / 255) -> abs(largest - 16 / 255)": "fails on FGSM",
        "abs(largest - 8 / 255) < 1e-5 -> largest == 8 / 255": "allow for rounding",
    },
    "H. the best test epoch": {
        "0.5 * torch.randn -> 0 * torch.randn": "On a curve without noise",
        "abs(told.mean() - 80) < 0.2 -> torch.equal(told, curves[:, 1, -1])": (
            "fails on the best epoch on validation images"
        ),
    },
    "I. hard labels": {
        "F.one_hot(partners, 3).float()\n    assert abs(score(logits, labels, partners, 0.3) - 0.7) -> "
        "F.one_hot(labels, 3).float()\n    assert abs(score(logits, labels, partners, 1.0) - 1.0)": (
            "names the partner"
        ),
        "- 0.7 -> - 1.0": "fails on the score by weights",
    },
    "J. chance is not learning": {
        "(104, 1000, 10)\n    assert not learns(53, 10_000, 200) -> (90, 1000, 10)": "Try 104",
        "104 -> 150": "fails on the binomial test",
    },
}
ALL = exercises.solutions()
NOTEBOOKS = next(iter(ALL.values())).parents[1]
TITLE = exercises.TITLE
each_exercise = pytest.mark.parametrize("name", ALL)


def tagged(cell):
    return cell.metadata.get("tags", [])


def said(source, names):
    """What a cell prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, names)
    return printed.getvalue()


def tasks(name):
    """(title, solution, check, the names in front of it) of every task of an exercise."""
    names, solution = {}, None
    for cell in nbformat.read(ALL[name], as_version=4).cells:
        if cell.cell_type == "code" and "check" in tagged(cell):
            title = TITLE.search(cell.source)[1]
            yield title, solution, cell.source, dict(names)
        elif cell.cell_type == "code":
            solution = cell.source
            exec(solution, names)


def changed(solution, answer):
    """A wrong answer: "OLD -> NEW" in the solution, or all of it."""
    old, arrow, new = answer.partition(" -> ")
    assert not arrow or old in solution, f"the solution has no {old!r}"
    return solution.replace(old, new) if arrow else answer


def test_every_task_is_tried_with_wrong_answers():
    cells = [c for path in ALL.values() for c in nbformat.read(path, as_version=4).cells]
    titles = [TITLE.search(cell.source)[1] for cell in cells if "check" in tagged(cell)]
    assert len(titles) == len(WRONG) and all(len(wrong) >= 2 for wrong in WRONG.values())
    assert [key for title in titles for key in WRONG if title.startswith(key)] == list(WRONG)


@each_exercise
def test_checks_wait_for_the_blank_and_know_wrong_answers(name):
    """Nbval compares what the checks say of the solutions."""
    for title, solution, check, names in tasks(name):
        answers = {exercises.blank(solution): "your turn"}
        (key,) = (key for key in WRONG if title.startswith(key))
        answers |= {changed(solution, wrong): hint for wrong, hint in WRONG[key].items()}
        for answer, hint in answers.items():
            tried = dict(names)
            exec(answer, tried)
            line = said(check, tried)
            state = hint if hint == "your turn" else "not yet. "
            assert line.startswith(f"{title}: {state}") and hint in line, (answer, line)
            assert line.lower().count("not yet") <= 1, line


@each_exercise
def test_it_is_stored_with_passed_checks(name):
    notebook = nbformat.read(ALL[name], as_version=4)
    assert notebook.metadata["rmlib"][FRESH] == source_hash(notebook), "run: make notebooks"
    checks = [cell for cell in notebook.cells if "check" in tagged(cell)]
    assert checks and all("nbval-check-output" in tagged(cell) for cell in checks)
    assert all(": passed. " in cell.outputs[0].text for cell in checks)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = ALL[name].read_text()
    assert len(text) < 60_000 and not re.search(r"(?:/(?:home|root|Users|tmp|work)/)", text)
    assert max(len(line) for source in code for line in source.splitlines()) <= 100


def test_a_blank_keeps_what_the_task_says():
    source = (
        'x = 3\n\n\ndef f(a,\n      b=2):\n    """Why."""\n    # how\n    return a\n\n\nprint(x)'
    )
    turn = "...  # your turn"
    kept = f'x = {turn}\n\n\ndef f(a,\n      b=2):\n    """Why."""\n    # how\n    return {turn}'
    assert exercises.blank(source) == kept


@pytest.fixture
def copy(tmp_path):
    """The student's copy of a short exercise, and its cells tagged `solution`."""
    assert main(["lesson", "build", str(tmp_path)]) == 0
    path = tmp_path / "05_seeds.ipynb"
    notebook = nbformat.read(path, as_version=4)
    answers = [c for c in notebook.cells if c.cell_type == "code" and "solution" in tagged(c)]
    return path, notebook, answers


def test_a_student_works_on_a_copy(copy, capsys):
    path, notebook, answers = copy
    assert {path.stem for path in path.parent.glob("*.ipynb")} == set(ALL)
    assert all("..." in cell.source and "64" not in cell.source for cell in answers)
    hidden = [cell for cell in notebook.cells if "jupyter" in cell.metadata]
    assert hidden == [cell for cell in notebook.cells if "check" in tagged(cell)]
    sources = [cell.source for cell in notebook.cells]
    assert (
        exercises.BLANK_TEXT in sources
        and "**Before:** [05_results](lessons/05_results.ipynb)." in sources[0]
    )
    first = nbformat.read(ALL["05_seeds"], as_version=4).cells[0].source
    assert "holds the solutions" in first and "holds the solutions" not in path.read_text()
    assert main(["lesson", "check", str(path)]) == 1
    blank = capsys.readouterr().out
    assert blank.count("your turn") == 5 and f"{path}: 0 of 5 passed" in blank
    # a right and a wrong answer, one that stops, and checks that were made easier
    answers[3].source, answers[4].source = "%time\nfactor = 1.76", "machines = a"
    answers[1].source = "percent_below = 90; told = 81"
    for cell in notebook.cells:
        if "check" in tagged(cell):
            cell.source = "print('all: passed. ')"
    nbformat.write(notebook, path)
    assert main(["lesson", "check", str(path)]) == 1
    lines = capsys.readouterr().out
    assert "12. six seeds: passed. 1.76" in lines and f"{path}: 1 of 5 passed" in lines
    stops = "12. two machines: not yet. It stops with NameError: name 'a' is not defined"
    assert "unequal noise" in lines and stops in lines
    assert main(["lesson", "build", str(path.parent)]) == 0
    kept = capsys.readouterr().out
    assert kept.count("kept as it is") == len(kept.splitlines()) > len(ALL)
    assert "1.76" in path.read_text()


def test_the_lessons_lie_beside_it_without_outputs(copy):
    folder = copy[0].parent
    lessons = sorted((folder / "lessons").glob("*.ipynb"))
    assert [path.name for path in lessons] == [path.name for path in sorted(NOTEBOOKS.glob("0*"))]
    for path in lessons:
        cells = nbformat.read(path, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert code and not any(cell.outputs or cell.execution_count for cell in code)
        sources = nbformat.read(NOTEBOOKS / path.name, as_version=4).cells
        assert [cell.source for cell in code] == [
            c.source for c in sources if c.cell_type == "code"
        ]
    for path in (*folder.glob("*.ipynb"), *lessons):
        for cell in nbformat.read(path, as_version=4).cells:
            text = cell.source if cell.cell_type == "markdown" else ""
            links = re.findall(r"\]\((?!http|#)([^)]+)\)", text)
            assert all((path.parent / link).exists() for link in links), (path, links)


def test_a_copy_may_have_another_name_and_lack_a_check(copy, tmp_path):
    path, notebook, _ = copy
    notebook.cells = [
        c for c in notebook.cells if "12." not in c.source or "check" not in tagged(c)
    ]
    other = tmp_path / "seeds of a student.ipynb"
    nbformat.write(notebook, other)
    lines = list(exercises.verdicts(other))
    assert len(lines) == 5 and [line for line in lines if "missing here" in line] == lines[3:]
    assert lines[3].startswith("12. six seeds: not yet")


def test_an_answer_without_end_is_stopped(copy, monkeypatch):
    """In the answer, or when the check calls it; the other cells are left out here."""
    path, notebook, answers = copy
    monkeypatch.setattr(exercises, "LIMIT", 0.1)
    endless = answers[2]
    endless.source = "while True:\n    pass"
    own = nbformat.v4.new_code_cell("1 +")
    notebook.cells = [endless, own]
    nbformat.write(notebook, path)
    lines = list(exercises.verdicts(path))
    name = "11. when does pairing pay: not yet"
    assert lines[0] == f"{name}. It stops with TimeoutError: no end within 0.1 s"
    assert lines[1].startswith("code cell 2: not yet. It stops with SyntaxError")
    assert len(lines) == 6 and all("missing here" in line for line in lines[2:])


def test_a_damaged_file_does_not_end_the_others(copy, capsys):
    path, *_ = copy
    damaged = {"x": "{", "y": '{"cells": [{}], "metadata": {}, "nbformat": 4}', "z": "[]"}
    for name, text in damaged.items():
        (path.parent / f"{name}.ipynb").write_text(text)
    paths = [path.parent / f"{name}.ipynb" for name in (*damaged, "none", "05_seeds")]
    assert main(["lesson", "check", *map(str, paths)]) == 1
    lines = capsys.readouterr().out.splitlines()
    for line, wrong in zip(lines, paths[:4], strict=False):
        assert line.startswith(f"{wrong} is no notebook (")
    assert lines[-1] == f"{path}: 0 of 5 passed"


def test_mistakes_of_the_caller_are_one_line(tmp_path, capsys):
    assert main(["lesson", "check"]) == 2 and main(["lesson", "build", "a", "b"]) == 2
    shutil.copy(next(iter(ALL.values())), tmp_path / "01_mixin.ipynb")
    with pytest.raises(UserError, match="did you mean '01_mixing'"):
        next(exercises.verdicts(tmp_path / "01_mixin.ipynb"))
    assert capsys.readouterr().err.count("\n") == 2
