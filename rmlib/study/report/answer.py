"""The answer of an experiment: which method was best, and by how much."""

from rmlib.study.report import accuracy, completeness, groups, stats
from rmlib.study.report.groups import Method
from rmlib.study.report.values import Table, by_run, difference, heading, span
from rmlib.study.runs import collection, records

# of the difference named with the batch
UNITS = {
    "accuracy": "points",
    "nll": "nats of NLL (log loss, less is better)",
    "ece": "points of ECE (calibration error, less is better)",
}
PRIMARY = (
    "named in the batch file; A minus B with its 95 % interval by Welch's t over seeds; one"
    " comparison, so its p needs no correction"
)


def methods(group) -> list[Method]:
    """The methods of an experiment that have a finished run, best first."""
    return sorted(groups.finished(group), key=lambda method: -method.mean)


def sentences(group) -> list[str]:
    """The best method, whether it is decided, and its lead over others; [] for one method.

    These are plain training (without it no mixing), the next best, Region Mixup, and plain training
    with as much compute. p of Welch's t is corrected by Holm for the comparisons of the table of
    differences and for leads that are not among them. The same accuracies choose the best one, so
    its lead is flattered. A lead is "interim" while planned runs of either are missing. What the
    best one costs stands with it, see :func:`rmlib.study.report.groups.compute`.

    Args:
        group: the runs of one experiment, see :func:`rmlib.study.report.groups.experiments`.
    """
    found = methods(group)
    if len(found) < 2:
        return []
    best, *others = found
    leads = [stats.welch(best.accuracies, other.accuracies) for other in others]
    beside = [
        pair for pair in accuracy.compared(group) if best.name not in (pair.a.name, pair.b.name)
    ]
    more = [stats.welch(pair.a.accuracies, pair.b.accuracies) for pair in beside]
    waiting = [best.waiting or other.waiting for other in others]
    corrected = stats.holm(
        [each.p for each in leads + more], waiting + [pair.waiting for pair in beside]
    )

    def lead(number, words):
        d, state = leads[number], stats.state(corrected[number], leads[number].p, waiting[number])
        if d.p != d.p:
            return f"{words} by {d.mean:.2f} points; without more runs that has no interval"
        return f"{words} by {d.mean:.2f} points {span(d.low, d.high)}, {state}"

    told = [f"Best in the mean: {best.name}, {best.mean:.2f} % (n = {len(best.accuracies)})"]
    if not any(p < 0.05 for p in corrected[: len(leads)]):
        told[0] = f"In accuracy undecided, as no lead of the best method is resolved. {told[0]}"
    if not best.plain:
        twice = "twice " if groups.compute(best.runs, group) == 2 else ""
        told[0] += f", with {twice}the compute of plain training"
    wanted = [i for i, other in enumerate(others) if other.mixer == "none" and not other.longer]
    wanted.sort(key=lambda i: not others[i].plain)
    if wanted:
        told.append(lead(wanted[0], f"above {others[wanted[0]].name}"))
    if wanted[:1] != [0]:
        told.append(lead(0, f"above the next, {others[0].name},"))
    regions = [i for i, other in enumerate(others) if other.mixer == "region_mixup"]

    def variant(i):
        """Whether its mixer or its loss is not the paper's."""
        return not groups.default(others[i].settings), others[i].loss[:2] != (1.0, False)

    regions = sorted(regions, key=variant)[:1]
    equal = [i for i, other in enumerate(others) if other.longer and best.loss[0]]
    for i in regions + equal:
        words = ", the same compute," if i in equal else ""
        told += [lead(i, f"above {others[i].name}{words}")] if i else []
    return told


def primary(found: collection.Collection, group) -> Table | None:
    """The difference that a batch file names, with its verdict: one comparison, so its p
    needs no correction. None where there is none, or runs of both sides are not there.

    Args:
        found: the records, with the plans of their batches.
        group: see :func:`sentences`.
    """
    rows = []
    for plan in filter(None, map(collection.read_plan, found.plans)):
        sides = [
            [each for each in groups.finished(group) if set(ids) & set(each.runs["run_id"])]
            for ids in plan.primary
        ]
        if sides and all(sides):
            (a, *_), (b, *_) = sides
            metric = plan.primary_metric
            numbers = [by_run(each.runs, f"metrics.{metric}") for each in (a, b)]
            d = stats.welch(*(list(each.values()) for each in numbers))
            pairs = zip((a.name, b.name), numbers)
            decimals = 3 if metric == "nll" else 2
            row: dict = {
                "difference": f"{a.name} - {b.name}",
                "in": heading(metric),
                "metric": metric,
                "n": f"{d.n[0]}, {d.n[1]}",
                "A - B": difference(d, *pairs, low=d.low, high=d.high, decimals=decimals),
                "state": stats.state(d.p, waiting=a.waiting or b.waiting),
            }
            rows.append(row)
    return Table(rows, f"{groups.title(group)}; {PRIMARY}", ("metric",)) if rows else None


def _told(row):
    """A row of :func:`primary` in words."""
    value = row["A - B"]
    told = f"{value.text()} {UNITS[row['metric']]} (n = {row['n']}), {row['state']}"
    return f"Named with the batch: {' minus '.join(value.sides)}, {told}"


def answers(found: collection.Collection) -> list[str]:
    """For each experiment of two methods or more, in one line: its title, whether runs of its plan
    are still missing, the difference that was named with its batch, and its sentences.
    """
    lines = []
    for group in groups.experiments(groups.runs_below(found)):
        if told := sentences(group):
            head = [groups.title(group), completeness.interim(found, group)]
            named = primary(found, group)
            rows = named.rows if named else []
            parts = ["; ".join(filter(None, head)), *map(_told, rows), "; ".join(told)]
            lines.append(f"{'. '.join(parts)}.")
    return lines


def networks(found: collection.Collection) -> list[str]:
    """For each experiment with an answer whose weights are there: which network to take, that of
    the best method's run of median accuracy, of an even number the lower one; and how.
    """
    lines = []
    for group in groups.experiments(groups.runs_below(found)):
        ranked = methods(group)
        if len(ranked) < 2:
            continue
        best = ranked[0]
        run = best.runs.sort_values("metrics.accuracy").iloc[(len(best.runs) - 1) // 2]
        folder = found.folders[run["run_id"]]
        if (folder / records.WEIGHTS).exists():
            lines.append(
                f"The network to use, of median accuracy among those of {best.name}: seed"
                f" {run['config.seed']}, {folder}. To export it: python -c 'from rmlib.study.runs"
                f' import networks; networks.export("{folder}", "network.pt2")\''
            )
    return lines
