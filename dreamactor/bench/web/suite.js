"use strict";
const given = JSON.parse(document.getElementById("given").textContent);
const COLOURS = ["#2f6fde", "#d9641e", "#2a9d62", "#a04bc4", "#c4304f", "#8a7a1a", "#1a8a9a", "#777777"];
const STEP = 12;
const SPOKES = 7;
const byId = (id) => document.getElementById(id);
const colour = (system) => COLOURS[given.systems.indexOf(system) % COLOURS.length];
const ARROWS = { up: "↑", down: "↓", one: "→1", truth: "→truth" };
let limit = STEP;

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "text", "circle", "polygon", "title"].includes(name);
  const made = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function axes() {
  const found = {};
  for (const one of given.cases) {
    for (const [axis, value] of Object.entries(one.groups)) (found[axis] ??= new Set()).add(value);
  }
  return Object.entries(found).filter(([, values]) => values.size > 1);
}

function chosen() {
  const wanted = [...byId("filters").querySelectorAll("select")].filter((s) => s.value);
  return given.cases.filter((one) => wanted.every((s) => one.groups[s.name] === s.value));
}

/* Systems that have a clip of one of the cases. */
function judged(cases) {
  return given.systems.filter((system) => cases.some((one) => one.values[system]));
}

function numbers(cases, system, metric) {
  return cases.map((one) => one.values[system]?.[metric]).filter((v) => v !== undefined);
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

function half(values) {
  if (values.length < 2) return NaN;
  const centre = mean(values);
  const variance = values.reduce((a, v) => a + (v - centre) ** 2, 0) / (values.length - 1);
  return 1.96 * Math.sqrt(variance / values.length);
}

/* Larger is better, whatever the metric's direction; null where better has no meaning here. */
function goodness(column, value) {
  if (column.better === "up") return value;
  if (column.better === "down") return -value;
  if (column.better === "one") return -Math.abs(value - 1);
  return null;
}

function drawTable(cases) {
  const head = element("tr", {}, element("th", {}, "system"), element("th", {}, "clips"));
  for (const c of given.columns) head.append(element("th", {}, `${c.title} ${ARROWS[c.better]}`));
  const best = given.columns.map((c) => {
    const found = given.systems.map((s) => numbers(cases, s, c.name)).filter((v) => v.length);
    const levels = found.map((v) => goodness(c, mean(v)));
    return levels.length > 1 && levels[0] !== null ? Math.max(...levels) : null;
  });
  const rows = given.systems.map((system) => {
    const name = element("td", {}, element("span", { class: "key", style: `background:${colour(system)}` }), system);
    const row = element("tr", {}, name, element("td", {}, String(cases.filter((one) => one.values[system]).length)));
    given.columns.forEach((c, k) => {
      const values = numbers(cases, system, c.name);
      if (!values.length) return row.append(element("td", {}, "–"));
      const centre = mean(values);
      const text = centre.toFixed(c.digits);
      const shown = best[k] !== null && goodness(c, centre) === best[k] ? element("b", {}, text) : text;
      const spread = half(values);
      const tail = Number.isNaN(spread) ? "" : ` ± ${spread.toFixed(c.digits)}`;
      row.append(element("td", {}, shown, element("span", { class: "half" }, tail)));
    });
    return row;
  });
  byId("table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function drawRadar(cases) {
  const svg = byId("radar");
  const systems = judged(cases);
  const columns = given.columns.filter((c) => {
    if (c.better === "truth") return false;
    return systems.every((s) => numbers(cases, s, c.name).length);
  }).slice(0, SPOKES);
  svg.replaceChildren();
  if (columns.length < 3 || systems.length < 2) {
    svg.append(element("text", { x: 20, y: 40 }, "Needs three metrics and two systems that all have."));
    return;
  }
  const [cx, cy, radius] = [210, 165, 115];
  const at = (k, r) => {
    const angle = (2 * Math.PI * k) / columns.length - Math.PI / 2;
    return [cx + r * radius * Math.cos(angle), cy + r * radius * Math.sin(angle)];
  };
  for (const r of [0.25, 0.5, 0.75, 1]) {
    svg.append(element("polygon", { class: "axis", points: columns.map((_, k) => at(k, r).join()).join(" ") }));
  }
  const levels = columns.map((c) => systems.map((s) => goodness(c, mean(numbers(cases, s, c.name)))));
  columns.forEach((c, k) => {
    const [x, y] = at(k, 1.13);
    const anchor = Math.abs(x - cx) < 12 ? "middle" : x > cx ? "start" : "end";
    svg.append(element("text", { x, y: y + 4, "text-anchor": anchor }, c.title));
  });
  systems.forEach((system, s) => {
    const points = columns.map((_, k) => {
      const [low, high] = [Math.min(...levels[k]), Math.max(...levels[k])];
      return at(k, high > low ? 0.12 + (0.88 * (levels[k][s] - low)) / (high - low) : 1).join();
    });
    const shape = { points: points.join(" "), fill: colour(system), "fill-opacity": 0.1, stroke: colour(system), "stroke-width": 2 };
    svg.append(element("polygon", shape, element("title", {}, system)));
  });
}

function scale(values, low, high) {
  const [from, to] = [Math.min(...values), Math.max(...values)];
  return (v) => (to > from ? low + ((v - from) / (to - from)) * (high - low) : (low + high) / 2);
}

function drawScatter(cases) {
  const [x, y] = ["x", "y"].map((id) => given.columns.find((c) => c.name === byId(id).value));
  const svg = byId("scatter");
  svg.replaceChildren();
  const points = cases.flatMap((one) =>
    given.systems
      .filter((s) => one.values[s]?.[x?.name] !== undefined && one.values[s]?.[y?.name] !== undefined)
      .map((s) => ({ one, s, x: one.values[s][x.name], y: one.values[s][y.name] })),
  );
  if (!points.length) return svg.append(element("text", { x: 20, y: 40 }, "No clip has both."));
  const px = scale(points.map((p) => p.x), 55, 505);
  const py = scale(points.map((p) => p.y), 300, 15);
  svg.append(element("path", { class: "axis", d: "M45 10 V310 H510" }));
  for (const [axis, column] of [["x", x], ["y", y]]) {
    const values = points.map((p) => p[axis]);
    const ends = [Math.min(...values), Math.max(...values)];
    ends.forEach((v, k) => {
      const place = axis === "x" ? { x: px(v), y: 325, "text-anchor": k ? "end" : "start" } : { x: 40, y: py(v) + 4, "text-anchor": "end" };
      svg.append(element("text", place, v.toFixed(column.digits)));
    });
    const middle = axis === "x" ? { x: 280, y: 325, "text-anchor": "middle" } : { x: 14, y: 160, transform: "rotate(-90 14 160)", "text-anchor": "middle" };
    svg.append(element("text", middle, column.title));
  }
  for (const p of points) {
    const name = `${p.s}, ${p.one.name}: ${x.title} ${p.x.toFixed(x.digits)}, ${y.title} ${p.y.toFixed(y.digits)}`;
    const dot = element("circle", { class: "point", cx: px(p.x), cy: py(p.y), r: 4, fill: colour(p.s) }, element("title", {}, name));
    dot.addEventListener("click", () => show(p.one));
    svg.append(dot);
  }
}

function anchor(name) {
  return `case-${name.replaceAll("/", "_")}`;
}

function show(one) {
  const order = ordered(chosen());
  limit = Math.max(limit, order.indexOf(one) + 1);
  drawCases(chosen());
  location.hash = anchor(one.name);
  byId(anchor(one.name))?.querySelector("video")?.play();
}

function ordered(cases) {
  const column = given.columns.find((c) => c.name === byId("metric").value);
  const system = byId("system").value;
  const level = (one) => {
    const value = one.values[system]?.[column?.name];
    if (value === undefined) return Infinity;
    return goodness(column, value) ?? value;
  };
  return [...cases].sort((a, b) => level(a) - level(b) || a.name.localeCompare(b.name));
}

function card(one) {
  const made = element("article", { id: anchor(one.name) }, element("h3", {}, one.name));
  const about = Object.entries(one.groups).filter(([axis]) => axis !== "scenario");
  made.append(element("p", { class: "soft" }, about.map(([axis, value]) => `${axis}: ${value}`).join(" · ")));
  if (one.strip) {
    const cells = element("div", { class: "cells" }, ...one.labels.map((label) => element("span", {}, label)));
    const video = element("video", {
      src: one.strip, poster: one.poster, preload: "none", loop: "", muted: "", playsinline: "", tabindex: "0",
      "aria-label": `${one.name}: ${one.labels.join(", ")}; play or pause`,
    });
    video.muted = true;
    const toggle = () => (video.paused ? video.play() : video.pause());
    video.addEventListener("click", toggle);
    video.addEventListener("keydown", (event) => {
      if (event.key === " " || event.key === "Enter") {
        event.preventDefault();
        toggle();
      }
    });
    made.append(element("div", { class: "strip" }, cells, video));
  } else {
    made.append(element("p", { class: "soft" }, "Not on the page; its clips lie in the run's folder."));
  }
  const lines = given.systems.filter((s) => one.values[s]).map((s) => {
    const parts = given.columns.filter((c) => one.values[s][c.name] !== undefined)
      .map((c) => `${c.title} ${one.values[s][c.name].toFixed(c.digits)}`);
    return element("div", {}, element("span", { class: "key", style: `background:${colour(s)}` }), `${s}: ${parts.join(", ") || "no truth to compare with"}`);
  });
  made.append(element("p", { class: "soft" }, ...lines));
  for (const [system, notes] of Object.entries(one.notes)) {
    made.append(element("p", { class: "warn" }, `${system}: ${notes.join("; ")}`));
  }
  return made;
}

function drawCases(cases) {
  const order = ordered(cases);
  byId("count").textContent = `${order.length} cases`;
  byId("cases").replaceChildren(...order.slice(0, limit).map(card));
  byId("more").hidden = order.length <= limit;
}

function draw() {
  const cases = chosen();
  drawTable(cases);
  drawRadar(cases);
  drawScatter(cases);
  drawCases(cases);
}

function options(select, names, titles, value) {
  select.append(...names.map((name, k) => element("option", { value: name }, titles[k])));
  if (names.includes(value)) select.value = value;
  select.addEventListener("change", draw);
}

for (const [axis, values] of axes()) {
  const select = element("select", { name: axis });
  options(select, ["", ...[...values].sort()], ["all", ...[...values].sort()], "");
  byId("filters").append(element("label", {}, axis, select));
}
const names = given.columns.map((c) => c.name);
const titles = given.columns.map((c) => c.title);
options(byId("x"), names, titles, "psnr");
options(byId("y"), names, titles, names.includes("flow_epe") ? "flow_epe" : names.at(-1));
options(byId("metric"), names, titles, names[0]);
options(byId("system"), given.systems, given.systems, judged(given.cases).at(-1));
byId("more").addEventListener("click", () => { limit += STEP; draw(); });
byId("filters").addEventListener("change", () => { limit = STEP; });
draw();
