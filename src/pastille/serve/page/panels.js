// The other sections, one function each: from its part of the snapshot to elements.

import { area, badge, bytes, clock, count, h, lasting, linear, ms, percent, rate, scale } from "./draw.js";
import { column, head, none, stateBadge } from "./pieces.js";
import { fallbackWords, refusalWords, role, speaker } from "./words.js";

const figure = (value, words, detail) =>
  h("li", {}, h("strong", {}, value), h("span", {}, words), detail && h("small", {}, detail));

/** Under the name of the model. */
export function meta({ engine, uptime_s }) {
  const threads = `${count(engine.threads, "thread")} for each answer, ${count(engine.places)} at once`;
  const parts = [
    `version ${engine.version}`,
    `mode ${engine.mode}`,
    `running for ${lasting(uptime_s)}`,
    threads,
  ];
  if (!engine.batching.startsWith("off")) parts.push(`batching ${engine.batching.split(":")[0]}`);
  return parts.join(" · ");
}

/** In the banner: the handful of figures. */
export function glance(snapshot) {
  const { engine, variants: views, per_second, answered, requests, refusals, in_flight } = snapshot;
  const latency = (views.find(({ name }) => name === speaker(engine)) ?? views[0])?.latency;
  const turned = refusals.reduce((sum, one) => sum + one.count, 0);
  return h(
    "ul",
    { class: "gains" },
    figure(rate(per_second), "answers per second", `${count(in_flight)} in work now`),
    figure(
      ms(latency?.p50_ms),
      "half are faster",
      latency?.n ? `of the last ${count(latency.n)}` : "no answer yet",
    ),
    figure(ms(latency?.p95_ms), "95 of 100 are faster", latency?.p95_ms == null ? "needs more answers" : ""),
    figure(ms(latency?.p99_ms), "99 of 100 are faster", latency?.p99_ms == null ? "needs more answers" : ""),
    figure(count(answered), "answered", `of ${count(requests, "request")}`),
    figure(count(turned), "refused", turned ? "reasons below" : ""),
  );
}

/** How each watch stands, with a link to its section. */
export const stands = (seen) =>
  seen.map(({ what, where, state }) => h("li", {}, h("a", { href: where }, what), " ", stateBadge(state)));

/** Answers per second over the last minute. */
export function throughput({ history, per_second }) {
  const most = Math.max(...history, 0);
  const top = Math.max(most, 1) * 1.08;
  const says = `Answers per second over the last minute: ${rate(per_second)} now, ${rate(most)} at most.`;
  return h(
    "figure",
    { class: "throughput" },
    h(
      "figcaption",
      {},
      "Answers per second ",
      h("small", {}, `last minute · ${rate(per_second)} now · ${rate(most)} at most`),
    ),
    h("div", { class: "frame" }, area(history, top, says)),
    h("div", { class: "ends", "aria-hidden": true }, h("span", {}, "a minute ago"), h("span", {}, "now")),
  );
}

/** Percentiles of each variant on one scale. */
export function variants({ variants: views, engine }) {
  const slowest = Math.max(
    ...views.flatMap(({ latency: l }) => [l.p50_ms, l.p95_ms, l.p99_ms].map((v) => v ?? 0)),
  );
  const heading = head(
    column("variant"),
    column("answers", { kind: "num" }),
    column("half", { kind: "num", detail: "p50" }),
    column("95 of 100", { kind: "num", detail: "p95" }),
    column("99 of 100", { kind: "num", detail: "p99" }),
    column("model alone", { kind: "num wide", detail: "p50" }),
    column(slowest > 0 ? `were faster than, 0 to ${ms(slowest)}` : "", { kind: "plot-cell" }),
  );
  const rows = views.map((view) => variantRow(view, engine, slowest));
  return h("div", { class: "scroll" }, h("table", { class: "latency" }, heading, h("tbody", {}, rows)));
}

function variantRow(view, engine, slowest) {
  const { p50_ms, p95_ms, p99_ms } = view.latency;
  const { tone, words, detail } = role(view, engine);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, view.name, " ", badge(tone, words), detail && h("small", {}, detail)),
    h("td", { class: "num", "data-label": "answers" }, count(view.requests)),
    h("td", { class: "num", "data-label": "half" }, ms(p50_ms)),
    h("td", { class: "num", "data-label": "95 of 100" }, ms(p95_ms)),
    h("td", { class: "num", "data-label": "99 of 100" }, ms(p99_ms)),
    h("td", { class: "num wide" }, ms(view.compute.p50_ms)),
    h("td", { class: "plot-cell" }, p50_ms != null && percentiles(view, slowest)),
  );
}

function percentiles({ name, latency: { p50_ms, p95_ms, p99_ms } }, slowest) {
  const far = p99_ms ?? p95_ms ?? p50_ms;
  const marks = [
    { kind: "band", from: p50_ms, to: far },
    { kind: "dot", at: p50_ms },
  ];
  if (p95_ms != null) marks.push({ kind: "stroke", at: p95_ms });
  if (p99_ms != null) marks.push({ kind: "ring", at: p99_ms });
  return scale({
    place: linear(0, slowest * 1.04),
    marks,
    ticks: [],
    says: `${name}: half in ${ms(p50_ms)}, at most ${ms(far)}`,
  });
}

/** Fallbacks and refusals by reason, and what the cache saved. */
export function counted({ fallbacks, refusals, cache_hits, cache_misses, cache_bytes, shadow_dropped }) {
  const asked = cache_hits + cache_misses;
  return [
    h(
      "figure",
      {},
      h("figcaption", {}, "Answered by another variant"),
      tally(
        fallbacks.map(({ what, why, count: n }) => [`${what}: ${fallbackWords(why)}`, n]),
        "Never: the preferred variant answered every time.",
      ),
    ),
    h(
      "figure",
      {},
      h("figcaption", {}, "Refused: requests that …"),
      tally(
        refusals.map(({ what, why, count: n }) => [refusalWords(why), n, what]),
        "None.",
      ),
    ),
    h(
      "figure",
      {},
      h("figcaption", {}, "Response cache"),
      asked === 0
        ? none("Not in use.")
        : h(
            "p",
            {},
            `${count(cache_hits)} of ${count(asked)} answers (${percent(cache_hits / asked)}) needed no model; ${bytes(cache_bytes)} are kept.`,
          ),
      shadow_dropped > 0 &&
        h(
          "p",
          { class: "note" },
          `${count(shadow_dropped, "comparison")} in the shadow left out, because too many were waiting.`,
        ),
    ),
  ];
}

function tally(rows, otherwise) {
  if (rows.length === 0) return none(otherwise);
  const most = Math.max(...rows.map(([, n]) => n));
  const item = ([words, n, small]) =>
    h(
      "li",
      {},
      h("span", {}, words, small && h("small", {}, ` ${small}`)),
      h("b", {}, count(n)),
      h("i", { "aria-hidden": true, style: { width: `${(n / most) * 100}%` } }),
    );
  return h("ul", { class: "tally" }, [...rows].sort((a, b) => b[1] - a[1]).map(item));
}

/** So many recent requests are shown at first. */
export const AT_FIRST = 10;

/** The last requests, the newest first. */
export function requests(recent, all) {
  if (recent.length === 0) return none("No request has come yet. ", h("a", { href: "#try" }, "Try one."));
  const heading = head(
    column("at"),
    column("decided"),
    column("confidence", { kind: "num" }),
    column("took", { kind: "num" }),
    column("variant"),
    column("through", { kind: "wide" }),
    column("request", { kind: "wide" }),
    column("remarks"),
  );
  const rows = recent.slice(0, all ? undefined : AT_FIRST).map(request);
  return h("div", { class: "scroll" }, h("table", { class: "recent" }, heading, h("tbody", {}, rows)));
}

function request({
  at,
  id,
  route,
  variant,
  rows,
  decision,
  confidence,
  total_ms,
  fallback,
  cached,
  warnings,
}) {
  const remarks = [
    fallback && `instead of the preferred variant: ${fallbackWords(fallback)}`,
    cached && "from the cache",
    warnings > 0 && count(warnings, "warning"),
    rows > 1 && `first of ${rows} cases`,
  ].filter(Boolean);
  return h(
    "tr",
    {},
    h("td", {}, h("time", { datetime: new Date(at * 1000).toISOString() }, clock(at, { seconds: true }))),
    h("td", { class: "decision" }, decision || "–"),
    h("td", { class: "num" }, percent(confidence)),
    h("td", { class: "num" }, ms(total_ms)),
    h("td", { class: "who" }, variant),
    h("td", { class: "wide" }, route),
    h("td", { class: "wide" }, h("code", {}, id)),
    h("td", { class: fallback || warnings ? "remarks unsure" : "remarks" }, remarks.join(" · ")),
  );
}
