"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const objectives = data.objectives;
const done = data.trials.filter((trial) => trial.values);
const front = done.filter((trial) => trial.front);
const INKS = ["#1f6feb", "#e8590c", "#2b8a3e", "#ae3ec9", "#c92a2a", "#0b7285", "#846358", "#5c7cfa"];
const RAMP = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#d9d326"];
const ink = (method) => INKS[data.methods.indexOf(method) % INKS.length];
const chart = document.querySelector(".chart");
const tip = document.querySelector(".tip");
let pinned = null;

function element(parent, name, attributes = {}, text = null) {
  const space = parent.namespaceURI === "http://www.w3.org/2000/svg" || name === "svg";
  const made = space ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

/* Numbers ------------------------------------------------------------------------------------------------------ */
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];
function byteUnit(value) {
  let power = 0;
  while (Math.abs(value) >= 1000 && power < BYTES.length - 1) { value /= 1024; power += 1; }
  return power;
}
function tickText(objective, value, step) {
  if (objective.unit === "bytes") {
    const power = byteUnit(value);
    return `${+(value / 1024 ** power).toPrecision(3)} ${BYTES[power]}`;
  }
  if (objective.unit === "seconds") {
    if (value < 120) return `${+value.toPrecision(3)} s`;
    return value < 7200 ? `${+(value / 60).toPrecision(3)} min` : `${+(value / 3600).toPrecision(3)} h`;
  }
  if (Math.abs(value) >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
  if (Math.abs(value) >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
  if (Math.abs(value) >= 1000) return value.toLocaleString("en-US");
  const digits = step ? Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)) : 0;
  return step ? value.toFixed(Math.min(digits, 6)) : String(+value.toPrecision(3));
}
function niceStep(span, count) {
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough)), part = rough / power;
  return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}
function linearTicks(low, high, unit) {
  const power = unit === "bytes" ? 1024 ** byteUnit(high) : unit === "seconds" && high >= 120 ? 60 : 1;
  const step = niceStep((high - low) / power, 6) * power, ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) ticks.push(at);
  return { ticks, step };
}
function logTicks(low, high) {
  const parts = Math.log10(high / low) > 3.2 ? [1] : [1, 2, 5], ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
    for (const part of parts) {
      const at = part * 10 ** power;
      if (at >= low * 0.999 && at <= high * 1.001) ticks.push(at);
    }
  return { ticks, step: 0 };
}
function scaleOf(index, values, from, to, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) { low = 0; high = 1; }
  if (log) {
    const pad = Math.max((high / low) ** 0.06, 1.08);
    low /= pad; high *= pad;
    const place = (value) => from + ((to - from) * Math.log(value / low)) / Math.log(high / low);
    const made = logTicks(low, high);
    return { place, log: true, ...(made.ticks.length > 2 ? made : linearTicks(low, high, objectives[index].unit)) };
  }
  const pad = (high - low) * 0.07 || Math.abs(high) * 0.05 || 1;
  low -= pad; high += pad;
  return { place: (value) => from + ((to - from) * (value - low)) / (high - low),
           ...linearTicks(low, high, objectives[index].unit) };
}
function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), left = Math.min(Math.floor(at), RAMP.length - 2);
  const parse = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const [a, b] = [parse(RAMP[left]), parse(RAMP[left + 1])];
  return `rgb(${a.map((value, k) => Math.round(value + (b[k] - value) * (at - left))).join(",")})`;
}

/* Which layers a trial adapts ---------------------------------------------------------------------------------- */
function strip(parent, trial, cell) {
  const names = Object.keys(trial.layers), gap = cell + 2;
  if (!names.length) return;
  const svg = element(parent, "svg", { width: data.n_layers * gap, height: names.length * gap, role: "img",
                                       "aria-label": trial.text });
  names.forEach((name, row) => trial.layers[name].forEach((size, layer) => {
    const share = size ? 0.3 + (0.7 * Math.log1p(size)) / Math.log1p(data.largest[name] || size) : 1;
    const box = element(svg, "rect", { x: layer * gap, y: row * gap, width: cell, height: cell, rx: 2,
      fill: size ? ink(name) : "var(--faint)", "fill-opacity": share.toFixed(3) });
    element(box, "title", {}, `layer ${layer}: ${size ? `${name} ${size}` : `no ${name}`}`);
  }));
}

/* Hover card --------------------------------------------------------------------------------------------------- */
function showTip(trial, x, y) {
  tip.replaceChildren();
  const mark = trial.knee ? ", the knee" : trial.front ? ", on the front" : "";
  element(tip, "b", {}, `Trial ${trial.number}${mark}`);
  const list = element(tip, "dl");
  objectives.forEach((objective, k) => {
    element(list, "dt", {}, objective.label);
    element(list, "dd", {}, trial.shown[k]);
  });
  for (const [name, value] of trial.more) { element(list, "dt", {}, name); element(list, "dd", {}, value); }
  element(tip, "div", { class: "text" }, trial.text);
  strip(tip, trial, data.n_layers > 24 ? 7 : 11);
  const left = Math.min(Math.max(0, x + 14), chart.clientWidth - tip.offsetWidth);
  const below = y + 22 + tip.offsetHeight <= chart.clientHeight;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${below ? y + 22 : Math.max(0, y - 22 - tip.offsetHeight)}px`;
  tip.style.visibility = "visible";
  markChosen(trial.number);
}
function hideTip() {
  if (pinned !== null) return;
  tip.style.visibility = "hidden";
  markChosen(null);
}
function markChosen(number) {
  document.querySelectorAll("[data-trial]").forEach((node) =>
    node.classList.toggle("chosen", node.dataset.trial === String(number)));
}

/* Confirmed points: mean and standard deviation over further seeds, on rows that the search never saw ------------- */
function confirmedOf(trial, index) { return trial.confirmed?.[objectives[index].name]; }
function reachOf(index) {
  return done.flatMap((trial) => {
    const bar = confirmedOf(trial, index);
    return bar ? [trial.values[index], bar.mean - bar.std, bar.mean + bar.std] : [trial.values[index]];
  });
}
function drawConfirmed(svg, trial, x, y, sx, sy) {
  const across = confirmedOf(trial, x), up = confirmedOf(trial, y);
  if (!across && !up) return;
  const cx = sx.place(across ? across.mean : trial.values[x]), cy = sy.place(up ? up.mean : trial.values[y]);
  const line = (x1, y1, x2, y2) => element(svg, "line", { class: "confirmed", x1, y1, x2, y2 });
  if (up) {
    const [low, high] = [sy.place(up.mean - up.std), sy.place(up.mean + up.std)];
    line(cx, low, cx, high);
    for (const end of [low, high]) line(cx - 5, end, cx + 5, end);
  }
  if (across) {
    const [low, high] = [sx.place(across.mean - across.std), sx.place(across.mean + across.std)];
    line(low, cy, high, cy);
    for (const end of [low, high]) line(end, cy - 5, end, cy + 5);
  }
  element(svg, "path", { class: "confirmed", d: `M${cx},${cy - 5}l5,5l-5,5l-5,-5Z` });
}

/* Scatter ------------------------------------------------------------------------------------------------------ */
function sign(index) { return objectives[index].direction === "maximize" ? -1 : 1; }
function stairs(x, y) {
  const rows = front.map((trial) => trial.values).sort((a, b) => sign(x) * (a[x] - b[x]) || sign(y) * (a[y] - b[y]));
  const steps = [];
  for (const row of rows)
    if (!steps.length || sign(y) * row[y] < sign(y) * steps[steps.length - 1][y]) steps.push(row);
  return steps;
}
function drawAxis(svg, box, objective, scale, across) {
  let free = -Infinity;
  for (const at of scale.ticks) {
    const place = scale.place(at), text = tickText(objective, at, scale.step);
    element(svg, "line", across
      ? { class: "grid", x1: place, x2: place, y1: box.top, y2: box.bottom }
      : { class: "grid", x1: box.left, x2: box.right, y1: place, y2: place });
    const half = text.length * 3.4;
    if (across && place - half < free) continue;
    free = place + half + 8;
    element(svg, "text", across ? { x: place, y: box.bottom + 18, "text-anchor": "middle" }
                                : { x: box.left - 8, y: place + 4, "text-anchor": "end" }, text);
  }
  const better = objective.direction === "maximize" ? (across ? "→" : "↑") : (across ? "←" : "↓");
  const name = `${objective.axis}${scale.log ? ", log" : ""}  (better ${better})`;
  const middle = (box.top + box.bottom) / 2;
  element(svg, "text", across
    ? { class: "axis", x: (box.left + box.right) / 2, y: box.bottom + 42, "text-anchor": "middle" }
    : { class: "axis", x: 0, y: 0, transform: `translate(${box.left - 66} ${middle}) rotate(-90)`,
        "text-anchor": "middle" }, name);
}
function drawStairs(svg, box, x, y, sx, sy) {
  const steps = stairs(x, y).map((row) => [sx.place(row[x]), sy.place(row[y])]);
  if (!steps.length) return;
  const farX = sign(x) > 0 ? box.right : box.left, farY = sign(y) > 0 ? box.top : box.bottom;
  let path = `M${steps[0][0]},${farY}L${steps[0]}`;
  for (let k = 1; k < steps.length; k += 1) path += `L${steps[k][0]},${steps[k - 1][1]}L${steps[k]}`;
  path += `L${farX},${steps[steps.length - 1][1]}`;
  element(svg, "path", { class: "reach", d: `${path}L${farX},${farY}Z` });
  element(svg, "path", { class: "stairs", d: path });
}
function drawPoint(svg, trial, x, y, sx, sy, fill) {
  const at = [sx.place(trial.values[x]), sy.place(trial.values[y])];
  const dot = element(svg, "circle", { cx: at[0], cy: at[1], r: trial.front ? 7 : 4.5, tabindex: 0,
    class: trial.front ? "front" : "dominated", "data-trial": trial.number,
    "aria-label": `Trial ${trial.number}: ${trial.shown.join(", ")}: ${trial.text}` });
  if (trial.front) dot.style.fill = fill;
  const show = () => { if (pinned === null) showTip(trial, ...at); };
  dot.addEventListener("pointerenter", show);
  dot.addEventListener("focus", show);
  dot.addEventListener("pointerleave", hideTip);
  dot.addEventListener("blur", hideTip);
  dot.addEventListener("click", (event) => {
    event.stopPropagation();
    pinned = pinned === trial.number ? null : trial.number;
    showTip(trial, ...at);
  });
  return at;
}
function drawLabels(svg, box, x, y, sx, sy) {
  const place = (trial) => [sx.place(trial.values[x]), sy.place(trial.values[y])];
  const taken = done.map((trial) => {
    const [cx, cy] = place(trial), r = trial.front ? 7 : 4;
    return { left: cx - r, right: cx + r, top: cy - r, bottom: cy + r };
  });
  const clear = (spot) => spot.left > box.left && spot.right < box.right + 6 && spot.top > 0
    && taken.every((other) => spot.right < other.left || spot.left > other.right
                              || spot.bottom < other.top || spot.top > other.bottom);
  for (const trial of [...front].sort((a, b) => b.knee - a.knee)) {
    const [cx, cy] = place(trial), gap = trial.knee ? 15 : 10;
    const text = trial.knee ? `knee: trial ${trial.number}` : String(trial.number), wide = text.length * 6.4;
    if (trial.knee) element(svg, "circle", { class: "knee", cx, cy, r: 12 });
    const corners = [[gap, -8], [gap, 16], [-gap - wide, -8], [-gap - wide, 16], [gap, 4], [-gap - wide, 4]];
    const spots = corners.map(([dx, dy]) => ({ left: cx + dx, right: cx + dx + wide, top: cy + dy - 11,
                                               bottom: cy + dy + 2 }));
    const spot = spots.find(clear);
    if (!spot) continue;
    taken.push(spot);
    element(svg, "text", { class: trial.knee ? "trial knee" : "trial", x: spot.left, y: spot.bottom - 2 }, text);
  }
}
function drawRamp(svg, box, objective, low, high) {
  const gradient = element(element(svg, "defs"), "linearGradient", { id: "ramp", x1: 0, x2: 0, y1: 1, y2: 0 });
  RAMP.forEach((colour, k) => element(gradient, "stop", { offset: k / (RAMP.length - 1), "stop-color": colour }));
  const x = box.right + 26, tall = Math.min(220, box.bottom - box.top - 40), top = box.top + 34;
  element(svg, "rect", { x, y: top, width: 12, height: tall, fill: "url(#ramp)", rx: 2 });
  const { ticks, step } = linearTicks(low, high, objective.unit);
  for (const at of ticks.length > 1 ? ticks : [low, high])
    element(svg, "text", { x: x + 18, y: top + tall - (tall * (at - low)) / (high - low || 1) + 4 },
            tickText(objective, at, step));
  element(svg, "text", { class: "axis", x: x - 6, y: top - 14 }, objective.name);
}
function draw() {
  const [x, y, colour] = ["x", "y", "colour"].map((id) => Number(document.getElementById(id).value));
  const positive = reachOf(x).every((value) => value > 0);
  const log = document.getElementById("log").checked && positive;
  document.getElementById("log").disabled = !positive;
  chart.querySelector("svg")?.remove();
  pinned = null;
  hideTip();
  const wide = chart.clientWidth, tall = Math.max(380, Math.min(560, wide * 0.5));
  const ramped = colour >= 0 && front.length > 1;
  const box = { left: 86, right: wide - (ramped ? 130 : 24), top: 16, bottom: tall - 56 };
  const svg = element(chart, "svg", { width: wide, height: tall });
  const sx = scaleOf(x, reachOf(x), box.left, box.right, log);
  const sy = scaleOf(y, reachOf(y), box.bottom, box.top, false);
  drawAxis(svg, box, objectives[x], sx, true);
  drawAxis(svg, box, objectives[y], sy, false);
  drawStairs(svg, box, x, y, sx, sy);
  const values = ramped ? front.map((trial) => trial.values[colour]) : [0];
  const low = Math.min(...values), high = Math.max(...values);
  const fill = (trial) => ramped ? rampColour((trial.values[colour] - low) / (high - low || 1)) : "var(--front)";
  for (const trial of [...done].sort((a, b) => a.front - b.front)) drawPoint(svg, trial, x, y, sx, sy, fill(trial));
  for (const trial of done) drawConfirmed(svg, trial, x, y, sx, sy);
  drawLabels(svg, box, x, y, sx, sy);
  if (ramped) drawRamp(svg, box, objectives[colour], low, high);
}

/* Hypervolume over trials -------------------------------------------------------------------------------------- */
function drawCurve() {
  const holder = document.querySelector(".curve-holder"), values = data.hypervolumes;
  if (!holder || values.length < 2) return;
  holder.replaceChildren();
  const wide = holder.clientWidth, box = { left: 86, right: wide - 24, top: 12, bottom: 148 };
  const svg = element(holder, "svg", { width: wide, height: 200 });
  const top = Math.max(...values.map(([, value]) => value)) * 1.06 || 1, last = values[values.length - 1][0] || 1;
  const sx = (at) => box.left + ((box.right - box.left) * at) / last;
  const sy = (at) => box.bottom - ((box.bottom - box.top) * at) / top;
  const axis = { axis: "% of now", unit: "", direction: "maximize" }, trials = { ...axis, axis: "trial number" };
  drawAxis(svg, box, axis, { place: sy, ...linearTicks(0, top, "") }, false);
  const across = linearTicks(0, last, "");
  drawAxis(svg, box, trials, { place: sx, ticks: across.ticks.filter(Number.isInteger), step: 1 }, true);
  svg.querySelectorAll("text.axis").forEach((node) => { node.textContent = node.textContent.split("  ")[0]; });
  let path = "";
  values.forEach(([at, value], k) => { path += k ? `H${sx(at)}V${sy(value)}` : `M${sx(at)},${sy(value)}`; });
  element(svg, "path", { class: "curve", d: path });
}

/* Page --------------------------------------------------------------------------------------------------------- */
function fillSelect(id, chosen, none) {
  const select = document.getElementById(id);
  if (none) element(select, "option", { value: -1 }, "nothing");
  objectives.forEach((objective, k) => element(select, "option", { value: k }, objective.name));
  select.value = String(chosen);
  select.addEventListener("change", () => { if (id === "x") chooseByX(); draw(); });
}
function chooseByX() {
  const [x, y, colour] = ["x", "y", "colour"].map((id) => document.getElementById(id).value);
  const free = objectives.findIndex((_, k) => String(k) !== x && String(k) !== y);
  if (colour === x) document.getElementById("colour").value = String(free);
  logByDefault();
}
function logByDefault() {
  const at = Number(document.getElementById("x").value);
  document.getElementById("log").checked = objectives[at].unit === "parameters";
}
fillSelect("x", Math.min(1, objectives.length - 1), false);
fillSelect("y", 0, false);
fillSelect("colour", objectives.length > 2 ? 2 : -1, true);
logByDefault();
document.getElementById("log").addEventListener("change", draw);
document.addEventListener("click", () => { pinned = null; hideTip(); });
document.querySelectorAll("tr[data-trial]").forEach((row) => {
  const trial = done.find((other) => String(other.number) === row.dataset.trial);
  strip(row.querySelector(".strip"), trial, data.n_layers > 24 ? 5 : 9);
  row.addEventListener("pointerenter", () => { if (pinned === null) markChosen(trial.number); });
  row.addEventListener("pointerleave", () => { if (pinned === null) markChosen(null); });
});
const legend = document.querySelector(".legend");
for (const method of data.methods) {
  const item = element(legend, "span");
  element(item, "i").style.background = ink(method);
  item.append(method);
}
document.querySelector(".controls").hidden = false;
let width = 0;
new ResizeObserver(() => {
  if (chart.clientWidth === width || !chart.clientWidth) return;
  width = chart.clientWidth;
  draw();
  drawCurve();
}).observe(chart);
