"use strict";
const $ = id => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const ENDED = ["done", "failed", "cancelled"];
const STATES = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled" };
const STAGES = { "prepare": "Preparing", "load weights": "Loading the model", "find joints": "Finding joints", "describe": "Writing the prompt" };
const files = { reference: null, driving: null }, asked = { reference: 0, driving: 0 };
let about = null, shown = null, events = null, history_ = [], busy = false;

// ---- talking to the server ------------------------------------------------------------------

function el(tag, props = {}, ...children) {
  const made = Object.assign(document.createElement(tag), props);
  made.append(...children.filter(x => x !== null && x !== undefined));
  return made;
}

async function api(method, path, body) {
  let reply;
  try {
    reply = await fetch(path, { method, headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) });
  } catch { throw new Error("The server does not answer. Is it still running?") }
  if (reply.status === 401 && path !== "session") { await login(); return api(method, path, body) }
  const said = reply.status === 204 ? null : await reply.json();
  if (!reply.ok) throw new Error(sentence(said.error));
  return said;
}

function login() {
  $("login").showModal();
  return new Promise(entered => {
    $("login-form").onsubmit = async event => {
      event.preventDefault();
      try { await api("POST", "session", { token: $("token").value.trim() }) }
      catch (error) { say("login-say", error.message, true); return }
      $("token").value = "";
      $("login").close();
      entered();
    };
    $("login").oncancel = event => event.preventDefault();
  });
}

function say(id, text, bad = false) { $(id).textContent = text; $(id).classList.toggle("bad", bad) }
function alarm(text) { $("alert").textContent = text; $("alert").hidden = !text }
const sentence = text => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const seconds = s => s < 60 ? `${Math.round(s)}\u00a0s` : s < 3600 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : `${(s / 3600).toFixed(1)} h`;
const size = bytes => bytes < 1 << 20 ? `${Math.max(1, Math.round(bytes / 1024))} KB` : `${(bytes / (1 << 20)).toFixed(1)} MB`;

// ---- files ----------------------------------------------------------------------------------

function send(kind, file) {
  const most = about.limits[kind === "reference" ? "picture_mb" : "clip_mb"], turn = ++asked[kind];
  if (file.size > most * (1 << 20)) { say("say-" + kind, `${size(file.size)}; at most ${most} MB can be taken.`, true); return }
  const request = new XMLHttpRequest();
  request.open("POST", "uploads?kind=" + kind);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  const ours = text => { if (turn === asked[kind]) { busy = !!text; say("say-" + kind, text) } };
  request.upload.onprogress = event => ours(`Sending, ${Math.round(100 * event.loaded / event.total)} %`);
  request.upload.onload = () => ours("Sent. Looking at it…");
  ours("Sending…");
  request.onloadend = async () => {
    if (turn !== asked[kind]) return;  // another file was chosen meanwhile
    busy = false;
    if (request.status === 401) { await login(); send(kind, file); return }
    let reply = {};
    try { reply = JSON.parse(request.responseText) } catch { reply = { error: "The server does not answer." } }
    if (request.status === 201) adopt(kind, reply);
    else say("say-" + kind, sentence(reply.error), true);
  };
  request.send(file);
}

function adopt(kind, upload) {
  files[kind] = upload;
  document.querySelector(`.drop[data-kind=${kind}]`).classList.add("full");
  $("shown-" + kind).hidden = false;
  $("shown-" + kind).src = `uploads/${upload.id}/file`;
  if (kind === "reference") say("say-reference", `${upload.width} x ${upload.height}`);
  else {
    say("say-driving", `${upload.width} x ${upload.height}, ${upload.seconds.toFixed(2)} s`);
    $("trim").hidden = false;
    setPart(0, upload.seconds);
    if (!still.matches) $("shown-driving").play().catch(() => {});
  }
  $("describe").disabled = !(files.reference && files.driving);
  say("form-say", "");
}

for (const box of document.querySelectorAll(".drop")) {
  const kind = box.dataset.kind;
  $("file-" + kind).addEventListener("change", event => { if (event.target.files[0]) send(kind, event.target.files[0]); event.target.value = "" });
  for (const name of ["dragover", "dragenter"]) box.addEventListener(name, event => { event.preventDefault(); box.classList.add("over") });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", event => {
    event.preventDefault();
    box.classList.remove("over");
    if (event.dataTransfer.files[0]) send(kind, event.dataTransfer.files[0]);
  });
}
for (const name of ["dragover", "drop"]) addEventListener(name, event => event.preventDefault());  // a missed drop opens nothing

// ---- the part of the clip -------------------------------------------------------------------

function setPart(start, end) {
  const clip = files.driving, [top, bottom] = clip.fps.split("/"), frame = (bottom || 1) / top;
  for (const id of ["start", "end"]) Object.assign($(id), { max: clip.seconds, step: frame });
  $("start").value = start;
  $("end").value = end;
  showPart();
}

function part() {
  const clip = files.driving, start = +$("start").value, end = +$("end").value, whole = end >= clip.seconds - 0.02;
  return { start: start < 0.005 ? 0 : +start.toFixed(4), end: whole ? null : +end.toFixed(4) };
}

function showPart() {
  const clip = files.driving, start = +$("start").value, end = +$("end").value;
  $("start").parentElement.style.setProperty("--from", `${100 * start / clip.seconds}%`);
  $("start").parentElement.style.setProperty("--to", `${100 * end / clip.seconds}%`);
  for (const [id, value] of [["start", start], ["end", end]]) $(id).setAttribute("aria-valuetext", `${value.toFixed(2)} seconds`);
  $("part").textContent = `${start.toFixed(2)} to ${end.toFixed(2)} s (${(end - start).toFixed(2)} s)`;
}

for (const id of ["start", "end"]) $(id).addEventListener("input", () => {
  const gap = 2 * $("start").step;
  if (id === "start" && +$("start").value > $("end").value - gap) $("start").value = $("end").value - gap;
  if (id === "end" && +$("end").value < +$("start").value + gap) $("end").value = +$("start").value + gap;
  $("shown-driving").pause();
  $("shown-driving").currentTime = Math.max(0, $(id).value - (id === "end" ? $("end").step : 0));
  showPart();
});
$("play-part").addEventListener("click", () => { $("shown-driving").currentTime = +$("start").value; $("shown-driving").play() });
$("shown-driving").addEventListener("timeupdate", () => {
  const clip = $("shown-driving");
  if (!clip.paused && files.driving && clip.currentTime > +$("end").value) clip.currentTime = +$("start").value;
});
$("shown-driving").addEventListener("ended", () => { $("shown-driving").currentTime = +$("start").value; $("shown-driving").play() });

// ---- the form -------------------------------------------------------------------------------

$("no-prompt").addEventListener("change", () => { $("prompt").disabled = $("no-prompt").checked });
$("dice").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * 2 ** 31) });
$("describe").addEventListener("click", async () => {
  $("describe").disabled = true;
  $("describe").textContent = "Describing…";
  try {
    const said = await api("POST", "describe", { reference: files.reference.id, driving: files.driving.id, ...part() });
    $("no-prompt").checked = $("prompt").disabled = false;
    $("prompt").value = said.prompt;
    say("prompt-help", `Written ${said.sources.prompt === "offline" ? "offline" : "by " + said.sources.prompt}. Change it as you like.`);
    $("prompt").focus();
  } catch (error) { say("prompt-help", error.message, true) }
  $("describe").textContent = "Describe now";
  $("describe").disabled = false;
});

function order() {
  const number = id => $(id).value === "" ? null : +$(id).value;
  const steps = document.querySelector("input[name=steps]:checked").value;
  return {
    reference: files.reference.id, driving: files.driving.id, ...part(), consent: $("consent").checked,
    variant: document.querySelector("input[name=variant]:checked").value,
    prompt: $("no-prompt").checked ? "" : $("prompt").value.trim() || null, negative: $("negative").value.trim(),
    preset: $("preset").value || null, steps: steps === "" ? null : +steps, guidance: number("guidance"), seed: number("seed") ?? 0, fit: $("fit").value,
    fps: number("fps"), interpolate: $("interpolate").value, audio: $("audio").checked,
  };
}

function lacking() {
  if (busy) return ["A file is still on its way.", null];
  if (!files.reference) return ["Choose a reference picture first.", "file-reference"];
  if (!files.driving) return ["Choose a driving clip first.", "file-driving"];
  if (!$("consent").checked) return ["Say first that you have the right to animate this person or work.", "consent"];
  for (const id of ["seed", "guidance", "fps"])
    if (!$(id).checkValidity()) return [`${$(id).labels[0].firstChild.textContent}: ${$(id).validationMessage}`, id];
  return null;
}

$("form").addEventListener("submit", async event => {
  event.preventDefault();
  const fault = lacking();
  if (fault) { say("form-say", fault[0], true); $(fault[1])?.closest("details")?.setAttribute("open", ""); $(fault[1])?.focus(); return }
  $("submit").disabled = true;
  try {
    const job = await api("POST", "jobs", order());
    say("form-say", "");
    show(job.id);
    if (innerWidth <= 900) $("side").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
    refresh();
  } catch (error) { say("form-say", error.message, true) }
  $("submit").disabled = false;
});

async function useAgain(job) {
  try {
    for (const kind of ["reference", "driving"]) adopt(kind, await api("GET", "uploads/" + job[kind]));
  } catch (error) { alarm(error.message); return }
  const said = job.asked;
  setPart(said.start, said.end ?? files.driving.seconds);
  $("no-prompt").checked = $("prompt").disabled = said.prompt === "";
  $("prompt").value = said.prompt ?? "";
  for (const id of ["negative", "guidance", "fps", "fit", "interpolate", "seed"]) $(id).value = said[id] ?? "";
  $("audio").checked = said.audio;
  $("preset").value = said.preset && about.presets[said.preset] ? said.preset : "";
  offerSteps();
  for (const name of ["variant", "steps"]) pick(name, said[name] ?? "");
  $("consent").checked = false;  // said anew each time
  open_("animate");
  say("form-say", `All settings of job ${job.number} are here again.`);
  $("prompt").focus();
}

function pick(name, value) {
  let box = [...document.querySelectorAll(`input[name=${name}]`)].find(x => x.value === String(value));
  if (!box && name === "steps") box = stepsChoice(value, String(value));
  if (box) box.checked = true;
}

const usualSteps = preset => about?.presets[preset]?.steps ?? about?.steps;

/** The steps that the preset, or else the model, means, among some others. */
function offerSteps() {
  const preset = $("preset").value, usual = usualSteps(preset), own = about.steps;
  const others = own ? [Math.max(1, own / 2), own, own * 2, own * 4].filter(n => Number.isInteger(n) && n <= about.limits.steps) : [];
  $("steps").replaceChildren();
  for (const n of [...new Set([...others, usual ?? []].flat())].sort((a, b) => a - b)) stepsChoice(n === usual ? "" : n, String(n));
  if (!usual) stepsChoice("", "Default");
  pick("steps", "");
  $("preset-help").textContent = preset ? sentence(about.presets[preset].means) : "";
  $("preset-help").hidden = !preset;
}
$("preset").addEventListener("change", offerSteps);

function stepsChoice(value, text) {
  const box = el("input", { type: "radio", name: "steps", value });
  $("steps").append(el("label", {}, box, el("span", { textContent: text })));
  return box;
}

// ---- one job on the stage -------------------------------------------------------------------

function show(id) {
  events?.close();
  shown = null;
  location.hash = id;
  events = new EventSource(`jobs/${id}/events`);
  events.addEventListener("job", event => {
    const job = JSON.parse(event.data);
    render(job);
    if (ENDED.includes(job.state)) { events.close(); refresh() }
  });
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) gone(id) };
}

function gone(id) {
  api("GET", "jobs/" + id).then(render, error => { if (!shown) location.hash = ""; alarm(error.message) });
}

function summary(job) {
  const said = job.asked, steps = said.steps ?? usualSteps(said.preset);
  const cut = said.start || said.end !== null ? `, ${said.start.toFixed(2)} s to ${said.end === null ? "the end" : said.end.toFixed(2) + " s"}` : "";
  return `${said.variant}, ${said.preset ? said.preset + ", " : ""}${steps ? steps + " steps" : "default steps"}, seed ${said.seed}${cut}`;
}

function source(node, path) { if (node.dataset.path !== path) { node.dataset.path = path; node.src = path } }

function badge(node, job) { node.className = "badge " + job.state; node.textContent = STATES[job.state] }

function progress(job) {
  if (job.state === "queued") return job.ahead ? `${job.ahead} before it` : "Next in line";
  if (job.stop) return "Ending…";
  if (!job.steps || !job.step) return (STAGES[job.stage] ?? "Starting") + "…";
  if (job.step >= job.steps) return "Writing the clip…";
  return `Step ${job.step} of ${job.steps}` + (job.eta === null ? "" : `, about ${seconds(job.eta)} left`);
}

function render(job) {
  const fresh = !shown || shown.id !== job.id, done = job.state === "done", live = !ENDED.includes(job.state);
  shown = job;
  $("empty").hidden = true;
  $("job").hidden = false;
  $("job-title").textContent = `Job ${job.number}`;
  badge($("job-state"), job);
  $("running").hidden = !live;
  if (job.steps && job.step) $("bar").value = job.step / job.steps;
  else if (job.state === "running") $("bar").removeAttribute("value");
  else $("bar").value = 0;
  $("job-say").textContent = progress(job);
  $("cancel").disabled = job.stop;
  $("job-error").hidden = !job.error;
  $("job-error").textContent = job.error ? sentence(job.error) : "";
  $("job-settings").textContent = summary(job);
  source($("pane-reference"), `uploads/${job.reference}/file`);
  source($("pane-driving"), `jobs/${job.id}/driving` + (done ? "" : "?whole"));
  const preview = !done && job.preview > 0;
  $("pane-preview").hidden = !preview;
  if (preview) source($("pane-preview"), `jobs/${job.id}/preview?n=${job.preview}`);
  $("pane-result").hidden = !done;
  $("pane-wait").textContent = done || preview ? "" : live ? "The first frames appear here" : "No result";
  $("controls").hidden = $("synthetic").hidden = !done;
  for (const [id, what] of [["get-clip", "result"], ["get-record", "record"]]) { $(id).hidden = !done; $(id).href = `jobs/${job.id}/${what}?download=true` }
  if (done) source($("pane-result"), `jobs/${job.id}/result`);
  else if (fresh) { $("pane-result").removeAttribute("src"); $("pane-result").dataset.path = "" }
  if (fresh) {
    $("sound").hidden = true;
    api("GET", "uploads/" + job.driving).then(clip => { $("sound").hidden = !(clip.audio && job.asked.audio) }, error => alarm(error.message));
  }
}

$("cancel").addEventListener("click", () => api("POST", `jobs/${shown.id}/cancel`).then(render, error => alarm(error.message)));

const result = $("pane-result"), driver = $("pane-driving");
function together() { if (Math.abs(driver.currentTime - result.currentTime) > 0.05) driver.currentTime = Math.min(result.currentTime, driver.duration || 0) }
function play() { together(); result.play().catch(() => {}); driver.play().catch(() => {}) }
function pause() { result.pause(); driver.pause(); together() }
result.addEventListener("loadeddata", () => { if (!still.matches) play() });
for (const name of ["play", "pause"]) result.addEventListener(name, () => { $("play").textContent = result.paused ? "Play" : "Pause" });
result.addEventListener("timeupdate", () => { if (result.duration) $("scrub").value = result.currentTime / result.duration });
result.addEventListener("ended", () => { result.currentTime = driver.currentTime = 0; play() });
$("play").addEventListener("click", () => result.paused ? play() : pause());
$("scrub").addEventListener("input", () => { pause(); result.currentTime = $("scrub").value * result.duration; together() });
$("slow").addEventListener("click", () => {
  const slow = result.playbackRate === 1;
  result.playbackRate = driver.playbackRate = slow ? 0.5 : 1;
  $("slow").setAttribute("aria-pressed", slow);
});
$("sound").addEventListener("click", () => { result.muted = !result.muted; $("sound").setAttribute("aria-pressed", !result.muted) });

// ---- queue and history ----------------------------------------------------------------------

async function refresh() {
  const which = `${about.backbone} on ${about.devices.join(", ")}: `;
  let jobs, health;
  try { [jobs, health] = [await api("GET", "jobs?count=50"), await api("GET", "health")] }
  catch (error) { alarm(error.message); return }
  alarm("");
  const doing = health.running || health.queued ? `${health.running} running, ${health.queued} waiting` : health.workers ? "idle" : "no worker";
  if ($("server").textContent !== which + doing) $("server").replaceChildren(el("span", { className: "which", textContent: which }), doing);
  const live = jobs.filter(job => !ENDED.includes(job.state)).reverse();
  $("queue").hidden = live.every(job => job.id === shown?.id);
  keyed($("queue-list"), live, job => {
    const line = el("button", { type: "button", className: "quiet", onclick: () => show(job.id) },
      el("img", { src: `uploads/${job.reference}/file`, alt: "" }), el("span", { className: "told" }), el("span"));
    return el("li", {}, line);
  }, (line, job) => { line.querySelector(".told").textContent = `Job ${job.number}: ${progress(job)}`; badge(line.querySelector("button").lastChild, job) });
  const older = history_.filter(job => jobs.length && job.number < jobs.at(-1).number);
  setHistory([...jobs, ...older]);
}

/** Give a list one line for each job, in order; lines that are there stay, with their focus. */
function keyed(list, jobs, make, update) {
  const lines = new Map([...list.children].map(line => [line.dataset.id, line]));
  jobs.forEach((job, k) => {
    let line = lines.get(job.id);
    if (!line) { line = make(job); line.dataset.id = job.id }
    lines.delete(job.id);
    if (list.children[k] !== line) list.insertBefore(line, list.children[k] ?? null);
    update(line, job);
  });
  for (const line of lines.values()) line.remove();
}

function setHistory(jobs) {
  history_ = jobs;
  $("history-empty").hidden = jobs.length > 0;
  $("older").hidden = jobs.length < 50 || jobs.at(-1).number === 1;
  keyed($("history-list"), jobs, entry, (line, job) => {
    const now = [job.state, job.state === "running" && job.preview].join();  // all that a line shows of progress
    if (line.dataset.now === undefined) line.dataset.now = now;
    if (line.dataset.now === now) return;
    const made = entry(job);
    line.replaceChildren(...made.children);
    line.dataset.now = now;
  });
}

function entry(job) {
  const mark = el("span"), done = job.state === "done"; badge(mark, job);
  const facts = el("dl", {}, ...Object.entries({ ...job.asked, "handed in": new Date(1000 * job.made).toLocaleString(), id: job.id })
    .flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", { textContent: value === null ? (name === "prompt" ? "described when it ran" : "default") : value === "" ? "none" : String(value) })]));
  const took = job.ended && job.begun ? `, took ${seconds(job.ended - job.begun)}` : "";
  const quiet = (text, onclick) => el("button", { type: "button", className: "quiet", textContent: text, onclick });
  const remove = quiet("Delete", async () => {
    if (!confirm(`Delete job ${job.number} and its result?`)) return;
    try { await api("DELETE", "jobs/" + job.id) } catch (error) { alarm(error.message); return }
    if (shown?.id === job.id) { shown = null; location.hash = ""; $("job").hidden = true; $("empty").hidden = false }
    history_ = history_.filter(x => x.id !== job.id);
    refresh();
  });
  remove.classList.add("bad");
  const line = el("li", {},
    el("div", { className: "thumbs" }, el("img", { src: `uploads/${job.reference}/file`, alt: "Reference", loading: "lazy" }),
      job.preview ? el("img", { src: `jobs/${job.id}/preview?n=${job.preview}`, alt: "Last frame of the result", loading: "lazy" }) : null),
    el("div", { className: "what" }, el("div", { className: "head" }, el("h2", { textContent: `Job ${job.number}` }), mark, ENDED.includes(job.state) ? remove : null),
      el("p", { textContent: job.asked.prompt || (job.asked.prompt === null ? "Prompt described when it ran" : "No prompt") }),
      el("p", { className: "help", textContent: summary(job) + took }), job.error ? el("p", { className: "say bad", textContent: sentence(job.error) }) : null,
      el("details", {}, el("summary", { textContent: "All settings" }), facts)),
    el("div", { className: "acts" }, quiet("Show", () => { open_("animate"); show(job.id) }), quiet("Use again", () => useAgain(job)),
      done ? el("a", { className: "button", href: `jobs/${job.id}/result?download=true`, textContent: "Clip" }) : null,
      done ? el("a", { className: "button", href: `jobs/${job.id}/record?download=true`, textContent: "Record" }) : null));
  return line;
}

$("older").addEventListener("click", async () => {
  const more = await api("GET", `jobs?count=50&before=${history_.at(-1).number}`);
  setHistory([...history_, ...more]);
  $("older").hidden = more.length < 50;
});

// ---- views ----------------------------------------------------------------------------------

const tabs = () => [...document.querySelectorAll("[role=tab]")];
function open_(name, focus = false) {
  for (const tab of tabs()) {
    const on = tab.id === "tab-" + name;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !on;
    if (on && focus) tab.focus();
  }
  const frame = $(name).querySelector("iframe");
  if (frame && !frame.src) frame.src = frame.dataset.path;
  // a page in a frame is not told by the browser that its tab was opened or left
  for (const x of document.querySelectorAll("iframe")) x.contentDocument?.dispatchEvent(new Event("visibilitychange"));
  if (name !== "animate") pause();
}
$("tabs").addEventListener("click", event => { if (event.target.role === "tab") open_(event.target.id.slice(4)) });
$("tabs").addEventListener("keydown", event => {
  const all = tabs(), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], at = all.indexOf(document.activeElement);
  const next = step ? all[(at + step + all.length) % all.length] : { Home: all[0], End: all.at(-1) }[event.key];
  if (next) { event.preventDefault(); open_(next.id.slice(4), true) }
});

function addTab({ name, title, path, how }) {
  $("tabs").append(el("button", { role: "tab", id: "tab-" + name, textContent: title, ariaSelected: "false", tabIndex: -1 }));
  $("tab-" + name).setAttribute("aria-controls", name);
  const inside = path ? el("iframe", { title }) : el("p", { className: "blank" }, el("b", { textContent: `${title} is not open here.` }), "It opens with ", el("code", { textContent: how }));
  if (path) inside.dataset.path = path;
  const panel = el("section", { id: name, hidden: true }, inside);
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", "tab-" + name);
  $("main").append(panel);
}

async function begin() {
  about = await api("GET", "about");
  for (const tab of await api("GET", "tabs")) addTab(tab);
  for (const name of Object.keys(about.presets)) $("preset").append(el("option", { value: name, textContent: name }));
  offerSteps();
  const pose = document.querySelector("input[value=pose]");
  pose.disabled = !about.variants.includes("pose");
  $("variant-help").hidden = !pose.disabled;
  $("variant-help").textContent = "Driving by the skeleton needs weights of the pose variant: pose_adapter=FILE.";
  await refresh();
  if (/^#[0-9a-f]{16}$/.test(location.hash)) show(location.hash.slice(1));
  setInterval(() => { if (!document.hidden && !$("login").open) refresh() }, 2500);
}
begin().catch(error => alarm(error.message));
