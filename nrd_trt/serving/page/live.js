// Follows the run: asks for the newest frame, and for the next one while that is decoded.

import { decodeLayers, readRecord } from "/assets/records.js";

const RETRY_MS = 1000;
const viewer = Math.random().toString(36).slice(2, 12);
let wanted = false; // the confidence
let again = false; // the frame that is there already, with it

/**
 * Follow the run for as long as the page is open.
 *
 * @param on.status   called with /status whenever the server was reached anew
 * @param on.figures  called with every header
 * @param on.layers   called with every decoded frame
 * @param on.trouble  called with "connecting" or "unauthorised"
 */
export async function follow(on) {
  for (;;) {
    try {
      const status = await getJson("/status");
      on.status(status);
      await watch(on);
    } catch (error) {
      on.trouble(error instanceof Unauthorised ? "unauthorised" : "connecting");
      if (!(error instanceof Unauthorised || error instanceof TypeError)) console.warn(error);
    }
    await sleep(RETRY_MS);
  }
}

/** Ask for the confidence too, or no longer. */
export function wantConfidence(on) {
  again ||= on && !wanted;
  wanted = on;
}

/** Send one of pause, resume and step. */
export async function control(action) {
  const response = await fetch("/control", { method: "POST", body: JSON.stringify({ action }) });
  return checked(response).json();
}

async function watch(on) {
  let pending = ask(0);
  for (;;) {
    const record = readRecord(await pending);
    on.figures(record.header);
    await visible();
    pending = ask(record.header.number);
    pending.catch(() => {}); // it is awaited, and reported, in the next round
    const layers = await decodeLayers(record);
    if (layers) on.layers(layers, record.header);
  }
}

async function ask(after) {
  const query = new URLSearchParams({ after: again ? 0 : after, viewer, confidence: wanted });
  again = false;
  return checked(await fetch(`/frame?${query}`)).arrayBuffer();
}

async function getJson(path) {
  return checked(await fetch(path)).json();
}

function checked(response) {
  if (response.status === 401) throw new Unauthorised();
  if (!response.ok) throw new Error(`${response.url}: ${response.status}`);
  return response;
}

/** Wait until the page can be seen: nothing is encoded for a page in the background. */
async function visible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

class Unauthorised extends Error {}
