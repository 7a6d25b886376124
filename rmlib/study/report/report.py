"""The report: every table of what was run, from records and from nothing else."""

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rmlib import UserError
from rmlib.params import nearest
from rmlib.study.report import (
    accuracy,
    answer,
    attacked,
    classes,
    completeness,
    costs,
    groups,
    looks,
    paper,
    reproduction,
    small,
    why,
    widths,
)
from rmlib.study.report.values import CONTROL, Table
from rmlib.study.runs import collection, records

# kind of table -> its heading, in the order of the report
HEADINGS = {
    "accuracy": "What was run",
    "primary": "The difference named with the batch",
    "differences": "Differences with their intervals",
    "classes": "Accuracy per class",
    "confusions": "What is taken for what",
    "robustness": "Under attack and under corruptions",
    "checks": "Can FGSM be believed?",
    "localization": "Where the networks look",
    "faithfulness": "Do the maps tell what the networks look at?",
    "sanity": "Maps of shuffled networks",
    "looks": "Differences in where they look",
    "paper": "The paper's tables, and ours",
    "claims": "The claims",
    "small": "The claims of the small-data study",
    "why": "Small data: partners, or weights?",
    "widths": "Small data: the narrow network, and the paper's",
    "changes": "Small data: what one setting changes",
    "costs": "What it cost",
}
SPREAD = "n networks, mean ± sample standard deviation"
FEWER = f"{SPREAD}; (n = ...): of fewer networks"
BETTER = (
    "in brackets the 95 % interval over networks and images (over images alone where n is 1; of"
    " shares Wilson's, none beyond 0 or 100 where the measure cannot be), in parentheses the same"
    f" measure with {CONTROL}, explained for another class, and a star where the map does better"
    " than that, paired by image and network, beyond such an interval, uncorrected"
)


class Measured(NamedTuple):
    """A table that is made for each experiment from measurements on its networks."""

    note: str  # what its numbers are
    make: Callable  # (group, measurements of each source) -> Table or None
    sources: tuple[str, ...]  # kinds of measurement, or measures of maps


MEASURED = {
    "robustness": Measured(
        "accuracy in percent; images: test images of each network; corrupted: mean over nine"
        f" corruptions at five severities; {FEWER}",
        attacked.robustness,
        ("attacks", "corruptions"),
    ),
    "checks": Measured(
        "accuracy in percent of the `images` that all attacks saw; strongest: the worst case"
        " for each image over FGSM, the same step on the margin, PGD with 20 steps, and Square"
        " where it was run at this eps; AutoAttack on fewer images; a warning names what"
        " contradicts FGSM, or what cannot be told, with the number of networks"
        f"; {FEWER}",
        attacked.checks,
        ("attacks",),
    ),
    "localization": Measured(
        f"maps of the true class; {BETTER}; extent: the image's share above half of the map's"
        " maximum; trace of the grid: asymmetry between the quarters of a window around the"
        " middle (k = 2) minus that within the tiles, on the grid points of the layer; an empty map"
        f" (no evidence for the class) has no extent, and elsewhere counts as a flat one; {SPREAD}",
        lambda group, cams: looks.table(looks.of_group(group, cams)),
        ("localization",),
    ),
    "faithfulness": Measured(
        f"maps of the predicted class; {BETTER}; Average Drop and deletion: less is more"
        " faithful; the others: more is; deletion and insertion: area under the curve of the"
        " probability in percent of that on the whole image; ROAD combined, in points of"
        f" probability, over 20, 40, 60 and 80 % of the pixels; {SPREAD}",
        lambda group, cams: looks.table(looks.of_group(group, cams)),
        ("faithfulness",),
    ),
    "sanity": Measured(
        "rank correlation in hundredths of the maps of the true class with those of the"
        " network with shuffled weights, from the head down; a map that comes from what was"
        f" learned falls to that with {CONTROL} or below; left out: pairs per network in"
        f" which a map is empty; {SPREAD}",
        lambda group, cams: looks.sanity(looks.of_group(group, cams)),
        ("sanity",),
    ),
    "looks": Measured(
        "differences of n pairs of networks, paired by seed and image, with 95 % intervals over"
        " both (over images alone where n is 1); p corrected by Holm for the rows of this"
        " table, the intervals are not; resolved: p below 0.05; interim: planned runs are missing,"
        " so there is no verdict yet, and p counts as 1",
        lambda group, *cams: looks.differences([looks.of_group(group, each) for each in cams]),
        ("localization", "faithfulness"),
    ),
}


def tables(root, kinds=tuple(HEADINGS)) -> dict[str, list[Table]]:
    """The tables below a folder of records, or of a
    :class:`rmlib.study.runs.collection.Collection`, by ``kinds`` of HEADINGS.

    What compares, attacks or maps has a table for each experiment that has such
    runs; ``small``, ``why``, ``widths`` and ``changes`` have some where such runs of the small-data
    study are there.
    """
    root = collection.opened(root)
    runs, measured = groups.runs_below(root), root.tables
    experiments, attacks, cams = groups.experiments(runs), measured["attacks"], measured["cam"]
    by_measure = {name: rows for name, rows in cams.groupby("measure")} if len(cams) else {}
    of_paper = runs["config.dataset"].isin(paper.DATASETS).any()
    makers = {
        "accuracy": lambda: [noted(accuracy.summary(group), group) for group in experiments],
        "differences": lambda: [noted(accuracy.differences(group), group) for group in experiments],
        "primary": lambda: [noted(answer.primary(root, group), group) for group in experiments],
        "classes": lambda: [classes.table(root, group) for group in experiments],
        "confusions": lambda: [classes.table(root, group, confused=True) for group in experiments],
        "paper": lambda: reproduction.tables(runs, attacks) if of_paper else [],
        "claims": lambda: [reproduction.claims(runs, attacks)] if of_paper else [],
        "small": lambda: [small.claims(runs, attacks)],
        "why": lambda: why.tables(runs),
        "widths": lambda: [widths.table(runs)],
        "changes": lambda: [widths.changes(runs), widths.named(runs)],
        "costs": lambda: [costs.costs(runs, measured)],
    }

    def noted(table, group):
        note = completeness.interim(root, group)
        return replace(table, caption=f"{table.caption}; {note}") if table and note else table

    def made(kind):
        if kind in makers:
            return makers[kind]()
        sources = measured | by_measure
        return [noted(_measured(MEASURED[kind], group, sources), group) for group in experiments]

    return {kind: [table for table in made(kind) if table] for kind in HEADINGS if kind in kinds}


def _measured(of_kind, group, measured):
    """One table of MEASURED for an experiment, with its caption, or None."""
    behind = [measured.get(source, pd.DataFrame()) for source in of_kind.sources]
    table = of_kind.make(group, *behind)
    if table is None:
        return None
    samples = [groups.one_sample(group, rows) for rows in behind]
    devices = groups.hardware(pd.concat([rows for rows in samples if rows is not None]))
    return Table(table.rows, f"{groups.title(group)}; {of_kind.note}; on {devices}")


def markdown(root, kind: str = "accuracy") -> str:
    """The tables of one kind as Markdown, each with its caption below; of the kind "answer" a
    sentence for each experiment. ``root``: see :func:`tables`.

    Raises:
        UserError: unknown kind, no record, or nothing of this kind was measured.
    """
    if kind == "answer":
        return "".join(f"{line}\n" for line in answer.answers(collection.opened(root)))
    if kind not in HEADINGS:
        raise UserError(f"report {kind!r}: {nearest(kind, HEADINGS)}")
    (found,) = tables(root, (kind,)).values()
    if not found:
        folder = getattr(root, "folder", root)
        raise UserError(f"nothing was measured for the table {kind!r} under {folder}")
    return "\n".join(map(_with_caption, found))


def _with_caption(table):
    return f"{table.markdown()}\n{table.caption}.\n"


def write_tables(found: dict[str, list[Table]], root, folder: Path) -> list[Path]:
    """Write the tables ``found`` below ``root`` (a folder or a collection, see :func:`tables`) into
    ``folder``: tables.md, and a CSV file for each with unrounded numbers, beside runs, attacks,
    corruptions and cam with one row per run and measurement. Returns the files.
    """
    frames, text = {}, []
    for kind, several in found.items():
        for number, table in enumerate(several, 1):
            heading = f"{kind} {number}" if len(several) > 1 else kind
            frames[heading.replace(" ", "-")] = table.frame()
            text.append(f"## {heading}\n\n{_with_caption(table)}")
    raw = collection.gather(root)
    frames |= {"runs": raw.runs, **raw.tables}
    contents = {
        f"{name}.csv": rows.to_csv(index=False) for name, rows in frames.items() if len(rows)
    }
    contents["tables.md"] = "\n".join(text)
    for name, content in contents.items():
        records.atomic_write(folder / name, content.encode())
    return [folder / name for name in contents]


def fill(document: str, base: Path) -> str:
    """A document with every ``<!-- report FOLDER [KIND] -->`` ... ``<!-- end -->`` block made anew
    (FOLDER relative to base).
    """
    opened = functools.cache(collection.opened)

    def block(match):
        text = markdown(opened(base / match[2]), match[3] or "accuracy")
        return f"{match[1]}\n{text}{match[4]}"

    pattern = r"(<!-- report (\S+?)(?: (\w+))? -->)\n.*?(<!-- end -->)"
    return re.sub(pattern, block, document, flags=re.DOTALL)
