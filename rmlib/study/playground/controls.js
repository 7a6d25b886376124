"use strict";
/* Follows pointer, keys and address. */

/** New choices; those that belong to the draw make a new one. */
function choose(choices, redraw = true) {
  Object.assign(state, choices);
  if (redraw) Object.assign(state, { hand: drawn(), changed: false });
  render();
}

/** What the reader changed by hand. */
function change(choices) {
  Object.assign(state.hand, choices);
  state.changed = true;
  render();
}

function setWeight(tile, value) {
  const rounded = Math.round(within(value, 0, 1) * 100) / 100;
  change({ lam: state.hand.lam.map((lam, t) => (t === tile ? rounded : lam)) });
}

/** A tile of W: a slider that is dragged up and down. */
function makeTile(tile) {
  const element = add($("tiles"), "div", { className: "tile", tabIndex: 0 });
  let start;
  element.setAttribute("role", "slider");
  element.setAttribute("aria-valuemin", 0);
  element.setAttribute("aria-valuemax", 1);
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    start = { y: event.clientY, lam: state.hand.lam[tile] };
  });
  element.addEventListener("pointermove", (event) => {
    if (element.hasPointerCapture(event.pointerId)) {
      setWeight(tile, start.lam + (start.y - event.clientY) / 150);
    }
  });
  element.addEventListener("keydown", (event) => {
    const { [tile]: lam } = state.hand.lam;
    const steps = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01 };
    Object.assign(steps, { PageUp: 0.1, PageDown: -0.1, Home: -lam, End: 1 - lam });
    if (event.key in steps) {
      event.preventDefault();
      setWeight(tile, lam + steps[event.key]);
    }
  });
}

/** Follow a pointer on an element: `begin` gives what `move` gets, with the way in pixels. */
function drag(element, begin, move) {
  let start;
  element.addEventListener("pointerdown", (event) => {
    event.stopPropagation();
    if (state.method !== "cutmix") return;
    element.setPointerCapture(event.pointerId);
    start = { x: event.clientX, y: event.clientY, was: begin() };
  });
  element.addEventListener("pointermove", (event) => {
    if (!element.hasPointerCapture(event.pointerId)) return;
    const scale = SIZE / $("stage").clientWidth;
    move(start.was, (event.clientX - start.x) * scale, (event.clientY - start.y) * scale);
  });
}

function connect() {
  Object.entries(data.methods).forEach(([name, { label, colour }]) => {
    const frame = add($("methods"), "label");
    frame.style.setProperty("--own", colour);
    const input = add(frame, "input", { type: "radio", name: "method", value: name });
    input.addEventListener("change", () => choose({ method: name }));
    frame.append(` ${label}`);
  });
  data.images.forEach(({ name }, image) => {
    const frame = add($("chooser"), "label");
    paint(add(frame, "canvas", { className: "pixels" }), IMAGES[image]);
    const input = add(frame, "input", { type: "checkbox" });
    frame.append(` ${name}`);
    input.addEventListener("change", () => {
      const images = IMAGES.map((_, i) => i).filter((i) =>
        i === image ? input.checked : state.images.includes(i),
      );
      const shown = images.includes(state.shown) ? state.shown : images[0];
      choose({ images, shown }, false);
    });
  });
  $("alpha").max = ALPHAS.length - 1;
  $("x").max = $("y").max = SIZE - 1;
  const listen = (id, event, action) => $(id).addEventListener(event, action);
  listen("k", "input", () => choose({ k: Number($("k").value) }));
  listen("alpha", "input", () => choose({ alpha: ALPHAS[$("alpha").value] }));
  listen("seed", "change", () => {
    choose({ seed: Math.round(within(Number($("seed").value) || 0, 0, 9999)) });
  });
  listen("next", "click", () => choose({ seed: (state.seed + 1) % 10000 }));
  listen("undo", "click", () => choose({}));
  listen("bug", "change", () => choose({ bug: $("bug").checked }, false));
  listen("lam", "input", () => setWeight(0, Number($("lam").value)));
  listen("x", "input", () => change({ x: Number($("x").value) }));
  listen("y", "input", () => change({ y: Number($("y").value) }));
  const inImage = (number) => Math.round(within(number, 0, SIZE - 1));
  drag($("stage"), () => ({ ...state.hand }), (was, dx, dy) => {
    change({ x: inImage(was.x + dx), y: inImage(was.y + dy) });
  });
  drag($("handle"), () => Math.sqrt(1 - state.hand.lam[0]), (side, dx, dy) => {
    setWeight(0, 1 - within(side + (dx + dy) / SIZE, 0, 1) ** 2);
  });
  window.addEventListener("resize", render);
  window.addEventListener("hashchange", () => {
    read(location.hash);
    render();
  });
}

$("still").hidden = true;
$("app").hidden = false;
connect();
read(location.hash);
render();
