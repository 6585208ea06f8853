// A chart of the last minutes. Our own, of SVG: a few lines over a few hundred points need no library, they take their
// colours from the style sheet in the light, in the dark and with forced colours, and they can be read without eyes.

import { h, s, set, span } from "./dom.js";
import { HISTORY } from "./api.js";

/** A chart shows so many seconds at least. */
const LEAST = 30;

const HEIGHT = 132;
const PAD = { top: 10, right: 8, bottom: 6, left: 8 };

/** The least round number that is not below: 1, 2, 5, 10, …, and of bytes 1, 2, 4, 8, … KiB. */
export function ceiling(value, ofBytes = false) {
  if (!(value > 0)) return 1;
  if (ofBytes) return 2 ** Math.ceil(Math.log2(value));
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => value <= step * power) * power;
}

/**
 * `lines`: each a name, a class of colour and how a point's value is found. `format` says a value.
 * Returns the element, and a function that draws these points.
 */
export function chart({ title, lines, format, least = 1, ofBytes = false }) {
  const plot = s("svg", { class: "plot", "aria-hidden": "true" });
  const summary = h("p", { class: "sr" });
  const top = h("span", { class: "chart-top" });
  const values = lines.map(() => h("b", {}));
  const legend = h("div", { class: "legend" },
    lines.map((line, at) => h("span", {}, h("i", { class: `key ${line.colour}` }), line.name, " ", values[at])));
  const when = h("span", { class: "chart-when" });
  const figure = h("figure", { class: "card chart", tabindex: "0", role: "group", "aria-label": title },
    h("figcaption", {}, h("h3", {}, title), when), legend, h("div", { class: "plot-box" }, top, plot), summary);

  const said = (at, value) => (value === undefined ? "–" : (lines[at].format ?? format)(value));

  let points = [];
  let chosen;
  let width = 0;
  // As many seconds as there are, so that a page that was just opened shows something.
  let seconds = LEAST;

  const x = (age) => PAD.left + (1 - age / (seconds - 1)) * (width - PAD.left - PAD.right);
  const ageAt = (at) => Math.round((1 - (at - PAD.left) / (width - PAD.left - PAD.right)) * (seconds - 1));

  function draw() {
    width = Math.max(120, plot.clientWidth || 300);
    seconds = Math.min(Math.max(points.length, LEAST), HISTORY);
    plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const all = lines.map((line) => points.map((point) => line.value(point)));
    const most = ceiling(Math.max(least, ...all.flat().map((value) => value ?? 0)), ofBytes);
    const y = (value) => HEIGHT - PAD.bottom - (value / most) * (HEIGHT - PAD.top - PAD.bottom);

    const parts = [0, 0.5, 1].map((part) =>
      s("line", { class: "grid", x1: 0, x2: width, y1: y(part * most), y2: y(part * most) }));
    all.forEach((line, at) => {
      // A rate is not known before the second point.
      const from = line.findIndex((value) => value !== undefined);
      if (from < 0) return;
      const places = line.slice(from).map((value, index) => `${x(line.length - 1 - from - index).toFixed(1)} ${y(value ?? 0).toFixed(1)}`);
      const path = `M${places.join("L")}`;
      const base = `L${x(0).toFixed(1)} ${y(0)}L${x(line.length - 1 - from).toFixed(1)} ${y(0)}Z`;
      if (at === 0) parts.push(s("path", { class: `area ${lines[at].colour}`, d: path + base }));
      parts.push(s("path", { class: `line ${lines[at].colour}`, d: path }));
    });

    const age = chosen === undefined ? undefined : Math.min(Math.max(chosen, 0), points.length - 1);
    const index = points.length - 1 - (age ?? 0);
    if (age !== undefined && index >= 0) {
      parts.push(s("line", { class: "cross", x1: x(age), x2: x(age), y1: 0, y2: HEIGHT }));
      all.forEach((line, at) => parts.push(s("circle", { class: `dot ${lines[at].colour}`, cx: x(age), cy: y(line[index] ?? 0), r: 3.5 })));
    }
    set(plot, parts);
    set(top, format(most));
    values.forEach((value, at) => set(value, said(at, all[at][index])));
    const moment = points[index] && points.at(-1).stats.at_ms - points[index].stats.at_ms;
    set(when, age === undefined || moment === undefined ? `last ${span(seconds * 1000)}` : age === 0 ? "now" : `${span(moment)} ago`);
    const words = lines.map((line, at) => `${line.name}: ${said(at, all[at][index])}, at most ${said(at, Math.max(0, ...all[at].map((value) => value ?? 0)))}`);
    set(summary, `${when.textContent}. ${words.join("; ")}. Left and right arrow keys choose a moment.`);
  }

  figure.addEventListener("pointermove", (event) => {
    chosen = ageAt(event.clientX - plot.getBoundingClientRect().left);
    draw();
  });
  const leave = () => {
    chosen = undefined;
    draw();
  };
  figure.addEventListener("pointerleave", leave);
  figure.addEventListener("blur", leave);
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: 1, ArrowRight: -1, Home: HISTORY, End: -HISTORY }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    chosen = Math.min(Math.max((chosen ?? 0) + step, 0), Math.max(points.length - 1, 0));
    draw();
  });
  new ResizeObserver(draw).observe(plot);

  return {
    element: figure,
    show(next) {
      points = next;
      draw();
    },
  };
}
