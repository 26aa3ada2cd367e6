/* The settings: what a request takes from them, and what they cannot hold. */

import { ui } from "/dom.js";

const NEEDS = {
  temperature: "Temperature takes a number from 0 to 2, or nothing: then it is the server's own.",
  "max-tokens": "Most tokens takes a whole number from 1, or nothing: then it is the server's own.",
  seed: "Seed takes a whole number from 0, or nothing: then each answer draws one.",
};

function isWrong(id) {
  const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = ui[id].validity;
  // The step of the temperature is only what its arrows do.
  return badInput || rangeUnderflow || rangeOverflow || (stepMismatch && id !== "temperature");
}

function firstWrong() {
  const wrong = Object.keys(NEEDS).find(isWrong);
  ui.wrong.textContent = wrong ? NEEDS[wrong] : "";
  ui.wrong.hidden = !wrong;
  for (const id of Object.keys(NEEDS)) ui[id].setAttribute("aria-invalid", isWrong(id));
  return wrong;
}

/* Whether an answer can be asked for; where not, the settings open and say why. */
export function settingsFit() {
  const wrong = firstWrong();
  if (wrong) {
    ui.settings.open = true;
    ui[wrong].focus();
  }
  return !wrong;
}

/* The body of a request for an answer to a conversation, as JSON. */
export function requestBody(conversation) {
  const system = ui.system.value.trim();
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
    redrafter: { trace: true, draft: ui.draft.checked },
  };
  if (ui.model.value) body.model = ui.model.value;
  if (ui.temperature.value) body.temperature = Number(ui.temperature.value);
  if (ui["max-tokens"].value) body.max_tokens = Number(ui["max-tokens"].value);
  const seed = ui.seed.value;
  if (/^[0-9]+$/.test(seed)) {
    // Seeds have up to 63 bits, and JavaScript's numbers 53: another one would make another text.
    return JSON.stringify(body).replace(/}$/, `,"seed":${BigInt(seed)}}`);
  }
  if (seed) body.seed = Number(seed);
  return JSON.stringify(body);
}

export function authorization() {
  // Headers take bytes: those of UTF-8, which the server expects.
  const key = String.fromCharCode(...new TextEncoder().encode(ui.key.value.trim()));
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/* What the drafts of a model allow to be set and told apart: the box, the hint and the legend. */
export function showDrafting({ guesses, copies }) {
  const drafts = guesses || copies;
  if (ui.draft.disabled === drafts) ui.draft.checked = drafts;
  ui.draft.disabled = !drafts;
  ui["no-draft"].hidden = drafts;
  ui["legend-guessed"].hidden = !guesses;
  ui["legend-copied"].hidden = !copies;
  for (const card of document.querySelectorAll(".drafts")) card.hidden = !drafts;
  const sources = ["what the model supplied itself"];
  if (copies) sources.unshift("what was copied from the text");
  if (guesses) sources.unshift("what the drafter guessed");
  const told = `${sources.slice(0, -1).join(", ")} and ${sources.at(-1)}`;
  ui.hint.textContent = drafts ? `Ask something. ${told[0].toUpperCase()}${told.slice(1)} are told ` +
    "apart; the words are the model's own either way." :
    "Ask something. Nothing is drafted here: decoding is plain.";
}

for (const id of Object.keys(NEEDS)) {
  ui[id].addEventListener("input", () => { if (!ui.wrong.hidden) firstWrong(); });
}
