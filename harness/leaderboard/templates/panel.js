"use strict";
// The panel of a run, drawn when it is opened.

const CONFIG_NAMES = { freeze_depth: "freeze depth", lr: "learning rate", weight_decay: "weight decay", head_init: "head init",
  init: "start", batch_size: "batch size", image_size: "input, px", clip_grad: "clip gradient", ema: "EMA decay" };
const COST_NAMES = { seconds: "training", total_seconds: "with scoring", images_per_second: "images a second", params: "parameters",
  trainable: "trainable", frozen_param_share: "frozen parameters", flops: "FLOPs an image", frozen_flop_share: "frozen FLOPs",
  micro_batch: "micro-batch", cut: "cut by", prefix_passes: "passes of the frozen part", prefix_seconds: "spent in them",
  peak_memory: "peak memory" };

function showRun(id) {
  const run = data.runs[id];
  if (!run) return false;
  const board = data.boards[run.board], dialog = document.getElementById("run");
  const config = Object.fromEntries(data.fields.config.map((name, at) => [name, run.config[at]]));
  const close = make("button", { type: "button", class: "quiet" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const title = make("h2", { id: "run-title", tabindex: "-1" }, make("bdi", {}, config.backbone));
  const sheet = make("div", { class: "sheet" },
    make("header", {}, make("div", {}, title,
      make("p", { class: "sub" }, make("bdi", {}, board.dataset), ` · rank ${run.ranks[0]} by macro-F1, ${run.ranks[1]} by accuracy · `,
        make("span", { class: `tier ${run.tier}` }, run.tier))), close),
    make("div", { class: "cards" },
      scores(run, board), section("Configuration", "wide", terms(configTerms(config))),
      ...curves(run), ...confusion(run, board), classScores(run, board), calibration(run), mistakes(run, board),
      section("Cost", "wide", run.cost ? terms(costTerms(run)) : make("p", {}, "Not recorded.")),
      provenance(run, board)));
  dialog.replaceChildren(sheet);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  title.focus({ preventScroll: true });
  return true;
}

function section(title, kind, ...content) {
  return make("section", { class: kind }, make("h3", {}, title), ...content);
}

function terms(pairs, kind = "mini") {
  return make("dl", { class: kind }, pairs.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, make("bdi", {}, String(value))))));
}

function configTerms(config) {
  return Object.entries(config).filter(([name]) => name !== "seed").map(([name, value]) => [CONFIG_NAMES[name] ?? name.replaceAll("_", " "), plainNumber(value)]);
}

function plainNumber(value) {
  return typeof value === "number" && value && Math.abs(value) < 1e-3 ? value.toExponential(2) : value;
}

function large(number) {
  if (typeof number !== "number") return number ?? "–";
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) if (number >= size) return `${(number / size).toFixed(1)} ${unit}`;
  return Number(number.toFixed(2));
}

function costTerms(run) {
  return data.fields.cost.map((name, at) => {
    const value = run.cost[at];
    if (value === null) return [COST_NAMES[name] ?? name, "–"];
    if (name.endsWith("_share")) return [COST_NAMES[name] ?? name, `${percent(100 * value)} %`];
    if (name.endsWith("seconds")) return [COST_NAMES[name] ?? name, duration(value)];
    if (name === "peak_memory") return [COST_NAMES[name], `${(value / 2 ** 30).toFixed(2)} GiB`];
    return [COST_NAMES[name] ?? name.replaceAll("_", " "), large(value)];
  });
}

// The first `texts` columns are text, the others numbers.
function table(caption, heads, rows, texts = 1) {
  return make("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, make("table", {},
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, heads.map((head, at) => make("th", { scope: "col", class: at < texts ? "" : "n" }, head)))),
    make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell, at) =>
      at ? make("td", { class: at < texts ? "" : "n" }, cell) : make("th", { scope: "row" }, make("bdi", {}, cell))))))));
}

function scores(run, board) {
  const show = (value) => percent(value === null ? null : value / 100, 2);
  const mean = (at) => {
    const values = run.seeds.map((seed) => seed[at]).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  const line = (name, [f1Val, accVal, f1Test, accTest]) => [name, show(f1Val), show(f1Test),
    f1Val === null || f1Test === null ? "–" : ((f1Val - f1Test) / 100).toFixed(2).replace("-", "−"), show(accVal), show(accTest)];
  const rows = run.seeds.map(([seed, ...rest]) => line(`seed ${seed}`, rest));
  if (run.seeds.length > 1) rows.push(line("mean", [1, 2, 3, 4].map(mean)));
  const interval = (metric) => `${LABELS[metric]} ${run[metric].map((value) => percent(value / 1e4)).join(" [").replace(/ \[([^ ]+)$/, ", $1]")}`;
  return section("Scores", "wide", make("p", {}, `${interval("f1")} and ${interval("accuracy")} on ${board.split}, in percent with 95 % intervals.`),
    table("By seed, in percent; the gap is validation less test", ["Seed", "F1 val", "F1 test", "Gap", "Accuracy val", "Accuracy test"], rows));
}

function frame(width, height, label, ...content) {
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...content);
}

function curves(run) {
  const drawn = run.curves.filter(([, losses]) => losses.length);
  if (!drawn.length) return [section("Learning curves", "wide", make("p", {}, "Not recorded."))];
  const epochs = Math.max(...drawn.map(([last]) => last[0]));
  const validation = drawn.map(([, , f1]) => unpack(f1).map((value) => value / 10));
  const losses = drawn.map(([, loss]) => loss);
  return [section("Validation macro-F1 by epoch", "", lines(validation, epochs, run.seeds, "Validation macro-F1 in percent", true)),
    section("Training loss by epoch", "", lines(losses, epochs, run.seeds, "Training loss", false))];
}

function lines(series, epochs, seeds, what, percents) {
  const width = 440, height = 220, left = 40, right = 12, top = 10, bottom = 26;
  const values = series.flat();
  const low = percents ? Math.max(0, Math.min(...values) - 3) : Math.min(0, ...values);
  const high = Math.max(low + 1e-6, percents ? Math.min(100, Math.max(...values) + 3) : Math.max(...values) * 1.05);
  const x = (at, of) => left + (of > 1 ? at / (of - 1) : 0.5) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const marks = percents ? ticks(low, high, 5) : [0, 1, 2, 3, 4].map((at) => low + (at / 4) * (high - low));
  const ends = series.map((one) => (percents ? percent(one.at(-1)) : one.at(-1).toPrecision(3)));
  const svg = frame(width, height, `${what} over ${epochs} epochs, one line a seed; at the end ${ends.join(", ")}`);
  for (const mark of marks) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }),
      draw("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, percents ? String(mark) : mark.toPrecision(2)));
  }
  for (const [at, text] of [[0, "1"], [1, `epoch ${epochs}`]]) {
    svg.append(draw("text", { x: left + at * (width - left - right), y: height - 8, "text-anchor": at ? "end" : "middle" }, text));
  }
  series.forEach((one, at) => {
    const path = one.map((value, step) => `${x(step, one.length).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
    svg.append(draw("path", { class: `curve s${Math.min(at, 3)}`, d: `M${path}` }, draw("title", {}, `seed ${seeds[at]?.[0]}`)));
    if (one.length === 1) svg.append(draw("circle", { class: "fill", cx: x(0, 1), cy: y(one[0]), r: 3 }));
  });
  return svg;
}

function cellsOf(text) {
  const numbers = unpack(text), cells = [];
  for (let at = 0, place = -1; at < numbers.length; at += 2) {
    place += numbers[at] + 1;
    cells.push([place, numbers[at + 1]]);
  }
  return cells;
}

function confusion(run, board) {
  const found = run.confusion;
  if (!found) return [section("Confusion matrix", "wide", make("p", {}, "There are no test scores."))];
  const classes = board.classes, support = unpack(found.support);
  let pairs = [], matrix;
  if (found.cells !== undefined) {
    const cells = cellsOf(found.cells);
    matrix = picture(cells, classes.length, (row) => support[row], classes);
    pairs = cells.map(([place, count]) => [Math.floor(place / classes.length), place % classes.length, count]).filter(([a, b]) => a !== b);
  } else {
    const size = 32, cells = cellsOf(found.coarse), sums = new Array(size).fill(0);
    cells.forEach(([place, count]) => { sums[Math.floor(place / size)] += count; });
    matrix = picture(cells, size, (row) => sums[row], null);
    const numbers = unpack(found.largest);
    for (let at = 0; at < numbers.length; at += 3) pairs.push(numbers.slice(at, at + 3));
  }
  pairs = pairs.sort((a, b) => b[2] - a[2]).slice(0, 40);
  const images = run.seeds.length > 1 ? "Images, all seeds" : "Images";
  const list = pairs.length
    ? table("Largest confusions on test", ["True class", "Answered", images, "Share"], pairs.map(([a, b, count]) =>
      [classes[a] ?? String(a), make("bdi", {}, classes[b] ?? String(b)), String(count), `${percent((100 * count) / Math.max(support[a], 1))} %`]), 2)
    : make("p", {}, "Not one wrong answer.");
  list.classList.add("tall");
  const note = found.cells === undefined ? `${classes.length} classes in 32 groups of neighbours by name. ${found.rest[0]} wrong answers beyond those listed.` : "Rows are true classes, columns what was answered; each row adds up to 100 %.";
  return [section("Confusion matrix", "", matrix, make("p", { class: "sub" }, note)), section("Largest confusions", "", list)];
}

function picture(cells, size, total, classes) {
  const named = classes && size <= 12, side = 400, left = named ? 92 : 18, top = 18, step = (side - left) / size;
  const svg = frame(side, side - left + top + 4, `Confusion matrix of ${classes ? size + " classes" : "32 groups of classes"}; the largest confusions are listed beside it`);
  svg.append(draw("rect", { x: left, y: top, width: side - left, height: side - left, fill: "var(--sunken)" }),
    draw("text", { x: left, y: 11 }, "answered →"));
  for (const [place, count] of cells) {
    const row = Math.floor(place / size), column = place % size, share = count / Math.max(total(row), 1);
    const says = classes ? `${classes[row]} answered ${classes[column]}: ${count}` : String(count);
    svg.append(draw("rect", { class: "cell", x: (left + column * step).toFixed(2), y: (top + row * step).toFixed(2), width: Math.max(step - (size > 40 ? 0 : 1), 0.5).toFixed(2), height: Math.max(step - (size > 40 ? 0 : 1), 0.5).toFixed(2),
      fill: row === column ? "var(--accent)" : "var(--second)", "fill-opacity": Math.min(1, 0.08 + 0.92 * share ** 0.6).toFixed(2) }, draw("title", {}, says)));
    if (size <= 10) svg.append(draw("text", { class: share > 0.4 ? "on" : "strong", x: left + (column + 0.5) * step, y: top + (row + 0.5) * step + 4, "text-anchor": "middle" }, String(count)));
  }
  if (named) classes.forEach((name, row) => svg.append(draw("text", { x: left - 6, y: top + (row + 0.5) * step + 4, "text-anchor": "end" }, name.length > 14 ? `${name.slice(0, 13)}…` : name, draw("title", {}, name))));
  return svg;
}

function classScores(run, board) {
  if (!run.confusion) return null;
  const f1 = unpack(run.confusion.f1), support = unpack(run.confusion.support);
  const rows = f1.map((value, at) => [value, at]).filter(([, at]) => support[at]).sort((a, b) => a[0] - b[0]);
  const list = table("F1 of each class on test, the hardest first", ["Class", "", "F1, %", "Images"], rows.map(([value, at]) => {
    const bar = make("i");
    bar.style.width = `${value / 10}%`;
    return [board.classes[at] ?? String(at), make("span", { class: "meter", "aria-hidden": "true" }, bar), percent(value / 10), String(support[at])];
  }), 2);
  list.classList.add("tall");
  return section("F1 by class", "", list);
}

function calibration(run) {
  if (!run.calibration) return section("Calibration", "", make("p", {}, "No predictions came with this run."));
  const numbers = unpack(run.calibration[1]), bins = numbers.length / 3;
  const width = 440, left = 40, bottom = 34, top = 22, size = 250;
  const x = (share) => left + share * size, y = (share) => top + (1 - share) * size;
  const error = percent(run.calibration[0] / 100);
  const svg = frame(width, size + top + bottom, `Reliability diagram; expected calibration error ${error} %`);
  for (const share of [0, 0.5, 1]) {
    svg.append(draw("line", { class: "grid", x1: x(0), x2: x(1), y1: y(share), y2: y(share) }),
      draw("text", { x: left - 5, y: y(share) + 4, "text-anchor": "end" }, String(100 * share)),
      draw("text", { x: x(share), y: y(0) + 14, "text-anchor": "middle" }, String(100 * share)));
  }
  const total = numbers.filter((_, at) => at % 3 === 0).reduce((sum, count) => sum + count, 0);
  for (let bin = 0; bin < bins; bin += 1) {
    const [count, hits, sure] = numbers.slice(3 * bin, 3 * bin + 3);
    if (!count) continue;
    const right = hits / count, mean = sure / 1000;
    svg.append(draw("rect", { class: "fill", x: x(bin / bins) + 1, width: size / bins - 2, y: y(right), height: y(0) - y(right), "fill-opacity": (0.25 + 0.75 * Math.sqrt(count / total)).toFixed(2) },
      draw("title", {}, `confidence ${percent(100 * mean)} %, right ${percent(100 * right)} %, ${count} answers`)),
    draw("rect", { class: "gap", x: x(bin / bins) + 1, width: size / bins - 2, y: y(Math.max(mean, right)), height: Math.abs(y(right) - y(mean)) }));
  }
  svg.append(draw("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }), draw("text", { x: x(1), y: y(0) + 29, "text-anchor": "end" }, "confidence, %"),
    draw("text", { x: 0, y: 12 }, "right answers, %"));
  return section("Calibration", "", svg, make("p", { class: "sub" }, `Expected calibration error ${error} %, over ${bins} bins of the answered class's probability. Orange is the gap between confidence and truth; faint bars hold few answers.`));
}

function mistakes(run, board) {
  if (!run.mistakes.length) return null;
  const rows = run.mistakes.map(([image, truth, answer, sure]) => [data.shared[image], make("bdi", {}, board.classes[truth] ?? String(truth)), make("bdi", {}, board.classes[answer] ?? String(answer)), `${percent(sure / 10)} %`]);
  return section("Surest mistakes", "wide", table("Wrong answers with the highest probability on test", ["Image", "True class", "Answered", "Probability"], rows, 3));
}

function provenance(run, board) {
  const providers = data.shared[run.providers].map(([kind, name, plugin, home, version, sha256]) =>
    [kind, `${name} from ${plugin}, ${home} ${version}${sha256 ? `, SHA-256 ${sha256}` : ""}`]);
  const weights = run.weights === null ? [] : data.shared[run.weights];
  const [init, source, sha256, licence] = weights;
  const rows = [["bundle", run.digest], ["study", `${run.study}, trial ${run.number}`], ["made", run.created],
    ["trials of its search", data.shared[run.trials].filter(([, count]) => count !== "0").map(([state, count]) => `${count} ${state}`).join(", ") || "–"],
    ["protocol", board.protocol],
    ...(weights.length ? [["weights", `${init}${source ? `, ${source}` : ""}`], ["weights licence", licence || "–"], ["weights SHA-256", sha256 || "–"]] : [])];
  return make("section", { class: "wide" }, make("h3", {}, "Provenance"), terms(rows, "mini long"),
    make("h3", {}, "Components"), terms(providers, "mini long"),
    make("h3", {}, "Environment"), terms(data.shared[run.environment].filter(([, value]) => value !== "")),
    ...(data.shared[run.packages].length ? [make("h3", {}, "SHA-256 of the packages"), terms(data.shared[run.packages], "mini long")] : []));
}
