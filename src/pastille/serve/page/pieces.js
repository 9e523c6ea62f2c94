// What several sections are made of.

import { badge, h } from "./draw.js";
import { stateWords } from "./words.js";

export const none = (...words) => h("p", { class: "none" }, ...words);
export const head = (...cells) => h("thead", {}, h("tr", {}, cells));
export const column = (words, { detail, kind } = {}) =>
  h("th", { scope: "col", class: kind }, words, detail && h("small", {}, detail));
export const stateBadge = (state) => badge(stateWords(state).tone, stateWords(state).words);
