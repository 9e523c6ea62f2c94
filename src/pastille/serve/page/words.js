// What the figures mean, in sentences: pure functions from the snapshot to words and a tone.
// A tone is "good", "unsure", "bad" or "wait"; shape and colour follow from it.

import { clock, count } from "./draw.js";

const WHY = {
  load: "its file could not be loaded",
  golden: "it answered its test cases otherwise than in validation",
  exception: "it failed",
  non_finite: "its answer held no usable number",
  shape: "its answer had the wrong shape",
  timeout: "it took too long",
  disagreement: "the variants disagreed, and fp32’s answer counts",
  alarm: "the disagreement alarm took it out of service",
  breaker: "it had failed repeatedly and was being rested",
  rejected: "it was not approved",
};
const CAUSE = {
  malformed: "could not be read as a request",
  not_finite: "held a NaN or an infinity",
  out_of_range: "lay far outside what validation saw",
  unauthorized: "came without a valid token",
  forbidden: "came with a token that does not permit it",
  not_found: "asked for something that is not here",
  method: "used the wrong method",
  slow: "arrived too slowly",
  too_large: "was too large",
  media_type: "was of a kind that is not taken here",
  rate: "came too often from one client",
  fault: "failed on every variant",
  overload: "came when all places were taken",
  not_ready: "came while the server was not ready",
  deadline: "got no answer in time",
};
const STATES = {
  ok: { tone: "good", words: "as expected" },
  alarm: { tone: "bad", words: "alarm" },
  not_enough_data: { tone: "wait", words: "not enough data" },
};

export const fallbackWords = (why) => WHY[why] ?? why;
export const refusalWords = (cause) => CAUSE[cause] ?? cause;
export const stateWords = (state) => STATES[state] ?? { tone: "wait", words: state };

/** The one sentence at the top: is all well? */
export function standing({ engine, ...snapshot }) {
  const reasons = alarms(snapshot);
  if (!engine.ready) return { tone: "bad", word: "Not answering", reason: engine.reason, reasons };
  if (engine.degraded) return { tone: "unsure", ...fallen(engine), reasons };
  if (reasons.length > 0)
    return { tone: "unsure", word: `${answering(engine)}, but please look`, reason: engine.reason, reasons };
  const reason =
    snapshot.answered > 0 ? engine.reason : `${engine.reason.replace(/\.$/, "")}. No request has come yet.`;
  return { tone: "good", word: `${answering(engine)}, as validated`, reason, reasons };
}

/** The variant that answers now; not the preferred one while an alarm or its breaker keeps that out. */
export const speaker = (engine) => engine.answering ?? engine.preferred;

const answering = (engine) => `Answering with ${speaker(engine)}`;

function fallen(engine) {
  const since = engine.degraded_since ? ` since ${clock(engine.degraded_since)}` : "";
  const out = engine.variants.filter((one) => !one.usable || one.breaker !== "closed");
  const reason = out
    .map((one) => [one.name, one.usable ? breakerWords(one.breaker) : one.reason])
    .map(([name, why]) => (why.startsWith(name) ? why : `${name}: ${why}`))
    .join(" · ");
  return { word: `Fallen back to ${speaker(engine)}${since}`, reason: reason || engine.reason };
}

/** What the circuit breaker of a variant does. */
export const breakerWords = (state) =>
  ({ closed: "in use", open: "rested after repeated failures", half_open: "being tried again after a rest" })[
    state
  ] ?? state;

function alarms({ disagreements, drift, sensitivity, comparison, refusals }) {
  const views = [...disagreements, ...drift, ...sensitivity, ...(comparison ? [comparison] : [])];
  const failed = refusals
    .filter(({ why }) => why === "fault")
    .map(({ count: n }) => `${count(n, "request")} failed on every variant.`);
  return [...views.filter(({ state }) => state === "alarm").map(({ words }) => words), ...failed];
}

/** Every watch as `{what, where, state}`: an alarm anywhere counts more than quiet elsewhere. */
export function watches({ disagreements, drift, sensitivity, comparison }) {
  const worst = (views) =>
    ["alarm", "ok", "not_enough_data"].find((state) => views.some((view) => view.state === state));
  return [
    { what: "Agreement", where: "#agreement", state: worst(disagreements) },
    {
      what: "Confidence",
      where: "#confidence",
      state: worst(drift.filter(({ reference }) => reference.length > 0)),
    },
    { what: "Sensitivity", where: "#outcomes", state: worst(sensitivity) },
    { what: "Comparison", where: "#comparison", state: comparison?.state },
  ].filter(({ state }) => state);
}

/** How one variant stands. */
export function role(view, engine) {
  if (!view.usable) return { tone: "bad", words: "not used", detail: view.reason };
  if (view.breaker !== "closed")
    return { tone: "unsure", words: "resting", detail: breakerWords(view.breaker) };
  if (view.name === speaker(engine)) return { tone: "good", words: "answering", detail: "" };
  return { tone: "wait", words: engine.ready ? "standing by" : "waiting", detail: "" };
}

const STATUS = {
  0: () => "No answer from the server. Is it running?",
  400: () => "The server cannot use this input.",
  401: () => "The server asks for a token: give it at the top of the page.",
  403: () => "This token does not permit it.",
  404: () => "There is no such model here.",
  408: () => "It took too long to send.",
  413: () => "This is larger than the server takes.",
  415: () => "The server does not take this kind of file.",
  422: () => "The server cannot use this input.",
  429: (wait) => `Too many requests just now. Try again ${wait}.`,
  500: () => "The model failed on this input. No answer is better than a wrong one.",
  503: (wait) => `The server cannot answer just now. Try again ${wait}.`,
};

/** A refusal in plain words: what it means, and what the server said. */
export function refused({ status, message, waitSeconds }) {
  const wait = waitSeconds ? `in ${waitSeconds} s` : "in a moment";
  const words = STATUS[status] ?? (() => `The server refused (${status}).`);
  return { words: words(wait), said: status === 0 ? "" : message };
}
