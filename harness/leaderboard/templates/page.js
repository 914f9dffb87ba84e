"use strict";
// Tabs, sorting, filtering, the ranked metric, the theme and the address.

const root = document.documentElement;
const statusLine = document.getElementById("status");
const panels = [...document.querySelectorAll(".panel")];
const tabs = [...document.querySelectorAll("#tabs a")];
const tables = [...document.querySelectorAll("table.runs")];
const collator = new Intl.Collator("en", { numeric: true });
const places = Object.fromEntries(data.fields.config.map((name, at) => [name, at]));
const params = data.fields.cost.indexOf("params");
let metric = "f1";
let current = "overview";

const known = new Map(tables.flatMap((table) => [...table.tBodies[0].rows]).map((row) => [row, data.runs[row.dataset.run]]));
const runOf = (row) => known.get(row);
const ranked = () => (metric === "f1" ? 0 : 1);
const KEYS = {
  rank: (run) => run.places[ranked()],
  f1: (run) => run.f1[0],
  accuracy: (run) => run.accuracy[0],
  params: (run) => run.cost && run.cost[params],
  seconds: (run) => run.seconds,
  seeds: (run) => run.seeds.length,
  tier: (run) => ["self-reported", "recomputed", "re-run"].indexOf(run.tier),
  study: (run) => run.study,
};
const HIGH_FIRST = new Set(["f1", "accuracy", "tier", "seeds"]);

function sortTable(table, key, descending) {
  const value = KEYS[key] ?? ((run) => run.config[places[key]]);
  const body = table.tBodies[0], sign = descending ? -1 : 1;
  const rows = [...body.rows], keyed = rows.map((row) => ({ row, value: value(runOf(row)), rank: KEYS.rank(runOf(row)) }));
  keyed.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.rank - b.rank;
    const order = typeof a.value === "string" ? collator.compare(a.value, b.value) : a.value - b.value;
    return sign * order || a.rank - b.rank;
  });
  body.remove();
  body.append(...keyed.map(({ row }) => row));
  table.tHead.after(body);
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.sort === key) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

for (const table of tables) {
  for (const head of table.tHead.querySelectorAll("[data-sort]")) {
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const sorted = head.getAttribute("aria-sort");
      const descending = sorted ? sorted === "ascending" : HIGH_FIRST.has(head.dataset.sort);
      sortTable(table, head.dataset.sort, descending);
      say(`Sorted by ${button.textContent}, ${descending ? "descending" : "ascending"}.`);
    });
    head.append(button);
  }
  table.tHead.querySelector("[data-sort=rank]").setAttribute("aria-sort", "ascending");
}

function say(text) {
  statusLine.textContent = text;
}

// What the filter looks in, made when it is first used.
const haystacks = new Map();
function haystack(row) {
  if (!haystacks.has(row)) {
    const run = runOf(row);
    const homes = data.shared[run.providers].flat(), weights = run.weights === null ? [] : data.shared[run.weights];
    haystacks.set(row, [run.config.join(" "), run.study, run.device, run.tier, run.digest, homes.join(" "), weights.join(" ")].join(" ").toLowerCase());
  }
  return haystacks.get(row);
}

function filter() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0, all = 0;
  const hidden = new Set();
  for (const table of tables) {
    const here = table.closest(".panel").id === current;
    for (const row of table.tBodies[0].rows) {
      row.hidden = words.length > 0 && !words.every((word) => haystack(row).includes(word));
      if (row.hidden) hidden.add(row.dataset.run);
      all += here;
      shown += here && !row.hidden;
    }
  }
  for (const mark of document.querySelectorAll(".plot a")) mark.classList.toggle("off", hidden.has(mark.dataset.run));
  say(words.length && all ? `${shown} of ${all} runs shown.` : "");
}
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());

for (const input of document.querySelectorAll("[name=metric]")) {
  input.addEventListener("change", () => {
    metric = input.value;
    root.dataset.metric = metric;
    for (const table of tables) {
      for (const row of table.tBodies[0].rows) row.cells[0].textContent = runOf(row).ranks[ranked()];
      sortTable(table, "rank", false);
    }
    drawPlots();
    say(`Ranked by ${LABELS[metric]}.`);
  });
}

// What a table is to a screen reader, said again where its layout is no longer that of a table.
const ROLES = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TFOOT: "rowgroup", TR: "row", TD: "cell" };
const LONG = 80;

function fitLong(table) {
  if (table.tBodies[0].rows.length <= LONG) return;
  if (!table.hasAttribute("role")) {
    for (const part of [table, ...table.querySelectorAll("thead, tbody, tfoot, tr, td")]) part.setAttribute("role", ROLES[part.tagName]);
    for (const head of table.querySelectorAll("th")) head.setAttribute("role", head.scope === "col" ? "columnheader" : "rowheader");
  }
  table.classList.remove("long");
  const widths = [...table.tHead.rows[0].cells].map((head) => head.getBoundingClientRect().width);
  table.style.setProperty("--columns", widths.map((size) => `${size}px`).join(" "));
  table.style.setProperty("--wide", `${widths.reduce((sum, size) => sum + size, 0)}px`);
  table.classList.add("long");
}

function drawPlots() {
  for (const figure of document.querySelectorAll(`#${CSS.escape(current)} .plot`)) drawPlot(figure, metric);
  filter();
}

function fit() {
  for (const table of document.querySelectorAll(`#${CSS.escape(current)} table.runs`)) fitLong(table);
  drawPlots();
}

function openTab(id, focus = false) {
  current = panels.some((panel) => panel.id === id) ? id : "overview";
  panels.forEach((panel) => { panel.hidden = panel.id !== current; });
  for (const tab of tabs) {
    const chosen = tab.hash === `#${current}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) {
      tab.scrollIntoView({ block: "nearest", inline: "nearest" });
      if (focus) tab.focus();
    }
  }
  fit();
}

document.getElementById("tabs").setAttribute("role", "tablist");
for (const [at, tab] of tabs.entries()) {
  const panel = document.getElementById(tab.hash.slice(1));
  fill(tab, { role: "tab", id: `tab-${panel.id}`, "aria-controls": panel.id }, []);
  fill(panel, { role: "tabpanel", "aria-labelledby": tab.id, tabindex: "-1" }, []);
  tab.addEventListener("click", (event) => {
    event.preventDefault();
    go(tab.hash);
  });
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(tabs[(to + tabs.length) % tabs.length].hash, true);
  });
}

function go(hash, focus = false) {
  history.pushState(null, "", hash);
  openTab(hash.slice(1), focus);
}

function follow() {
  const [, id] = location.hash.match(/^#run=(.*)$/) ?? [];
  const dialog = document.getElementById("run");
  if (id === undefined) {
    if (dialog.open) dialog.close();
    if (location.hash !== "#main") openTab(location.hash.slice(1));
    return;
  }
  const run = data.runs[id];
  if (!run) {
    say("There is no run of that name on this page.");
    return;
  }
  const home = document.getElementById(run.board).closest(".panel").id;
  if (current !== "overview" && current !== home) openTab(home);
  showRun(id);
}
window.addEventListener("hashchange", follow);
document.getElementById("run").addEventListener("close", () => {
  if (location.hash.startsWith("#run=")) history.replaceState(null, "", `#${current}`);
});
document.getElementById("run").addEventListener("click", (event) => {
  if (event.target.id === "run") event.target.close();
});

const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint(chosen) {
  if (chosen) root.dataset.theme = chosen;
  const isDark = (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  theme.setAttribute("aria-pressed", String(isDark));
  return isDark;
}
theme.addEventListener("click", () => {
  const chosen = paint() ? "light" : "dark";
  paint(chosen);
  try {
    localStorage.setItem("theme", chosen);
  } catch { /* A page from a file may have no storage; the choice then lasts as long as the page. */ }
});
let kept = null;
try {
  kept = localStorage.getItem("theme");
} catch { /* as above */ }
paint(kept === "dark" || kept === "light" ? kept : null);
dark.addEventListener("change", () => paint());

let width = 0;
new ResizeObserver(() => {
  if (width && width !== root.clientWidth) fit();
  width = root.clientWidth;
}).observe(root);

root.classList.add("live");
// The frame in which a filter that the browser kept over a reload is back.
document.getElementById("filter").value = "";
document.querySelector("[name=metric][value=f1]").checked = true;
openTab("overview");
follow();
