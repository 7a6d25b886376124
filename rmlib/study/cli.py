"""The command line: ``rmlib data | train | batch | report | explain | bench`` (also ``python -m
rmlib``).

A user's mistake is answered by one line on stderr and a non-zero exit code: 2 for a wrong command
line, 1 for anything else that can be mended, 75 for a run that was stopped and can go on, 130 for
an interrupted one. Torch is imported only by the commands that need it, after everything on the
command line has been checked.
"""

import argparse
import sys
from pathlib import Path

from rmlib import STOPPED, UserError, __version__, paths
from rmlib.params import choices, nearest
from rmlib.study.guarded import Usage, guarded
from rmlib.study.runs import collection
from rmlib.study.settings import BENCHED, NOTEBOOKS, parse


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest valid name, and whose options are
    written out.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        if message.startswith("unrecognized arguments: --"):
            wrong = message.split(": ", 1)[1].split()[0].split("=")[0]
            options = [
                option
                for action in self._actions
                for option in action.option_strings
                if option.startswith("--")
            ]
            message = f"unknown option {wrong}: {nearest(wrong, options)}"
        elif "invalid choice: " in message and self._subparsers is not None:
            wrong = message.split("invalid choice: '")[-1].split("'")[0]
            message = (
                f"unknown command {wrong!r}:"
                f" {nearest(wrong, next(iter(self._subparsers._group_actions)).choices)}"
            )
        raise Usage(f"{self.prog}: {message}")


def main(arguments=None) -> int:
    """Run one command; returns the exit code."""

    def command():
        parser, parsers = build_parser()
        options, unknown = parser.parse_known_args(arguments)
        if unknown:  # reported by the command's own parser, which knows its options
            parsers[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return options.run(options)

    return guarded(command)


def build_parser():
    """The parser and its subparsers by name; the options of ``train`` are the parameters of
    notebook 02_training.
    """
    parser = Parser(
        prog="rmlib", description="Region Mixup, studied: run its parts from the command line."
    )
    parser.add_argument("--version", action="version", version=f"rmlib {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )

    data = commands.add_parser(
        "data",
        help="fetch, decode and check a dataset",
        description="Fetch, decode and check a dataset.",
    )
    data.add_argument("name", help="shapes, cifar10, cifar100, tiny-imagenet or folder:PATH")
    data.add_argument("--root", help="folder of the datasets (default: $RMLIB_DATA, then data/)")
    data.add_argument("--offline", action="store_true", help="never download")
    data.add_argument(
        "--allow-partial", action="store_true", help="accept a part of a named dataset"
    )
    data.set_defaults(run=run_data)

    train = commands.add_parser(
        "train",
        help="train one cell",
        description="Train one cell; stopped runs go on, finished ones are shown.",
    )
    for name, field in NOTEBOOKS["02_training"].model_fields.items():
        option = "--" + name.replace("_", "-")
        default = (
            ""
            if "default" in field.description or field.default is None
            else f" (default: {field.default})"
        )
        text = (field.description + default).replace("%", "%%")
        if field.annotation is bool:
            train.add_argument(
                option, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        elif isinstance(field.default, list):
            train.add_argument(option, nargs="*", metavar="X", help=text)
        else:
            metavar = "|".join(choices(field)) or name.upper().rsplit("_", 1)[-1]
            train.add_argument(option, metavar=metavar, help=text)
    train.set_defaults(run=run_train)

    batch = commands.add_parser(
        "batch",
        help="run a grid of notebooks",
        description="Run a grid of cells through papermill; finished cells are skipped.",
    )
    batch.add_argument("file", help="YAML file of the grid, e.g. notebooks/batches/quick.yaml")
    batch.add_argument("--out", help="folder of the results (default: runs/NAME)")
    batch.add_argument(
        "--workers",
        type=int,
        help="cells at the same time (default: as many as the cores carry; 1 on a GPU)",
    )
    batch.add_argument("--dry-run", action="store_true", help="list the cells and what would run")
    batch.add_argument(
        "--only-failed", action="store_true", help="run only the cells that failed before"
    )
    batch.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="after a failure run what else there is (the default), or start nothing more",
    )
    batch.add_argument(
        "--timeout",
        type=float,
        metavar="MINUTES",
        help=(
            "a notebook that takes longer hangs: end it, with a checkpoint where it can, and count"
            " it as failed"
        ),
    )
    batch.add_argument(
        "--gpus",
        metavar="LIST",
        help=(
            "GPUs to deal the cells out to, one each: all, or some such as 0,2 (default: the first"
            " one)"
        ),
    )
    batch.add_argument(
        "--per-gpu",
        type=int,
        default=1,
        help="cells, or processes of --together, at the same time on each GPU (default: 1)",
    )
    batch.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help=(
            "run on this machine (default), or on a Ray cluster whose machines share the folder of"
            " results"
        ),
    )
    batch.add_argument(
        "--address",
        help=(
            "with --executor ray: of the cluster, such as auto or 10.0.0.1:6379 (default: start one"
            " on this machine)"
        ),
    )
    batch.add_argument(
        "--together",
        type=int,
        default=1,
        help=(
            "cells trained in one process, a step of each in turn, so that they share a GPU"
            " (default: 1)"
        ),
    )
    batch.add_argument(
        "--compile",
        action="store_true",
        help=(
            "compile network and mixing of every cell: faster on a GPU (what it gains: rmlib bench"
            " --compile)"
        ),
    )
    batch.add_argument(
        "--max-minutes",
        type=float,
        help="for a machine lent for a time: no cell starts that will not end within it",
    )
    batch.add_argument(
        "--min-images-per-second",
        type=float,
        help="give a cell up after its second epoch if it is slower, or if its loss does not fall",
    )
    batch.set_defaults(run=run_batch)

    report = commands.add_parser(
        "report",
        help="make tables and an HTML site from records",
        description=(
            "Tables (Markdown, CSV, Parquet) and an HTML site of the executed notebooks, from what"
            " lies in a folder of records. Says what is missing for complete tables; a damaged file"
            " is left out and named, and the exit code is then 1."
        ),
    )
    report.add_argument("folder", nargs="?", help="folder of records (default: runs/)")
    report.add_argument(
        "--out", help="folder of tables and HTML site (default: report/ in the folder of records)"
    )
    report.add_argument(
        "--into",
        metavar="FILE",
        help="fill the <!-- report FOLDER [KIND] --> blocks of a Markdown file instead",
    )
    report.set_defaults(run=run_report)

    explain = commands.add_parser(
        "explain",
        help="say where a number of a table comes from",
        description=(
            "From a cell of a table to the values and runs it was made of, their files, code and"
            " hardware, and the commands that make them again."
        ),
        epilog=(
            "examples: rmlib explain results/quick 59.08 | rmlib explain results/quick robustness"
            ' "Region Mixup" --column "FGSM 8/255" | rmlib explain results/quick accuracy CutMix'
            " clean_weight=0 | rmlib explain 0e6e3e5ab21f"
        ),
    )
    explain.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help=(
            "a folder of records first (default: results/); then a number as it is printed, a run"
            " id, or the kind of a table and words of its row"
        ),
    )
    explain.add_argument("--column", help="heading of a column (default: every mean of the row)")
    explain.add_argument(
        "--all",
        action="store_true",
        help="all parameters of the runs, not only those that are not the defaults",
    )
    explain.set_defaults(run=run_explain)

    bench = commands.add_parser(
        "bench",
        help="measure speed",
        description=(
            "Speed of mixers, loader, training, attacks and maps beside public implementations, as"
            " ratios in one run."
        ),
    )
    bench.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    bench.add_argument(
        "--only",
        nargs="+",
        default=BENCHED,
        choices=BENCHED,
        metavar="|".join(BENCHED),
        help="some of the tables (default: all)",
    )
    bench.add_argument(
        "--rounds", type=int, default=60, help="interleaved repetitions (the median counts)"
    )
    bench.add_argument(
        "--width",
        type=int,
        help="of the network that is trained (default: 64 on CUDA, 8 on the CPU)",
    )
    bench.add_argument(
        "--seeds",
        type=int,
        default=20,
        help="of the comparison of two Square attacks (minutes on a CPU)",
    )
    bench.add_argument(
        "--compile",
        action="store_true",
        help=(
            "also measure the compiled blend and the compiled step (on the CPU they need a C++"
            " compiler)"
        ),
    )
    bench.add_argument("--out", help="also write the tables into this Markdown file")
    bench.set_defaults(run=run_bench)
    return parser, commands.choices


def run_data(options) -> int:
    """``rmlib data``."""
    from rmlib.datasets import sources

    data = sources.arrays(
        options.name, options.root, offline=options.offline, allow_partial=options.allow_partial
    )
    height, width = data["train_images"].shape[2:]
    extras = [name for name in ("boxes", "masks") if f"test_{name}" in data]
    print(
        f"{options.name}: {len(data['train_images'])} training and {len(data['test_images'])} test"
        f" images of {height} x {width} pixels, {len(data['classes'])}"
        f" classes{', with ' + ' and '.join(extras) if extras else ''}, sha256 {data['checksum']}"
    )
    return 0


def run_train(options) -> int:
    """``rmlib train``."""
    names = NOTEBOOKS["02_training"].model_fields
    params = parse(
        "02_training",
        {name: getattr(options, name) for name in names if getattr(options, name) is not None},
    )
    from rmlib.study.runs.run import train

    record = train(params, log=lambda line: print(line, flush=True))
    if record.status != "done":
        raise UserError(f"run {record.run_id} {record.status}; its record is in {params.folder}")
    print(
        f"accuracy {record.metrics['accuracy']:.2f} %, NLL {record.metrics['nll']:.3f}, ECE"
        f" {record.metrics['ece']:.1f} % (n = 1 run, seed {params.seed}); record in {params.folder}"
    )
    if params.robustness:
        from rmlib.robustness import battery as robustness

        robustness.after_training(params, log=lambda line: print(line, flush=True))
    return 0


def run_batch(options) -> int:
    """``rmlib batch``."""
    from rmlib.study.batch import batch as batches
    from rmlib.study.batch import executors, plan

    for name in ("workers", "together", "per_gpu"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    if options.executor == "ray" and options.gpus:
        raise UserError(
            f"--gpus {options.gpus}: Ray deals out the GPUs of its cluster itself; leave the option"
            " out, and say with --per-gpu how many cells share one"
        )
    if options.executor != "ray" and options.address:
        raise UserError(f"--address {options.address} does nothing without --executor ray")
    for name in ("max_minutes", "min_images_per_second", "timeout"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name):g}: above 0")
    batch = plan.read_batch(options.file, options.out)
    if options.dry_run:
        print(
            plan.describe(
                batch,
                options.workers
                or batches.default_workers(
                    batch,
                    executors.chosen_gpus(options.gpus) if options.gpus else (),
                    options.per_gpu,
                ),
            )
        )
        return 0
    told = [
        word
        for name, usual in (("per_gpu", 1), ("together", 1), ("timeout", None))
        if getattr(options, name) != usual
        for word in (f"--{name.replace('_', '-')}", f"{getattr(options, name):g}")
    ]  # what is right on another machine, too
    counts = batches.run_batch(
        batch,
        workers=options.workers,
        only_failed=options.only_failed,
        keep_going=options.keep_going,
        max_minutes=options.max_minutes,
        timeout=options.timeout,
        min_images_per_second=options.min_images_per_second,
        together=options.together,
        compiled=options.compile,
        gpus=options.gpus,
        per_gpu=options.per_gpu,
        executor=options.executor,
        address=options.address,
        options=(*told, *["--compile"] * options.compile),
        log=lambda line: print(line, flush=True),
        live=sys.stderr.isatty(),
    )
    print(f"\n{', '.join(f'{count} {state}' for state, count in counts.items())}\n")
    if any(batch.state(cell) == "done" for cell in batch.cells):
        make_report(batch.out, batch.out / "report")
    if counts["failed"] or (
        counts["left"] and not counts["stopped"] and options.max_minutes is None
    ):
        return 1
    return STOPPED if counts["stopped"] + counts["left"] else 0


def run_report(options) -> int:
    """``rmlib report``."""
    from rmlib.study.report import report
    from rmlib.study.runs import records

    if options.into:
        if options.folder or options.out:
            raise Usage(
                "rmlib report: --into takes its folders from the document: leave FOLDER and --out"
                " away"
            )
        path = Path(options.into)
        records.atomic_write(path, report.fill(path.read_text(), path.parent).encode())
        print(f"{path}: tables made anew")
    else:
        root = Path(options.folder) if options.folder else paths.runs_dir()
        return 1 if make_report(root, Path(options.out) if options.out else root / "report") else 0
    return 0


def make_report(root: Path, folder: Path) -> int:
    """Print the table of accuracy and what is missing, write all tables and the HTML site; returns
    how many files had to be left out, each named on stderr.
    """
    from rmlib.study.report import completeness, pages, report

    found = collection.gather(root)
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    tables = report.tables(found)
    print(report.markdown(found, made=tables))
    missing = completeness.missing(found)
    print("\n".join(f"missing: {line}" for line in missing) or "complete", end="\n\n")
    print(f"all tables and the notebooks as HTML: {pages.build(found, folder, tables, missing)}")
    return len(found.problems)


def run_explain(options) -> int:
    """``rmlib explain``."""
    from rmlib.study.report import explain

    print(explain.explain(options.words, options.column, options.all))
    return 0


def run_bench(options) -> int:
    """``rmlib bench``."""
    for name in ("rounds", "seeds", "width"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: at least 1")
    from rmlib.study.bench import bench

    text = bench.bench(options.device, options.rounds, options.compile, options.only, options.width)
    print(text)
    if options.out:
        from rmlib.study.runs import records

        records.atomic_write(Path(options.out), text.encode())
    return 0


def console():
    """Entry point of the installed ``rmlib`` command."""
    from rmlib.study.batch.child import import_less

    import_less()
    sys.exit(main())


if __name__ == "__main__":
    console()
