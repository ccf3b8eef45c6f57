// Opens a profile in speedscope's own page and writes what the page exports again, or fails with what it says.
//
//     node speedscope.mjs NAME < profile
//
// A speedscope file is held against the format's schema first.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import Ajv from "ajv";
import { JSDOM, VirtualConsole } from "jsdom";

// Without the page's source, which is one long line.
process.on("uncaughtException", (error) => {
  console.error(error.message);
  process.exit(1);
});

const release = fileURLToPath(new URL("node_modules/speedscope/dist/release", import.meta.url));
const name = process.argv[2];
const profile = readFileSync(0);

if (name.endsWith(".speedscope.json")) {
  const schema = JSON.parse(readFileSync(join(release, "file-format-schema.json"), "utf8"));
  const ajv = new Ajv({ strict: false });
  if (!ajv.validate(schema, JSON.parse(profile))) throw new Error(ajv.errorsText());
}

const said = [];
const console_ = new VirtualConsole();
console_.on("log", (...words) => said.push(words.join(" ")));
// A page given a profile by its address; its list of functions needs no drawing, which is not to be had here.
const { window } = new JSDOM("<body></body>", {
  url: "http://localhost/#localProfilePath=none&view=sandwich",
  runScripts: "outside-only",
  pretendToBeVisual: true,
  virtualConsole: console_,
});
window.HTMLCanvasElement.prototype.getContext = (kind) =>
  kind === "2d" ? new Proxy({}, { get: () => () => ({ width: 1 }) }) : null;
window.Element.prototype.scrollTo = window.Element.prototype.scrollIntoView = () => {};
Object.assign(window, { TextDecoder, TextEncoder });
window.matchMedia = () => ({ matches: false, addListener() {}, removeListener() {} });
const exported = new Promise((found) => {
  window.URL.createObjectURL = (blob) => {
    found(blob);
    return "";
  };
});
window.eval(readFileSync(join(release, readdirSync(release).find((file) => /^speedscope-.*\.js$/.test(file))), "utf8"));

async function until(what, found) {
  for (let tries = 0; tries < 400; tries++) {
    const failed = said.find((line) => /failed|error|unrecognized/i.test(line));
    if (failed) throw new Error(failed);
    const value = found();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`no ${what}: ${said.join("\n")}`);
}

const page = await until("page", () => window.speedscope);
page.loadFileFromBase64(name, profile.toString("base64"));
const button = await until("export", () =>
  [...window.document.querySelectorAll("div")].find((one) => one.textContent.endsWith("Export") && one.children.length < 2),
);
button.click();
const reader = new window.FileReader();
reader.readAsText(await exported);
process.stdout.write(await until("file", () => reader.result), () => process.exit());
