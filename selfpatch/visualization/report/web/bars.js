"use strict";
// Bars by class, and dots with the whiskers of their intervals.

const SHOWN_BARS = 24;

function barsBlock(block, key) {
  const state = remembered(key, { all: false });
  const box = el("div", { class: "bars", role: "list", "aria-label": block.title });
  const several = block.series.length > 1;
  block.categories.forEach((category, i) => {
    if (i >= SHOWN_BARS && !state.all) return;
    const rows = el("div", { class: "bar-rows" });
    block.series.forEach((series, s) => {
      const value = series.values[i];
      const bar = el("span", { class: `bar c${s % 8}` });
      bar.style.width = `${Math.max(0, Math.min(1, value ?? 0)) * 100}%`;
      rows.append(el("div", { class: "bar-row", title: `${series.name}: ${value === null ? "not scored" : formatNumber(value, true)}` },
        el("span", { class: "track" }, bar), el("span", { class: "value" }, value === null ? "\u2013" : (100 * value).toFixed(1))));
    });
    box.append(el("div", { class: "bar-group", role: "listitem" }, el("span", { class: "bar-name", title: category }, category), rows));
  });
  const figure = el("figure", { class: "chart" }, el("h3", {}, block.title));
  if (several) {
    figure.append(el("div", { class: "legend" }, ...block.series.map((series, s) =>
      el("span", { class: "key" }, el("span", { class: `swatch c${s % 8}` }), el("span", { class: "name" }, series.name)))));
  }
  figure.append(box);
  if (block.categories.length > SHOWN_BARS) {
    const text = state.all ? "Show fewer" : `Show all ${block.categories.length}`;
    figure.append(el("button", { type: "button", class: "more", onclick: () => {
      state.all = !state.all;
      figure.replaceWith(barsBlock(block, key));
    } }, text));
  }
  return figure;
}

function intervalsBlock(block) {
  const values = block.rows.flatMap((row) => row.values);
  const bounds = block.rows.flatMap((row) => (row.difference ? [row.difference.low ?? row.difference.mean, row.difference.high ?? row.difference.mean] : [0]));
  const scales = [spanOf(values, false), spanOf([0, ...bounds], true)];
  const body = el("div", { class: "intervals", role: "list" });
  body.append(el("div", { class: "interval-row head", "aria-hidden": "true" }, el("span", {}), el("span", {}, block.value), el("span", {}, block.difference)));
  block.rows.forEach((row, i) => {
    const verdict = row.difference ? row.difference.verdict : "reference";
    body.append(el("div", { class: `interval-row ${verdict}`, role: "listitem" },
      el("div", { class: "interval-name" }, el("strong", {}, `${i + 1}. ${row.name}`), el("span", { class: "note" }, row.text)),
      dotsPicture(row, scales[0]), whiskersPicture(row, scales[1])));
  });
  body.append(el("div", { class: "interval-row axis", "aria-hidden": "true" }, el("span", {}), axisPicture(scales[0], ""), axisPicture(scales[1], "+")));
  return el("figure", { class: "chart" }, body, el("figcaption", { class: "note" }, block.note));
}

function spanOf(values, signed) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const pad = 0.12 * (high - low) || 0.02;
  return { low: low - pad, high: high + pad, signed };
}

function placeOn(scale, value) {
  return `${(4 + (92 * (value - scale.low)) / (scale.high - scale.low)).toFixed(2)}%`;
}

function points(value, sign) {
  const text = (100 * value).toFixed(1).replace("-", "\u2212");
  return sign && value > 0 ? `+${text}` : text;
}

function dotsPicture(row, scale) {
  const picture = svg("svg", { class: "strip", height: 44, role: "img", "aria-label": `mean ${points(row.mean)} %` });
  picture.append(svg("line", { class: "grid", x1: "4%", x2: "96%", y1: 28, y2: 28 }));
  for (const value of row.values) picture.append(svg("circle", { class: "seed", cx: placeOn(scale, value), cy: 28, r: 3.2 }));
  picture.append(svg("circle", { class: "mean", cx: placeOn(scale, row.mean), cy: 28, r: 6 }),
    svg("text", { class: "label", x: placeOn(scale, row.mean), y: 15, "text-anchor": "middle" }, points(row.mean)));
  return picture;
}

function whiskersPicture(row, scale) {
  const found = row.difference;
  const picture = svg("svg", { class: "strip", height: 44, role: "img" });
  picture.append(svg("line", { class: "zero", x1: placeOn(scale, 0), x2: placeOn(scale, 0), y1: 0, y2: 44 }));
  if (!found) {
    picture.setAttribute("aria-label", "the reference");
    picture.append(svg("circle", { class: "mean hollow", cx: placeOn(scale, 0), cy: 28, r: 5 }), svg("text", { class: "label faint", x: placeOn(scale, 0), y: 15, "text-anchor": "middle" }, "reference"));
    return picture;
  }
  const interval = found.low === null ? "" : ` [${points(found.low, true)}, ${points(found.high, true)}]`;
  picture.setAttribute("aria-label", `${points(found.mean, true)}${interval} points: ${found.verdict}`);
  if (found.low !== null) {
    picture.append(svg("line", { class: "whisker", x1: placeOn(scale, found.low), x2: placeOn(scale, found.high), y1: 28, y2: 28 }));
    for (const end of [found.low, found.high]) picture.append(svg("line", { class: "whisker", x1: placeOn(scale, end), x2: placeOn(scale, end), y1: 22, y2: 34 }));
  }
  const middle = (found.mean - scale.low) / (scale.high - scale.low);
  picture.append(svg("circle", { class: "mean", cx: placeOn(scale, found.mean), cy: 28, r: 5.5 }),
    svg("text", { class: "label", x: placeOn(scale, found.mean), y: 15, "text-anchor": middle < 0.2 ? "start" : middle > 0.8 ? "end" : "middle" }, `${points(found.mean, true)}${interval}`));
  return picture;
}

function axisPicture(scale) {
  const picture = svg("svg", { class: "strip", height: 22 });
  for (const tick of ticksOf(100 * scale.low, 100 * scale.high, 4)) {
    picture.append(svg("text", { class: "tick", x: placeOn(scale, tick / 100), y: 14, "text-anchor": "middle" }, scale.signed && tick > 0 ? `+${tick}` : String(tick).replace("-", "\u2212")));
  }
  return picture;
}
