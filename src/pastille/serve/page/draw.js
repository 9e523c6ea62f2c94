// Elements, numbers in words, and the few drawings: all placed in per cent, so that text is never scaled.
// No style is written as an attribute, for the content policy forbids it.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `attributes.style` is an object, `attributes.on…` a listener; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export const s = (tag, attributes = {}, ...children) =>
  furnish(document.createElementNS(SVG, tag), attributes, children);

function furnish(element, { style = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children.flat(2).filter((child) => child != null && child !== false));
  return element;
}

// Numbers -------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en");

/** "1,204", or "1,204 requests". */
export const count = (n, noun) =>
  noun ? `${whole.format(n)} ${noun}${n === 1 ? "" : "s"}` : whole.format(n);

/** Milliseconds with three figures at most: "0.42 ms", "8.3 ms", "412 ms", "1.4 s". */
export function ms(value) {
  if (value == null) return "–";
  if (value >= 999.5) return `${(value / 1000).toFixed(value < 9995 ? 1 : 0)} s`;
  return `${value.toFixed(value < 0.995 ? 2 : value < 9.95 ? 1 : 0)} ms`;
}

/** A share in per cent, with more figures near 0 and 1, where they matter. */
export function percent(share) {
  if (share == null) return "–";
  const edge = Math.min(share, 1 - share);
  const digits = edge >= 0.095 || edge <= 0 ? 0 : edge >= 0.00095 ? 1 : 2;
  return `${Number((share * 100).toFixed(digits))} %`;
}

/** "4.2", "130". */
export const rate = (value) => (value >= 9.95 ? count(Math.round(value)) : String(Number(value.toFixed(1))));

/** "45 s", "12 min", "3 h 5 min", "2 d 4 h". */
export function lasting(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.max(0, Math.floor(seconds))} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 24 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Local time of day; with the day where it was not today. */
export function clock(at, { seconds = false } = {}) {
  const when = new Date(at * 1000);
  const time = { hour: "2-digit", minute: "2-digit", ...(seconds && { second: "2-digit" }) };
  const day = when.toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
  return when.toLocaleString("en-GB", { ...day, ...time });
}

export function bytes(n) {
  const units = ["B", "KB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, n)) / 3));
  return `${(n / 1000 ** power).toFixed(power === 0 || n / 1000 ** power >= 9.95 ? 0 : 1)} ${units[power]}`;
}

// Signs: each tone has a shape of its own, so that colour is never all that tells ----------------------------

const SMALL = {
  good: "M2 6.5l3 3 5-7",
  bad: "M2.5 2.5l7 7M9.5 2.5l-7 7",
  unsure: "M6 1.2L11.2 10.6H.8zM6 4.6v2.8M6 9v.1",
  wait: "M2 6h.1M6 6h.1M10 6h.1",
};
const LARGE = {
  good: ["M24 2a22 22 0 100 44 22 22 0 000-44z", "M14 25l7 7 13-15"],
  bad: ["M15 2h18l13 13v18L33 46H15L2 33V15z", "M16 16l16 16M32 16L16 32"],
  unsure: ["M24 4.5L46 43H2z", "M24 19v11M24 36.5v.1"],
  wait: ["M24 2a22 22 0 100 44 22 22 0 000-44z", "M24 13v12l8 5"],
};

export const sign = (tone) =>
  s(
    "svg",
    { viewBox: "0 0 12 12", width: 11, height: 11, "aria-hidden": true },
    s("path", { d: SMALL[tone] }),
  );

export const badge = (tone, words) => h("span", { class: `badge ${tone}` }, sign(tone), words);

export const icon = (tone) =>
  s(
    "svg",
    { class: "icon", viewBox: "0 0 48 48", width: 48, height: 48, "aria-hidden": true },
    s("path", { class: "plate", d: LARGE[tone][0] }),
    s("path", { d: LARGE[tone][1] }),
  );

const PLATES = { good: "#1a6840", bad: "#a8322a", unsure: "#855200", wait: "#4a5a6a" };

/** The address of a small picture for the tab. */
export function favicon(tone) {
  const [plate, stroke] = LARGE[tone];
  const pen = 'fill="none" stroke="#fff" stroke-width="5" stroke-linecap="round" stroke-linejoin="round"';
  const body = `<path d="${plate}" fill="${PLATES[tone]}"/><path d="${stroke}" ${pen}/>`;
  return `data:image/svg+xml,${encodeURIComponent(`<svg xmlns="${SVG}" viewBox="0 0 48 48">${body}</svg>`)}`;
}

// Drawings ------------------------------------------------------------------------------------------------

const share = (value) => `${Math.min(100, Math.max(0, value * 100)).toFixed(2)}%`;

/**
 * A horizontal scale with what lies on it.
 * @param {(value: number) => number} place from a value to [0, 1]
 * @param {{kind: string, at?: number, from?: number, to?: number}[]} marks "bar" and "band" have from and to
 * @param {[number, string, string?][]} ticks value, words, and a class such as "limit"
 * @param {string} says the same in words, for those who cannot see it
 */
export function scale({ place, marks, ticks, says, tone = "" }) {
  const drawn = marks.map(({ kind, at, from, to }) =>
    at === undefined
      ? h("i", { class: kind, style: { left: share(place(from)), width: share(place(to) - place(from)) } })
      : h("i", { class: kind, style: { left: share(place(at)) } }),
  );
  return h(
    "div",
    { class: `scale ${tone}`, role: "img", "aria-label": says },
    h("div", { class: "track" }, drawn),
    ticks.length > 0 && h("div", { class: "ticks" }, ticks.map(tickAt(place))),
  );
}

// A label near an end is set flush with it, so that it never sticks out of the page.
const tickAt =
  (place) =>
  ([value, words, kind = ""]) => {
    const x = Math.min(1, Math.max(0, place(value)));
    const side = x < 0.1 ? "start" : x > 0.9 ? "end" : "middle";
    return h("span", { class: `${side} ${kind}`, style: { left: share(x) } }, words);
  };

export const linear = (low, high) => (value) => (value - low) / (high - low || 1);
export const logarithmic = (low, high) => (value) =>
  linear(Math.log(low), Math.log(high))(Math.log(Math.max(value, low)));

/** An area over time, oldest first. */
export function area(values, top, says) {
  const step = (value, index) =>
    `${index === 0 ? "M" : "L"}${index} ${(100 - (value / top) * 100).toFixed(2)}`;
  const line = values.map(step).join("");
  const last = Math.max(1, values.length - 1);
  return s(
    "svg",
    {
      class: "area",
      viewBox: `0 0 ${last} 100`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": says,
    },
    s("path", { class: "under", d: `${line}L${last} 100L0 100Z` }),
    s("path", { class: "over", d: line }),
  );
}

/** Two histograms over one another: `before` in gray, `now` in colour. */
export function histogram({ edges, before, now, says }) {
  const top = Math.max(...before.map((share) => share * 1.25), ...now, 0.01);
  const column = (_, index) =>
    h(
      "div",
      { class: "column" },
      h("i", { class: "before", style: { height: share(before[index] / top) } }),
      now.length > 0 && h("i", { class: "now", style: { height: share(now[index] / top) } }),
    );
  const label = (edge, index) => h("span", { style: { left: share(index / before.length) } }, brief(edge));
  return h(
    "div",
    { class: "histogram", role: "img", "aria-label": says },
    h("div", { class: "columns" }, before.map(column)),
    h("div", { class: "edges" }, edges.map(label)),
  );
}

// Edges crowd at 100 %, where one figure after the point no longer tells them apart.
const brief = (edge) =>
  (edge * 100).toFixed(edge <= 0 || edge >= 1 || edge < 0.985 ? 0 : edge < 0.9985 ? 1 : 2);
