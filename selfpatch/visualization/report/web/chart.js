"use strict";
// Lines over steps: hover shows values, dragging zooms, a double click or Reset shows all; arrow keys do so too.

const zoom = { range: null, redraw: new Set() };

function setZoom(range) {
  zoom.range = range;
  for (const draw of zoom.redraw) draw();
}

function chartsBlock(block, key) {
  const box = el("div", { class: block.small ? "charts small" : "charts" });
  for (const chart of block.charts) box.append(chartFigure(chart, `${key}/${chart.title}`, block.small));
  return box;
}

function chartFigure(chart, key, small) {
  const state = remembered(key, { hidden: [] });
  const titleId = freshId("chart");
  const reset = el("button", { type: "button", class: "reset", hidden: true, onclick: () => setZoom(null) }, "Reset zoom");
  const plot = el("div", { class: "plot" });
  const tip = el("div", { class: "tip", role: "status", hidden: true });
  const figure = el("figure", { class: "chart", "aria-labelledby": titleId },
    el("div", { class: "chart-head" }, el("h3", { id: titleId }, chart.title), reset));
  const several = chart.series.length > 1;
  if (several) figure.append(chartLegend(chart, state, key, () => draw()));
  figure.append(plot);
  if (chart.note) figure.append(el("p", { class: "note" }, chart.note));

  let width = 0;
  function draw() {
    if (!width) return;
    reset.hidden = zoom.range === null;
    plot.replaceChildren(chartPicture(chart, state, { width, height: small ? 132 : 236, titleId, tip, key }), tip);
  }
  zoom.redraw.add(draw);
  new ResizeObserver((entries) => {
    const found = Math.floor(entries[0].contentRect.width);
    if (found !== width) {
      width = found;
      draw();
    }
  }).observe(plot);
  return figure;
}

function chartLegend(chart, state, key, draw) {
  const list = el("div", { class: "legend", role: "group", "aria-label": `Lines of ${chart.title}` });
  chart.series.forEach((series, i) => {
    const last = series.values[series.values.length - 1];
    const button = el("button", {
      type: "button", id: stableId(`${key}/${series.name}`), "aria-pressed": String(!state.hidden.includes(series.name)),
      title: "Show or hide this line",
      onclick: () => {
        const isHidden = state.hidden.includes(series.name);
        state.hidden = isHidden ? state.hidden.filter((name) => name !== series.name) : [...state.hidden, series.name];
        button.setAttribute("aria-pressed", String(isHidden));
        draw();
      },
    }, el("span", { class: `swatch c${i % 8}` }), el("span", { class: "name" }, series.name),
    el("span", { class: "value" }, formatNumber(last, chart.percent)));
    list.append(button);
  });
  return list;
}

function chartPicture(chart, state, { width, height, titleId, tip, key }) {
  // 1. What is seen, and its scales.
  const shown = chart.series.map((series, i) => ({ ...series, color: i % 8 })).filter((s) => !state.hidden.includes(s.name));
  const allSteps = [...new Set(shown.flatMap((series) => series.steps))].sort((a, b) => a - b);
  let [x0, x1] = zoom.range || [allSteps[0] ?? 0, allSteps[allSteps.length - 1] ?? 1];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  const steps = allSteps.filter((step) => step >= x0 && step <= x1);
  let [y0, y1] = [Infinity, -Infinity];
  for (const series of shown) {
    series.steps.forEach((step, i) => {
      const value = series.values[i];
      if (value !== null && step >= x0 && step <= x1) [y0, y1] = [Math.min(y0, value), Math.max(y1, value)];
    });
  }
  if (y0 > y1) [y0, y1] = [0, 1];
  const pad = y1 > y0 ? 0.06 * (y1 - y0) : Math.abs(y0) * 0.1 || 0.5;
  [y0, y1] = [y0 - pad, y1 + pad];
  const yTicks = ticksOf(y0, y1, height < 160 ? 3 : 5);
  const yTexts = yTicks.map((tick) => (chart.percent ? `${Number((100 * tick).toPrecision(6))}` : formatNumber(tick, false)));
  const left = 12 + 6.6 * Math.max(...yTexts.map((text) => text.length), 1);
  const [right, top, bottom] = [10, 8, 24];
  const x = (step) => left + ((step - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);

  // 2. Grid and lines.
  const clip = freshId("clip");
  const root = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", id: stableId(`${key}/plot`),
    "aria-label": `${chart.title}: ${shown.map((s) => lastWords(s, chart.percent)).join("; ")}. Arrow keys move through steps, + and - zoom, 0 resets.`,
  }, svg("clipPath", { id: clip }, svg("rect", { x: left - 4, y: 0, width: Math.max(width - left - right, 0) + 8, height: height - bottom + 3 })));
  yTicks.forEach((tick, i) => root.append(
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
    svg("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, yTexts[i])));
  const xTicks = ticksOf(x0, x1, Math.max(2, Math.floor((width - left) / 90)), true);
  for (const tick of xTicks) {
    root.append(svg("text", { class: "tick", x: x(tick), y: height - 6, "text-anchor": x(tick) > width - 30 ? "end" : x(tick) < left + 12 ? "start" : "middle" }, tick.toLocaleString("en-US")));
  }
  if (chart.percent) root.append(svg("text", { class: "tick unit", x: left - 6, y: height - 6, "text-anchor": "end" }, "%"));
  const lines = svg("g", { "clip-path": `url(#${clip})` });
  for (const series of shown) {
    lines.append(svg("path", { class: `line c${series.color}`, d: pathOf(series, x, y) }));
    const points = series.steps.map((step, i) => [step, series.values[i]]).filter(([step, v]) => v !== null && step >= x0 && step <= x1);
    if (points.length <= 24) for (const [step, value] of points) lines.append(svg("circle", { class: `dot c${series.color}`, cx: x(step), cy: y(value), r: 2.6 }));
  }
  root.append(lines);

  // 3. The pointer.
  const cross = svg("g", { class: "cross" });
  const brush = svg("rect", { class: "brush", y: top, height: height - top - bottom, width: 0 });
  root.append(brush, cross);
  const frame = { root, tip, cross, brush, shown, steps, x, y, width, height, left, right, top, bottom, range: [x0, x1], all: [allSteps[0], allSteps[allSteps.length - 1]], percent: chart.percent };
  followPointer(frame);
  return root;
}

function lastWords(series, percent) {
  const i = series.values.length - 1;
  return `${series.name} ${formatNumber(series.values[i], percent)} at step ${series.steps[i]}`;
}

function pathOf(series, x, y) {
  let path = "";
  let pen = "M";
  series.steps.forEach((step, i) => {
    const value = series.values[i];
    if (value === null) pen = "M";
    else {
      path += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  });
  return path;
}

function followPointer(frame) {
  const { root, brush, steps, x, left, right, width, range } = frame;
  const stepAt = (px) => range[0] + ((px - left) / (width - left - right)) * (range[1] - range[0]);
  const place = (event) => Math.min(Math.max(event.clientX - root.getBoundingClientRect().left, left), width - right);
  const nearest = (px) => steps.reduce((best, _, i) => (Math.abs(x(steps[i]) - px) < Math.abs(x(steps[best]) - px) ? i : best), 0);
  let [start, at] = [null, steps.length - 1];

  root.addEventListener("pointermove", (event) => {
    const px = place(event);
    if (start !== null) {
      brush.setAttribute("x", Math.min(start, px));
      brush.setAttribute("width", Math.abs(px - start));
    }
    if (steps.length) showValues(frame, (at = nearest(px)));
  });
  root.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = place(event);
    root.setPointerCapture(event.pointerId);
  });
  const end = (event) => {
    const [from, to] = [start, place(event)];
    start = null;
    brush.setAttribute("width", 0);
    if (from !== null && Math.abs(to - from) > 8) setZoom([stepAt(Math.min(from, to)), stepAt(Math.max(from, to))]);
  };
  root.addEventListener("pointerup", end);
  root.addEventListener("pointercancel", () => { start = null; brush.setAttribute("width", 0); });
  root.addEventListener("pointerleave", () => hideValues(frame));
  root.addEventListener("blur", () => hideValues(frame));
  root.addEventListener("dblclick", () => setZoom(null));
  root.addEventListener("keydown", (event) => {
    if (!steps.length) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length };
    if (event.key in moves) showValues(frame, (at = Math.min(Math.max(at + moves[event.key], 0), steps.length - 1)));
    else if (event.key === "+" || event.key === "-") zoomAround(frame, steps[at], event.key === "+" ? 0.5 : 2);
    else if (event.key === "0" || event.key === "Escape") zoomAround(frame, 0, Infinity);
    else return;
    event.preventDefault();
  });
}

function zoomAround({ range, all, root }, step, factor) {
  const half = ((range[1] - range[0]) * factor) / 2;
  const [low, high] = [Math.max(all[0], step - half), Math.min(all[1], step + half)];
  const id = root.id;
  setZoom(high - low < 1 || (low <= all[0] && high >= all[1]) ? (factor < 1 ? range : null) : [low, high]);
  document.getElementById(id)?.focus();
}

function showValues(frame, index) {
  const { tip, cross, shown, steps, x, y, top, bottom, height, width, percent } = frame;
  const step = steps[index];
  cross.replaceChildren(svg("line", { x1: x(step), x2: x(step), y1: top, y2: height - bottom }));
  tip.replaceChildren(el("strong", {}, `step ${step.toLocaleString("en-US")}`));
  for (const series of shown) {
    const i = series.steps.indexOf(step);
    if (i < 0) continue;
    const value = series.values[i];
    if (value !== null) cross.append(svg("circle", { class: `dot c${series.color}`, cx: x(step), cy: y(value), r: 4 }));
    tip.append(el("span", { class: `swatch c${series.color}` }), el("span", {}, series.name), el("span", { class: "value" }, formatNumber(value, percent)));
  }
  tip.hidden = false;
  const room = width - x(step);
  const wide = tip.offsetWidth + 14;
  tip.style.left = `${Math.max(0, room > wide ? x(step) + 12 : Math.min(x(step) - wide, width - wide))}px`;
  tip.style.top = `${top}px`;
}

function hideValues({ tip, cross }) {
  tip.hidden = true;
  cross.replaceChildren();
}
