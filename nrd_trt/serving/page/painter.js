// Lays the colours of the classes, or of the confidence, over an image, in the browser of each viewer.

export class Painter {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.colours = document.createElement("canvas");
    this.table = new Uint32Array(256);
    this.sureness = new Uint32Array(256);
    this.painted = null;
  }

  /** Choose colours; hidden classes are transparent. */
  setTable(classes, hidden) {
    this.table = new Uint32Array(256);
    for (const { index, colour: [red, green, blue] } of classes) {
      if (!hidden.has(index)) this.table[index] = word(red, green, blue);
    }
    this.painted = null;
  }

  /** Choose the colours of the confidences 0-255. */
  setSureness(colours) {
    this.sureness = Uint32Array.from(colours, (colour) => word(...colour));
    this.painted = null;
  }

  /** Paint decoded layers as `look` wants them: {view, opacity}. */
  paint(layers, look) {
    const plane = look.view === "confidence" ? layers.confidence : layers.indices;
    if (plane) this.#colour(layers, plane, look.view === "confidence" ? this.sureness : this.table);
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
    if (plane) this.#lay(x, y, look.opacity); // the confidence comes with the next frame
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

  #colour({ width, height }, plane, table) {
    if (this.painted === plane) return;
    if (this.colours.width !== width || this.colours.height !== height) Object.assign(this.colours, { width, height });
    const context = this.colours.getContext("2d");
    const pixels = context.createImageData(width, height);
    const words = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < words.length; i += 1) words[i] = table[plane[i]];
    context.putImageData(pixels, 0, 0);
    this.painted = plane;
  }
}

function word(red, green, blue) {
  return (255 << 24) | (blue << 16) | (green << 8) | red;
}
