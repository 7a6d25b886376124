"""The whole book in a browser: every page, on a desk and on a phone, without network."""

import pytest
from browser import browser, needs_browser  # noqa: F401
from made import make_record, save

from rmlib.paths import project_root
from rmlib.study.report import book, pages

# what sticks out of the window, or of a box that cannot be scrolled; wide tables may scroll
CUT_OFF = """
[...document.querySelectorAll('table, img, pre, math')].filter(each => {
  if (!each.checkVisibility()) return false
  for (let box = each.parentElement; box; box = box.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return false
  return each.getBoundingClientRect().right > innerWidth + 1
}).map(each => each.outerHTML.slice(0, 80))
"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the book of a few records, and what Sphinx complained of."""
    root = tmp_path_factory.mktemp("book")
    for seed in range(2):
        for mixer in ("none", "region_mixup"):
            save(root, make_record(80.0 + seed, seed=seed, mixer=mixer))
    said, build = [], book.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "build", lambda *given: said.extend(build(*given)))
        pages.build(root, root / "report", whole=True)
    return root / "report", said


def test_the_book_has_everything_for_readers_and_teachers(whole):
    folder, said = whole
    assert not said
    committed = [path.with_suffix("") for path in project_root().glob("notebooks/**/*.ipynb")]
    committed = [path for path in committed if "checkpoint" not in path.name]
    assert len(committed) >= 10
    for path in committed:
        assert (folder / path.relative_to(project_root()).with_suffix(".html")).exists()
    text = (folder / "notebooks" / "exercises" / "01_mixing.html").read_text()
    # the answers are folded, and the line for those who edit them is left out
    assert "<details" in text and "This file holds the solutions" not in text
    assert text.index("<details") < text.index("mean_error")
    loop = (folder / "rmlib" / "README.html").read_text()
    assert 'id="use-it-in-your-loop"' in loop and 'id="method-cards"' in loop


@needs_browser
@pytest.mark.parametrize("width", [1280, 1050, 390])
def test_every_page_is_whole_and_asks_no_other_host(whole, browser, width):  # noqa: F811
    for path in sorted(whole[0].rglob("*.html")):
        browser.errors.clear()
        browser.requests.clear()
        browser.open(path.as_uri(), width=width)
        name = path.relative_to(whole[0])
        assert not browser.errors, (name, browser.errors)
        kinds = {request.split(":")[0] for request in browser.requests}
        assert kinds <= {"file", "data", "about"}, (name, browser.requests)
        assert browser.js(WIDER) <= 0 and browser.js(CUT_OFF) == [], name


@needs_browser
def test_search_works_without_a_server(whole, browser):  # noqa: F811
    browser.open(f"{(whole[0] / 'search.html').as_uri()}?q=CutMix")
    found = "new Promise(done => setInterval(() => { const n = document.querySelectorAll("
    found += "'#search-results li').length; if (n) done(n) }, 50))"
    assert browser.js(found) > 3


@needs_browser
def test_the_playground_opens_from_a_lesson_and_mixes(whole, browser):  # noqa: F811
    browser.open((whole[0] / "notebooks" / "01_method.html").as_uri())
    address = browser.js("document.querySelector('article a[href^=\"playground.html\"]').href")
    browser.open(address)
    before = browser.js("document.querySelector('#bars').textContent")
    browser.js("document.querySelector('#next').click()")
    assert browser.js("document.querySelector('#bars').textContent") != before
