"use strict";
const $ = id => document.getElementById(id);
const SCALES = [
  ["imaging", "Imaging quality", "unwatchable", "flawless"],
  ["motion", "Motion", "unlike the driving clip", "just like the driving clip"],
  ["appearance", "Appearance", "somebody else", "the one in the picture"],
];
const CHOICES = [["a", "A is better"], ["same", "About the same"], ["b", "B is better"]];
const KEYS = { a: "a", s: "same", b: "b", 1: "a", 2: "same", 3: "b" };
const SECTIONS = ["enter", "consent", "how-rate", "how-pair", "item", "end"];
const BREAK = 40;  // pages
const ROOT = document.currentScript.src.replace(/page\.js$/, "");  // wherever it is mounted
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

let code = "", items = [], place = 0, busy = false, section = "";

/* ---- talking with the server ---- */

async function call(method, path, body) {
  let reply;
  try {
    reply = await fetch(`${ROOT}api/${encodeURIComponent(code)}${path}`, { method,
      headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) });
  } catch { throw new Error("the server cannot be reached. Your page stays as it is; try again.") }
  const said = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(said.error || JSON.stringify(said.detail) || reply.statusText);
  return said;
}

async function begin() {
  try {
    const state = await call("GET", "");
    items = state.items; place = state.place; trouble("");
    const ratings = items.filter(x => x.kind === "rate").length, pairs = items.length - ratings;
    const minutes = Math.ceil((ratings * 20 + pairs * 12) / 60 / 5) * 5;
    $("load").textContent = `There are ${ratings} clips to rate` + (pairs ? ` and ${pairs} pairs to compare` : "")
      + `. That takes about ${minutes} minutes, in one go or in several.`;
    $("consent-text").replaceChildren(...state.consent.split(/\n\s*\n/).map(text => {
      const p = document.createElement("p"); p.textContent = text; return p;
    }));
    if (!state.agreed) open("consent");
    else if (!items.some(x => x.answer)) open("how-rate");
    else if (turns()) open("how-pair");
    else { show(); if (place < items.length) note("You go on where you stopped.") }
  } catch (error) { code = ""; open("enter"); trouble(error.message) }
}

/* ---- which part of the page is seen ---- */

function open(name) {
  section = name;
  for (const other of SECTIONS) $(other).hidden = other !== name;
  for (const id of ["count", "part", "bar", "help"]) $(id).hidden = name !== "item";
  $("bar").hidden = !["item", "end"].includes(name);
  if (name !== "item") { player.stop(); scrollTo(0, 0) }
  const title = $(name).querySelector("h1");
  if (name !== "item") title.focus({ preventScroll: true });
}
function trouble(text) { $("trouble").textContent = text && text[0].toUpperCase() + text.slice(1) }
function note(text, bad = false) { $("note").textContent = text; $("note").className = bad ? "bad" : "" }

function show() {
  const done = items.filter(x => x.answer).length;
  $("bar").value = done / items.length;
  if (place >= items.length) { open("end"); return }
  const item = items[place], pair = item.kind === "pair";
  open("item");
  const ratings = items.filter(x => x.kind === "rate").length, both = ratings < items.length;
  const [at, of] = pair ? [place - ratings + 1, items.length - ratings] : [place + 1, ratings];
  $("part").textContent = both ? `Part ${pair ? 2 : 1} of 2` : "";
  $("count").textContent = `${at} of ${of}`;
  $("task").textContent = pair ? "Which result is better?" : "Rate the result";
  document.title = `${at} of ${of} · Clip study`;
  $("stage").className = item.kind;
  $("second-box").hidden = !pair;
  $("first-name").textContent = pair ? "A" : "Result";
  $("first").setAttribute("aria-label", pair ? "Result A" : "The result");
  $("scales").hidden = pair; $("choices").hidden = !pair;
  $("back").disabled = place === 0;
  $("answer").reset();
  for (const [name, value] of Object.entries(item.answer || {})) radio(name, value).checked = true;
  player.load(item);
  ahead(items[place + 1]);
  watch.begin();
  complete();
  note(done && done % BREAK === 0 && !item.answer ? "A good moment for a break, if you like." : "");
  scrollTo(0, 0);
  $("task").focus({ preventScroll: true });  // not an answer, which it would put into people's heads
}

/* ---- answers ---- */

const radio = (name, value) => document.querySelector(
  `#answer input[name=${name}]` + (value === undefined ? ":checked" : `[value="${value}"]`));
function given() {
  if (items[place].kind === "pair") { const x = radio("choice"); return x && { choice: x.value } }
  const scores = SCALES.map(([name]) => [name, radio(name)]);
  return scores.every(x => x[1]) ? Object.fromEntries(scores.map(([name, x]) => [name, +x.value])) : null;
}
function complete() { $("next").setAttribute("aria-disabled", !given()) }

async function next() {
  if (busy || section !== "item") return;
  const item = items[place], answer = given();
  if (!answer) {
    const open = item.kind === "pair" ? null : SCALES.find(([name]) => !radio(name));
    note(open ? `Still to rate: ${open[1].toLowerCase()}.` : "Choose one of the three first.", true);
    if (open) group(open[0]).focus();
    return;
  }
  busy = true;
  try {
    if (JSON.stringify(answer) !== JSON.stringify(item.answer)) {
      await call("PUT", `/answers/${item.id}`, { answer, seconds: watch.seconds(), plays: player.plays });
      item.answer = answer;
    }
    place++;
    if (turns()) open("how-pair"); else show();
  } catch (error) { note("Not saved: " + error.message, true) } finally { busy = false }
}
function turns() {  // from ratings to pairs, and for the first time
  const here = items[place];
  return here && here.kind === "pair" && !here.answer && items[place - 1].kind === "rate";
}
function back() { if (!busy && place > 0) { place--; show() } }

/* ---- seconds that the page is in view ---- */

// as a tab of the studio it has a frame, which is hidden while another tab is open
const seen = () => !document.hidden && (!frameElement || frameElement.getClientRects().length > 0);
const watch = {
  sum: 0, since: null,
  begin() { this.sum = 0; this.since = seen() ? performance.now() : null },
  seconds() {
    const running = this.since === null ? 0 : performance.now() - this.since;
    return Math.min(86400, Math.round((this.sum + running) / 100) / 10);
  },
};
document.addEventListener("visibilitychange", () => {
  if (!seen() && watch.since !== null) { watch.sum += performance.now() - watch.since; watch.since = null }
  else if (seen() && watch.since === null) watch.since = performance.now();
});

/* ---- clips: they begin together, and again when the last one is over ---- */

const player = {
  clips: [], plays: 0, wanted: !calm,
  load(item) {
    const files = [["driving", item.driving], ["first", item.shown[0]], ["second", item.shown[1]]];
    $("reference").src = `${ROOT}media/${item.reference}`;
    this.clips = []; this.plays = 0; this.wanted = !calm;
    for (const [id, file] of files) {
      const clip = $(id);
      if (!file) { clip.removeAttribute("src"); clip.load(); continue }
      if (!clip.src.endsWith(`/media/${file}`)) clip.src = `${ROOT}media/${file}`;
      this.clips.push(clip);
    }
    this.restart();
  },
  ready() { return this.clips.every(clip => clip.readyState >= 3) },
  restart() {
    for (const clip of this.clips) { clip.pause(); if (clip.currentTime) clip.currentTime = 0 }
    this.go();
  },
  go() {
    if (this.wanted && this.ready()) for (const clip of this.clips) if (!clip.ended) clip.play().catch(() => {});
    $("play").textContent = this.wanted ? "Pause" : "Play";
  },
  toggle() {
    this.wanted = !this.wanted;
    if (!this.wanted) this.clips.forEach(clip => clip.pause());
    else if (this.clips.every(clip => clip.ended)) { this.restart(); return }
    this.go();
  },
  stop() { for (const clip of this.clips) clip.pause(); this.clips = [] },
  ended() { if (this.clips.length && this.clips.every(clip => clip.ended)) { this.plays += +seen(); this.restart() } },
  align() {  // a clip that had to wait catches up with the one that is behind
    const running = this.clips.filter(clip => !clip.ended && !clip.paused && !clip.seeking);
    const first = Math.min(...running.map(clip => clip.currentTime));
    for (const clip of running) if (clip.currentTime - first > .15) clip.currentTime = first;
  },
};
for (const id of ["driving", "first", "second"]) {
  const clip = $(id);
  clip.addEventListener("canplay", () => { if (player.clips.includes(clip) && player.wanted) player.go() });
  clip.addEventListener("ended", () => player.ended());
  clip.addEventListener("timeupdate", () => player.align());
  clip.addEventListener("loadedmetadata", () => {
    if (id === "first" && clip.videoWidth) $("stage").style.setProperty("--ratio", clip.videoWidth / clip.videoHeight);
  });
  clip.addEventListener("error", () => {
    if (clip.getAttribute("src")) note("A clip cannot be shown. Reload the page; if that does not help, tell the person who gave you the link.", true);
  });
  clip.addEventListener("click", () => player.toggle());
}
const waiting = [];  // what the next page shows, so that it is there by then
function ahead(item) {
  waiting.length = 0;
  if (!item) return;
  const picture = new Image();
  picture.src = `${ROOT}media/${item.reference}`;
  waiting.push(picture);
  for (const file of [item.driving, ...item.shown]) {
    const clip = document.createElement("video");
    clip.preload = "auto"; clip.muted = true; clip.src = `${ROOT}media/${file}`;
    waiting.push(clip);
  }
}

/* ---- building the scales once ---- */

function option(name, value, text, label) {
  const box = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name, value });
  if (label) input.setAttribute("aria-label", label);
  box.append(input, text);
  return box;
}
function words(tag, text, kind) {
  const found = document.createElement(tag);
  found.textContent = text; found.className = kind; return found;
}
for (const [name, title, low, high] of SCALES) {
  const box = document.createElement("fieldset"), numbers = document.createElement("div");
  box.className = "scale"; box.dataset.name = name; box.tabIndex = -1; numbers.className = "numbers";
  for (let k = 1; k <= 5; k++)
    numbers.append(option(name, k, k, k === 1 ? `1, ${low}` : k === 5 ? `5, ${high}` : `${k}`));
  const ends = [words("span", low, "low"), words("span", high, "high")];
  for (const end of ends) end.setAttribute("aria-hidden", "true");  // the ends' labels say it
  box.append(words("legend", title, ""), ends[0], numbers, ends[1]);
  $("scales").append(box);
}
for (const [value, text] of CHOICES) $("choices").append(option("choice", value, text));

/* ---- keys and clicks ---- */

const NAMES = SCALES.map(x => x[0]);
const group = name => document.querySelector(`fieldset[data-name=${name}]`);
function current() {  // the scale that has the focus
  const box = document.activeElement.closest("fieldset[data-name]");
  return box && box.dataset.name;
}
function rate(number) {  // the scale that has the focus, or the first one still open
  const name = current() || NAMES.find(x => !radio(x)) || NAMES[0];
  radio(name, number).checked = true;
  const open = NAMES.find((x, k) => k > NAMES.indexOf(name) && !radio(x)) || NAMES.find(x => !radio(x));
  (open ? group(open) : $("next")).focus();
  note(""); complete();
}
function scale(step) {
  const name = current(), at = name ? NAMES.indexOf(name) + step : step > 0 ? 0 : 2;
  group(NAMES[Math.min(2, Math.max(0, at))]).focus();
}
function shift(step) {  // from the middle, where nothing was rated
  const name = current();
  if (!name) return;
  const before = radio(name);
  radio(name, before ? Math.min(5, Math.max(1, +before.value + step)) : 3).checked = true;
  note(""); complete();
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || section !== "item" || $("instructions").open) return;
  const key = event.key.toLowerCase(), pair = items[place].kind === "pair";
  const button = document.activeElement.tagName === "BUTTON";
  if (event.repeat) return;
  if (key === "enter" && !(button && document.activeElement !== $("next"))) next();
  else if (key === "backspace") back();
  else if (key === "p" || (key === " " && document.activeElement === document.body)) player.toggle();
  else if (key === "r") { player.wanted = true; player.restart() }
  else if (pair && key in KEYS) { radio("choice", KEYS[key]).checked = true; $("next").focus(); note(""); complete() }
  else if (!pair && "12345".includes(key) && key.length === 1) rate(+key);
  else if (!pair && key === "arrowdown") scale(1);
  else if (!pair && key === "arrowup") scale(-1);
  else if (!pair && key === "arrowright") shift(1);
  else if (!pair && key === "arrowleft") shift(-1);
  else return;
  event.preventDefault();
});
$("answer").addEventListener("submit", event => { event.preventDefault(); next() });
$("answer").addEventListener("change", () => { note(""); complete() });
$("back").addEventListener("click", back);
$("end-back").addEventListener("click", back);
$("play").addEventListener("click", () => player.toggle());
$("again").addEventListener("click", () => { player.wanted = true; player.restart() });
$("agree").addEventListener("click", async () => {
  try { await call("PUT", "/consent", {}); trouble(""); open("how-rate") } catch (error) { trouble(error.message) }
});
document.querySelectorAll(".go").forEach(x => x.addEventListener("click", show));
$("help").addEventListener("click", () => {
  const text = $(items[place].kind === "pair" ? "how-pair" : "how-rate").cloneNode(true);
  text.removeAttribute("id"); text.hidden = false; text.querySelector(".go").parentElement.remove();
  $("instructions-text").replaceChildren(text);
  player.wanted = false; player.clips.forEach(clip => clip.pause()); player.go();
  $("instructions").showModal();
});
$("instructions").addEventListener("close", () => { player.wanted = !calm; player.go(); $("help").focus() });
$("code-form").addEventListener("submit", event => {
  event.preventDefault();
  code = $("code").value.toLowerCase().replace(/[\s-]/g, "");
  history.replaceState(null, "", ROOT + "r/" + encodeURIComponent(code));
  begin();
});
const named = /\/r\/([^/]+)$/.exec(location.pathname);
if (named) { code = decodeURIComponent(named[1]); begin() } else open("enter");
