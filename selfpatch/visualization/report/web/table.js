"use strict";
// Tables that sort by a click on a header; long ones have a field that filters.

const LONG_TABLE = 14;

function tableBlock(block, key) {
  const state = remembered(key, { column: null, descending: false, filter: "" });
  const body = el("tbody");
  const heads = block.columns.map((column, i) => {
    const button = el("button", { type: "button", id: stableId(`${key}/${i}`), onclick: () => {
      const isSame = state.column === i;
      state.descending = isSame ? !state.descending : column.numeric;
      state.column = i;
      draw();
    } }, column.name);
    return el("th", { scope: "col", class: column.numeric ? "numeric" : "" }, button);
  });

  function draw() {
    heads.forEach((head, i) => {
      const isSorted = state.column === i;
      head.setAttribute("aria-sort", isSorted ? (state.descending ? "descending" : "ascending") : "none");
    });
    const words = state.filter.toLowerCase();
    const rows = block.rows.filter((row) => !words || row.some((cell) => cell.text.toLowerCase().includes(words)));
    body.replaceChildren(...sortedRows(rows, state).map((row) => el("tr", {}, ...row.map((cell, i) => tableCell(cell, block.columns[i], i)))));
  }
  draw();
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": block.name },
    el("table", {}, el("caption", { class: "unseen" }, block.name), el("thead", {}, el("tr", {}, ...heads)), body));
  if (block.rows.length <= LONG_TABLE) return scroll;
  const field = el("input", { type: "search", id: stableId(`${key}/filter`), placeholder: `Filter ${block.rows.length} rows`, "aria-label": `Filter ${block.name}`, oninput: () => {
    state.filter = field.value;
    draw();
  } });
  field.value = state.filter;
  return el("div", {}, field, scroll);
}

function tableCell(cell, column, i) {
  const kind = [column.numeric ? "numeric" : "", cell.is_best ? "best" : "", cell.tone].filter(Boolean).join(" ");
  const content = cell.link ? fileLink(cell.text, cell.link) : cell.text;
  return el(i === 0 ? "th" : "td", { class: kind, scope: i === 0 ? "row" : false }, content);
}

function sortedRows(rows, state) {
  if (state.column === null) return rows;
  const sign = state.descending ? -1 : 1;
  const value = (row) => row[state.column].sort;
  return [...rows].sort((a, b) => {
    const [first, second] = [value(a), value(b)];
    if (first !== null && second !== null) return sign * (first - second);
    if (first !== null || second !== null) return first === null ? 1 : -1; // what is empty comes last
    return sign * a[state.column].text.localeCompare(b[state.column].text, "en", { numeric: true });
  });
}
