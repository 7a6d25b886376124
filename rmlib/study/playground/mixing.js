"use strict";
/* The formula of rmlib/mixers.py in plain functions. Nothing here knows the page:
   tests/study/test_playground.py compares their results with those of rmlib.

   plan = { boxes: [[x1, y1, x2, y2], ...]   disjoint tiles, half open
            lam: [...]                       weight of the ORIGINAL image in each tile
            partners: [[...], ...]           for each tile, which image of the batch is mixed in
            height, width }
   An image is an array of height * width * channels numbers. */

/** Share of the image that each tile covers. */
function shares(plan) {
  const area = plan.height * plan.width;
  return plan.boxes.map(([x1, y1, x2, y2]) => ((x2 - x1) * (y2 - y1)) / area);
}

const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

/** W of the formula: weight of the original in each pixel. */
function weightMap(plan) {
  const weights = new Float64Array(plan.height * plan.width).fill(1);
  plan.boxes.forEach(([x1, y1, x2, y2], tile) => {
    for (let y = y1; y < y2; y++) {
      weights.fill(plan.lam[tile], y * plan.width + x1, y * plan.width + x2);
    }
  });
  return weights;
}

/** What is mixed into image `row`: in each tile the partner's pixels, outside its own. */
function partnerImage(images, plan, row) {
  const partner = Float64Array.from(images[row]);
  const channels = partner.length / (plan.height * plan.width);
  plan.boxes.forEach(([x1, y1, x2, y2], tile) => {
    const source = images[plan.partners[tile][row]];
    for (let y = y1; y < y2; y++) {
      const start = (y * plan.width + x1) * channels;
      const end = (y * plan.width + x2) * channels;
      for (let i = start; i < end; i++) partner[i] = source[i];
    }
  });
  return partner;
}

/** W * image + (1 - W) * partners, for image `row` of the batch. */
function blend(images, plan, row) {
  const weights = weightMap(plan);
  const partner = partnerImage(images, plan, row);
  const channels = partner.length / weights.length;
  return partner.map((value, i) => {
    const weight = weights[Math.floor(i / channels)];
    return weight * images[row][i] + (1 - weight) * value;
  });
}

/** Weight of the original label, then of each tile's partner: they follow the pixels mixed. */
function labelWeights(plan) {
  const given = shares(plan).map((share, tile) => share * (1 - plan.lam[tile]));
  return [1 - total(given), ...given];
}

/** Soft target of image `row`; `weights` as labelWeights gives them. */
function target(labels, plan, row, classes, weights) {
  const soft = new Array(classes).fill(0);
  soft[labels[row]] += weights[0];
  plan.partners.forEach((order, tile) => {
    soft[labels[order[row]]] += weights[tile + 1];
  });
  return soft;
}

/** The k x k tiles of an image, row by row; they differ by a pixel where k does not divide it. */
function grid(k, height, width) {
  const border = (i, size) => Math.floor((i * size) / k);
  const boxes = [];
  for (let row = 0; row < k; row++) {
    for (let column = 0; column < k; column++) {
      const [x1, y1] = [border(column, width), border(row, height)];
      boxes.push([x1, y1, border(column + 1, width), border(row + 1, height)]);
    }
  }
  return boxes;
}

/** The box of CutMix before it is clipped: sides sqrt(1 - lam) of the image's, in whole pixels. */
function drawnBox(lam, x, y, height, width) {
  const half = 0.5 * Math.sqrt(1 - lam);
  const halfWidth = Math.floor(half * width);
  const halfHeight = Math.floor(half * height);
  return [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight];
}

/** A box without what lies outside the image. */
function clipped([x1, y1, x2, y2], height, width) {
  return [Math.max(x1, 0), Math.max(y1, 0), Math.min(x2, width), Math.min(y2, height)];
}

/** Random numbers in [0, 1) from a seed (mulberry32). They are not the numbers of torch. */
function generator(seed, purpose) {
  let state = (Math.imul(seed, 2654435761) + purpose) | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Logarithm of a Gamma(shape) draw (Marsaglia and Tsang 2000, with a shape above 1). */
function logGamma(shape, random) {
  const d = shape + 1 - 1 / 3;
  for (;;) {
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    const normal = radius * Math.cos(2 * Math.PI * random());
    const v = (1 + normal / Math.sqrt(9 * d)) ** 3;
    const most = 0.5 * normal ** 2 + d - d * v + d * Math.log(v);
    if (v > 0 && Math.log(1 - random()) < most) {
      return Math.log(d * v) + Math.log(1 - random()) / shape;
    }
  }
}

/** A draw of Beta(alpha, alpha). */
function beta(alpha, random) {
  if (alpha === 1) return random();
  return 1 / (1 + Math.exp(logGamma(alpha, random) - logGamma(alpha, random)));
}

/** A random order of 0 .. count - 1. */
function permutation(count, random) {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let last = count - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

/** How many weights a method draws for a batch. */
function weightsOf(method, k) {
  return { none: 0, mixup: 1, cutmix: 1, region_mixup: k * k }[method];
}

/** All random choices of a batch but the partners: weights, and the centre of CutMix's box. */
function draw({ method, k, alpha }, random, height, width) {
  const lam = Array.from({ length: weightsOf(method, k) }, () => beta(alpha, random));
  return { lam, x: Math.floor(random() * width), y: Math.floor(random() * height) };
}

/** The plan of what was drawn, or set by hand. */
function planOf({ method, k }, { lam, x, y }, partners, height, width) {
  if (method === "cutmix") {
    const box = clipped(drawnBox(lam[0], x, y, height, width), height, width);
    return { boxes: [box], lam: [0], partners, height, width };
  }
  const boxes = method === "none" ? [] : grid(method === "mixup" ? 1 : k, height, width);
  return { boxes, lam, partners, height, width };
}
