"""The answer of an experiment: which method was best, and by how much."""

from dataclasses import dataclass

import pandas as pd

from rmlib.study.names import METHOD, method_name
from rmlib.study.report import groups, stats
from rmlib.study.report.values import span

PLAIN, DOUBLED = "plain training", "no mixing, doubled loss (a control)"


@dataclass(frozen=True)
class Method:
    """A method with the accuracies of its finished runs in percent."""

    name: str
    mixer: str
    accuracies: pd.Series

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return self.accuracies.mean()


def methods(group) -> list[Method]:
    """The methods of an experiment that have a finished run, best first."""
    found = []
    for columns, runs in groups.methods(group):
        done = runs[runs["status"] == "done"]
        if len(done):
            config = {name: done[f"config.{name}"].iloc[0] for name in METHOD}
            name = method_name(config)
            if columns["mixer"] == "none" and not config["average"]:
                name = DOUBLED if config["clean_weight"] == 1 else name
                name = name if config["clean_weight"] else PLAIN
            found.append(Method(name, columns["mixer"], done["metrics.accuracy"]))
    return sorted(found, key=lambda method: -method.mean)


def sentences(group) -> list[str]:
    """The best method, and its lead over three others; [] for one method.

    These are plain training (without it no mixing), the next best, and Region Mixup. p of Welch's t
    is corrected by Holm for all other methods. The same accuracies choose the best one, so its lead
    is flattered.

    Args:
        group: the runs of one experiment, see :func:`rmlib.study.report.groups.experiments`.
    """
    found = methods(group)
    if len(found) < 2:
        return []
    best, *others = found
    leads = [stats.welch(best.accuracies, other.accuracies) for other in others]
    corrected = stats.holm([each.p for each in leads])

    def lead(number, words):
        d, p = leads[number], corrected[number]
        if p != p:
            return f"{words} by {d.mean:.2f} points; without more runs that has no interval"
        state = stats.state(p)
        if d.p < 0.05 <= p:
            state += " after Holm's correction"
        return f"{words} by {d.mean:.2f} points {span(d.low, d.high)}, {state}"

    told = [f"Best in the mean: {best.name}, {best.mean:.2f} % (n = {len(best.accuracies)})"]
    wanted = [i for i, other in enumerate(others) if other.mixer == "none"]
    wanted.sort(key=lambda i: others[i].name != PLAIN)
    if wanted:
        told.append(lead(wanted[0], f"above {others[wanted[0]].name}"))
    if wanted[:1] != [0]:
        told.append(lead(0, f"above the next, {others[0].name},"))
    regions = [i for i, other in enumerate(others) if other.mixer == "region_mixup"]
    if regions and regions[0] != 0:
        told.append(lead(regions[0], f"above {others[regions[0]].name}"))
    return told


def answer(group) -> str:
    """The sentences of an experiment in one line after its title; "" for one method."""
    told = sentences(group)
    return f"{groups.title(group)}. {'; '.join(told)}." if told else ""
