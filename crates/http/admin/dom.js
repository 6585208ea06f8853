// Elements from code. Whatever comes from clients goes in as text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(9).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** An element with attributes, listeners (`onclick`) and children; a text is a text. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** The same of SVG. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** Replaces what an element has, unless it is the same text. */
export function set(element, ...children) {
  const [only] = children;
  if (children.length === 1 && typeof only === "string") {
    if (element.textContent !== only) element.textContent = only;
  } else {
    element.replaceChildren(...children.flat(9).filter((child) => child !== undefined && child !== null && child !== false));
  }
  return element;
}

const PATHS = {
  away: "M12 7v5l3 2M21 12a9 9 0 1 1-18 0 9 9 0 0 1 18 0z",
  bolt: "M13 3 5 14h6l-1 7 8-11h-6z",
  call: "M7 8h10m-3-3 3 3-3 3M17 16H7m3-3-3 3 3 3",
  check: "m5 12.5 4.5 4.5L19 7.5",
  cross: "M6 6l12 12M18 6 6 18",
  gap: "M4 12h5m6 0h5M12 5v2m0 10v2",
  link: "M9 15l6-6M10.5 6.5l1-1a4.2 4.2 0 0 1 6 6l-1 1M13.5 17.5l-1 1a4.2 4.2 0 0 1-6-6l1-1",
  out: "M14 4h5v16h-5M10 8l-4 4 4 4M6 12h9",
  push: "M4 12h12m-5-5 5 5-5 5M20 5v14",
  search: "M16.5 16.5 21 21M18 11a7 7 0 1 1-14 0 7 7 0 0 1 14 0z",
  topic: "M5 9h15M4 15h15M10 4 8 20M16 4l-2 16",
  user: "M16 8a4 4 0 1 1-8 0 4 4 0 0 1 8 0zM5 20c1-4 3.5-5.5 7-5.5s6 1.5 7 5.5",
};

/** A drawing that says nothing which its neighbour does not say. */
export const icon = (name) =>
  s("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, s("path", { d: PATHS[name] }));

/** Asks before something is done that cannot be undone. Resolves to what the form has, or to nothing. */
export function confirm({ title, text, action, danger = false, fields = [] }) {
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog" },
      h("h2", { id: "confirm-title" }, title),
      text && h("p", {}, text),
      fields,
      h("div", { class: "row end" },
        h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"),
        h("button", { value: "yes", class: danger ? "danger" : "primary" }, action)));
    const dialog = h("dialog", { "aria-labelledby": "confirm-title" }, form);
    dialog.addEventListener("close", () => {
      const values = Object.fromEntries(new FormData(form));
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? values : undefined);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Says something that happened, for some seconds. */
export function toast(text, kind = "good") {
  let place = document.getElementById("toasts");
  if (!place) document.body.append((place = h("div", { id: "toasts", role: "status", "aria-live": "polite" })));
  const note = h("div", { class: `toast ${kind}` }, text);
  place.append(note);
  while (place.children.length > 4) place.firstChild.remove();
  setTimeout(() => note.remove(), 6000);
}

const number = new Intl.NumberFormat("en");
export const count = (value) => number.format(value);
export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** A count in little room: 1,234 and then 12.3k. */
export function short(value) {
  if (value < 10_000) return Number.isInteger(value) ? count(value) : value.toFixed(1);
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return `${(value / size).toFixed(value < 100 * size ? 1 : 0)}${unit}`;
  }
}

export function bytes(value) {
  if (value < 1024) return `${Math.round(value)} B`;
  let [unit, units] = [value / 1024, ["KiB", "MiB", "GiB", "TiB"]];
  while (unit >= 1024 && units.length > 1) [unit] = [unit / 1024, units.shift()];
  return `${unit.toFixed(unit < 10 ? 1 : 0)} ${units[0]}`;
}

export function span(millis) {
  if (millis < 1000) return `${Math.round(millis)} ms`;
  const seconds = millis / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 && seconds % 1 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  const rest = Math.floor(seconds % 60);
  if (minutes < 60) return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hour12: false };
export const clock = (millis) => new Date(millis).toLocaleTimeString("en", CLOCK);
export const date = (millis) => new Date(millis).toLocaleDateString("en", { day: "numeric", month: "short" });

/** A moment, as precise as is useful, with all of it for those who point at it. */
export const time = (millis) =>
  h("time", { datetime: new Date(millis).toISOString(), title: new Date(millis).toString() }, clock(millis));
