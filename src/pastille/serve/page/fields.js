// A row of values as a form: a field for each column, so that nobody has to write JSON.

import { h } from "./draw.js";

/**
 * @param {{columns: object[], example: object}} what as the server describes it
 * @param {(row: object) => void} send
 */
export function fields({ columns, example }, send) {
  const inputs = columns.map((column) => [column, fieldOf(column, example?.[column.name])]);
  const submit = (event) => {
    event.preventDefault();
    send(Object.fromEntries(inputs.map(([column, input]) => [column.name, valueOf(column, input.value)])));
  };
  const labelled = ([{ name, optional }, input]) =>
    h("label", {}, h("span", {}, name, optional && h("small", {}, " or empty")), input);
  return h(
    "form",
    { onsubmit: submit },
    h("div", { class: "columns-form" }, inputs.map(labelled)),
    h("div", { class: "line" }, h("button", { type: "submit" }, "Ask the model")),
  );
}

function fieldOf({ type, values = [], codes = [], optional }, typical) {
  const known = type === "number" ? codes : values;
  const chosen = typical == null ? "" : String(typical);
  if (type === "category" && known.length > 0) {
    const names = optional ? ["", ...known] : known;
    return h(
      "select",
      {},
      names.map((name) => h("option", { value: name, selected: name === chosen }, name || "–")),
    );
  }
  const number = type === "number" && known.length === 0;
  return h("input", {
    type: number ? "number" : "text",
    step: number ? "any" : null,
    value: chosen,
    required: !optional,
    autocomplete: "off",
  });
}

// What is left empty is missing; the server says so where nothing may be.
function valueOf({ type, codes = [] }, text) {
  if (text === "") return null;
  return type === "number" && !codes.includes(text) && Number.isFinite(Number(text)) ? Number(text) : text;
}
