// Small charts of the last minute on canvases: lines or stacked areas, with values under the pointer.

const WINDOW_MS = 60_000;
const LEFT = 38, RIGHT = 6, TOP = 8, BOTTOM = 18;

export class Chart {
  /**
   * @param host    gets a figure
   * @param options {title, unit, digits, stacked, top, legend}
   * @param series  [{name, colour}]; a colour may be a custom property of the page
   */
  constructor(host, { title, unit = "", digits = 1, stacked = false, top = null, legend = true }, series) {
    Object.assign(this, { unit, digits, stacked, top, series, samples: [], pointer: null });
    this.figure = element("figure", { className: "card" });
    this.canvas = element("canvas", { role: "img", ariaLabel: `Chart: ${title}` });
    const caption = element("figcaption", {}, element("h2", { textContent: title }));
    this.values = legend ? series.map((one) => addKey(caption, one)) : [];
    this.figure.append(caption, this.canvas);
    host.append(this.figure);
    this.canvas.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.#point(null));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Add one value per series; null leaves a gap. */
  push(time, values) {
    this.samples.push({ time, values });
    while (this.samples[0].time < time - WINDOW_MS) this.samples.shift();
    this.draw();
  }

  draw() {
    const context = this.#begin();
    if (!context || !this.samples.length) return;
    const area = this.#area();
    this.#grid(context, area);
    if (this.stacked) this.#stack(context, area);
    else this.#lines(context, area);
    this.#legend(this.#pointed(context, area) ?? this.samples.at(-1));
  }

  #begin() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    if (!width) return null;
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "11px system-ui, sans-serif";
    return context;
  }

  #area() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const end = this.samples.at(-1).time;
    const top = this.top ?? niceTop(Math.max(...this.samples.map((sample) => this.#reach(sample.values))));
    return {
      top, end,
      left: LEFT, right: width - RIGHT, above: TOP, below: height - BOTTOM,
      x: (time) => LEFT + (1 - (end - time) / WINDOW_MS) * (width - LEFT - RIGHT),
      y: (value) => height - BOTTOM - (Math.min(value, top) / top) * (height - TOP - BOTTOM),
    };
  }

  #reach(values) {
    const known = values.filter((value) => value !== null);
    return this.stacked ? known.reduce((sum, value) => sum + value, 0) : Math.max(0, ...known);
  }

  #grid(context, area) {
    context.fillStyle = colourOf("--soft");
    context.strokeStyle = colourOf("--line");
    context.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      const y = Math.round(area.y(part * area.top)) + 0.5;
      line(context, [[area.left, y], [area.right, y]]);
      context.fillText(format(part * area.top, area.top < 10 ? 1 : 0), area.left - 6, y + 4);
    }
    context.fillText("now", area.right, area.below + 14);
    context.textAlign = "left";
    context.fillText("60 s", area.left, area.below + 14);
  }

  #lines(context, area) {
    context.lineWidth = 2;
    context.lineJoin = "round";
    this.series.forEach(({ colour }, index) => {
      const known = this.samples.filter(({ values }) => values[index] !== null);
      context.strokeStyle = colourOf(colour);
      line(context, known.map(({ time, values }) => [area.x(time), area.y(values[index])]));
    });
    context.lineWidth = 1;
  }

  #stack(context, area) {
    let floor = this.samples.map(() => 0);
    this.series.forEach(({ colour }, index) => {
      const roof = this.samples.map(({ values }, i) => floor[i] + (values[index] ?? 0));
      const edge = (heights) => this.samples.map(({ time }, i) => [area.x(time), area.y(heights[i])]);
      context.fillStyle = colourOf(colour);
      fill(context, [...edge(roof), ...edge(floor).reverse()]);
      floor = roof;
    });
  }

  #point(x) {
    this.pointer = x;
    this.draw();
  }

  #pointed(context, area) {
    if (this.pointer === null) return null;
    const distance = ({ time }) => Math.abs(area.x(time) - this.pointer);
    const nearest = this.samples.reduce((best, one) => (distance(one) < distance(best) ? one : best));
    context.strokeStyle = colourOf("--soft");
    line(context, [[area.x(nearest.time), area.above], [area.x(nearest.time), area.below]]);
    return nearest;
  }

  #legend({ values }) {
    this.values.forEach((target, index) => {
      const value = values[index];
      target.textContent = value === null ? "–" : `${format(value, this.digits)}${this.unit}`;
    });
  }
}

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

export function format(value, digits) {
  return value.toFixed(digits);
}

function addKey(caption, { name, colour }) {
  const list = caption.querySelector(".legend") ?? caption.appendChild(element("div", { className: "legend" }));
  const swatch = element("i");
  swatch.style.background = colour.startsWith("--") ? `var(${colour})` : colour;
  const value = element("b", { textContent: "–" });
  list.append(element("span", {}, swatch, name, value));
  return value;
}

function colourOf(colour) {
  return colour.startsWith("--") ? getComputedStyle(document.documentElement).getPropertyValue(colour) : colour;
}

function niceTop(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value * 1.1));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((step) => step >= value * 1.05);
}

function line(context, points) {
  context.beginPath();
  points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

function fill(context, points) {
  context.beginPath();
  points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.fill();
}
