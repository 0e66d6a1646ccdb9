// Tiles and charts of the run's figures.

import { Chart, element, format } from "/assets/charts.js";

const EVERY_MS = 500;
const STAGES = ["read", "preprocess", "infer", "smooth", "draw", "write"];
const COLOURS = ["--six", "--four", "--one", "--two", "--five", "--three"];

export class Figures {
  constructor(tiles, charts) {
    Object.assign(this, { tiles, host: charts, charts: {}, last: 0 });
  }

  /** Begin anew for a run with these classes. */
  reset(classes) {
    this.host.replaceChildren();
    const chart = (options, series) => new Chart(this.host, options, series);
    const rgb = ({ name, colour }) => ({ name, colour: `rgb(${colour.join(" ")})` });
    this.charts = {
      fps: chart({ title: "Frames per second" }, [{ name: "fps", colour: "--one" }]),
      latency: chart({ title: "Latency", unit: " ms" }, [
        { name: "p50", colour: "--one" }, { name: "p90", colour: "--two" }, { name: "p99", colour: "--three" },
      ]),
      split: chart(
        { title: "Time per stage", unit: " ms", stacked: true },
        STAGES.map((name, index) => ({ name: name === "read" ? "read, wait" : name, colour: COLOURS[index] })),
      ),
      shares: chart({ title: "Class shares in %", stacked: true, top: 100, legend: false }, classes.map(rgb)),
    };
  }

  /** Show the figures of one header. */
  show(header) {
    const now = performance.now();
    if (now - this.last < EVERY_MS) return;
    this.last = now;
    this.#showTiles(header);
    if (header.state === "running") this.#push(now, header);
  }

  #showTiles({ fps, latency_ms: latency, dropped, reconnects, viewers, device }) {
    const tiles = [
      ["Frames / s", fps === null ? "–" : format(fps, 1), ""],
      ["Latency p50", latency ? format(latency.p50, latency.p50 < 100 ? 1 : 0) : "–", "ms"],
      ["Latency p99", latency ? format(latency.p99, latency.p99 < 100 ? 1 : 0) : "–", "ms"],
      ["Dropped", dropped, ""],
      ["Reconnects", reconnects, ""],
      ["Viewers", viewers, ""],
    ];
    if (device?.power_w !== undefined) tiles.push(["Power", format(device.power_w, 1), "W"]);
    if (device?.temperature_c !== undefined) tiles.push(["Temperature", format(device.temperature_c, 0), "°C"]);
    this.tiles.replaceChildren(...tiles.map(tile));
  }

  #push(now, { fps, latency_ms: latency, split_ms: split, shares, device }) {
    this.charts.fps.push(now, [fps]);
    this.charts.latency.push(now, latency ? [latency.p50, latency.p90, latency.p99] : [null, null, null]);
    this.charts.split.push(now, STAGES.map((stage) => split[stage]));
    if (shares) this.charts.shares.push(now, shares.map((share) => 100 * share));
    if (device) this.#pushDevice(now, device);
  }

  #pushDevice(now, device) {
    for (const [key, title, unit, colour] of [
      ["power_w", "Power", " W", "--four"],
      ["temperature_c", "Temperature", " °C", "--three"],
    ]) {
      if (device[key] === undefined) continue;
      this.charts[key] ??= new Chart(this.host, { title, unit }, [{ name: "now", colour }]);
      this.charts[key].push(now, [device[key]]);
    }
  }
}

function tile([name, value, unit]) {
  const shown = element("dd", { textContent: value });
  if (unit) shown.append(element("small", { textContent: unit }));
  return element("div", {}, element("dt", { textContent: name }), shown);
}
