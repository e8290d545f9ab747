"use strict";
// Without this script, all tables are there, and every matrix of wins.
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const scoreOf = Object.fromEntries(DATA.scores.map((score) => [score.name, score]));
const contestantOf = Object.fromEntries(DATA.contestants.map((each) => [each.name, each]));

// An element with attributes and children; texts become text nodes, so nothing in them is markup.
function element(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "line", "path", "circle", "rect", "polygon", "polyline", "text", "title"].includes(tag);
  const made = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
}

const readableNumber = (value) => (value == null ? "–" : Number(value.toPrecision(4)).toString());
document.querySelectorAll(".choice, .choices:not(#exports)").forEach((choices) => (choices.hidden = false));

// Of the matrices of wins, one at a time.
const winsBy = byId("wins-by");
if (winsBy) {
  const showWins = () =>
    document.querySelectorAll(".matrix").forEach((matrix) => (matrix.hidden = matrix.dataset.score !== winsBy.value));
  winsBy.addEventListener("change", showWins);
  addEventListener("beforeprint", () => document.querySelectorAll(".matrix").forEach((matrix) => (matrix.hidden = false)));
  addEventListener("afterprint", showWins);
  showWins();
}

// Tables that are wider than the page say so, and have a shadow where more of them is.
document.querySelectorAll(".wide").forEach((table) => {
  const hint = element("p", { class: "scroll-hint" }, "There are more columns: scroll the table sideways →");
  table.before(hint);
  const look = () => {
    hint.hidden = table.scrollWidth <= table.clientWidth + 1;
    table.classList.toggle("more", table.scrollLeft + table.clientWidth < table.scrollWidth - 1);
  };
  table.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(table);
});
