// The list of classes: colour, name, share, and whether each is shown.

import { element } from "/assets/charts.js";

const EVERY_MS = 250; // more often nobody can read

export class Classes {
  /** @param changed called whenever a class is shown or hidden */
  constructor(list, changed) {
    Object.assign(this, { list, changed, classes: [], rows: [], hidden: new Set(), last: 0 });
  }

  /** Begin anew with these classes, all shown. */
  reset(classes) {
    this.classes = classes;
    this.hidden = new Set();
    this.rows = classes.map((one) => this.#row(one));
    this.list.replaceChildren(...this.rows.map(({ item }) => item));
    this.changed();
  }

  /** Show the shares of a live frame, now and then. */
  follow(shares) {
    const now = performance.now();
    if (now - this.last < EVERY_MS) return;
    this.last = now;
    this.show(shares);
  }

  show(shares) {
    this.rows.forEach(({ share, bar }, index) => {
      share.textContent = `${(100 * shares[index]).toFixed(1)} %`;
      bar.style.setProperty("--share", shares[index]);
    });
  }

  setAll(shown) {
    this.hidden = new Set(shown ? [] : this.classes.map(({ index }) => index));
    for (const { box } of this.rows) box.checked = shown;
    this.changed();
  }

  /** Indices that are shown, for a request; null where all are. */
  query() {
    if (!this.hidden.size) return null;
    return this.classes.map(({ index }) => index).filter((index) => !this.hidden.has(index)).join(",");
  }

  #row({ index, name, colour }) {
    const box = element("input", { type: "checkbox", checked: true });
    const swatch = element("i");
    swatch.style.background = `rgb(${colour.join(" ")})`;
    const share = element("b", { textContent: "–" });
    const bar = element("u");
    const label = element("label", { className: "class", title: name });
    label.append(box, swatch, element("span", { textContent: name }), share, bar);
    box.addEventListener("change", () => this.#toggle(index, box.checked));
    return { item: element("li", {}, label), box, share, bar };
  }

  #toggle(index, shown) {
    if (shown) this.hidden.delete(index);
    else this.hidden.add(index);
    this.changed();
  }
}
