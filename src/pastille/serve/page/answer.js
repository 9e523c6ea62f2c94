// The answer of the model, or why there is none, in words and bars.

import { badge, count, h, ms, percent } from "./draw.js";
import { fallbackWords, refused } from "./words.js";

const SHOWN_BARS = 8;
const SHOWN_CASES = 12;

/** Why there is no answer. */
export function denied(problem) {
  const { words, said } = refused(problem);
  return [
    h(
      "div",
      { class: "refusal" },
      badge("bad", "No answer"),
      h("p", { class: "reason" }, words),
      said && h("p", { class: "note" }, `The server said: ${said}`),
    ),
  ];
}

/** What the server answered, and how long it took there and back. */
export function told(said, round_trip_ms) {
  const { cases = [said], variant, fallback, warnings = [], latency_ms, cached, model, version } = said;
  const rows = [
    ["answered by", `${variant}${cached ? ", from the cache" : ""}`],
    ["took", `${ms(latency_ms)} in the server, ${ms(round_trip_ms)} there and back`],
    ["model", model && `${model}, version ${version}`],
  ].filter(([, value]) => value);
  return [
    ...(cases.length === 1 ? one(cases[0], said.threshold) : several(cases)),
    fallback &&
      h(
        "p",
        { class: "caution" },
        badge("unsure", "Fallback"),
        ` ${fallback.preferred} did not answer: ${fallbackWords(fallback.why)}.`,
      ),
    ...warnings.map((words) => h("p", { class: "caution" }, badge("unsure", "Warning"), ` ${words}`)),
    h(
      "dl",
      { class: "facts" },
      rows.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))),
    ),
    h(
      "details",
      {},
      h("summary", {}, "The answer as it was sent"),
      h("pre", { tabindex: "0" }, JSON.stringify(said, null, 2)),
    ),
  ];
}

function one(found, threshold) {
  const word = wordOf(found);
  const chosen = [found.decision].flat();
  return [
    word && h("p", { class: "label" }, word),
    h("p", { class: "reason" }, judged(found, threshold)),
    found.probabilities && bars(found.probabilities, chosen, "Probabilities"),
    found.pixels && bars(shares(found.pixels), [], "Shares of the area"),
    found.disagreement &&
      h(
        "p",
        { class: "caution" },
        badge("unsure", "Disagreement"),
        " int8 and fp32 decided differently here.",
      ),
  ];
}

/** Nothing found, one label, several, or a number. */
function wordOf({ decision, label, value }) {
  if (Array.isArray(decision)) return decision.join(", ") || "none of them";
  if (value != null) return String(Number(value.toPrecision(5)));
  return label ?? decision ?? null;
}

function judged({ positive, confidence }, threshold) {
  const called = positive == null ? "" : positive ? "Positive. " : "Negative. ";
  const sure = confidence == null ? "" : `Probability ${percent(confidence)}`;
  const from = threshold == null ? "" : `positive is called from ${percent(threshold)} on`;
  return called + [sure, from].filter(Boolean).join("; ");
}

function several(cases) {
  const found = cases.filter(({ positive }) => positive).length;
  const cells = (item, index) =>
    h(
      "tr",
      {},
      h("td", { class: "num" }, count(index + 1)),
      h("th", { scope: "row" }, wordOf(item) ?? "–"),
      h("td", { class: "num" }, percent(item.confidence)),
    );
  const more = cases.length - SHOWN_CASES;
  return [
    h("p", { class: "label" }, count(cases.length, "case")),
    found > 0 && h("p", { class: "reason" }, `${count(found)} of them positive.`),
    h("table", { class: "cases" }, h("tbody", {}, cases.slice(0, SHOWN_CASES).map(cells))),
    more > 0 && h("p", { class: "note" }, `and ${count(more)} more below, as they were sent`),
  ];
}

function shares(pixels) {
  const all = Object.values(pixels).reduce((sum, n) => sum + n, 0) || 1;
  return Object.fromEntries(Object.entries(pixels).map(([name, n]) => [name, n / all]));
}

function bars(values, chosen, title) {
  const sorted = Object.entries(values).sort((a, b) => b[1] - a[1]);
  const bar = ([name, share]) =>
    h(
      "li",
      { class: chosen.includes(name) ? "chosen" : "" },
      h("span", {}, name),
      h("b", {}, percent(share)),
      h("i", { "aria-hidden": true, style: { width: `${share * 100}%` } }),
    );
  const more = sorted.length - SHOWN_BARS;
  return h(
    "ul",
    { class: "tally probabilities", "aria-label": title },
    sorted.slice(0, SHOWN_BARS).map(bar),
    more > 0 && h("li", { class: "none" }, `and ${count(more)} less likely`),
  );
}
