"""Tables from records, and from nothing else."""

import re
from pathlib import Path

from rmlib import UserError, records
from rmlib.params import MIXERS, TrainParams

LABELS = {"none": "No mixing", "mixup": "Mixup", "cutmix": "CutMix", "region_mixup": "Region Mixup"}
# columns of the table: metric of the record, heading, decimals
METRICS = (("accuracy", "accuracy (%)", 2), ("nll", "NLL (nats)", 3), ("ece", "ECE (%)", 1))


def summary(root: Path):
    """Mean, sample standard deviation and n of every method below a folder of records.

    Runs that differ in nothing but the seed form a row; diverged runs are counted, not averaged.

    Returns:
        (table, caption): a pandas DataFrame with a row per method, numbers unrounded, columns ``method``, the
        configuration that varies, ``n``, ``diverged`` and METRIC, METRIC_std for every metric; and a sentence with what all
        rows share, hardware and versions.

    Raises:
        UserError: there is no record.
    """
    runs = records.collect(root)
    if runs.empty:
        raise UserError(f"there is no record under {root}: run a batch first, e.g. rmlib batch notebooks/batches/quick.yaml")
    config = [name for name in runs.columns if name.startswith("config.") and name != "config.seed"]
    keys = runs[config].map(str)
    varying = [name for name in config if keys[name].nunique() > 1 and name != "config.mixer"]
    rows = []
    for _, index in keys.groupby(config, sort=False).groups.items():
        group = runs.loc[index]
        good = group[group["status"] == "done"]
        row = {"mixer": group["config.mixer"].iloc[0], **{name.removeprefix("config."): group[name].iloc[0] for name in varying},
               "n": len(good), "diverged": len(group) - len(good)}
        for metric, _, _ in METRICS:
            values = good[f"metrics.{metric}"] if len(good) else good.get(f"metrics.{metric}", [])
            row |= {metric: values.mean() if len(good) else None, f"{metric}_std": values.std(ddof=1) if len(good) > 1 else None}
        rows.append(row)
    import pandas as pd

    table = pd.DataFrame(rows)
    table["order"] = table["mixer"].map(MIXERS.index)
    by = [name for name in table.columns if name in ("clean_weight", "average")]
    table = table.sort_values([*by, "order"], ascending=[name != "clean_weight" for name in by] + [True], kind="stable")
    return table.drop(columns="order").reset_index(drop=True), _caption(runs, config)


def _caption(runs, config):
    def one(name):
        return ", ".join(sorted({str(value) for value in runs[name].dropna()}))

    defaults = TrainParams().config
    shared = {name.removeprefix("config."): runs[name].iloc[0] for name in config if runs[name].map(str).nunique() == 1}
    first = [f"{name} {shared.pop(name)}" for name in ("dataset", "width", "epochs", "batch_size", "schedule", "lr") if name in shared]
    told = ("mixer", "train_images", "test_images", "eval_every")  # in the rows, told by the numbers of images, or of no effect
    first += [f"{name} {value}" for name, value in shared.items()
              if name not in told and value != defaults.get(name) and value == value and value is not None]
    hardware = one("hardware.gpu") if "hardware.gpu" in runs else one("hardware.cpu")
    images = f"{one('data.train_images')} training and {one('data.test_images')} test images"
    return (f"{', '.join(first)}; {images}; seeds {one('config.seed')}; mean ± sample standard deviation over n seeds; "
            f"{runs['seconds'].sum() / 60:.1f} minutes in all on {hardware} ({one('hardware.cores')} cores), torch {one('versions.torch')}")


def cell(mean, std, decimals: int) -> str:
    """'82.31 ± 0.40'; without a spread the mean alone, without a mean a dash."""
    if mean is None or mean != mean:
        return "–"
    return f"{mean:.{decimals}f}" + (f" ± {std:.{decimals}f}" if std is not None and std == std else "")


def markdown(root: Path) -> str:
    """The summary as a Markdown table with its caption below."""
    table, caption = summary(root)
    varying = [name for name in table.columns if name not in ("mixer", "n", "diverged")
               and name.removesuffix("_std") not in dict((metric, 0) for metric, _, _ in METRICS)]
    heads = ["method", *varying, "n", *(heading for _, heading, _ in METRICS)]
    lines = [heads, ["---"] * (1 + len(varying)) + ["---:"] * (1 + len(METRICS))]
    for row in table.to_dict("records"):
        count = str(row["n"]) + (f" (+ {row['diverged']} diverged)" if row["diverged"] else "")
        lines.append([LABELS[row["mixer"]], *(_plain(row[name]) for name in varying), count,
                      *(cell(row[metric], row[f"{metric}_std"], decimals) for metric, _, decimals in METRICS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption}.\n"


def _plain(value):
    if value is None or value != value:
        return "all"  # no limit
    return f"{value:g}" if isinstance(value, float) else str(value)


def fill(document: str, base: Path) -> str:
    """A document with every ``<!-- report FOLDER -->`` ... ``<!-- end -->`` block made anew from FOLDER (relative to base)."""
    def block(match):
        return f"{match[1]}\n{markdown(base / match[2])}{match[3]}"

    return re.sub(r"(<!-- report (\S+) -->)\n.*?(<!-- end -->)", block, document, flags=re.DOTALL)
