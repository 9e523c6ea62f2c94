// Ask the server every two seconds and show what it says; less often when it is gone, and never unseen.

import { clock, favicon, h, icon, lasting } from "./draw.js";
import * as checks from "./checks.js";
import * as panels from "./panels.js";
import { ask, hasToken, keepToken, Problem } from "./server.js";
import { openTrial } from "./try.js";
import { standing, watches } from "./words.js";

const PERIOD_MS = 2000;
const LONGEST_MS = 30_000;
const the = (id) => document.getElementById(id);

let model = null; // null: the server's first
let failures = 0;
let seen = null; // when the server last answered, in milliseconds
let shown = null; // its last snapshot
let next = null; // timer of the next question
let asking = null; // what ends the question that is on its way
let trying = false; // whether the panel to try it on stands
let all = false; // whether all recent requests are shown
const drawn = new Map(); // what each place shows, so that nothing is touched that did not change

/** Put elements in a place where what they are made of has changed. */
function put(id, made, from) {
  const key = JSON.stringify(from);
  if (drawn.get(id) === key) return;
  the(id).replaceChildren(...[made()].flat().filter(Boolean));
  drawn.set(id, key);
}

/** Set words where they are others: what is live would be read out again. */
function say(id, words) {
  if (the(id).textContent !== words) the(id).textContent = words;
}

function banner({ tone, word, reason, reasons = [] }) {
  const looks = { good: "approved", bad: "rejected", unsure: "inconclusive", wait: "unfinished" };
  the("banner").className = `banner ${looks[tone]}`;
  put("icon", () => icon(tone), tone);
  say("word", word);
  say("reason", reason);
  the("reasons").hidden = reasons.length === 0;
  put("reasons", () => reasons.map((words) => h("li", {}, words)), reasons);
  the("favicon").href = favicon(tone);
  document.title = `${word} · ${the("model").textContent.trim() || "Pastille"}`;
}

function show(snapshot) {
  const { engine, recent } = snapshot;
  say("model", engine.model);
  say("meta", panels.meta(snapshot));
  put("models", () => links(snapshot.models ?? [], engine.model), [snapshot.models, engine.model]);
  the("models").hidden = (snapshot.models ?? []).length < 2;
  banner(standing(snapshot));
  put("glance", () => panels.glance(snapshot), { ...snapshot, at: 0, uptime_s: 0 });
  const seen = watches(snapshot);
  put("watches", () => panels.stands(seen), seen);
  the("watches").hidden = seen.length === 0;
  put("throughput", () => panels.throughput(snapshot), [snapshot.history, snapshot.per_second]);
  put("variants", () => panels.variants(snapshot), [snapshot.variants, engine]);
  put("disagreements", () => checks.disagreements(snapshot), [snapshot.disagreements, engine.mode]);
  put("drift", () => checks.drift(snapshot), snapshot.drift);
  put("sensitivity", () => checks.sensitivity(snapshot), snapshot.sensitivity);
  the("comparison").hidden = snapshot.comparison === null;
  put("arms", () => checks.arms(snapshot), snapshot.comparison);
  put("counted", () => panels.counted(snapshot), [
    snapshot.fallbacks,
    snapshot.refusals,
    snapshot.cache_hits,
    snapshot.cache_misses,
    snapshot.shadow_dropped,
  ]);
  list(recent);
}

const links = (names, current) =>
  names.map((name) =>
    h(
      "a",
      { href: `#model=${encodeURIComponent(name)}`, "aria-current": name === current ? "page" : null },
      name,
    ),
  );

function list(recent) {
  put("requests", () => panels.requests(recent, all), [recent, all]);
  the("more").hidden = recent.length <= panels.AT_FIRST;
  say("more", all ? "Show fewer" : `Show all ${recent.length}`);
}

the("more").addEventListener("click", () => {
  all = !all;
  list(shown.recent);
});

// Asking ------------------------------------------------------------------------------------------------

const suffix = () => (model === null ? "" : `?model=${encodeURIComponent(model)}`);

async function look() {
  clearTimeout(next);
  asking?.abort();
  if (document.hidden) return;
  const mine = (asking = new AbortController());
  try {
    const snapshot = await ask(`monitor.json${suffix()}`, { signal: mine.signal });
    show(snapshot);
    shown = snapshot;
    failures = 0;
    seen = Date.now();
    for (const id of ["token", "stale"]) the(id).hidden = true;
    the("glance").hidden = false;
    document.querySelector("main").classList.remove("blank");
    if (!trying) tryIt();
  } catch (problem) {
    if (mine.signal.aborted) return;
    failures += 1;
    if (problem instanceof Problem) lost(problem);
    else broken(problem);
    if (problem.status === 401 || problem.status === 403) return; // until there is another token
  }
  next = setTimeout(look, Math.min(PERIOD_MS * 2 ** failures, LONGEST_MS));
}

function lost({ status, message }) {
  if (status === 401 || status === 403) return askToken(status, message);
  const word = status === 0 ? "No answer from the server" : "The server cannot say how it is";
  banner({
    tone: "bad",
    word,
    reason: `${status === 0 ? "Asked for its figures" : "It said"}: ${message}. This page keeps asking.`,
  });
  outdate();
}

async function tryIt() {
  const asked = model;
  trying = true;
  const stands = await openTrial(the("try-panel"), asked);
  if (asked === model) trying = stands;
}

// Old figures must not pass for new ones because this page has a fault.
function broken(fault) {
  console.error(fault);
  banner({
    tone: "bad",
    word: "This page cannot show what the server says",
    reason: `Load it again. If that does not help, it is a fault of the page: ${fault.message}`,
  });
  outdate();
}

function outdate() {
  the("stale").hidden = seen === null;
  for (const id of ["glance", "watches"]) the(id).hidden = true;
  age();
}

// Not in the live sentence above, which would be read out every second.
function age() {
  if (seen === null || failures === 0) return;
  const ago = lasting((Date.now() - seen) / 1000);
  say("stale", `Last seen ${ago} ago. The figures below are from ${clock(seen / 1000, { seconds: true })}.`);
}

function askToken(status, message) {
  const word = status === 403 ? "This token may not see the figures" : "A token, please";
  banner({
    tone: "wait",
    word,
    reason:
      status === 403 ? message : "The figures are shown to those who have a token with the scope monitor.",
  });
  say("token-note", tokenNote(status, message));
  the("token").hidden = false;
  outdate();
}

function tokenNote(status, message) {
  if (status === 403) return "It may still do to try the model, below.";
  return hasToken()
    ? `The server does not accept this token: ${message}`
    : "It is kept until this tab is closed, and sent to this server alone.";
}

the("token").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(the("token-field").value.trim());
  the("token-field").value = "";
  look();
  if (!trying) tryIt();
});

function choose() {
  const name = new URLSearchParams(location.hash.slice(1)).get("model");
  if (name === null || name === model) return;
  model = name;
  look();
  tryIt();
}

addEventListener("hashchange", choose);
document.addEventListener("visibilitychange", look);
setInterval(age, 1000);
choose();
if (model === null) {
  look();
  tryIt();
}
