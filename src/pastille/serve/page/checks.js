// The sections of what is watched: agreement, confidence, sensitivity, and a comparison of two models.

import { count, h, histogram, linear, logarithmic, percent, scale } from "./draw.js";
import { column, head, none, stateBadge } from "./pieces.js";
import { stateWords } from "./words.js";

/** Two variants on the same cases: the rate with its range, and the evidence on a logarithmic scale. */
export function disagreements({ disagreements: views, engine }) {
  const why = {
    auto: "Each request is answered by one variant",
    ab: "Each request is answered by one model",
  }[engine.mode];
  if (views.length === 0 && why)
    return none(
      `${why} in mode ${engine.mode}, so there is nothing to hold it against. Modes validate and shadow compare.`,
    );
  if (views.length === 0) return none("Nothing has been compared yet.");
  return views.map(disagreement);
}

function disagreement(view) {
  const { served, other, n, disagreed, lost, gained, state, words } = view;
  return h(
    "article",
    {},
    h("h3", {}, `${served} against ${other} `, stateBadge(state)),
    h("p", { class: "said" }, words),
    h(
      "div",
      { class: "pair" },
      h(
        "figure",
        {},
        h("figcaption", {}, `Different decisions: ${count(disagreed)} of ${count(n)}`),
        rateBar(view),
      ),
      h("figure", {}, h("figcaption", {}, "Evidence that they are too many"), evidenceBar(view)),
    ),
    h(
      "p",
      { class: "note" },
      `${count(lost)} positive turned negative, ${count(gained)} negative turned positive.`,
    ),
  );
}

function rateBar({ n, disagreed, low, high, limit, state }) {
  const share = n > 0 ? disagreed / n : 0;
  const end = Math.min(1, Math.max(limit * 2, (high ?? 0) * 1.1, share * 1.1));
  const marks = [{ kind: "limit", at: limit }];
  if (low != null && high != null) marks.unshift({ kind: "band", from: low, to: high });
  if (n > 0) marks.push({ kind: "dot", at: share });
  const range = low == null ? "" : `; the true rate lies between ${percent(low)} and ${percent(high)}`;
  const says = `${percent(share)} differ${range}; the limit is ${percent(limit)}.`;
  const ticks = [
    [0, "0"],
    [limit, `limit ${percent(limit)}`, "limit-words"],
    [end, percent(end)],
  ];
  return [
    scale({ place: linear(0, end), marks, ticks, says, tone: stateWords(state).tone }),
    h("p", { class: "note" }, says),
  ];
}

function evidenceBar({ evidence, alarm_at, state }) {
  const marks = [
    { kind: "bar", from: 1, to: Math.max(evidence, 1) },
    { kind: "limit", at: alarm_at },
  ];
  const ticks = [
    [1, "1 or less"],
    [10, "10"],
    [alarm_at, `alarm at ${count(alarm_at)}`, "limit-words"],
  ];
  const amount =
    evidence >= 100
      ? count(Math.round(evidence))
      : evidence >= 0.01
        ? evidence.toPrecision(2)
        : "less than 0.01";
  const says = `Evidence ${amount}; it began at 1, and the alarm is at ${count(alarm_at)}.`;
  return [
    scale({ place: logarithmic(1, alarm_at * 3), marks, ticks, says, tone: stateWords(state).tone }),
    h("p", { class: "note" }, says),
  ];
}

/** Confidences now against those of validation. */
export function drift({ drift: views }) {
  const known = views.filter(({ reference }) => reference.length > 0);
  if (known.length === 0)
    return none(
      views[0]?.words ?? "Nothing to hold it against: no answer yet, or no reference in this bundle.",
    );
  return h("div", { class: "pair" }, known.map(driftOf));
}

function driftOf(view) {
  const { variant, n, minimum, edges, reference, now, state, words } = view;
  const few = now.length === 0;
  const amount = few ? `${count(n)} of ${count(minimum)} answers` : `last ${count(n)} answers`;
  const says = few
    ? `Only the histogram of validation is there. ${words}`
    : `Histogram of validation and of the last ${n} answers. ${words}`;
  return h(
    "article",
    {},
    h("h3", {}, `${variant} `, stateBadge(state), h("small", { class: "amount" }, amount)),
    h("p", { class: "said" }, words),
    h(
      "figure",
      {},
      h(
        "div",
        { class: "key-line" },
        h("span", { class: "key before" }, "validation"),
        !few && h("span", { class: "key now" }, "now"),
      ),
      histogram({ edges, before: reference, now, says }),
      h("p", { class: "axis-title" }, "confidence, %"),
    ),
    h(
      "div",
      { class: "distances" },
      distance("PSI", view.psi, view.psi_limit),
      distance("KS", view.ks, view.ks_limit),
    ),
  );
}

function distance(name, value, limit) {
  if (value == null || limit == null) return null;
  const tone = value > limit ? "unsure" : "good"; // one look is no alarm: blocks decide
  const says = `${name} ${value.toFixed(3)}, the limit is ${limit.toFixed(3)}`;
  const marks = [
    { kind: "bar", from: 0, to: value },
    { kind: "limit", at: limit },
  ];
  return h(
    "div",
    {},
    scale({ place: linear(0, Math.max(limit * 1.6, value * 1.05)), marks, ticks: [], says, tone }),
    h("p", { class: "note" }, says),
  );
}

/** Labels that arrived later: the share of positives that were found, by group. */
export function sensitivity({ sensitivity: views }) {
  if (views.length === 0)
    return none(
      "No outcomes are known yet. Those that arrive later can be sent to ",
      h("code", {}, "POST /feedback"),
      "; then this shows, for each group, how many of the positive cases were found.",
    );
  const low = Math.min(...views.map((view) => view.low ?? 1), 0.9);
  const floor = Math.max(0, Math.floor(low * 10) / 10);
  const heading = head(
    column("group"),
    column("found", { kind: "num" }),
    column("share", { kind: "num" }),
    column("in validation", { kind: "num" }),
    column(`${percent(floor)} to 100 %`, { kind: "plot-cell" }),
    column("", { kind: "verdict-cell" }),
  );
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "groups" },
      heading,
      h(
        "tbody",
        {},
        views.map((view) => group(view, floor)),
      ),
    ),
  );
}

function group({ group: name, positives, found, low, high, expected, state, words }, floor) {
  const share = positives > 0 ? found / positives : null;
  const marks = [];
  if (low != null && high != null) marks.push({ kind: "band", from: low, to: high });
  if (expected != null) marks.push({ kind: "stroke expected", at: expected });
  if (share != null) marks.push({ kind: "dot", at: share });
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name.replace("=", ": ")),
    h("td", { class: "num", "data-label": "found" }, `${count(found)} of ${count(positives)}`),
    h("td", { class: "num", "data-label": "share" }, percent(share)),
    h("td", { class: "num", "data-label": "in validation" }, percent(expected)),
    h(
      "td",
      { class: "plot-cell" },
      scale({ place: linear(floor, 1), marks, ticks: [], says: words, tone: stateWords(state).tone }),
    ),
    h("td", { class: "verdict-cell" }, stateBadge(state), h("small", {}, words)),
  );
}

/** Two models side by side. */
export function arms({ comparison: view }) {
  if (view === null) return null;
  const arm = (name, letter, requests, labelled, correct) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name, h("small", {}, letter)),
      h("td", { class: "num", "data-label": "requests" }, count(requests)),
      h("td", { class: "num", "data-label": "outcome known" }, count(labelled)),
      h(
        "td",
        { class: "num", "data-label": "right" },
        labelled ? `${count(correct)} (${percent(correct / labelled)})` : "–",
      ),
    );
  const heading = head(
    column("model"),
    column("requests", { kind: "num" }),
    column("outcome known", { kind: "num" }),
    column("right", { kind: "num" }),
  );
  return h(
    "article",
    {},
    h("h3", {}, `${view.a} against ${view.b} `, stateBadge(view.state)),
    h("p", { class: "said" }, view.words),
    h(
      "div",
      { class: "pair" },
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "counts" },
          heading,
          h(
            "tbody",
            {},
            arm(view.a, "arm a", view.requests_a, view.labelled_a, view.correct_a),
            arm(view.b, "arm b", view.requests_b, view.labelled_b, view.correct_b),
          ),
        ),
      ),
      h("figure", {}, h("figcaption", {}, "Evidence that they differ"), evidenceBar(view)),
    ),
  );
}
