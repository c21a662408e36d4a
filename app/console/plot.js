// A line plot over the last minutes, as SVG. Lines differ by dash as well as by colour, and each says its last value.

import { h, svg } from "./dom.js";

const HEIGHT = 150;
const LEFT = 48;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 20;
const GAP_MS = 7000; // beyond it nobody looked: no line

/** `format` writes a value; `top` is the top of the scale at least. */
export class Plot {
  constructor(title, lines, { format, top }) {
    Object.assign(this, { title, lines, format, top });
    this.picture = svg("svg", { role: "img", height: HEIGHT });
    this.values = lines.map(() => h("b", {}, "–"));
    this.node = h("figure", { class: "plot" },
      h("figcaption", {}, h("span", { class: "name" }, title), h("span", { class: "legends" },
        ...lines.map((name, i) => h("span", { class: "legend" }, sample(i), name, " ", this.values[i])))),
      this.picture);
    this.points = [];
    this.picture.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.picture.addEventListener("pointerleave", () => this.point(null));
  }

  /** `points`: [{time, values}], a value for each line, null for none; up to `now` over the last `minutes`. */
  show(points, now, minutes) {
    Object.assign(this, { points, now, minutes });
    this.width = this.picture.clientWidth || 400;
    const most = Math.max(this.top, ...points.flatMap(({ values }) => values.filter((value) => value !== null)));
    this.most = rounded(most);
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.picture.replaceChildren(...this.axes(), ...this.lines.flatMap((_, i) => this.line(i)), this.cursor);
    this.tell(points.at(-1));
  }

  x(time) {
    return LEFT + (1 - (this.now - time) / (this.minutes * 60000)) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return HEIGHT - BOTTOM - (value / this.most) * (HEIGHT - TOP - BOTTOM);
  }

  axes() {
    const marks = [];
    for (const part of [0, 0.5, 1]) {
      const y = this.y(part * this.most);
      marks.push(svg("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.format(part * this.most)));
    }
    for (let minute = this.minutes; minute >= 0; minute--) {
      if (minute !== 0 && minute !== this.minutes && this.width < 420) continue;
      const anchor = { 0: "end", [this.minutes]: "start" }[minute] ?? "middle";
      marks.push(svg("text", { x: this.x(this.now - minute * 60000), y: HEIGHT - 4, "text-anchor": anchor },
        minute ? `−${minute} min` : "now"));
    }
    return marks;
  }

  line(index) {
    const pieces = [];
    let last = -Infinity;
    for (const { time, values } of this.points) {
      const value = values[index];
      if (value === null) continue;
      const at = `${this.x(time).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pieces.push(`${time - last > GAP_MS ? `M${at}h.01` : ""}L${at}`);
      last = time;
    }
    return pieces.length ? [svg("path", { class: `line-${index}`, d: pieces.join("") })] : [];
  }

  /** Tells the values at a place of the picture; those of now for null. */
  point(x) {
    if (!this.points.length) return;
    const distance = ({ time }) => Math.abs(this.x(time) - x);
    const nearest = x === null ? this.points.at(-1)
      : this.points.reduce((best, one) => (distance(one) < distance(best) ? one : best));
    this.cursor.classList.toggle("shown", x !== null);
    this.cursor.setAttribute("x1", this.x(nearest.time));
    this.cursor.setAttribute("x2", this.x(nearest.time));
    this.tell(nearest);
  }

  tell(point) {
    const texts = this.lines.map((_, i) => point && point.values[i] !== null ? this.format(point.values[i]) : "–");
    texts.forEach((text, i) => { this.values[i].textContent = text; });
    this.picture.setAttribute("aria-label", `${this.title}, last minutes; ${
      this.lines.map((name, i) => `${name} ${texts[i]}`).join(", ")}`);
  }
}

const sample = (index) => svg("svg", { class: "sample", width: 18, height: 8, "aria-hidden": "true" },
  svg("path", { class: `line-${index}`, d: "M1 4h16" }));

/** The next number whose half is short too. */
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.9999);
}
