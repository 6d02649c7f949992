// Renders /openapi.json: operations by tag, with parameters, bodies and answers. No library, no inline code.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function resolve(schema, api) {
  return schema && schema.$ref ? schema.$ref.slice(2).split("/").reduce((at, key) => at[key], api) : schema;
}

function describe(schema, api, depth) {
  if (!schema) return "any";
  const named = schema.$ref ? schema.$ref.split("/").pop() : null;
  const shape = resolve(schema, api);
  if (named && depth > 3) return named;
  if (shape.enum) return shape.enum.map((item) => JSON.stringify(item)).join(" | ");
  if ("const" in shape) return JSON.stringify(shape.const);
  const several = shape.anyOf || shape.oneOf;
  if (several) return several.map((item) => describe(item, api, depth)).join(" | ");
  if (shape.type === "array") return "[" + describe(shape.items, api, depth) + ", ...]";
  if (shape.properties) {
    const pad = "  ".repeat(depth + 1);
    const required = shape.required || [];
    const lines = Object.entries(shape.properties).map(([name, property]) => {
      const mark = required.includes(name) ? "" : "?";
      const about = property.description ? "  // " + property.description.replace(/\s+/g, " ") : "";
      return pad + name + mark + ": " + describe(property, api, depth + 1) + about;
    });
    return "{\n" + lines.join("\n") + "\n" + "  ".repeat(depth) + "}";
  }
  if (shape.type === "object") return "object";
  return (shape.type || "any") + (shape.format ? " (" + shape.format + ")" : "");
}

function content(block, api, into) {
  for (const [type, media] of Object.entries(block.content || {})) {
    into.append(element("div", type, "what"), element("pre", describe(media.schema, api, 0)));
  }
}

function operation(path, method, details, api) {
  const box = element("details");
  const head = element("summary");
  head.append(element("span", method.toUpperCase(), "method " + method), element("code", path));
  head.append(element("span", details.summary || "", "what"));
  box.append(head);
  box.dataset.words = (method + " " + path + " " + (details.summary || "") + " " + (details.description || "")).toLowerCase();
  box.addEventListener("toggle", () => fill(box, details, api), { once: true });
  return box;
}

function fill(box, details, api) {
  const inner = element("div");
  if (details.description) inner.append(element("p", details.description));
  if ((details.parameters || []).length) {
    inner.append(element("h3", "Parameters"));
    const table = element("table");
    for (const parameter of details.parameters) {
      const row = element("tr");
      const name = element("td");
      name.append(element("code", parameter.name + (parameter.required ? "" : "?")));
      row.append(name, element("td", parameter.in, "what"), element("td", describe(parameter.schema, api, 1)));
      row.append(element("td", parameter.description || ""));
      table.append(row);
    }
    inner.append(table);
  }
  if (details.requestBody) {
    inner.append(element("h3", "Body"));
    content(details.requestBody, api, inner);
  }
  inner.append(element("h3", "Answers"));
  for (const [status, answer] of Object.entries(details.responses)) {
    const problem = answer.content && answer.content["application/problem+json"];
    inner.append(element("div", status + "  " + answer.description));
    if (!problem) content(answer, api, inner);
  }
  box.append(inner);
}

function show(api) {
  const about = document.getElementById("about");
  about.textContent = api.info.description + " Version " + api.info.version + ". Send a key as x-api-key or Authorization: Bearer. ";
  const link = element("a", "openapi.json");
  link.href = "/openapi.json";
  about.append(link);
  const sections = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((name) => methods[name])) {
      const tag = (methods[method].tags || ["other"])[0];
      if (!sections.has(tag)) {
        const section = element("section");
        section.append(element("h2", tag));
        sections.set(tag, section);
      }
      sections.get(tag).append(operation(path, method, methods[method], api));
    }
  }
  document.getElementById("operations").append(...sections.values());
}

function filter(words) {
  let any = false;
  for (const section of document.querySelectorAll("section")) {
    let seen = false;
    for (const box of section.querySelectorAll("details")) {
      box.hidden = !box.dataset.words.includes(words);
      seen = seen || !box.hidden;
    }
    section.hidden = !seen;
    any = any || seen;
  }
  document.getElementById("none").hidden = any;
}

document.getElementById("filter").addEventListener("input", (event) => filter(event.target.value.trim().toLowerCase()));

fetch("/openapi.json")
  .then((response) => response.json())
  .then(show)
  .catch((error) => { document.getElementById("about").textContent = "The API's description could not be loaded: " + error; });
