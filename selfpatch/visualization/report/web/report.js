"use strict";
// The page: its head, its sections, and of a live one the newest content every two seconds.

const POLL_MS = 2000;

const BLOCKS = {
  tiles: (block) => el("dl", { class: "tiles" }, ...block.tiles.map((tile) =>
    el("div", { class: `tile ${tile.tone}` }, el("dt", {}, tile.label), el("dd", {}, el("span", { class: "figure" }, tile.value), el("span", { class: "note" }, tile.note))))),
  text: (block) => el("div", { class: `text ${block.tone} ${block.large ? "lead" : ""}` }, ...block.lines.map((line) => el("p", {}, line))),
  code: codeBlock,
  charts: chartsBlock,
  bars: barsBlock,
  intervals: intervalsBlock,
  table: tableBlock,
  pictures: picturesBlock,
  similarity: similarityBlock,
};

function codeBlock(block) {
  const code = el("code", {}, block.text);
  const button = el("button", { type: "button", "aria-label": `Copy: ${block.label}`, onclick: () => {
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const select = () => getSelection().selectAllChildren(code);
    if (navigator.clipboard) navigator.clipboard.writeText(block.text).then(done, select);
    else select();
  } }, "Copy");
  return el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", {}, block.label), button), el("pre", { tabindex: 0 }, code));
}

function sectionElement(section, assets, id) {
  const blocks = section.blocks.map((block, i) => BLOCKS[block.kind](block, `${section.title}/${i}`, assets));
  const lead = section.lead ? [el("p", { class: "section-lead" }, section.lead)] : [];
  if (!section.closed) return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, section.title), ...lead, ...blocks);
  const state = remembered(`open/${section.title}`, { open: false });
  const details = el("details", { open: state.open, ontoggle: () => { state.open = details.open; } },
    el("summary", {}, el("h2", { id: `${id}-title` }, section.title)), ...lead, ...blocks);
  return el("section", { id, class: "closed", "aria-labelledby": `${id}-title` }, details);
}

function show(content, assets) {
  const focused = document.activeElement?.id;
  zoom.redraw.clear();
  const ids = content.sections.map((_, i) => `section-${i + 1}`);
  const open = (i) => () => { const details = document.getElementById(ids[i]).querySelector(":scope > details"); if (details) details.open = true; };
  const nav = el("nav", { "aria-label": "Sections" }, el("ul", {}, ...content.sections.map((section, i) => el("li", {}, el("a", { href: `#${ids[i]}`, onclick: open(i) }, section.title)))));
  const head = el("header", {}, el("p", { class: "badge" }, el("span", { class: "logo", "aria-hidden": "true" }, el("i"), el("i"), el("i"), el("i")), content.badge),
    el("h1", {}, content.title), el("p", { class: "subtitle" }, content.subtitle));
  const main = el("main", {}, ...content.sections.map((section, i) => sectionElement(section, assets, ids[i])));
  const foot = el("footer", {}, `Made by ${content.made}. One file, nothing loaded from elsewhere.`);
  document.getElementById("page").replaceChildren(head, nav, main, foot);
  document.title = content.title;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function followLive(version, assets) {
  let [etag, pressed] = ["", false];
  addEventListener("pointerdown", () => { pressed = true; });
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => { pressed = false; });
  const status = el("p", { class: "live", role: "status" }, "Live");
  document.body.append(status);
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (document.hidden || pressed) continue;
    try {
      const answer = await fetch(`content.json?assets=${encodeURIComponent(version)}`, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
      status.textContent = "Live";
      status.className = "live";
      if (answer.status === 304) continue;
      if (!answer.ok) throw new Error(answer.statusText);
      const found = await answer.json();
      etag = answer.headers.get("ETag") || "";
      if (found.assets !== null) [assets, version] = [found.assets, found.version];
      show(found.content, assets);
    } catch {
      status.textContent = "No answer from selfpatch watch; trying again";
      status.className = "live lost";
    }
  }
}

const firstAssets = readJson("assets");
show(readJson("content"), firstAssets);
if (document.body.dataset.live === "yes") followLive("", firstAssets);
