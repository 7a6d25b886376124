"""The command line: ``rmlib data | train | batch | report | explain | bench | lesson``.

A user's mistake is answered by one line on stderr and an exit code. It is 2 for a wrong command
line, and 1 for anything else that can be mended. It is 75 for what was stopped and can go on, and
130 for an interruption. Torch is imported only by the commands that need it, after everything on
the command line has been checked.
"""

import argparse
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rmlib import STOPPED, UserError, __version__, paths
from rmlib.extras import needs
from rmlib.params import choices, nearest
from rmlib.study.guarded import Usage, guarded
from rmlib.study.settings import BENCHED, CELL, NOTEBOOKS, parse

_say = partial(print, flush=True)
MOST = 1_000_000  # of whatever is counted on the command line


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the nearest valid name."""

    def error(self, message):
        if message.startswith("unrecognized arguments: --"):
            wrong = message.split(": ", 1)[1].split()[0].split("=")[0]
            options = [name for name in self._option_string_actions if name.startswith("--")]
            message = f"unknown option {wrong}: {nearest(wrong, options)}"
        elif "invalid choice: " in message and self._subparsers is not None:
            wrong = message.split("invalid choice: '")[-1].split("'")[0]
            message = f"unknown command {wrong!r}: {nearest(wrong, COMMANDS)}"
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
    """The parser, and its subparsers by name."""
    make = partial(Parser, allow_abbrev=False)
    parser = make(prog="rmlib", description="Region Mixup, studied: run its parts.")
    parser.add_argument("--version", action="version", version=f"rmlib {__version__}")
    style: Any = {"metavar": "COMMAND", "parser_class": make}
    commands = parser.add_subparsers(dest="command", required=True, **style)
    for name, (run, options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        command.set_defaults(run=run)
        options(command)
    return parser, commands.choices


def _path(text):
    """A path on the command line; the shell leaves ``--out=~/x`` as it is."""
    try:
        return paths.expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _data_options(parser):
    add = parser.add_argument
    add("name", help="shapes, cifar10, cifar100, tiny-imagenet or folder:PATH")
    add("--root", type=_path, help="folder of the datasets (default: $RMLIB_DATA, then data/)")
    add("--offline", action="store_true", help="never download")
    add("--allow-partial", action="store_true", help="accept a part of a named dataset")


def _train_options(parser):
    """The parameters of notebook 02_training."""
    for name, field in NOTEBOOKS[CELL].model_fields.items():
        option, text = "--" + name.replace("_", "-"), field.description or ""
        if "default" not in text and field.default is not None:
            text += f" (default: {field.default})"
        text = text.replace("%", "%%")
        if field.annotation is bool:
            yes_or_no = argparse.BooleanOptionalAction
            parser.add_argument(option, action=yes_or_no, default=None, help=text)
        elif isinstance(field.default, list):
            parser.add_argument(option, nargs="*", metavar="X", help=text)
        else:
            metavar = "|".join(choices(field)) or name.upper().rsplit("_", 1)[-1]
            parser.add_argument(option, metavar=metavar, help=text)


def _batch_options(parser):
    """All but the first four are the fields of :class:`rmlib.study.batch.batch.Options`."""
    add, yes_or_no = parser.add_argument, argparse.BooleanOptionalAction
    add("file", type=_path, help="YAML file of the grid, e.g. notebooks/batches/quick.yaml")
    add("--out", type=_path, help="folder of the results (default: runs/NAME)")
    text = "a parameter of all runs, such as epochs=20 or 'seed=[0, 1]'; may be repeated"
    add("--set", action="append", metavar="NAME=VALUE", dest="settings", help=text)
    add("--dry-run", action="store_true", help="check all, list what would run, how long")
    text = "runs at the same time (default: what the cores carry; 1 on a GPU)"
    add("--workers", type=int, help=text)
    add("--only-failed", action="store_true", help="start only the runs that failed before")
    text = "after a failure run what else there is (the default), or start nothing more"
    add("--keep-going", action=yes_or_no, default=True, help=text)
    add("--timeout", type=float, metavar="MINUTES", help="end a notebook after it, as failed")
    text = "GPUs for one run each: all, or some such as 0,2 (default: the first)"
    add("--gpus", metavar="LIST", help=text)
    add("--per-gpu", type=int, default=1, help="runs at the same time on each GPU (default: 1)")
    text = "this machine (default), or a Ray cluster whose machines share the folder of results"
    add("--executor", choices=("local", "ray"), default="local", help=text)
    add("--address", help="of the Ray cluster, such as auto or 10.0.0.1:6379 (default: start one)")
    text = "compile every run: faster on a GPU"
    add("--compile", action="store_true", dest="compiled", help=text)
    add("--max-minutes", type=float, help="then stop with checkpoints; the same command goes on")


def _report_options(parser):
    add = parser.add_argument
    add("folder", nargs="?", type=_path, help="folder of records (default: runs/)")
    text = "folder of tables and pages (default: report/ in the folder of records)"
    add("--out", type=_path, help=text)
    text = "with the lessons, exercises, guide and cards of the project"
    add("--book", action="store_true", help=text)
    text = "fill the <!-- report FOLDER [KIND] --> blocks of Markdown"
    add("--into", metavar="FILE", type=_path, help=text)


def _explain_options(parser):
    parser.epilog = (
        "examples: rmlib explain results/quick 94.60 | rmlib explain results/quick robustness"
        ' "Region Mixup" --column "FGSM 8/255" | rmlib explain results/quick accuracy'
        ' "plain training" clean_weight=0 | rmlib explain results/quick b10fafa1f592'
    )
    words = "a folder of records first (default: runs/, then results/); then a number as it is"
    words += " printed, a run id, or the kind of a table and words of its row"
    home = lambda word: str(_path(word)) if word.startswith("~") else word  # noqa: E731
    parser.add_argument("words", nargs="+", metavar="WORD", type=home, help=words)
    parser.add_argument("--column", help="heading of a column (default: every mean of the row)")
    parser.add_argument("--all", action="store_true", help="also parameters that are the defaults")


def _bench_options(parser):
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    some = {"choices": BENCHED, "metavar": "|".join(BENCHED)}
    add("--only", nargs="+", default=BENCHED, help="some of the tables (default: all)", **some)
    add("--rounds", type=int, default=60, help="interleaved repetitions (the median counts)")
    add("--width", type=int, help="of the trained network (default: 64 on CUDA, 8 on the CPU)")
    add("--compile", action="store_true", help="also measure the compiled blend and step")
    add("--out", type=_path, help="also write the tables into this Markdown file")


def _lesson_options(parser):
    add = parser.add_argument
    text = "build: the students' copies, and lessons without outputs; check: what answers are worth"
    add("action", choices=("build", "check"), help=text)
    text = "build: folder of the copies (default: exercises/ in runs/); check: notebooks"
    add("paths", nargs="*", type=_path, metavar="PATH", help=text)


def run_data(options) -> int:
    from rmlib.datasets import sources

    how = {"offline": options.offline, "allow_partial": options.allow_partial}
    data = sources.read(options.name, options.root, **how)
    height, width = data["train_images"].shape[2:]
    extras = [name for name in ("boxes", "masks") if f"test_{name}" in data]
    print(
        f"{options.name}: {len(data['train_images'])} training and {len(data['test_images'])} test"
        f" images of {height} x {width} pixels, {len(data['classes'])}"
        f" classes{', with ' + ' and '.join(extras) if extras else ''}, sha256 {data['checksum']}"
    )
    print(sources.table(data))
    return 0


def run_train(options) -> int:
    given = {name: getattr(options, name) for name in NOTEBOOKS[CELL].model_fields}
    params = parse(CELL, {name: value for name, value in given.items() if value is not None})
    from rmlib.study.runs.run import train

    record = train(params, log=_say)
    if record.status != "done":
        raise UserError(f"run {record.run_id} {record.status}; its record is in {params.folder}")
    print(
        f"accuracy {record.metrics['accuracy']:.2f} %, NLL {record.metrics['nll']:.3f}, ECE"
        f" {record.metrics['ece']:.1f} % (n = 1 run, seed {params.seed}); record in {params.folder}"
    )
    if params.robustness:
        from rmlib.study.runs.measured import after_training

        after_training(params, log=_say)
    return 0


def run_batch(options) -> int:
    _check_batch(options)
    from rmlib.study.batch import batch as batches
    from rmlib.study.batch import plan

    batch = plan.read_batch(options.file, options.out, options.settings)
    names = [field.name for field in fields(batches.Options)]
    chosen = batches.Options(**{name: getattr(options, name) for name in names})
    if options.dry_run:
        print(batches.dry_run(batch, chosen))
        return 0
    counts = batches.run_batch(batch, chosen, _say)
    print(f"\n{', '.join(f'{count} {state}' for state, count in counts.items())}\n")
    if any(batch.state(run) == "done" for run in batch.runs):
        make_report(batch.out, batch.out / "report", book=bool(batch.notebooks))
    unlimited = counts["left"] and not counts["stopped"] and options.max_minutes is None
    if counts["failed"] or unlimited:
        return 1
    return STOPPED if counts["stopped"] + counts["left"] else 0


def _check_batch(options):
    """Refuse options of ``rmlib batch`` that make no sense."""
    _positive(options, "workers", "per_gpu", "max_minutes", "timeout")
    if options.executor == "ray" and options.gpus:
        reason = "Ray deals out the GPUs of its cluster itself; leave it out"
        raise UserError(f"--gpus {options.gpus}: {reason}")
    if options.executor != "ray" and options.address:
        raise UserError(f"--address {options.address} does nothing without --executor ray")


def _positive(options, *names):
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value <= MOST:
            least = "at least 1" if isinstance(value, int) else "above 0"
            raise UserError(f"--{name.replace('_', '-')} {value:g}: {least} and at most {MOST}")


def run_report(options) -> int:
    if not options.into:
        root = options.folder or paths.runs_dir()
        return 1 if make_report(root, options.out or root / "report", options.book) else 0
    if options.folder or options.out or options.book:
        raise Usage("rmlib report: --into takes its folders from the document: give it alone")
    from rmlib.study.report import report
    from rmlib.study.runs import records

    path = options.into
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason}): save it as such") from None
    records.atomic_write(path, report.fill(text, path.parent).encode())
    print(f"{path}: tables made anew")
    return 0


def make_report(root: Path, folder: Path, book: bool) -> int:
    """Print answer, table of accuracy and what is missing; write all tables and the pages, with
    ``book`` those of the project, too.

    Returns how many files had to be left out, each named on stderr.
    """
    from rmlib.study.report import answer, completeness, pages, report
    from rmlib.study.runs import collection

    found = collection.gather(root)
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    tables = report.tables(found)
    for line in [*answer.answers(found), *answer.networks(found)]:
        print(f"{line}\n")
    print(report.markdown(found))
    missing = completeness.missing(found)
    print("\n".join(f"missing: {line}" for line in missing) or "complete", end="\n\n")
    index = pages.build(found, folder, tables, missing, book)
    print(f"all tables and the notebooks as HTML: {index}")
    return len(found.problems)


def run_explain(options) -> int:
    from rmlib.study.report import explain

    print(explain.explain(options.words, options.column, options.all))
    return 0


def run_bench(options) -> int:
    _positive(options, "rounds", "width")
    if not {"attacks", "maps"}.isdisjoint(options.only):
        needs("robustness", "maps")
    if options.out and options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder: name a file in it")
    from rmlib.study.bench import bench
    from rmlib.study.runs import records

    text = bench.bench(options.device, options.rounds, options.compile, options.only, options.width)
    print(text)
    if options.out:
        records.atomic_write(options.out, text.encode())
    return 0


def run_lesson(options) -> int:
    from rmlib.study import exercises
    from rmlib.study.lesson import PASSED

    given, failed = options.paths, False
    if options.action == "build" and len(given) < 2:
        print(*exercises.build(*given or [paths.runs_dir() / "exercises"]), sep="\n")
    elif options.action == "build" or not given:
        raise Usage("rmlib lesson: expected build [FOLDER], or check NOTEBOOK ...")
    for path in given if options.action == "check" else ():
        try:
            lines = list(exercises.verdicts(path))
        except UserError as error:
            _say(error)
            failed = True
            continue
        passed = sum(f": {PASSED}." in line for line in lines)
        _say(*lines, f"{path}: {passed} of {len(lines)} passed", sep="\n")
        failed |= passed < len(lines)
    return int(failed)


# name -> (what it runs, what adds its options, what it does)
COMMANDS = {
    "data": (run_data, _data_options, "fetch, decode and check a dataset"),
    "train": (run_train, _train_options, "train one run; a stopped one goes on"),
    "batch": (run_batch, _batch_options, "run a grid of notebooks; finished runs are skipped"),
    "report": (run_report, _report_options, "make tables and a book of HTML pages from records"),
    "explain": (run_explain, _explain_options, "say where a number of a table comes from"),
    "bench": (run_bench, _bench_options, "measure speed, beside public implementations"),
    "lesson": (run_lesson, _lesson_options, "make exercises for students, check their answers"),
}
