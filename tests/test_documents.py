"""Documents say what is there: their sentences are short, their links, paths and commands exist,
their snippets run, and their tables come from the records.
"""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import torch
from made import finished
from pages import FENCE, ROOT, section, snippets, text_of
from torch import nn

from rmlib.data import stream, to_float
from rmlib.models import preact_resnet18
from rmlib.paths import below
from rmlib.study.batch.plan import read_batch
from rmlib.study.cli import build_parser
from rmlib.study.report import groups, report, stats

# what git knows; all that there is in a source archive
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
UNPACKED = (path.relative_to(ROOT).as_posix() for path in below(ROOT, "*.md"))
NAMES = LISTED.stdout.split() if (ROOT / ".git").exists() else list(UNPACKED)
# the tables of `rmlib bench` are no prose
DOCUMENTS = [name for name in NAMES if not name.startswith("results/bench")]
LESSONS = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
CORE = sorted(path.name for path in (ROOT / "rmlib").glob("*.py"))
BLOCK = re.compile(r"^<!-- report .*?^<!-- end -->", re.DOTALL | re.MULTILINE)
MOST_WORDS = 25

each_document = pytest.mark.parametrize("name", DOCUMENTS)


def sentences(text):
    """The sentences of plain text: paragraphs and items of lists end one, too."""
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        words = re.sub(r"^\s*(?:[-*]|\d+\.) ", "", part)
        yield from re.split(r"(?<=[.!?])[)\"*]*\s+", " ".join(words.split()))


def too_long(text):
    return [line for line in sentences(text) if len(line.split()) > MOST_WORDS]


def prose(markdown):
    """Markdown without code, tables, headings, targets of links; code in a line is a word."""
    text = BLOCK.sub("", FENCE.sub("", markdown))
    text = re.sub(r"^(?:\||#|!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`]*`", "code", text)


def docstrings(path):
    """Every docstring without formulas, with an entry of Args as a paragraph of its own."""
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text:
            plain = re.sub(r"``[^`]*``", "code", re.sub(r"\n\n(?: {4}.*\n?)+", "\n\n", text))
            yield re.sub(r"\n(?= {4}[\w, *]+: )", "\n\n", plain)


@pytest.mark.parametrize("name, lines", [("README.md", 180), ("results/README.md", 120)])
def test_the_first_pages_are_short(name, lines):
    assert len(text_of(name).splitlines()) <= lines


@each_document
def test_sentences_of_documents_are_short(name):
    assert not too_long(prose(text_of(name)))


@pytest.mark.parametrize("name", LESSONS)
def test_sentences_of_lessons_are_short(name):
    """A formula in a line is a word; exercises have their own notebooks."""
    for cell in nbformat.read(ROOT / "notebooks" / name, 4).cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"\*\*Exercises\.\*\*.*", "", cell.source)
            text = re.sub(r"\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
            assert not too_long(prose(re.sub(r"\$[^$]+\$", "formula", text)))


@pytest.mark.parametrize("name", CORE)
def test_sentences_of_the_core_are_short(name):
    found = [too_long(text) for text in docstrings(ROOT / "rmlib" / name)]
    assert not [sentence for long in found for sentence in long]


def test_a_long_sentence_is_found():
    long = " ".join(["word"] * MOST_WORDS)
    assert not too_long(f"{long}. {long}.\n- {long}\n- {long}")
    assert too_long(f"{long} more.") and too_long(prose(f"# {long} more\n\n{long} `more`."))
    assert not too_long(prose(f"# {long} more\n\n| {long} more |\n\n[{long}](x y)"))


@each_document
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", text_of(name))
    missing = []
    for target in (each for each in targets if not each.startswith("http")):
        path, _, anchor = target.partition("#")
        found = (ROOT / name).parent / path if path else ROOT / name
        headings = re.findall(r"^#+ (.*)", found.read_text(), re.M) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
        if not found.exists() or (anchor and anchor not in anchors):
            missing.append(target)
    assert not missing


@each_document
def test_files_that_are_named_exist(name):
    pattern = r"(?<![\w./-])(?:rmlib|tests|notebooks|results)/[\w/.-]*\w"
    named = set(re.findall(pattern, BLOCK.sub("", text_of(name))))
    # those that a command is going to make
    made = {"results/cifar10", "results/cifar100"}
    assert not {path for path in named - made if not (ROOT / path).exists()}


def commands():
    """(document, words) of every `make` and `rmlib` command in the documents."""
    for name in DOCUMENTS:
        text = BLOCK.sub("", text_of(name))
        code = [line for _, body in FENCE.findall(text) for line in body.splitlines()]
        code += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        for line in code:
            found = re.search(
                r"(?:^|[/'\"]|(?:[$]|--|-m|run) )((?:make|rmlib) [a-z].*)", line.partition("  #")[0]
            )
            if found:
                yield name, re.sub(r"[`'\"]", " ", found[1]).split()


def test_commands_exist():
    targets = re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE)
    parsers, seen = build_parser()[1], set()
    for name, (program, command, *words) in commands():
        seen.add((program, command))
        if program == "make":
            assert command in targets, name
            continue
        assert command in parsers, (name, command)
        options = parsers[command]._option_string_actions
        wrong = [word for word in words if word.startswith("--") and word not in options]
        assert not wrong, (name, command, wrong)
    assert {("make", "study"), ("make", "test"), ("rmlib", "batch"), ("rmlib", "explain")} <= seen


class Seen(nn.Module):
    """A model that remembers its batches."""

    def __init__(self, model):
        super().__init__()
        self.model, self.batches = model, []

    def forward(self, images):
        self.batches.append(images)
        return self.model(images)


@pytest.fixture
def names(tiny_run, pictures, tmp_path, monkeypatch):
    """What the snippets take for granted: ten images of noise, a small network, a run's folder, and
    a picture of its dataset.
    """
    shutil.copy(next(pictures.glob("test/red/*")), tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    noise = stream(0, "noise")
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=noise)
    images, labels = to_float(pixels), torch.arange(10)
    model = Seen(preact_resnet18(10, width=2))
    return {
        "folder": finished(tiny_run)[0].folder,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "dataset": list(zip(images, labels)),
        "loader": [(images, labels)],
        "images": images,
        "labels": labels,
        "pixels": pixels,
        "masks": pixels[:, 0] > 200,
    }


def test_the_snippet_of_the_readme_trains_with_the_loss_of_the_paper(names):
    (snippet,) = snippets(text_of("README.md"))
    assert len(snippet.splitlines()) <= 12
    exec(snippet, names)
    clean, mixed = names["model"].batches
    assert torch.equal(clean, names["images"]) and torch.equal(mixed, names["mixed"])
    assert not torch.equal(clean, mixed)
    assert names["loss"] > names["clean"] > 0
    assert all(parameter.grad is not None for parameter in names["model"].parameters())


@pytest.mark.parametrize("part", [".", "robustness", "maps"])
def test_the_other_snippets_run(part, names):
    names["model"] = names["model"].model
    names["dataset"] *= 13
    text = text_of(Path("rmlib", part, "README.md"))
    # those run in test_recipes.py, with the libraries that they need
    recipes = section(text, "## Use it in your loop")
    for snippet in snippets(text.replace(recipes or "no recipes", "")):
        exec(snippet, names)
    if part == ".":
        assert Path("network.pt2").exists() and "red" in names["probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if BLOCK.search(text_of(name))])
def test_numbers_come_from_the_committed_records(name):
    text = text_of(name)
    assert report.fill(text, (ROOT / name).parent) == text, "run: make readme"


def test_numbers_in_the_words_of_pages_are_those_of_the_committed_records():
    """Speeds on the GPU, the times of its grid in the ledger, its maps; pairs of precisions."""
    rows = [row.split("|")[1:-1] for row in text_of("results/bench-cuda.md").splitlines()]
    speeds = {row[0].strip(): row[1] for row in rows if row}
    shares = [float(row[2].strip(" %")) for row in rows if row and "full step" in row[0]]
    low, high = min(shares), max(shares)
    assert f"at {low:.0f} to {high:.0f} % of the speed" in text_of("notebooks/batches/README.md")
    peers = [row for row in rows if row and "torchvision v2" in row[-1]]
    assert len(peers) == 4 and all(float(row[3]) < 1 for row in peers), "torchvision's are faster"
    maps = {(row[0].strip(), row[1].strip()): row[3:] for row in rows if len(row) == 5}
    ours, theirs = (float(maps[f"{who}, layer4", "32 x 32"][0]) for who in ("ours", "grad-cam"))
    assert f"{ours:.0f} {theirs:.0f}" == "4 17" and "costs four" in text_of("rmlib/maps/README.md")
    slower = max(1 / float(row[1]) for (name, _), row in maps.items() if name == "ours, layer3")
    assert f"up to {slower:.1f} times as long as grad-cam" in text_of("rmlib/maps/README.md")
    both, alone = (
        float(speeds[f"full step, Region Mixup, {words}"])
        for words in ("clean + mixed", "mixed alone")
    )
    ledger = text_of("results/README.md")
    told = [f"{speed:,.0f}".replace(",", " ") for speed in (both, alone)]
    assert "at {} images a second with the clean loss, and at {} without it".format(*told) in ledger
    images = 400 * 50_000
    assert f"would take {images / both / 60:.0f} or {images / alone / 60:.0f} minutes" in ledger
    grid = read_batch(ROOT / "notebooks/batches/cifar10.yaml").runs
    hours = sum(images / (both if run.clean_weight else alone) for run in grid) / 3600
    assert 5.5 < hours < 6.5 and f"{len(grid)} networks of CIFAR-10 would take six hours" in ledger

    found = groups.runs_below(ROOT / "results" / "precision").set_index("config.seed")
    for mixer, name in (("none", "plain training"), ("region_mixup", "Region Mixup")):
        own = found[found["config.mixer"] == mixer]
        half, full = (
            own.loc[own["config.precision"] == each, "metrics.accuracy"]
            for each in ("bf16", "fp32")
        )
        d = stats.paired(half, full)
        text = f"{name} {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}]"
        assert text in text_of("results/precision/README.md")
