// The page: one picture with its controls, the classes, the figures, uploads.

import { Classes } from "/assets/classes.js";
import { Figures } from "/assets/figures.js";
import { control, follow, wantConfidence } from "/assets/live.js";
import { Painter } from "/assets/painter.js";
import { Uploads } from "/assets/uploads.js";

const $ = (id) => document.getElementById(id);
const look = { view: "overlay", opacity: 0.6 };
const painter = new Painter($("picture"));
const figures = new Figures($("tiles"), $("charts"));
const classes = new Classes($("classes"), () => {
  painter.setTable(classes.classes, classes.hidden);
  repaint();
});
const uploads = new Uploads(
  {
    drop: $("drop"), file: $("file"), dropping: $("dropping"), progress: $("progress"),
    text: $("progress-text"), bar: $("progress-bar"), cancel: $("cancel"), problem: $("problem"),
  },
  query,
  showUpload,
);
let live = null; // the newest decoded frame
let upload = null; // {file, layers, header} or {file, clip, address} while one is shown
let state = "connecting";

const STATES = {
  connecting: ["Connecting", "Connecting to the server", "It is asked again every second."],
  unauthorised: ["Token needed", "This server asks for a token", "Whoever started it knows the token."],
  starting: ["Starting", "Waiting for the first frame", ""],
  running: ["Live", "", ""],
  paused: ["Paused", "", ""],
  lost: ["Source lost", "The source was lost", "It is opened again as soon as it answers."],
  ended: ["Ended", "", ""],
  failed: ["Failed", "The run has failed", ""],
};
const RUNS = new Set(["starting", "running", "paused", "lost"]);

function showState(next, reason = null) {
  if (state === next && $("state").title === (reason ?? "")) return;
  state = next;
  const [short, title, text] = STATES[next];
  $("state").dataset.state = next;
  $("state").title = reason ?? "";
  $("state").lastElementChild.textContent = short;
  $("pause").textContent = next === "paused" ? "Resume" : "Pause";
  $("pause").disabled = $("step").disabled = !RUNS.has(next);
  $("login").hidden = next !== "unauthorised";
  showVeil(title, reason ?? text);
}

function showVeil(title, text) {
  const [strong, paragraph] = $("veil").children;
  strong.textContent = title;
  paragraph.textContent = text;
  $("veil").hidden = !title || upload !== null;
}

function showStatus({ version, source, model, limits }) {
  $("source").textContent = source?.name ?? "nrd_trt";
  document.title = `${source?.name ?? "…"} – nrd_trt`;
  const size = source ? ` · ${source.size_hw.join("×")}` : "";
  $("model").textContent = `${model.bundle} · ${model.runner}, ${model.arithmetic}${size} · nrd_trt ${version}`;
  $("limits").textContent = `JPEG, PNG, WebP or BMP; MP4, MOV, MKV or WebM up to ${limits.clip_s} s; at most ${limits.mib} MiB`;
  uploads.setLimits(limits);
  $("sureness").hidden = !model.confidence_colours;
  painter.setSureness(model.confidence_colours ?? []);
  if ($("sureness").hidden && look.view === "confidence") setView("overlay"); // another engine answers now
  if (JSON.stringify(model.classes) !== JSON.stringify(classes.classes)) {
    classes.reset(model.classes);
    figures.reset(model.classes);
  }
}

function showFigures(header) {
  showState(header.state, header.reason);
  figures.show(header);
  uploads.follow(header.upload);
  if (header.shares && !upload) classes.follow(header.shares);
}

function showFrame(layers, header) {
  live?.bitmap.close();
  live = layers;
  if (upload) return;
  $("picture").dataset.number = header.number;
  repaint();
}

function repaint() {
  const layers = upload ? upload.layers : live;
  if (layers) painter.paint(layers, look);
}

function showUpload(shown) {
  closeUpload();
  upload = shown;
  const clip = $("clip");
  clip.hidden = !shown.clip;
  $("picture").hidden = Boolean(shown.clip);
  if (shown.clip) clip.src = upload.address = URL.createObjectURL(shown.clip);
  else classes.show(shown.header.shares);
  $("keep-mask").hidden = Boolean(shown.clip);
  $("views").disabled = $("opacity").disabled = Boolean(shown.clip); // a clip was drawn when it was sent
  $("banner").hidden = false;
  $("banner").firstElementChild.textContent = shown.file.name;
  $("veil").hidden = true;
  repaint();
  $("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

function closeUpload() {
  if (upload?.address) {
    $("clip").removeAttribute("src");
    URL.revokeObjectURL(upload.address);
  }
  upload?.layers?.bitmap.close();
  upload = null;
}

function backToLive() {
  closeUpload();
  $("banner").hidden = $("clip").hidden = true;
  $("picture").hidden = $("views").disabled = false;
  $("opacity").disabled = look.view === "mask";
  const current = state;
  state = null; // so that its veil comes back
  showState(current, $("state").title || null);
  repaint();
}

function query() {
  const shown = classes.query();
  return { view: look.view, opacity: look.opacity, ...(shown === null ? {} : { classes: shown }) };
}

function save(address, name) {
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
}

function saveBlob(blob, name) {
  const address = URL.createObjectURL(blob);
  save(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function snapshot() {
  if (upload) saveUpload();
  else save(`/snapshot.png?${new URLSearchParams(query())}`, `snapshot-${$("picture").dataset.number ?? 0}.png`);
}

function saveUpload() {
  const stem = upload.file.name.replace(/\.[^.]*$/, "");
  if (upload.clip) saveBlob(upload.clip, `${stem}_${look.view}.mp4`);
  else $("picture").toBlob((blob) => saveBlob(blob, `${stem}_${look.view}.png`));
}

async function saveMask() {
  const { file } = upload;
  try {
    saveBlob(await uploads.mask(file), `${file.name.replace(/\.[^.]*$/, "")}_mask.png`);
  } catch (error) {
    uploads.complain(error.message);
  }
}

async function command(action) {
  try {
    const header = await control(action);
    showState(header.state, header.reason);
  } catch {
    // The next frame tells how the run stands.
  }
}

function setView(view) {
  look.view = view;
  $("views").querySelector(`[value=${view}]`).checked = true;
  $("opacity").disabled = view === "mask";
  wantConfidence(view === "confidence");
  repaint();
}

function onKey(event) {
  const busy = event.target.closest("input:not([type=radio]):not([type=range]), button, video, a");
  if (busy || event.ctrlKey || event.metaKey || event.altKey) return;
  const views = { 1: "overlay", 2: "mask", 3: "side", ...($("sureness").hidden ? {} : { 4: "confidence" }) };
  if (event.key in views) setView(views[event.key]);
  else if (event.key === " ") $("pause").click();
  else if (event.key === ".") $("step").click();
  else if (event.key === "s") snapshot();
  else return;
  event.preventDefault();
}

function listen() {
  $("views").addEventListener("change", (event) => setView(event.target.value));
  $("opacity").addEventListener("input", (event) => {
    look.opacity = event.target.value / 100;
    $("opacity-value").textContent = `${event.target.value} %`;
    repaint();
  });
  $("pause").addEventListener("click", () => command(state === "paused" ? "resume" : "pause"));
  $("step").addEventListener("click", () => command("step"));
  $("snapshot").addEventListener("click", snapshot);
  $("all").addEventListener("click", () => classes.setAll(true));
  $("none").addEventListener("click", () => classes.setAll(false));
  $("keep").addEventListener("click", saveUpload);
  $("keep-mask").addEventListener("click", saveMask);
  $("back").addEventListener("click", backToLive);
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", repaint);
}

/** A refused token stays out of the address and of what is shown of it. */
function dropToken() {
  if (!new URLSearchParams(location.search).has("token")) return;
  history.replaceState(null, "", "/");
  STATES.unauthorised[1] = "That is not the token of this server";
}

dropToken();
listen();
follow({
  status: showStatus,
  figures: showFigures,
  layers: showFrame,
  trouble: (kind) => showState(kind),
});
