"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const views = [...document.querySelectorAll(".tokens")];
const spans = views.map((view) => [...view.querySelectorAll("[data-i]")]);
const byName = new Map(data.statistics.map((each) => [each.name, each]));
const panel = document.getElementById("numbers");
const select = document.getElementById("by");
let chosen = null;

const digits = (value) => value === null || value === undefined ? "-" : Number.isInteger(value) ? String(value) : value.toPrecision(4);
function level(statistic, value) {
  if (value === null || value === undefined) return "";
  if (statistic.categories.length) return "c" + (value % statistic.categories.length);
  return "l" + statistic.thresholds.filter((each) => Math.abs(value) >= each).length;
}
function element(tag, text, css) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (css) made.className = css;
  return made;
}
function colour() {
  const statistic = byName.get(select.value);
  spans.forEach((row, v) => row.forEach((span, i) => {
    const values = data.views[v].values[statistic.name];
    for (const css of [...span.classList]) if (/^[lc]\d$/.test(css)) span.classList.remove(css);
    const css = values ? level(statistic, values[i]) : "";
    if (css) span.classList.add(css);
  }));
  const legend = document.getElementById("legend");
  legend.replaceChildren(element("span", statistic.name + (statistic.unit ? " (" + statistic.unit + ")" : "") + ":"));
  statistic.labels.forEach((label, i) => legend.append(" ", element("span", label, "t " + (statistic.categories.length ? "c" : "l") + i)));
  document.getElementById("meaning").textContent = statistic.meaning;
}
function choose(v, i) {
  if (chosen) chosen.span.classList.remove("chosen");
  const span = spans[v][i];
  if (!span) return;
  chosen = { v, i, span };
  span.classList.add("chosen");
  span.scrollIntoView({ block: "nearest" });
  const rows = [["token", data.views[v].positions[i]], ["text", span.textContent]];
  for (const [name, values] of Object.entries(data.views[v].values)) {
    const { categories, unit } = byName.get(name), value = values[i];
    const named = categories.length && name !== "sentence" && value !== null ? categories[value] : digits(value);
    rows.push([name, named + (unit && value !== null ? " " + unit : "")]);
  }
  const list = document.createElement("dl");
  rows.forEach(([name, value]) => { const group = document.createElement("div"); group.append(element("dt", name), element("dd", value)); list.append(group); });
  panel.replaceChildren(list);
}
views.forEach((view, v) => {
  view.addEventListener("click", (event) => { const span = event.target.closest("[data-i]"); if (span) choose(v, Number(span.dataset.i)); });
  view.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(v, chosen && chosen.v === v ? chosen.i + step : 0);
  });
});

const box = document.getElementById("search"), count = document.getElementById("count");
let hits = [], hit = -1;
function search() {
  document.querySelectorAll(".hit").forEach((each) => each.classList.remove("hit", "current"));
  hits = []; hit = -1;
  const wanted = box.value.toLowerCase();
  for (const view of wanted ? views : []) {
    const parts = [...view.children];
    let text = "";
    const starts = parts.map((part) => { const start = text.length; text += part.textContent.replaceAll("↵", "").toLowerCase(); return start; });
    let first = 0;
    for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
      while (first + 1 < starts.length && starts[first + 1] <= at) first += 1;
      const found = [];
      for (let i = first; i < parts.length && starts[i] < at + wanted.length; i += 1) found.push(parts[i]);
      found.forEach((part) => part.classList.add("hit"));
      hits.push(found);
    }
  }
  count.textContent = wanted ? hits.length + (hits.length === 1 ? " place" : " places") : "";
  if (hits.length) next(1);
}
function next(step) {
  if (!hits.length) return;
  if (hit >= 0) hits[hit].forEach((part) => part.classList.remove("current"));
  hit = (hit + step + hits.length) % hits.length;
  hits[hit].forEach((part) => part.classList.add("current"));
  hits[hit][0].scrollIntoView({ block: "center" });
  count.textContent = hit + 1 + " of " + hits.length;
}
box.addEventListener("input", search);
box.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); next(event.shiftKey ? -1 : 1); } });
document.getElementById("next").addEventListener("click", () => next(1));
document.getElementById("previous").addEventListener("click", () => next(-1));
if (select) select.addEventListener("change", colour);
document.getElementById("tools").hidden = false;
