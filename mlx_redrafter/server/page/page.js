"use strict";
/* The page: a chat over /v1/chat/completions that shows how its answers are decoded. */

const byId = (id) => document.getElementById(id);
const ui = Object.fromEntries(
  ["model", "temperature", "max-tokens", "seed", "draft", "system", "key", "new", "banner",
    "messages", "hint", "chat", "speed", "plain", "ratio", "per-step", "depths", "tree", "slots",
    "engine", "ask", "question", "send", "stop", "retry", "state"].map((id) => [id, byId(id)]));
const GONE = "The server stopped answering. Is it still running? Start it again, then press Retry.";
const STATUS_EVERY = 1000;
const SOURCES = ["guessed", "copied", "own"];

let conversation = []; // {role, content} of what was said
let withdrawn = null; // a question that got no answer: shown, but no part of the conversation
let running = null; // the AbortController of the answer under way

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function headers() {
  // Headers take bytes: those of UTF-8, which the server expects.
  const key = String.fromCharCode(...new TextEncoder().encode(ui.key.value.trim()));
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/* ---- server-sent events ---- */

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const block = held.slice(0, end);
      held = held.slice(end + 2);
      const data = block.split("\n").filter((line) => line.startsWith("data: "))
        .map((line) => line.slice(6)).join("\n");
      if (data) yield data;
    }
  }
}

/* ---- one answer ---- */

class AnswerView {
  constructor() {
    this.item = element("li", "assistant");
    this.item.append(element("p", "who", "model"));
    this.text = element("div", "text");
    this.item.append(this.text);
    ui.messages.append(this.item);
    this.content = "";
    this.counts = { guessed: 0, copied: 0, own: 0 };
    this.thinking = null;
  }

  add(delta, pieces) {
    const reasoning = delta.reasoning_content;
    const text = reasoning ?? delta.content;
    if (!text) return;
    const place = reasoning !== undefined ? this.thoughts() : this.text;
    if (reasoning === undefined) this.content += text;
    const follow = atEnd();
    for (const [piece, source] of pieces ?? [[text, "own"]]) this.piece(place, piece, source);
    if (follow) toEnd();
  }

  piece(place, text, source) {
    const known = SOURCES.includes(source) ? source : "own";
    this.counts[known] += text.length;
    const last = place.lastElementChild;
    if (last && last.classList.contains(known)) last.textContent += text;
    else place.append(element("span", `piece ${known}`, text));
  }

  thoughts() {
    if (!this.thinking) {
      const details = element("details", "thinking");
      details.open = true;
      details.append(element("summary", "", "Thinking"));
      this.thinking = element("div", "text");
      details.append(this.thinking);
      this.text.before(details);
    }
    return this.thinking;
  }

  fault(message) {
    this.item.append(element("p", "fault", message));
    toEnd();
  }

  end(words) {
    this.item.append(element("p", "end", words));
    toEnd();
  }
}

const atEnd = () => ui.chat.scrollHeight - ui.chat.scrollTop - ui.chat.clientHeight < 60;
const toEnd = () => { ui.chat.scrollTop = ui.chat.scrollHeight; };

function request() {
  const system = ui.system.value.trim();
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number(ui.temperature.value) || 0,
    redrafter: { trace: true, draft: ui.draft.checked },
  };
  if (ui.model.value) body.model = ui.model.value;
  const most = Number(ui["max-tokens"].value);
  if (most >= 1) body.max_tokens = Math.floor(most);
  const seed = ui.seed.value;
  if (/^[0-9]+$/.test(seed)) {
    // Seeds have up to 63 bits, and JavaScript's numbers 53: another one would make another text.
    return JSON.stringify(body).replace(/}$/, `,"seed":${BigInt(seed)}}`);
  }
  if (seed !== "") body.seed = Math.floor(Number(seed));
  return JSON.stringify(body);
}

async function answer() {
  const view = new AnswerView();
  const control = (running = new AbortController());
  const said = conversation; // a new chat begins another one
  setBusy(true, "answering");
  const meter = new Meter();
  let ended = false;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: request(), signal: control.signal,
    });
    if (!response.ok) throw new Refused(await words(response));
    status();
    for await (const data of events(response)) {
      if (data === "[DONE]") { ended = true; break; }
      take(JSON.parse(data), view, meter);
    }
    if (!ended) throw new TypeError("the stream ended early");
    said.push({ role: "assistant", content: view.content });
    view.end(meter.summary());
  } catch (error) {
    if (control.signal.aborted) {
      if (view.content) said.push({ role: "assistant", content: view.content });
      view.end("stopped");
    } else if (error instanceof Refused) {
      view.fault(error.message);
    } else {
      view.fault(GONE);
      banner(GONE);
    }
  } finally {
    running = null;
    if (!ended && said === conversation) withdraw();
    setBusy(false, ended ? "done" : "ended");
    status();
  }
}

/* A question that was refused, or stopped at once, would be sent with every later one: one that is
   too long would have all of them refused, and some templates want every question answered. */
function withdraw() {
  if (conversation.at(-1)?.role !== "user") return;
  withdrawn = conversation.pop().content;
  if (!ui.question.value) ui.question.value = withdrawn;
  const shown = [...ui.messages.children];
  const question = shown.findLastIndex((item) => item.classList.contains("user"));
  for (const item of shown.slice(question)) item.classList.add("withdrawn");
}

function clearWithdrawn() {
  withdrawn = null;
  for (const item of [...ui.messages.children]) {
    if (item.classList.contains("withdrawn")) item.remove();
  }
}

class Refused extends Error {}

async function words(response) {
  try {
    const { error } = await response.json();
    return error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

function take(chunk, view, meter) {
  if (chunk.error) throw new Refused(chunk.error.message);
  const extra = chunk.redrafter ?? {};
  for (const choice of chunk.choices) view.add(choice.delta, extra.pieces);
  if (extra.step) {
    meter.step(extra.step);
    showTree(extra.step.tree);
  }
  if (chunk.usage) meter.usage = chunk.usage;
  showShares(view.counts);
}

/* ---- figures ---- */

class Meter {
  constructor() {
    this.started = null;
    this.usage = null;
    this.tokens = 0;
  }

  step(step) {
    const now = performance.now();
    const { statistics, plain_tokens_per_second: plain } = step;
    // Tokens come in steps: those of the first one fall before the clock begins.
    if (this.started === null) {
      this.started = now;
      this.first = statistics.tokens;
    }
    this.tokens = statistics.tokens - this.first;
    this.plain = plain;
    const seconds = (now - this.started) / 1000;
    this.speed = seconds > 0 ? this.tokens / seconds : 0;
    showSpeed(seconds > 0.2 ? this.speed : 0, plain); // before, it jumps with every step
    ui["per-step"].textContent = statistics.tokens_per_step.toFixed(2);
    showDepths(statistics.acceptance_by_depth);
  }

  summary() {
    if (this.started !== null) showSpeed(this.speed, this.plain);
    const usage = this.usage;
    if (!usage) return "";
    const cached = usage.prompt_tokens_details.cached_tokens;
    const known = cached ? `, ${cached} of them known` : "";
    return `${usage.prompt_tokens} prompt tokens${known}; ${usage.completion_tokens} tokens`;
  }
}

function showSpeed(speed, plain) {
  ui.speed.textContent = speed ? speed.toFixed(1) : "–";
  ui.plain.textContent = plain ? `plain decoding: ${plain.toFixed(1)} tokens/s` :
    "plain decoding: not measured";
  const ratio = plain && speed ? speed / plain : 0;
  ui.ratio.textContent = ratio ? `${ratio.toFixed(2)} x` : "";
  ui.ratio.className = ratio && ratio < 1 ? "slower" : "";
}

function showShares(counts) {
  const all = counts.guessed + counts.copied + counts.own;
  for (const source of SOURCES) {
    byId(`share-${source}`).textContent = all ? `${Math.round(100 * counts[source] / all)} %` : "–";
  }
}

function showDepths(rates) {
  if (!rates.length) {
    ui.depths.replaceChildren(element("p", "note", "No drafts in this answer."));
    ui.depths.setAttribute("aria-label", "No drafts in this answer");
    return;
  }
  ui.depths.replaceChildren(...rates.slice(0, 12).map((rate, index) => {
    const column = element("div", "depth");
    const bar = element("div", "bar");
    bar.style.height = `${Math.round(60 * rate)}px`;
    column.append(element("div", "", `${Math.round(100 * rate)}`), bar,
      element("div", "", String(index + 1)));
    return column;
  }));
  ui.depths.setAttribute("aria-label", "Accepted in percent, by depth: " +
    rates.map((rate, index) => `${index + 1}: ${Math.round(100 * rate)}`).join(", "));
}

/* ---- the draft tree: depth goes right, one line a leaf ---- */

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function layout(tree) {
  const children = tree.parents.map(() => []);
  tree.parents.forEach((parent, node) => { if (parent >= 0) children[parent].push(node); });
  const places = [];
  let row = 0;
  const visit = (node, depth) => {
    if (!children[node].length) places[node] = { depth, row: row++ };
    else {
      children[node].forEach((child) => visit(child, depth + 1));
      places[node] = { depth, row: places[children[node][0]].row };
    }
  };
  visit(0, 0);
  return { places, rows: row };
}

function showTree(tree) {
  if (tree.tokens.length < 2) return; // a plain step: the last draft stays to be looked at
  const { places, rows } = layout(tree);
  const label = (text) => JSON.stringify(text).slice(1, -1).replaceAll(" ", "·").slice(0, 10);
  const labels = tree.tokens.map(label);
  const deepest = Math.max(...places.map((place) => place.depth));
  const widths = Array.from({ length: deepest + 1 }, (_, depth) => 14 + 7.3 * Math.max(
    ...labels.filter((_, node) => places[node].depth === depth).map((text) => text.length)));
  const left = widths.map((_, depth) => widths.slice(0, depth).reduce((a, b) => a + b + 10, 2));
  const accepted = new Set(tree.path);
  const height = 20 * rows + 4;
  const drawing = svg("svg", {
    width: left[deepest] + widths[deepest], height, role: "img",
    "aria-label": `Draft of ${tree.tokens.length - 1} tokens, ${tree.path.length - 1} accepted: ` +
      tree.path.map((node) => tree.tokens[node]).join(""),
  });
  tree.parents.forEach((parent, node) => {
    const { depth, row } = places[node];
    const y = 20 * row + 14;
    const mark = accepted.has(node) ? "accepted" : "rejected";
    if (parent >= 0) {
      const from = places[parent];
      const x0 = left[from.depth] + 7.3 * labels[parent].length + 2;
      const y0 = 20 * from.row + 10;
      drawing.append(svg("path", {
        d: `M${x0} ${y0} L${left[depth] - 10} ${y - 4} H${left[depth] - 2}`, class: mark,
      }));
    }
    drawing.append(svg("text", { x: left[depth], y, class: mark }, labels[node]));
  });
  ui.tree.replaceChildren(drawing);
}

/* ---- the engine ---- */

async function status() {
  let asked = false;
  try {
    const response = await fetch("/status", { headers: headers() });
    if (response.status === 401) {
      asked = true;
      banner("This server wants an API key: set it under Settings.");
      return;
    }
    const state = await response.json();
    showModels(state.models);
    showEngine(state);
    if (ui.banner.textContent) banner("");
  } catch {
    if (!asked) banner("No connection to the server.");
  }
}

function showModels(models) {
  const names = models.map((model) => model.name);
  const shown = [...ui.model.options].map((option) => option.value);
  if (names.join() !== shown.join()) {
    ui.model.replaceChildren(...names.map((name) => new Option(name, name)));
  }
}

function showEngine(state) {
  const running = models(state, "running"), waiting = models(state, "waiting");
  ui.slots.replaceChildren(...Array.from({ length: state.max_concurrent }, (_, index) =>
    element("span", index < running ? "slot on" : "slot")));
  const cache = models(state, "cache_bytes") / 1e6;
  ui.engine.textContent = `${running} of ${state.max_concurrent} sequences, ${waiting} waiting; ` +
    `${cache.toFixed(1)} MB of prefixes kept`;
  ui.slots.setAttribute("aria-label", ui.engine.textContent);
}

const models = (state, name) => state.models.reduce((sum, model) => sum + model[name], 0);

function banner(text) {
  ui.banner.textContent = text;
  ui.banner.hidden = !text;
}

/* ---- what the person does ---- */

function setBusy(busy, words) {
  ui.send.disabled = busy;
  ui.stop.disabled = !busy;
  ui.retry.disabled = busy || !(conversation.length || withdrawn);
  ui.state.textContent = words;
  document.body.dataset.state = words;
}

function say(text) {
  clearWithdrawn();
  conversation.push({ role: "user", content: text });
  const item = element("li", "user");
  item.append(element("p", "who", "you"), element("div", "text", text));
  ui.messages.append(item);
  ui.hint.hidden = true;
  toEnd();
}

function send() {
  const text = ui.question.value.trim();
  if (!text || running) return;
  ui.question.value = "";
  say(text);
  answer();
}

function retry() {
  if (running || !(conversation.length || withdrawn)) return;
  if (withdrawn) {
    const text = withdrawn;
    if (ui.question.value === text) ui.question.value = "";
    say(text);
    banner("");
    answer();
    return;
  }
  if (conversation.at(-1).role === "assistant") conversation.pop();
  const last = ui.messages.lastElementChild;
  if (last && last.classList.contains("assistant")) last.remove();
  banner("");
  answer();
}

function startOver() {
  running?.abort();
  conversation = [];
  withdrawn = null;
  ui.messages.replaceChildren();
  ui.hint.hidden = false;
  setBusy(false, "");
  ui.question.focus();
}

ui.ask.addEventListener("submit", (event) => { event.preventDefault(); send(); });
ui.stop.addEventListener("click", () => running?.abort());
ui.retry.addEventListener("click", retry);
ui.new.addEventListener("click", startOver);
ui.question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (running) running.abort();
    else if (byId("settings").open) {
      byId("settings").open = false;
      ui.question.focus();
    }
  }
  if (event.altKey && event.code === "KeyR") { event.preventDefault(); retry(); }
});
ui.key.value = sessionStorage.getItem("key") ?? "";
ui.key.addEventListener("change", () => {
  sessionStorage.setItem("key", ui.key.value);
  status();
});
status();
setInterval(status, STATUS_EVERY);
ui.question.focus();
