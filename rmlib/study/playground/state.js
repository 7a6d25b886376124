"use strict";
/* What the reader chose, drew and changed by hand; it lives in the address of the page. */

const data = JSON.parse(document.getElementById("data").textContent);
const SIZE = data.size;
const ALPHAS = [0.1, 0.2, 0.5, 1, 2, 4, 10];
const IMAGES = data.images.map(({ pixels }) =>
  Float64Array.from(atob(pixels), (character) => character.charCodeAt(0) / 255),
);

// the choices, and `hand`: what was drawn ({ lam, x, y }), with what the reader changed
let state;

const within = (number, low, high) => Math.min(Math.max(number, low), high);

/** The draw of the present seed. */
function drawn() {
  return draw(state, generator(state.seed, 1), SIZE, SIZE);
}

/** The choices that an address holds; what is missing or wrong takes its default. */
function read(address) {
  const given = new URLSearchParams(address.slice(1));
  const number = (name, low, high, otherwise) => {
    const value = Number(given.get(name) || NaN);
    return value >= low && value <= high && Number.isInteger(value) ? value : otherwise;
  };
  const asked = given.get("method") || "";
  const method = Object.hasOwn(data.methods, asked) ? asked : "region_mixup";
  const alpha = ALPHAS.includes(Number(given.get("alpha"))) ? Number(given.get("alpha")) : 1;
  let images = [...new Set(given.get("images") || "")].map(Number).filter((i) => i in IMAGES);
  if (images.length < 2) images = IMAGES.map((_, i) => i);
  images.sort();
  const shown = number("shown", 0, IMAGES.length - 1, images[0]);
  state = { method, alpha, images, shown: images.includes(shown) ? shown : images[0] };
  state.k = number("k", 1, 4, 2);
  state.seed = number("seed", 0, 9999, 1);
  state.bug = given.get("bug") === "1";
  state.hand = drawn();
  const lam = (given.get("lam") || "").split("_").map((part) => parseFloat(part));
  const fits = lam.length === state.hand.lam.length && lam.every((l) => l >= 0 && l <= 1);
  state.changed = fits;
  if (fits) {
    const { x, y } = state.hand;
    state.hand = { lam, x: number("x", 0, SIZE - 1, x), y: number("y", 0, SIZE - 1, y) };
  }
}

/** The address of the present choices. */
function address() {
  const { method, k, alpha, seed, shown } = state;
  const parts = { method, k, alpha, seed, images: state.images.join(""), shown };
  if (state.bug) parts.bug = 1;
  if (state.changed) {
    const { lam, x, y } = state.hand;
    Object.assign(parts, { lam: lam.map((l) => +l.toFixed(4)).join("_"), x, y });
  }
  return `#${new URLSearchParams(parts)}`;
}

/** The plan on the page. */
function presentPlan() {
  const random = generator(state.seed, 2);
  const tiles = weightsOf(state.method, state.k);
  const partners = Array.from({ length: tiles }, () => permutation(state.images.length, random));
  return planOf(state, state.hand, partners, SIZE, SIZE);
}
