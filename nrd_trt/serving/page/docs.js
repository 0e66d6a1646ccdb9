// Shows /openapi.json as a page.

import { element } from "/assets/charts.js";

async function load() {
  const response = await fetch("/openapi.json");
  if (response.status === 401) throw new Error("This server asks for a token: open / first.");
  return response.json();
}

function operations({ paths }) {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, ...operation })),
  );
}

function section({ path, method, description, summary, parameters = [], requestBody }) {
  const title = element("h3", {}, element("em", { className: method, textContent: method.toUpperCase() }), path);
  const text = element("p", {}, ...marked(joinLines(description ?? summary ?? "")));
  const card = element("section", { className: "card" }, title, text);
  if (parameters.length) card.append(element("div", { className: "scroll" }, table(parameters)));
  card.append(element("pre", { textContent: example(path, method, requestBody) }));
  return card;
}

/** Lines of a paragraph belong together; empty ones part paragraphs. */
function joinLines(text) {
  return text.split(/\n\s*\n/).map((paragraph) => paragraph.replace(/\s*\n\s*/g, " ")).join("\n\n");
}

/** Every second piece between backticks is code. */
function marked(text) {
  return text.split("`").map((piece, index) => (index % 2 ? element("code", { textContent: piece }) : piece));
}

function table(parameters) {
  const rows = parameters.map(({ name, schema, description = "" }) =>
    row("td", [name, kindOf(schema), "default" in schema ? JSON.stringify(schema.default) : "", description]),
  );
  return element("table", {}, row("th", ["Parameter", "Values", "Default", ""]), ...rows);
}

function kindOf({ enum: values, type, anyOf }) {
  if (values) return values.join(", ");
  return type ?? (anyOf ?? []).map(kindOf).filter((kind) => kind !== "null").join(" or ");
}

function row(cell, texts) {
  return element("tr", {}, ...texts.map((textContent) => element(cell, { textContent })));
}

function example(path, method, body) {
  if (method === "get") return `curl ${location.origin}${path}`;
  const json = body?.content["application/json"];
  const data = json ? `-d '{"action": "${json.schema.properties.action.enum[0]}"}'` : "--data-binary @photo.jpg";
  return `curl ${data} ${location.origin}${path}`;
}

const host = document.getElementById("api");
load().then(
  (described) => host.replaceChildren(...operations(described).map(section)),
  (error) => host.replaceChildren(element("p", { textContent: error.message })),
);
