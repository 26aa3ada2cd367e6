/* The page: a chat over /v1/chat/completions that shows how its answers are decoded. */

import { element, ui } from "/dom.js";
import { clearFigures, Meter, showShares, showTree, SOURCES } from "/figures.js";
import { authorization, requestBody, settingsFit, showDrafting } from "/settings.js";

const GONE = "The server stopped answering. Is it still running? Start it again, then press Retry.";
const FULL = "This conversation has filled the model's context: begin another, the question stays.";
const STATUS_EVERY = 1000;
const SPOKEN_FOR = 5000;

let conversation = []; // {role, content} of what was said
let withdrawn = null; // a question that got no answer: shown, but no part of the conversation
let underWay = null; // the AbortController of the answer under way
let served = []; // the models, as /status tells of them

const headers = () => ({ "Content-Type": "application/json", ...authorization() });

/* ---- scrolling ---- */

// Of a narrow window the page as a whole is scrolled, and the form stays at its bottom.
const scroller = () =>
  getComputedStyle(ui.chat).overflowY === "visible" ? document.scrollingElement : ui.chat;
// How far the conversation's end lies below what is seen of it.
const beyond = () => ui.messages.getBoundingClientRect().bottom - ui.ask.getBoundingClientRect().top;
const toEnd = () => { scroller().scrollTop += beyond(); };

/* Add to the conversation, and keep its end in view unless the reader has scrolled up. */
function following(add) {
  const follow = beyond() < 60;
  add();
  if (follow && beyond() > 0) toEnd();
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
    following(() => ui.messages.append(this.item));
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
    following(() => {
      for (const [piece, source] of pieces ?? [[text, "own"]]) this.piece(place, piece, source);
    });
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

  fault(message, ...more) {
    const line = element("p", "fault", message);
    line.setAttribute("role", "alert");
    line.append(...more);
    following(() => this.item.append(line));
  }

  end(sentence) {
    following(() => this.item.append(element("p", "end", sentence)));
  }
}

async function answer() {
  const view = new AnswerView();
  const control = (underWay = new AbortController());
  const said = conversation; // a new chat begins another one
  setBusy(true, "answering");
  const meter = new Meter();
  let ended = false;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: requestBody(said), signal: control.signal,
    });
    if (!response.ok) throw await refusal(response);
    refresh();
    for await (const data of events(response)) {
      if (data === "[DONE]") { ended = true; break; }
      take(JSON.parse(data), view, meter);
    }
    if (!ended) throw new TypeError("the stream ended early");
    said.push({ role: "assistant", content: view.content });
    view.end([cut(meter), meter.summary()].filter(Boolean).join(" "));
  } catch (error) {
    if (control.signal.aborted) {
      if (view.content) said.push({ role: "assistant", content: view.content });
      view.end("stopped");
    } else {
      tell(error, view, said);
    }
  } finally {
    if (said === conversation) conclude(view, ended);
    refresh();
  }
}

function conclude(view, ended) {
  underWay = null;
  if (!ended) withdraw();
  setBusy(false, ended ? "done" : "ended");
  speak(view.content);
}

/* Why there is no answer, or not all of it. */
function tell(error, view, said) {
  if (!(error instanceof Refused)) {
    view.fault(GONE);
    banner(GONE);
  } else if (error.code === "context_length_exceeded" && said.length > 1) {
    const anew = element("button", "", "New chat");
    anew.type = "button";
    anew.addEventListener("click", startOver);
    view.fault(FULL, " ", anew);
  } else {
    view.fault(error.message);
  }
}

/* Why an answer ended before its own end; nothing where it did not. */
function cut({ finish, usage }) {
  if (finish !== "length" || !usage) return "";
  const { prompt_tokens: prompt, completion_tokens: made } = usage;
  const limit = chosen()?.context_limit;
  if (limit && prompt + made >= limit) {
    return "The model's context is full: New chat begins another conversation.";
  }
  return `Cut after ${made} token${made === 1 ? "" : "s"}: Most tokens, under Settings, allows more.`;
}

/* Have a screen reader say an answer: whole, since word by word it would hear none of them. */
let silence;
function speak(text) {
  clearTimeout(silence);
  ui.spoken.textContent = text;
  silence = setTimeout(() => { ui.spoken.textContent = ""; }, SPOKEN_FOR); // nobody shall find it twice
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

class Refused extends Error {
  constructor({ message, code }) {
    super(message);
    this.code = code;
  }
}

async function refusal(response) {
  try {
    return new Refused((await response.json()).error);
  } catch {
    return new Refused({ message: `The server answered with status ${response.status}.` });
  }
}

function take(chunk, view, meter) {
  if (chunk.error) throw new Refused(chunk.error);
  const extra = chunk.redrafter ?? {};
  for (const choice of chunk.choices) {
    view.add(choice.delta, extra.pieces);
    meter.finish = choice.finish_reason ?? meter.finish;
  }
  if (extra.step) {
    meter.step(extra.step);
    showTree(extra.step.tree);
  }
  if (chunk.usage) meter.usage = chunk.usage;
  showShares(view.counts);
}

/* ---- the engine ---- */

async function refresh() {
  try {
    const response = await fetch("/status", { headers: headers() });
    if (response.status === 401) {
      banner("This server wants an API key: set it under Settings.");
      return;
    }
    const state = await response.json();
    showModels(state.models);
    showEngine(state);
    if (ui.banner.textContent) banner("");
  } catch {
    banner("No connection to the server.");
  }
}

const chosen = () => served.find((model) => model.name === ui.model.value);

function showModels(models) {
  served = models;
  const names = models.map((model) => model.name);
  const shown = [...ui.model.options].map((option) => option.value);
  if (names.join() !== shown.join()) {
    ui.model.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  showDrafting(chosen());
}

function showEngine(state) {
  const total = (name) => state.models.reduce((sum, model) => sum + model[name], 0);
  const sequences = total("running");
  ui.slots.replaceChildren(...Array.from({ length: state.max_concurrent }, (_, index) =>
    element("span", index < sequences ? "slot on" : "slot")));
  ui.engine.textContent = `${sequences} of ${state.max_concurrent} sequences, ` +
    `${total("waiting")} waiting; ${(total("cache_bytes") / 1e6).toFixed(1)} MB of prefixes kept`;
  ui.slots.setAttribute("aria-label", ui.engine.textContent);
}

function banner(text) {
  ui.banner.textContent = text;
  ui.banner.hidden = !text;
}

/* ---- what the person does ---- */

function setBusy(busy, state) {
  const focused = document.activeElement;
  ui.send.disabled = busy;
  ui.stop.disabled = !busy;
  ui.retry.disabled = busy || !(conversation.length || withdrawn);
  ui.state.textContent = state;
  document.body.dataset.state = state;
  if (focused?.disabled) (busy ? ui.stop : ui.question).focus(); // whoever types would be nowhere
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
  if (!text || underWay || !settingsFit()) return;
  ui.question.value = "";
  say(text);
  answer();
}

function retry() {
  if (underWay || !(conversation.length || withdrawn) || !settingsFit()) return;
  banner("");
  if (withdrawn) {
    if (ui.question.value === withdrawn) ui.question.value = "";
    say(withdrawn);
  } else {
    if (conversation.at(-1).role === "assistant") conversation.pop();
    const last = ui.messages.lastElementChild;
    if (last && last.classList.contains("assistant")) last.remove();
  }
  answer();
}

function startOver() {
  underWay?.abort();
  underWay = null;
  conversation = [];
  withdrawn = null;
  ui.messages.replaceChildren();
  ui.hint.hidden = false;
  clearFigures();
  setBusy(false, "");
  ui.question.focus();
}

ui.ask.addEventListener("submit", (event) => { event.preventDefault(); send(); });
ui.stop.addEventListener("click", () => underWay?.abort());
ui.retry.addEventListener("click", retry);
ui.new.addEventListener("click", startOver);
ui.model.addEventListener("change", () => showDrafting(chosen()));
ui.question.addEventListener("keydown", (event) => {
  // 229: Safari says so, and no more of composing, at the Enter that ends it.
  const composes = event.isComposing || event.keyCode === 229;
  if (event.key === "Enter" && !event.shiftKey && !composes) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (underWay) underWay.abort();
    else if (ui.settings.open) {
      ui.settings.open = false;
      ui.question.focus();
    }
  }
  if (event.altKey && event.code === "KeyR") { event.preventDefault(); retry(); }
});
addEventListener("beforeunload", (event) => {
  if (conversation.length) event.preventDefault(); // the browser asks: it is kept nowhere else
});
ui.key.value = sessionStorage.getItem("key") ?? "";
ui.key.addEventListener("change", () => {
  sessionStorage.setItem("key", ui.key.value);
  refresh();
});
clearFigures();
refresh();
setInterval(refresh, STATUS_EVERY);
ui.question.focus();
