// Sends one file at a time to /segment and says how far it is.

import { decodeLayers, readRecord } from "/assets/records.js";

export class Uploads {
  /**
   * @param parts  elements: drop, file, dropping, progress, text, bar, cancel, problem
   * @param ask    () => parameters of the look, for clips
   * @param done   called with {file, layers, header} or {file, clip}
   */
  constructor(parts, ask, done) {
    Object.assign(this, { parts, ask, done, request: null, name: "", most: Infinity });
    parts.file.addEventListener("change", () => this.#take(parts.file.files));
    parts.cancel.addEventListener("click", () => this.request?.abort());
    this.#acceptDrops();
  }

  setLimits({ mib }) {
    this.most = mib * 2 ** 20;
  }

  /** Show how far the server is; it tells with every frame. */
  follow(job) {
    if (!this.request || this.request.upload.sent !== true) return;
    if (!job || job.name !== this.name) this.#say("Waiting for its turn …");
    else if (job.total > 1) this.#say(`Segmenting frame ${job.done} of ${job.total} …`, job.done / job.total);
    else this.#say(job.done ? `Segmenting frame ${job.done} …` : "Segmenting …");
  }

  /** Ask for the mask of an image as a PNG. */
  async mask(file) {
    const response = await fetch("/segment?result=mask", { method: "POST", body: file });
    if (!response.ok) throw new Error(messageOf(await response.text(), response.status));
    return response.blob();
  }

  complain(message) {
    this.parts.problem.textContent = message;
    this.parts.problem.hidden = false;
    this.parts.problem.scrollIntoView({ block: "nearest" });
  }

  #take(files) {
    this.parts.problem.hidden = true;
    if (!files?.length) return;
    const [file] = files;
    if (this.request) this.complain("One at a time: cancel the upload that goes on, or wait for it.");
    else if (file.size > this.most) this.complain(`${file.name} is larger than ${this.most / 2 ** 20} MiB; send a smaller one.`);
    else this.#send(file);
    this.parts.file.value = "";
  }

  #send(file) {
    this.name = Math.random().toString(36).slice(2, 12);
    const request = new XMLHttpRequest();
    request.open("POST", `/segment?${new URLSearchParams({ ...this.ask(), result: "layers", name: this.name })}`);
    request.responseType = "arraybuffer";
    request.upload.addEventListener("progress", (event) => {
      this.#say(`Sending ${file.name}: ${Math.round((100 * event.loaded) / event.total)} %`, event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => {
      request.upload.sent = true;
      this.#say("Segmenting …");
    });
    request.addEventListener("load", () => this.#finish(file, request));
    request.addEventListener("error", () => this.#fail("The server could not be reached, or refused the file while it was sent."));
    request.addEventListener("abort", () => this.#end());
    this.request = request;
    this.parts.progress.hidden = false;
    this.#say(`Sending ${file.name} …`);
    request.send(file);
  }

  async #finish(file, request) {
    if (request.status !== 200) {
      this.#fail(messageOf(new TextDecoder().decode(request.response), request.status));
      return;
    }
    this.#end();
    if (request.getResponseHeader("Content-Type") === "video/mp4") {
      this.done({ file, clip: new Blob([request.response], { type: "video/mp4" }) });
      return;
    }
    const record = readRecord(request.response);
    this.done({ file, header: record.header, layers: await decodeLayers(record) });
  }

  #fail(message) {
    this.#end();
    this.complain(message);
  }

  #end() {
    this.request = null;
    this.parts.progress.hidden = true;
  }

  #say(text, share = null) {
    this.parts.text.textContent = text;
    if (share === null) this.parts.bar.removeAttribute("value");
    else this.parts.bar.value = share;
  }

  #acceptDrops() {
    let depth = 0; // every element under the pointer tells of entering and leaving
    const show = (change) => {
      depth = Math.max(0, depth + change);
      this.parts.dropping.hidden = depth === 0;
    };
    document.addEventListener("dragenter", (event) => carriesFile(event) && show(1));
    document.addEventListener("dragleave", (event) => carriesFile(event) && show(-1));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      show(-depth);
      this.#take(event.dataTransfer.files);
    });
  }
}

function carriesFile(event) {
  return event.dataTransfer?.types.includes("Files");
}

function messageOf(text, status) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answered with ${status}.`;
  }
}
