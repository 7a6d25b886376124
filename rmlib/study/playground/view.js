"use strict";
/* Shows the present state: `render` does it all, and nothing here changes the state. */

const DRAWS = 300;
const HINTS = {
  none: "W is 1 everywhere: the image and its label stay as they are.",
  mixup: "One weight for the whole image, and one partner. Drag W up or down, or use the arrow keys.",
  cutmix:
    "A box of the partner is pasted in. Drag it on W, pull its round handle, or use the sliders. " +
    "The dashed line is the box as drawn: what lies outside the image is lost.",
  region_mixup:
    "Every tile has its own weight and its own partner. " +
    "Drag a tile of W up or down, or use the arrow keys.",
};

let waiting;

const $ = (id) => document.getElementById(id);
const text = (number) => number.toFixed(2);

/** A new element inside another one. */
function add(parent, tag, properties = {}, attributes = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  return parent.appendChild(element);
}

/** Show an image, or W when it has one number per pixel; `hidden`: pixels left transparent. */
function paint(canvas, image, hidden = () => false) {
  const channels = image.length / (SIZE * SIZE);
  const pixels = new ImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) {
    for (let c = 0; c < 3; c++) {
      pixels.data[4 * i + c] = Math.round(255 * image[i * channels + (c % channels)]);
    }
    pixels.data[4 * i + 3] = hidden(i) ? 0 : 255;
  }
  [canvas.width, canvas.height] = [SIZE, SIZE];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Place an element over a box of an image. */
function place(element, [x1, y1, x2, y2]) {
  const share = (number) => `${(100 * number) / SIZE}%`;
  Object.assign(element.style, { left: share(x1), top: share(y1) });
  Object.assign(element.style, { width: share(x2 - x1), height: share(y2 - y1) });
}

/** As many children of a class as there are tiles; the same ones stay, so that focus stays. */
function children(parent, count, make) {
  while (parent.children.length > count) parent.lastChild.remove();
  while (parent.children.length < count) make(parent.children.length);
  return [...parent.children];
}

function renderTiles(plan, row) {
  const dragged = state.method === "cutmix" ? [] : plan.boxes;
  children($("tiles"), dragged.length, makeTile).forEach((element, tile) => {
    const lam = plan.lam[tile];
    place(element, dragged[tile]);
    element.textContent = text(lam);
    element.style.color = lam < 0.46 ? "#fff" : "#000";
    element.setAttribute("aria-valuenow", text(lam));
    element.setAttribute("aria-label", `weight of the image in tile ${tile + 1}`);
  });
  const label = () => add(add($("names"), "div", { className: "tile name" }), "span");
  children($("names"), plan.boxes.length, label).forEach((element, tile) => {
    const [x1, , x2] = plan.boxes[tile];
    place(element, plan.boxes[tile]);
    element.firstChild.textContent = data.images[state.images[plan.partners[tile][row]]].name;
    element.hidden = x1 >= x2;
  });
}

function renderBox(plan) {
  const cutmix = state.method === "cutmix";
  for (const id of ["drawn", "handle", "box"]) $(id).hidden = !cutmix;
  $("stage").classList.toggle("drag", cutmix);
  if (!cutmix) return;
  const { lam, x, y } = state.hand;
  place($("drawn"), drawnBox(lam[0], x, y, SIZE, SIZE));
  const [, , x2, y2] = plan.boxes[0];
  $("handle").style.left = `${(100 * x2) / SIZE}%`;
  $("handle").style.top = `${(100 * y2) / SIZE}%`;
  Object.entries({ lam: lam[0], x, y }).forEach(([id, value]) => {
    $(id).value = value;
    $(`${id}Text`).textContent = id === "lam" ? text(value) : value;
  });
}

/** Whether image `row` is its own partner in some tile. */
function meetsItself(plan, row) {
  return plan.partners.some((order) => order[row] === row);
}

/** The bars of the target, and what they say. */
function renderTarget(plan, row) {
  const weights = labelWeights(plan);
  const soft = target(state.images, plan, row, IMAGES.length, weights);
  const cutmix = state.method === "cutmix";
  const buggy = state.bug && cutmix;
  const [lam] = state.hand.lam;
  const claimed = buggy ? target(state.images, plan, row, IMAGES.length, [lam, 1 - lam]) : soft;
  const bars = $("bars");
  bars.replaceChildren();
  for (const image of state.images) {
    const part = image === state.shown ? "" : " partner";
    add(bars, "span", { textContent: data.images[image].name });
    const cell = add(bars, "div");
    add(cell, "div", { className: `bar${part}` }).style.width = `${100 * soft[image]}%`;
    if (buggy) {
      add(cell, "div", { className: "bar bug" }).style.width = `${100 * claimed[image]}%`;
    }
    const words = buggy ? `${text(soft[image])} / ${text(claimed[image])}` : text(soft[image]);
    add(bars, "span", { textContent: words });
  }
  const name = data.images[state.shown].name;
  const error = Math.abs(claimed[state.shown] - soft[state.shown]);
  let words = `The label of the ${name} is the share of its pixels: ${text(soft[state.shown])}.`;
  if (buggy) {
    words = `Solid: the pixels hold ${text(soft[state.shown])} of the ${name}. `;
    words += `Striped: the label claims ${text(claimed[state.shown])}. `;
    words += error < 0.005 ? "Here both agree." : `It is wrong by ${text(Math.abs(text(claimed[state.shown]) - text(soft[state.shown])))}.`;
  }
  if (meetsItself(plan, row)) {
    words += " Here the image meets itself, which a random order allows.";
  }
  $("verdict").textContent = words;
  $("verdict").className = buggy && error >= 0.005 ? "wrong" : "";
  $("bug").disabled = !cutmix;
  $("bug").checked = buggy;
  $("forBug").className = cutmix ? "" : "off";
}

/** Drawn weight, a mean over tiles, and pixels kept: of many draws with the present settings. */
function manyDraws() {
  const random = generator(0, 3);
  return Array.from({ length: DRAWS }, () => {
    const some = draw(state, random, SIZE, SIZE);
    const partners = some.lam.map(() => [0]);
    return againstPixels(some, planOf(state, some, partners, SIZE, SIZE));
  });
}

function againstPixels({ lam }, plan) {
  return [lam.length ? total(lam) / lam.length : 1, labelWeights(plan)[0]];
}

function renderPlot(plan, row) {
  const canvas = $("plot");
  const side = canvas.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [side * ratio, side * ratio];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [left, bottom] = [42, side - 38];
  const at = ([x, y]) => [left + x * (side - left - 10), bottom - y * (bottom - 10)];
  const dot = (point, radius, colour) => {
    pen.beginPath();
    pen.arc(...at(point), radius, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();
  };
  const line = (from, to, colour) => {
    pen.beginPath();
    pen.moveTo(...at(from));
    pen.lineTo(...at(to));
    pen.strokeStyle = colour;
    pen.stroke();
  };
  line([0, 0], [1, 0], "#222");
  line([0, 0], [0, 1], "#222");
  line([0, 0], [1, 1], "#999");
  pen.font = "13px system-ui, sans-serif";
  pen.fillStyle = "#222";
  pen.textAlign = "center";
  for (const tick of [0, 0.5, 1]) {
    pen.fillText(tick, at([tick, 0])[0], bottom + 16);
    pen.fillText(tick, left - 14, at([0, tick])[1] + 5);
  }
  const lone = weightsOf(state.method, state.k) < 2;
  pen.fillText(lone ? "drawn λ" : "drawn λ, mean of the tiles", at([0.5, 0])[0], bottom + 32);
  pen.rotate(-Math.PI / 2);
  pen.fillText("pixels kept", -at([0, 0.5])[1], 12);
  pen.rotate(Math.PI / 2);
  const points = manyDraws();
  const { colour } = data.methods[state.method];
  points.forEach((point) => dot(point, 2.2, `${colour}66`));
  const present = againstPixels(state.hand, plan);
  for (const [width, look] of [[6, "#fff"], [3, "#222"]]) {
    pen.beginPath();
    pen.arc(...at(present), 7, 0, 2 * Math.PI);
    pen.lineWidth = width;
    pen.strokeStyle = look;
    pen.stroke();
  }
  const mean = (number) => text(total(points.map(number)) / DRAWS);
  const own = meetsItself(plan, row) ? ", without its own tiles" : "";
  let words = `Ring: this batch, drawn ${text(present[0])}, kept ${text(present[1])}${own}. `;
  words += `Means of ${DRAWS} draws: ${mean(([x]) => x)} drawn, ${mean(([, y]) => y)} kept`;
  const cutmix = state.method === "cutmix";
  words += cutmix ? `, ${mean(([x, y]) => Math.abs(x - y))} apart.` : ".";
  $("plotText").textContent = words;
  canvas.setAttribute("aria-label", `Drawn weight against pixels kept. ${words}`);
}

function renderChoices() {
  const { method, k, alpha, seed } = state;
  document.body.style.setProperty("--method", data.methods[method].colour);
  document.querySelector(`#methods [value=${method}]`).checked = true;
  Object.entries({ k, seed, alpha: ALPHAS.indexOf(alpha) }).forEach(([id, value]) => {
    $(id).value = value;
  });
  $("kText").textContent = `${k} × ${k}`;
  $("alphaText").textContent = alpha;
  $("k").disabled = method !== "region_mixup";
  $("alpha").disabled = method === "none";
  $("forK").className = $("k").disabled ? "off" : "";
  $("forAlpha").className = $("alpha").disabled ? "off" : "";
  $("undo").disabled = !state.changed;
  $("hint").textContent = HINTS[method];
  document.querySelectorAll("#chooser input").forEach((input, image) => {
    input.checked = state.images.includes(image);
    input.disabled = input.checked && state.images.length === 2;
  });
}

function renderBatch(batch, plan) {
  const make = () => add(add($("batch"), "button"), "canvas", { className: "pixels" });
  children($("batch"), batch.length, make).forEach((button, row) => {
    const image = state.images[row];
    paint(button.firstChild, blend(batch, plan, row));
    button.onclick = () => choose({ shown: image }, false);
    button.setAttribute("aria-pressed", image === state.shown);
    button.setAttribute("aria-label", `follow the ${data.images[image].name}`);
  });
}

function render() {
  const plan = presentPlan();
  const batch = state.images.map((image) => IMAGES[image]);
  const row = state.images.indexOf(state.shown);
  const inside = (i) => ([x1, y1, x2, y2]) => {
    const [x, y] = [i % SIZE, Math.floor(i / SIZE)];
    return x1 <= x && x < x2 && y1 <= y && y < y2;
  };
  renderChoices();
  paint($("image"), batch[row]);
  $("imageText").textContent = `the original, a ${data.images[state.shown].name}`;
  paint($("weights"), weightMap(plan));
  paint($("partners"), partnerImage(batch, plan, row), (i) => !plan.boxes.some(inside(i)));
  paint($("mixed"), blend(batch, plan, row));
  renderTiles(plan, row);
  renderBox(plan);
  renderTarget(plan, row);
  renderPlot(plan, row);
  renderBatch(batch, plan);
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, "", address()), 200);
}
