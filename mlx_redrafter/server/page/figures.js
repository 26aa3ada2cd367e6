/* How the answer is decoded: speed, sources, acceptance by depth and the last draft tree. */

import { byId, element, ui } from "/dom.js";

export const SOURCES = ["guessed", "copied", "own"];
const ENOUGH_TOKENS = 16; // fewer say nothing of a speed, as in the chat
const NONE_YET = "No draft yet.";

/* An answer's speed. It is that of its own steps, as the chat's is: prompts that are read meanwhile,
   and the way to this page, are no part of it. */
export class Meter {
  constructor() {
    this.usage = null;
    this.finish = null;
    this.others = 0; // answers that took part in its steps, the most at a time
    this.drafts = ui.draft.checked;
  }

  step({ statistics, plain_tokens_per_second: plain, others }) {
    const seconds = statistics.draft_seconds + statistics.verify_seconds;
    const speed = seconds > 0 ? statistics.tokens / seconds : 0;
    this.others = Math.max(this.others, others);
    const tells = statistics.tokens >= ENOUGH_TOKENS && statistics.drafted && !this.others;
    showSpeed(speed, plainWords(this.drafts, plain), tells && plain ? speed / plain : 0, this.others);
    ui["per-step"].textContent = statistics.tokens_per_step.toFixed(2);
    showDepths(statistics.acceptance_by_depth);
  }

  summary() {
    const usage = this.usage;
    if (!usage) return "";
    const cached = usage.prompt_tokens_details.cached_tokens;
    const known = cached ? `, ${cached} of them known` : "";
    return `${usage.prompt_tokens} prompt tokens${known}; ${usage.completion_tokens} tokens`;
  }
}

function plainWords(drafts, plain) {
  if (!drafts) return "this is plain decoding";
  return `plain decoding: ${plain ? `${plain.toFixed(1)} tokens/s` : "not measured yet"}`;
}

function showSpeed(speed, plain, ratio, others) {
  ui.speed.textContent = speed ? speed.toFixed(1) : "–";
  ui.plain.textContent = plain;
  ui.ratio.textContent = ratio ? `${ratio.toFixed(2)} x` : "";
  if (others) ui.ratio.textContent = `with ${others} other${others > 1 ? "s" : ""}`;
  ui.ratio.className = others ? "shared" : ratio < 1 ? "slower" : "";
}

export function showShares(counts) {
  const all = counts.guessed + counts.copied + counts.own;
  for (const source of SOURCES) {
    byId(`share-${source}`).textContent = all ? `${Math.round(100 * counts[source] / all)} %` : "–";
  }
}

export function clearFigures() {
  showSpeed(0, "", 0, 0);
  ui["per-step"].textContent = "–";
  showShares({ guessed: 0, copied: 0, own: 0 });
  showDepths([], NONE_YET);
  ui.tree.replaceChildren(element("p", "note", NONE_YET));
}

export function showDepths(rates, words = "No drafts in this answer.") {
  if (!rates.length) {
    ui.depths.replaceChildren(element("p", "note", words));
    ui.depths.setAttribute("aria-label", words);
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

export function showTree(tree) {
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
