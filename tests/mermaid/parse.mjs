// Reads a JSON list of charts, writes a JSON list of what Mermaid 11 and 10 say of each: "" where both accept it.
import { readFileSync } from "node:fs";
import { JSDOM } from "jsdom";

const { window } = new JSDOM("");
globalThis.window = window;
globalThis.document = window.document;
const parsers = [(await import("mermaid")).default, (await import("mermaid10")).default];
for (const parser of parsers) parser.initialize({ maxTextSize: 1e9, maxEdges: 1e6 });

const said = [];
for (const chart of JSON.parse(readFileSync(0, "utf8"))) {
  let errors = "";
  for (const parser of parsers) {
    try {
      await parser.parse(chart);
    } catch (error) {
      errors += String(error);
    }
  }
  said.push(errors);
}
console.log(JSON.stringify(said));
