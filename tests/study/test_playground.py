"""The playground: its scripts mix as rmlib does, and the page works with keys, pointer and phone."""

import json
import re

import pytest
import torch
from browser import browser, needs_browser  # noqa: F401

from rmlib import mixers
from rmlib.data import stream
from rmlib.paths import project_root
from rmlib.study.playground import page, widget
from rmlib.study.runs import checkpoint

FILE = project_root() / "notebooks" / "playground.html"
METHODS = ("none", "mixup", "cutmix", "region_mixup")
CLASSES = 4
MIXERS = (
    mixers.NoMix(CLASSES),
    mixers.Mixup(CLASSES, alpha=0.4),
    mixers.CutMix(CLASSES),
    mixers.RegionMixup(CLASSES, k=2),
    mixers.RegionMixup(CLASSES, k=3),
    mixers.RegionMixup(CLASSES, k=3, regions="random", shared_partner=True),
)


def test_the_committed_page_is_what_rmlib_makes():
    """Colours, images and scripts; the picture's bytes depend on the versions of its makers."""
    picture = r"data:image/webp;base64,[A-Za-z0-9+/=]+"
    made, committed = (re.sub(picture, "", text) for text in (page(), FILE.read_text()))
    assert made == committed, "run make readme"


@pytest.fixture
def opened(browser):  # noqa: F811
    """The page in a browser; afterwards nothing went wrong and nothing was loaded."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(FILE.as_uri())
    yield browser
    assert not browser.errors
    assert {request.split(":")[0] for request in browser.requests} <= {"file", "data", "about"}


def drawn_case(mixer, seed, height, width):
    """A batch of an uneven size with repeated labels, a plan for it, and what rmlib makes of it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(5, 3, height, width, dtype=torch.float64, generator=generator)
    labels = torch.tensor([2, 0, 3, 0, 1])
    plan = mixer.draw(images.shape, generator)
    mixed, targets = mixer.apply(images, labels, plan)
    values = {"boxes": plan.boxes, "lam": plan.lam[:, 0], "partners": plan.partners}
    sent = {name: value.tolist() for name, value in values.items()}
    sent |= {"height": height, "width": width}
    flat = images.permute(0, 2, 3, 1).flatten(1)
    case = {"plan": sent, "images": flat.tolist(), "labels": labels.tolist()}
    expected = mixed.permute(0, 2, 3, 1).flatten(1), targets, plan.weight_map()[0].flatten()
    return case, expected


@needs_browser
def test_the_page_mixes_as_rmlib_does(opened):
    """The same plans give the same pixels, targets and W, with uneven tiles and clipped boxes."""
    sizes = ((7, 11), (3, 4))
    drawn = [
        drawn_case(mixer, seed, *size) for mixer in MIXERS for seed in range(3) for size in sizes
    ]
    cases = json.dumps([case for case, _ in drawn])
    script = f"""{cases}.map(({{ plan, images, labels }}) => {{
        const weights = labelWeights(plan);
        const rows = labels.map((_, row) => row);
        return [rows.map((row) => Array.from(blend(images, plan, row))),
                rows.map((row) => target(labels, plan, row, {CLASSES}, weights)),
                Array.from(weightMap(plan))];
    }})"""
    for (case, expected), got in zip(drawn, opened.js(script), strict=True):
        for theirs, ours in zip(expected, got, strict=True):
            ours = torch.tensor(ours, dtype=torch.float64)
            torch.testing.assert_close(ours, theirs.double(), atol=1e-6, rtol=0, msg=str(case))


@needs_browser
def test_the_page_makes_the_tiles_and_boxes_of_rmlib(opened):
    """k x k tiles; and CutMix's box from a weight and a centre, clipped as there."""
    for k, height, width in ((1, 7, 11), (3, 7, 11), (3, 32, 32), (4, 9, 5)):
        plan = mixers.RegionMixup(CLASSES, k).draw((2, 3, height, width))
        assert opened.js(f"grid({k}, {height}, {width})") == plan.boxes.tolist()
    draws, boxes = [], []
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        boxes.append(mixers.CutMix(CLASSES).draw((2, 3, 7, 11), generator).boxes[0].tolist())
        # the draws behind it: the weight, then the centre
        generator.manual_seed(seed)
        lam = mixers.beta(1.0, (), generator).item()
        u, v, _ = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        draws.append((lam, int(u * 11), int(v * 7)))
    script = f"{json.dumps(draws)}.map(([lam, x, y]) => clipped(drawnBox(lam, x, y, 7, 11), 7, 11))"
    assert opened.js(script) == boxes
    assert sum(x1 == 0 or y1 == 0 or x2 == 11 or y2 == 7 for x1, y1, x2, y2 in boxes) > 25


@needs_browser
@pytest.mark.parametrize("alpha", [0.2, 1, 4])
def test_the_weights_drawn_on_the_page_are_beta(opened, alpha):
    """Their mean is 1/2, their spread 1 / (2 sqrt(2 alpha + 1)); the draws are fixed by a seed."""
    script = (
        f"const random = generator(1, 9); Array.from({{length: 5000}}, () => beta({alpha}, random))"
    )
    weights = torch.tensor(opened.js(f"(() => {{ {script.replace('; ', '; return ')} }})()"))
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.std() == pytest.approx(0.5 / (2 * alpha + 1) ** 0.5, rel=0.03)


def centre(browser, selector):  # noqa: F811
    """Where an element is in the window."""
    box = f"document.querySelector('{selector}').getBoundingClientRect()"
    return browser.js(
        f"(() => {{ const b = {box}; return [b.x + b.width / 2, b.y + b.height / 2] }})()"
    )


def reopened(browser):  # noqa: F811
    """State before and after the page is opened anew with the address that it wrote."""
    address = browser.js("new Promise((r) => setTimeout(() => r(location.href), 300))")
    before = browser.js("JSON.stringify(state)")
    browser.open(address)
    return json.loads(before), json.loads(browser.js("JSON.stringify(state)"))


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_by_keys_and_pointer(opened, width):
    """No page is wider than the window; a key, mouse or finger changes W, target and address."""
    for method in METHODS:
        opened.open(f"{FILE.as_uri()}#method={method}&k=4&bug=1&lam=0.01&x=31", width)
        assert opened.js("document.documentElement.scrollWidth") <= width, method
    opened.open(f"{FILE.as_uri()}#k=3&seed=4", width)
    assert "without its own tiles" in opened.js("$('plotText').textContent")
    opened.open(f"{FILE.as_uri()}#seed=1", width)
    assert "own tiles" not in opened.js("$('plotText').textContent")
    lam = opened.js("state.hand.lam")
    opened.js("document.querySelector('#tiles [role=slider]').focus()")
    opened.press("ArrowUp")
    assert opened.js("state.hand.lam") == [round(lam[0] + 0.01, 2), *lam[1:]]
    old = opened.js("$('bars').textContent")
    opened.press("Home")
    assert opened.js("state.hand.lam[0]") == 0 and opened.js("$('bars').textContent") != old
    opened.drag(centre(opened, "#tiles :nth-child(4)"), (0, -150), touch=width < 700)
    assert opened.js("window.scrollY") == 0
    assert opened.js("state.hand.lam[3]") == 1 and opened.js("state.hand.lam[0]") == 0
    before, after = reopened(opened)
    assert after == {**before, "hand": {**before["hand"], "lam": after["hand"]["lam"]}}
    assert after["hand"]["lam"] == pytest.approx(before["hand"]["lam"], abs=1e-4)


@needs_browser
def test_the_box_is_dragged_and_the_bug_is_shown(opened):
    """A box that is dragged over the border loses pixels; the label that ignores it is wrong."""
    opened.open(f"{FILE.as_uri()}#method=cutmix&bug=1&lam=0.75&x=16&y=16")
    assert "Here both agree" in opened.js("$('verdict').textContent")
    pixel = opened.js("$('stage').clientWidth / SIZE")
    opened.drag(centre(opened, "#stage"), (8 * pixel, 0))
    assert opened.js("[state.hand.x, state.hand.y]") == [24, 16]
    opened.drag(centre(opened, "#stage"), (8 * pixel, 0))
    # half of a quarter of the image is left of the box
    words = "hold 0.86 of the star. Striped: the label claims 0.75. It is wrong by 0.11"
    assert words in opened.js("$('verdict').textContent")
    opened.drag(centre(opened, "#handle"), (pixel * 8, pixel * 8))
    assert opened.js("state.hand.lam[0]") == 0
    before, after = reopened(opened)
    assert before == after and before["bug"] and before["changed"]
    move = "(() => { const t = performance.now(); render(); return performance.now() - t })()"
    print(f"a move takes {opened.js(move):.1f} ms")


@needs_browser
def test_a_strange_address_takes_the_defaults(opened):
    fine = opened.js("JSON.stringify(state)")
    for text in ("method=toString&k=99&alpha=x", "images=0&shown=7&seed=-1", "lam=2_0_0_0&x=1e9"):
        opened.open(f"{FILE.as_uri()}#{text}")
        assert opened.js("JSON.stringify(state)") == fine


@needs_browser
def test_without_scripts_there_is_a_picture(opened):
    opened("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened.open(FILE.as_uri())
        root = opened("DOM.getDocument")["root"]["nodeId"]
        nodes = [
            opened("DOM.querySelector", nodeId=root, selector=name)["nodeId"]
            for name in ("#still img", "#app")
        ]
        box = opened("DOM.getBoxModel", nodeId=nodes[0])["model"]
        assert box["width"] > 300 and box["height"] > 200
        with pytest.raises(AssertionError, match="box model"):
            opened("DOM.getBoxModel", nodeId=nodes[1])
    finally:
        opened("Emulation.setScriptExecutionDisabled", value=False)


def test_sliders_show_the_plan_where_somebody_watches(monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    batch = images, torch.arange(5), tuple("abcde")
    monkeypatch.setattr(checkpoint, "interactive", lambda: False)
    assert widget.sliders(*batch) is None
    monkeypatch.setattr(checkpoint, "interactive", lambda: True)
    shown = []
    monkeypatch.setattr(widget.figures, "show", lambda figure, words: shown.append(figure))
    sliders = {each.description: each for each in widget.sliders(*batch).children[:-1]}
    asked = (("region_mixup", mixers.RegionMixup(5, 3)), ("cutmix", mixers.CutMix(5)))
    for method, mixer in asked:
        sliders["k"].value, sliders["method"].value = 3, method
        for seed in (4, 5):
            sliders["seed"].value = seed
            plan = mixer.draw(images.shape, stream(seed, "playground"))
            mixed, targets = mixer.apply(*batch[:2], plan)
            *pictures, bar = shown[-1].axes
            _, weights, _, picture = (axis.images[0].get_array() for axis in pictures)
            assert torch.equal(torch.tensor(weights), plan.weight_map()[0])
            assert torch.equal(torch.tensor(picture.data), mixed[0].permute(1, 2, 0))
            shares = torch.tensor([part.get_width() for part in bar.patches]).float()
            assert torch.allclose(shares, targets[0].sort(descending=True).values)
