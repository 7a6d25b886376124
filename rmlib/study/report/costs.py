"""The table of what every experiment took."""

import pandas as pd

from rmlib.study.report import groups
from rmlib.study.report.values import Table, Value

CAPTION = (
    "hours of a GPU where the work was done on one, else hours of a process on a CPU, whatever its"
    " threads; the two are never added. Training: from the first step to the last evaluation, all"
    " attempts together, seconds that several runs shared divided among them; measurements:"
    " attacks, corruptions and maps on the trained networks; wall time of each run, also where"
    " other runs or other work shared the machine, so no measure of speed"
)
KINDS = ("training", "measurements")


def costs(runs, measured: dict) -> Table:
    """What every experiment took, in hours of each kind of device: training, measurements on the
    networks afterwards, their sum; hardware; and the total.

    Args:
        measured: kind of :data:`rmlib.study.runs.records.KINDS` -> its measurements, see
            :func:`rmlib.study.runs.collection.collect_measurements`.
    """
    after = pd.concat([rows for rows in measured.values() if len(rows)] or [runs.iloc[:0]])
    training = runs.assign(training=runs["seconds"] / runs["together"] / 3600)
    work = pd.concat([training, after.assign(measurements=after["seconds"] / 3600)])
    on_gpu = work["hardware.device"] == "cuda"
    work["unit"] = on_gpu.map({True: "GPU-hours", False: "CPU-hours"})
    rows = []
    named = [(groups.title(group), group) for group in groups.experiments(runs)]
    for name, group in [*named, ("all", runs)]:
        for unit, done in groups.of_runs(work, group).groupby("unit", sort=True):
            rows.append({"experiment": name} | _of_device(unit, done))
    return Table(rows, CAPTION)


def _of_device(unit, done) -> dict:
    """The columns of some work on one kind of device."""
    sides = {kind: done.groupby("run_id", sort=False)[kind].sum().to_dict() for kind in KINDS}
    hours = {kind: done[kind].sum() for kind in KINDS}
    return {
        "runs": int(done["training"].notna().sum()),
        **{kind: round(hours[kind], 2) for kind in KINDS},
        "sum": Value(round(sum(hours.values()), 2), sides, "sum"),
        "unit": unit,
        "hardware": groups.hardware(done),
    }
