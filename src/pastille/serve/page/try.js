// The panel in which anybody may ask the model: choose, drop or paste an input, see the answer.

import { denied, told } from "./answer.js";
import { bytes, h, s } from "./draw.js";
import { fields } from "./fields.js";
import { ask, Problem } from "./server.js";
import { refused } from "./words.js";

const NAMES = {
  image: "An image",
  signal: "A signal",
  form: "Values",
  row: "A row as JSON",
  text: "Text",
  tensors: "Prepared numbers",
};
const PREVIEWED = 4000; // samples of a signal that are drawn

/**
 * Build the panel for what the server says it takes.
 * @param {HTMLElement} place
 * @param {string | null} model null: the server's first
 * @returns {Promise<boolean>} whether it could be built
 */
export async function openTrial(place, model) {
  const address = model === null ? "predict" : `predict/${encodeURIComponent(model)}`;
  place.dataset.address = address; // another model may have been chosen before the answer is here
  try {
    const { accepts } = await ask(address);
    if (place.dataset.address !== address) return false;
    place.replaceChildren(...panel(address, accepts));
    return true;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    place.replaceChildren(h("p", { class: "none" }, refused(problem).words));
    return false;
  }
}

function panel(address, accepts) {
  const result = h("div", { class: "result", role: "status", "aria-live": "polite" }, waiting());
  const field = h("div", { class: "field", oninput: () => forget(result) });
  const send = (body, type) => answer(result, address, body, type);
  const offered = accepts.flatMap((one) => (one.columns ? [{ ...one, kind: "form" }, one] : [one]));
  const pick = (one) => {
    forget(result);
    field.replaceChildren(...[entry(one, send)].flat());
  };
  pick(offered[0]);
  return [
    h("div", { class: "trial" }, h("div", {}, offered.length > 1 && kinds(offered, pick), field), result),
  ];
}

function entry(one, send) {
  document.onpaste = null;
  if (one.kind === "form") return fields(one, (row) => send(JSON.stringify(row), one.media_types[0]));
  return one.kind === "image" || one.kind === "signal" ? dropped(one, send) : typed(one, send);
}

function kinds(accepts, pick) {
  const option = (one, index) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name: "kind", checked: index === 0, onchange: () => pick(one) }),
      h("span", {}, NAMES[one.kind] ?? one.kind),
    );
  return h("fieldset", { class: "kinds" }, h("legend", {}, "What do you have?"), accepts.map(option));
}

// Typed: a row, a text ------------------------------------------------------------------------------------

function typed({ media_types, words, example }, send) {
  const json = media_types.includes("application/json");
  const given = json ? spread(example ?? { inputs: {} }) : (example ?? "");
  const fault = h("p", { class: "fault", id: "input-fault", hidden: true });
  const area = h("textarea", {
    id: "input",
    rows: Math.max(6, Math.min(16, given.split("\n").length + 1)),
    spellcheck: json ? "false" : null,
    "aria-describedby": "input-fault",
  });
  area.value = given;
  const submit = (event) => {
    event.preventDefault();
    fault.textContent = json ? faultOf(area.value) : "";
    fault.hidden = fault.textContent === "";
    area.setAttribute("aria-invalid", String(!fault.hidden));
    if (fault.hidden) send(area.value, media_types[0]);
  };
  return [
    h(
      "form",
      { onsubmit: submit },
      h("label", { for: "input", class: "ask" }, words),
      area,
      fault,
      h(
        "div",
        { class: "line" },
        h("button", { type: "submit" }, "Ask the model"),
        example !== undefined &&
          h(
            "button",
            {
              type: "button",
              class: "plain",
              onclick: () => {
                area.value = given;
                changed(area);
                area.focus();
              },
            },
            "Back to the example",
          ),
      ),
    ),
  ];
}

/** JSON over several lines, but each list of numbers on one. */
const spread = (value) =>
  JSON.stringify(value, null, 2).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));

function faultOf(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (problem) {
    return `This is not JSON yet: ${problem.message}.`;
  }
}

// Dropped: an image, a signal -----------------------------------------------------------------------------

function dropped({ kind, media_types, words }, send) {
  const preview = h("div", { class: "preview" });
  const again = h("button", { type: "button", hidden: true }, "Ask again");
  const take = async (files) => {
    if (files.length === 0) return;
    changed(preview);
    await show(preview, kind, files);
    const [body, type] = packed(files, media_types);
    again.hidden = false;
    again.onclick = () => send(body, type);
    send(body, type);
  };
  const several = kind === "signal";
  const input = h("input", {
    type: "file",
    id: "file",
    multiple: several,
    accept: [...media_types, ...suffixes(media_types)].join(","),
    onchange: () => take([...input.files]),
  });
  const zone = h(
    "label",
    { class: "drop", for: "file" },
    input,
    h("strong", {}, several ? "Choose a signal" : "Choose an image"),
    h(
      "span",
      {},
      several ? "or drop it here; a record of two files at once" : "or drop it here, or paste it",
    ),
  );
  for (const name of ["dragenter", "dragover"]) zone.addEventListener(name, over);
  for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
  document.onpaste = ({ clipboardData }) => take([...(clipboardData?.files ?? [])]);
  return [zone, h("p", { class: "note" }, words), preview, again];
}

function over(event) {
  event.preventDefault();
  event.currentTarget.classList.add("over");
}

const SUFFIXES = {
  "application/dicom": [".dcm", ".dicom"],
  "text/csv": [".csv"],
  "application/zip": [".zip"],
};
const suffixes = (types) => types.flatMap((type) => SUFFIXES[type] ?? []);

/** One file goes as it is; several that belong together go as a form. */
function packed(files, media_types) {
  if (files.length === 1) return [files[0], typeOf(files[0], media_types)];
  const form = new FormData();
  for (const file of files) form.append("file", file, file.name);
  return [form, null]; // the browser writes the boundary into the type itself
}

function typeOf({ name, type }, media_types) {
  if (type) return type;
  const suffix = name.slice(name.lastIndexOf(".")).toLowerCase();
  return media_types.find((one) => SUFFIXES[one]?.includes(suffix)) ?? "application/octet-stream";
}

async function show(preview, kind, files) {
  for (const image of preview.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  const names = files.map(({ name, size }) => `${name}, ${bytes(size)}`).join(" · ");
  const picture = kind === "image" ? await pictured(files[0]) : await traced(files[0]);
  preview.replaceChildren(...[picture, h("p", { class: "note" }, names)].filter(Boolean));
}

async function pictured(file) {
  const image = h("img", { alt: `The chosen image, ${file.name}`, src: URL.createObjectURL(file) });
  return image.decode().then(
    () => image,
    () => {
      URL.revokeObjectURL(image.src);
      return h("p", { class: "none" }, "A browser cannot show this kind of file; the server reads it.");
    },
  );
}

/** The first column of a CSV file as a line. */
async function traced(file) {
  if (!/\.csv$/i.test(file.name)) return null;
  const lines = (await file.slice(0, 1 << 20).text()).split(/\r?\n/, PREVIEWED);
  const values = lines.map((line) => Number.parseFloat(line.split(/[,;\t]/)[0])).filter(Number.isFinite);
  if (values.length < 2) return null;
  const [low, high] = values.reduce(
    ([a, b], value) => [Math.min(a, value), Math.max(b, value)],
    [Infinity, -Infinity],
  );
  const path = values
    .map(
      (value, index) =>
        `${index ? "L" : "M"}${index} ${(100 - ((value - low) / (high - low || 1)) * 100).toFixed(1)}`,
    )
    .join("");
  return s(
    "svg",
    {
      class: "trace",
      viewBox: `0 0 ${values.length - 1} 100`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": "The first channel of the signal",
    },
    s("path", { d: path }),
  );
}

// The answer ----------------------------------------------------------------------------------------------

let latest = 0; // only the answer to the last question is shown

const waiting = () =>
  h("p", { class: "none" }, "The answer appears here. It counts among the figures like any other request.");

/** Nobody may take the answer to one input for that to another: it goes as soon as the input changes. */
function forget(result) {
  latest += 1;
  result.removeAttribute("aria-busy");
  if (!result.querySelector(":scope > .none")) result.replaceChildren(waiting());
}

/** Typing says by itself that the input has changed; dropping and filling in do not. */
const changed = (node) => node.dispatchEvent(new Event("input", { bubbles: true }));

async function answer(result, address, body, type) {
  const mine = (latest += 1);
  const begun = performance.now();
  result.setAttribute("aria-busy", "true");
  let shown;
  try {
    const said = await ask(address, { method: "POST", body, type });
    shown = told(said, performance.now() - begun);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    shown = denied(problem);
  }
  if (mine !== latest) return;
  result.removeAttribute("aria-busy");
  result.replaceChildren(...shown.filter(Boolean));
}
