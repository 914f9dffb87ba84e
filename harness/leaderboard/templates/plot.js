"use strict";
// Elements, numbers and the plot of score against training time. Text only ever becomes text nodes.

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const VALUES = new Map([...DIGITS].map((sign, value) => [sign, value]));
const data = JSON.parse(document.getElementById("data").textContent);
const LABELS = { f1: "macro-F1", accuracy: "accuracy" };

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// The inverse of `pack` in panel.py.
function unpack(text) {
  const numbers = [];
  let number = 0, scale = 1;
  for (const sign of text) {
    const value = VALUES.get(sign);
    number += (value % 32) * scale;
    scale *= 32;
    if (value < 32) {
      numbers.push(number);
      number = 0;
      scale = 1;
    }
  }
  return numbers;
}

function percent(value, digits = 1) {
  return value === null ? "–" : value.toFixed(digits);
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 9.95) return `${seconds.toFixed(1)}s`;
  const whole = Math.round(seconds), two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}

function ticks(low, high, most) {
  const step = [1, 2, 5, 10, 20, 25, 50].find((size) => (high - low) / size <= most) ?? 100;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(at);
  return found;
}

const TIMES = [0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400, 864000];

function timeText(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${seconds / 60} min`;
  return seconds < 86400 ? `${seconds / 3600} h` : `${seconds / 86400} d`;
}

// Runs that no run of the same device beats in both score and time.
function pareto(points) {
  const front = [];
  let best = -Infinity;
  for (const point of [...points].sort((a, b) => a.seconds - b.seconds || b.score - a.score)) {
    if (point.score > best) front.push(point);
    best = Math.max(best, point.score);
  }
  return front;
}

const SHAPES = [
  (x, y, radius) => draw("circle", { class: "point", cx: x, cy: y, r: radius }),
  (x, y) => draw("rect", { class: "point", x: x - 4, y: y - 4, width: 8, height: 8 }),
  (x, y) => draw("path", { class: "point", d: `M${x} ${y - 5.5}L${x + 5} ${y + 4}H${x - 5}Z` }),
  (x, y) => draw("path", { class: "point", d: `M${x} ${y - 6}L${x + 6} ${y}L${x} ${y + 6}L${x - 6} ${y}Z` }),
];

function drawPlot(figure, metric) {
  const runs = Object.entries(data.runs).filter(([, run]) => run.board === figure.dataset.board);
  const points = runs
    .filter(([, run]) => run.seconds > 0)
    .map(([id, run]) => ({ id, run, name: run.config[0], seconds: run.seconds, device: run.device, score: run[metric][0] / 1e4 }));
  figure.querySelector("svg, p")?.remove();
  if (!points.length) {
    figure.append(make("p", {}, "No run says how long it trained."));
    return;
  }
  const width = Math.max(figure.clientWidth, 280), height = 270;
  const left = 40, right = 14, top = 24, bottom = 34;
  const logs = points.map((point) => Math.log10(point.seconds)), scores = points.map((point) => point.score);
  const pad = (low, high, share, least) => [low - Math.max((high - low) * share, least), high + Math.max((high - low) * share, least)];
  const [t0, t1] = pad(Math.min(...logs), Math.max(...logs), 0.05, 0.08);
  const [s0, s1] = pad(Math.min(...scores), Math.max(...scores), 0.08, 0.5);
  const x = (seconds) => left + ((Math.log10(seconds) - t0) / (t1 - t0)) * (width - left - right);
  const y = (score) => height - bottom - ((score - s0) / (s1 - s0)) * (height - top - bottom);
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${LABELS[metric]} against training time; arrow keys go from run to run, Enter opens one` });
  for (const score of ticks(s0, s1, 5)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(score), y2: y(score) }),
      draw("text", { x: left - 7, y: y(score) + 4, "text-anchor": "end" }, String(score)));
  }
  let last = -Infinity;
  const times = TIMES.filter((time) => Math.log10(time) >= t0 && Math.log10(time) <= t1);
  for (const time of times.length ? times : [points[0].seconds]) {
    if (x(time) - last < 44) continue;
    last = x(time);
    svg.append(draw("line", { class: "grid", x1: x(time), x2: x(time), y1: top, y2: height - bottom }),
      draw("text", { x: x(time), y: height - bottom + 16, "text-anchor": "middle" }, times.length ? timeText(time) : duration(time)));
  }
  svg.append(draw("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "training time, log scale"),
    draw("text", { x: 0, y: 12 }, `${LABELS[metric]}, %`));
  const devices = [...new Set(points.map((point) => point.device))].sort();
  const best = new Set();
  const labels = [];
  for (const device of devices) {
    const front = pareto(points.filter((point) => point.device === device));
    front.forEach((point) => best.add(point.id));
    const path = front.map((point, at) => (at ? `H${x(point.seconds)}V${y(point.score)}` : `M${x(point.seconds)} ${y(point.score)}`));
    svg.append(draw("path", { class: "front", d: `${path.join("")}H${width - right}` }));
    labels.push(...front);
  }
  const marks = points.sort((a, b) => a.seconds - b.seconds || a.score - b.score).map((point) => {
    const shape = SHAPES[Math.min(devices.indexOf(point.device), SHAPES.length - 1)](x(point.seconds), y(point.score), points.length > 200 ? 3 : 4.5);
    const says = `${point.name}: ${percent(point.score)} % in ${duration(point.seconds)}${point.device ? ` on ${point.device}` : ""}`;
    return draw("a", { href: `#run=${point.id}`, "aria-label": best.has(point.id) ? `${says}, on the front` : says,
      tabindex: "-1", class: best.has(point.id) ? "best" : "", "data-run": point.id }, shape);
  });
  // Points of the front last, so that they lie on top; the order of the keys is by time.
  svg.append(...marks.filter((mark) => !best.has(mark.dataset.run)), ...marks.filter((mark) => best.has(mark.dataset.run)));
  nameFront(svg, labels, x, y, width - right);
  marks[0].setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => walk(event, marks));
  figure.append(svg);
  describe(figure, marks, points, metric);
  const many = devices.length > 1 ? `; ${devices.slice(0, 4).map((name, at) => `${"●■▲◆"[at]} ${name || "unknown device"}`).join(", ")}` : "";
  const untimed = runs.length > points.length ? `; ${runs.length - points.length} without a time` : "";
  figure.querySelector("figcaption").textContent = `Score against training time, and the front of what no run beats in both${many}${untimed}`;
}

function nameFront(svg, front, x, y, right) {
  const taken = [];
  for (const point of [...front].sort((a, b) => b.score - a.score)) {
    const name = point.name.length > 34 ? `${point.name.slice(0, 33)}…` : point.name;
    const size = name.length * 6.2, flip = x(point.seconds) + 8 + size > right;
    const from = flip ? x(point.seconds) - 8 - size : x(point.seconds) + 8, at = y(point.score) + (flip ? -8 : 14);
    if (from < 40 || taken.some((box) => Math.abs(box.at - at) < 13 && box.from < from + size && from < box.to)) continue;
    taken.push({ at, from, to: from + size });
    svg.append(draw("text", { class: "strong", x: flip ? from + size : from, y: at, "text-anchor": flip ? "end" : "start", "aria-hidden": "true" }, name));
  }
}

function walk(event, marks) {
  const shown = marks.filter((mark) => !mark.classList.contains("off"));
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity }[event.key];
  if (!step) return;
  event.preventDefault();
  const next = shown[Math.min(Math.max(shown.indexOf(document.activeElement) + step, 0), shown.length - 1)];
  marks.forEach((mark) => mark.setAttribute("tabindex", mark === next ? "0" : "-1"));
  next?.focus();
}

function describe(figure, marks, points, metric) {
  const tip = figure.querySelector(".tip") ?? figure.appendChild(make("div", { class: "tip", "aria-hidden": "true" }));
  tip.hidden = true;
  marks.forEach((mark, at) => {
    const point = points[at];
    const show = () => {
      const [score, low, high] = point.run[metric].map((value) => percent(value / 1e4));
      tip.replaceChildren(make("strong", {}, point.name), make("br"), `${LABELS[metric]} ${score} [${low}, ${high}]`, make("br"),
        `${duration(point.seconds)}${point.device ? ` on ${point.device}` : ""}`);
      tip.hidden = false;
      const box = mark.getBoundingClientRect(), frame = figure.getBoundingClientRect();
      tip.style.left = `${Math.max(0, Math.min(box.left - frame.left + 14, frame.width - tip.offsetWidth))}px`;
      const above = box.top - frame.top - tip.offsetHeight - 8;
      tip.style.top = `${above > 0 ? above : box.bottom - frame.top + 8}px`;
    };
    for (const kind of ["pointerenter", "focus"]) mark.addEventListener(kind, show);
    for (const kind of ["pointerleave", "blur"]) mark.addEventListener(kind, () => { tip.hidden = true; });
  });
}
