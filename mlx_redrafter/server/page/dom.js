/* What all parts of the page use: its elements, and making further ones. */

export const byId = (id) => document.getElementById(id);

const IDS = [
  "model", "settings", "temperature", "max-tokens", "seed", "draft", "no-draft", "system", "key",
  "wrong", "new", "banner", "messages", "hint", "chat", "speed", "plain", "ratio", "per-step",
  "legend-guessed", "legend-copied", "depths", "tree", "slots", "engine", "ask", "question", "send",
  "stop", "retry", "state", "spoken",
];
export const ui = Object.fromEntries(IDS.map((id) => [id, byId(id)]));

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
