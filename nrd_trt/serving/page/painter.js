// Lays the classes' colours over an image, in the browser of each viewer.

export class Painter {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.colours = document.createElement("canvas");
    this.table = new Uint32Array(256);
    this.painted = null;
  }

  /** Choose colours; hidden classes are transparent. */
  setTable(classes, hidden) {
    this.table = new Uint32Array(256);
    for (const { index, colour: [red, green, blue] } of classes) {
      if (!hidden.has(index)) this.table[index] = (255 << 24) | (blue << 16) | (green << 8) | red;
    }
    this.painted = null;
  }

  /** Paint decoded layers as `look` wants them: {view, opacity}. */
  paint(layers, look) {
    this.#colour(layers);
    const { width, height } = layers;
    const side = look.view === "side";
    const below = side && this.#isNarrow(layers);
    this.#resize(side && !below ? 2 * width : width, below ? 2 * height : height);
    if (look.view === "mask") {
      this.context.fillStyle = "#000";
      this.context.fillRect(0, 0, width, height);
      this.#lay(0, 0, 1);
      return;
    }
    this.context.drawImage(layers.bitmap, 0, 0, width, height);
    const [x, y] = side ? (below ? [0, height] : [width, 0]) : [0, 0];
    if (side) this.context.drawImage(layers.bitmap, x, y, width, height);
    this.#lay(x, y, look.opacity);
  }

  #isNarrow({ width, height }) {
    return width >= height && this.canvas.parentElement.clientWidth < 560;
  }

  #resize(width, height) {
    if (this.canvas.width !== width || this.canvas.height !== height) {
      Object.assign(this.canvas, { width, height });
    }
  }

  #lay(x, y, opacity) {
    this.context.globalAlpha = opacity;
    this.context.drawImage(this.colours, x, y);
    this.context.globalAlpha = 1;
  }

  #colour(layers) {
    if (this.painted === layers) return;
    const { width, height, indices } = layers;
    if (this.colours.width !== width || this.colours.height !== height) Object.assign(this.colours, { width, height });
    const context = this.colours.getContext("2d");
    const pixels = context.createImageData(width, height);
    const words = new Uint32Array(pixels.data.buffer);
    const { table } = this;
    for (let i = 0; i < words.length; i += 1) words[i] = table[indices[i]];
    context.putImageData(pixels, 0, 0);
    this.painted = layers;
  }
}
