"use strict";

// A button in the head of each column sorts the table: numbers as numbers, and missing values
// last in both directions.
function orderOf(row, column) {
  const cell = row.cells[column];
  const given = cell.dataset.order;
  if (given === undefined) return cell.textContent;
  return given === "" ? null : Number(given);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(table, head) {
  const column = head.cellIndex;
  const falling = head.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => ({ row, key: orderOf(row, column) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return falling ? compare(b.key, a.key) : compare(a.key, b.key);
  });
  body.append(...keyed.map(({ row }) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head));
    head.append(button);
  }
}

// The filter shows the cells that contain all typed words.
function filterRows(input, output, rows) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { row, text } of rows) {
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  output.textContent = words.length ? `${shown} of ${rows.length} cells` : "";
}

const filter = document.querySelector(".filter");
const cells = document.getElementById("cells");
if (cells.tBodies[0].rows.length > 10) {
  const rows = Array.from(cells.tBodies[0].rows, (row) => ({
    row,
    text: Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase(),
  }));
  const input = filter.querySelector("input");
  input.addEventListener("input", () => filterRows(input, filter.querySelector("output"), rows));
  filter.hidden = false;
}

// The sites of a drawing: Tab reaches one of them, and arrow keys the others. A tip describes the
// site under the pointer or with the focus.
const tip = document.querySelector(".tip");

function showTip(site) {
  const box = site.getBoundingClientRect();
  tip.textContent = site.getAttribute("aria-label");
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(box.left, room)) + scrollX}px`;
  tip.style.top = `${box.bottom + scrollY + 6}px`;
}

function hideTip() {
  tip.hidden = true;
}

function goTo(sites, number) {
  const site = sites[Math.max(0, Math.min(sites.length - 1, number))];
  for (const other of sites) other.setAttribute("tabindex", other === site ? "0" : "-1");
  site.focus();
}

const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
function connect(sites) {
  sites.forEach((site, number) => listen(sites, site, number));
}

function listen(sites, site, number) {
  // A title would show a second tip; a label names the link too.
  const title = site.querySelector("title");
  site.setAttribute("aria-label", title.textContent);
  title.remove();
  site.setAttribute("tabindex", number ? "-1" : "0");
  site.addEventListener("mouseenter", () => showTip(site));
  site.addEventListener("mouseleave", hideTip);
  site.addEventListener("focus", () => showTip(site));
  site.addEventListener("blur", hideTip);
  site.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    if (!(event.key in steps)) return;
    event.preventDefault();
    goTo(sites, number + steps[event.key]);
  });
}

// There may be one drawing for wide and one for narrow screens.
const drawings = Array.from(document.querySelectorAll("svg"), (svg) => svg.querySelectorAll("a.site"));
for (const sites of drawings) connect(Array.from(sites));
const hasSites = drawings.some((sites) => sites.length);
for (const note of document.querySelectorAll(".for-keys")) note.hidden = !hasSites;

// On paper, everything is unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
