"use strict";
// One picture at a time, chosen by its name; a slider goes through the steps at which it was drawn.

function picturesBlock(block, key, assets) {
  const state = remembered(key, { name: null, step: null, large: false });
  const names = block.pictures.map((picture) => picture.name);
  if (!names.includes(state.name)) state.name = names[0];
  const image = el("img", { class: "sheet" });
  const caption = el("figcaption", { class: "note" });
  const frameBox = el("div", { class: "sheet-box", tabindex: 0, role: "region", "aria-label": "Picture" }, image);
  const slider = el("input", { type: "range", id: stableId(`${key}/step`), min: 0, step: 1, "aria-label": "Step", oninput: () => {
    const frames = chosen().frames;
    const i = Number(slider.value);
    state.step = i === frames.length - 1 ? null : frames[i].step; // null: the newest, also when there is a newer one
    draw();
  } });
  const output = el("output", { class: "value", for: slider.id });
  const steps = el("div", { class: "steps" }, el("label", { for: slider.id }, "Step"), slider, output);
  const size = el("button", { type: "button", id: stableId(`${key}/size`), "aria-pressed": String(state.large), onclick: () => {
    state.large = !state.large;
    draw();
  } }, "Full size");
  const tabs = el("div", { class: "tabs", role: "group", "aria-label": "Pictures" }, ...block.pictures.map((picture) =>
    el("button", { type: "button", id: stableId(`${key}/${picture.name}`), onclick: () => {
      state.name = picture.name;
      draw();
    } }, picture.label)));

  const chosen = () => block.pictures.find((picture) => picture.name === state.name);
  function draw() {
    const picture = chosen();
    const at = picture.frames.findIndex((frame) => frame.step === state.step);
    const index = at < 0 ? picture.frames.length - 1 : at;
    const frame = picture.frames[index];
    const when = frame.step === null ? "" : `step ${frame.step.toLocaleString("en-US")}`;
    image.src = assets[frame.asset];
    image.width = frame.width;
    image.height = frame.height;
    image.alt = [picture.label, picture.alt, when].filter(Boolean).join(", ");
    image.classList.toggle("large", state.large);
    caption.textContent = picture.alt;
    steps.hidden = picture.frames.length < 2;
    slider.max = picture.frames.length - 1;
    slider.value = index;
    slider.setAttribute("aria-valuetext", when);
    output.textContent = `${when.replace("step ", "")} of ${(picture.frames[picture.frames.length - 1].step ?? 0).toLocaleString("en-US")}`;
    size.setAttribute("aria-pressed", String(state.large));
    [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", String(names[i] === state.name)));
  }
  draw();
  return el("figure", { class: "pictures" }, el("div", { class: "picture-bar" }, names.length > 1 ? tabs : null, size), steps, frameBox, caption);
}
