"use strict";
// Click a patch: every patch of every image is colored by its cosine similarity to it.

// Magma, in ten steps; as the pictures of the package.
const HEAT = [[0, 0, 4], [24, 15, 61], [68, 15, 118], [114, 31, 129], [158, 47, 127], [205, 64, 113], [241, 96, 93], [253, 150, 104], [254, 202, 141], [252, 253, 191]];

function heatColor(share) {
  const place = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const i = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[i].map((low, channel) => Math.round(low + (place - i) * (HEAT[i + 1][channel] - low)));
}

function bytesOf(base64) {
  const text = atob(base64);
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

function similarityBlock(block, key, assets) {
  const state = remembered(key, { patch: null, strength: 75 });
  const pairs = bytesOf(assets[block.pairs]);
  const counts = block.images.map((image) => image.rows * image.columns);
  const starts = counts.map((_, i) => counts.slice(0, i).reduce((a, b) => a + b, 0));
  const total = counts.reduce((a, b) => a + b, 0);
  if (state.patch === null || state.patch >= total) state.patch = Math.floor(block.images[0].rows / 2) * block.images[0].columns + Math.floor(block.images[0].columns / 2);
  const pair = (a, b) => {
    const [i, j] = a < b ? [a, b] : [b, a];
    return pairs[i * total - (i * (i - 1)) / 2 + j - i];
  };
  const cosine = (a, b) => block.low + ((1 - block.low) * pair(a, b)) / 255;
  const output = el("output", { class: "said", "aria-live": "polite" });

  const views = block.images.map((image, i) => {
    const canvas = el("canvas", { width: image.columns, height: image.rows, tabindex: 0, role: "img", id: stableId(`${key}/${i}`),
      "aria-label": `${image.name}, ${image.rows} x ${image.columns} patches: click one, or move with the arrow keys` });
    const mark = el("span", { class: "mark" });
    const box = el("div", { class: "patches" }, el("img", { src: assets[image.asset], alt: image.name, draggable: "false" }), canvas, mark);
    box.style.aspectRatio = `${image.columns} / ${image.rows}`;
    const patchAt = (event) => {
      const area = canvas.getBoundingClientRect();
      const part = (value, start, size, count) => Math.min(Math.max(Math.floor(((value - start) / size) * count), 0), count - 1);
      return starts[i] + part(event.clientY, area.top, area.height, image.rows) * image.columns + part(event.clientX, area.left, area.width, image.columns);
    };
    canvas.addEventListener("click", (event) => choose(patchAt(event)));
    canvas.addEventListener("pointermove", (event) => say(patchAt(event)));
    canvas.addEventListener("pointerleave", () => say(null));
    canvas.addEventListener("keydown", (event) => {
      const own = state.patch >= starts[i] && state.patch < starts[i] + counts[i];
      const place = own ? state.patch - starts[i] : Math.floor(counts[i] / 2);
      const [row, column] = [Math.floor(place / image.columns), place % image.columns];
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const [r, c] = [row + moves[event.key][0], column + moves[event.key][1]];
      if (r >= 0 && r < image.rows && c >= 0 && c < image.columns) choose(starts[i] + r * image.columns + c);
    });
    return { image, canvas, mark, figure: el("figure", {}, box, el("figcaption", { class: "note" }, image.name)) };
  });

  const imageOf = (patch) => starts.findLastIndex((start) => patch >= start);
  const words = (patch) => {
    const i = imageOf(patch);
    const place = patch - starts[i];
    return `row ${Math.floor(place / block.images[i].columns) + 1}, column ${(place % block.images[i].columns) + 1} of ${block.images[i].name}`;
  };
  function say(other) {
    output.textContent = other === null ? `Compared with the patch in ${words(state.patch)}.` : `Cosine ${cosine(state.patch, other).toFixed(2)} with the patch in ${words(other)}.`;
  }
  function choose(patch) {
    state.patch = patch;
    views.forEach((view, i) => drawMap(view, i));
    say(null);
  }
  function drawMap({ image, canvas, mark }, i) {
    const context = canvas.getContext("2d", { willReadFrequently: true }); // some hundred pixels: no GPU is worth it
    const pixels = context.createImageData(image.columns, image.rows);
    for (let place = 0; place < counts[i]; place += 1) {
      pixels.data.set([...heatColor(pair(state.patch, starts[i] + place) / 255), Math.round(2.55 * state.strength)], 4 * place);
    }
    context.putImageData(pixels, 0, 0);
    const place = state.patch - starts[i];
    mark.hidden = place < 0 || place >= counts[i];
    mark.style.left = `${(100 * (place % image.columns)) / image.columns}%`;
    mark.style.top = `${(100 * Math.floor(place / image.columns)) / image.rows}%`;
    mark.style.width = `${100 / image.columns}%`;
    mark.style.height = `${100 / image.rows}%`;
  }
  const strength = el("input", { type: "range", id: stableId(`${key}/strength`), min: 0, max: 100, oninput: () => {
    state.strength = Number(strength.value);
    views.forEach((view, i) => drawMap(view, i));
  } });
  strength.value = state.strength;
  choose(state.patch);
  return el("div", { class: "similarity" },
    el("div", { class: "steps" }, el("label", { for: strength.id }, "Map over image"), strength, colorBar(block.low)),
    el("div", { class: "maps" }, ...views.map((view) => view.figure)), output);
}

function colorBar(low) {
  const canvas = el("canvas", { width: 64, height: 1, role: "img", "aria-label": `Colors from ${low.toFixed(2)} to 1` });
  const context = canvas.getContext("2d");
  for (let i = 0; i < 64; i += 1) {
    context.fillStyle = `rgb(${heatColor(i / 63).join(",")})`;
    context.fillRect(i, 0, 1, 1);
  }
  return el("span", { class: "color-bar" }, el("span", { class: "value" }, low.toFixed(2).replace("-", "\u2212")), canvas, el("span", { class: "value" }, "1"));
}
