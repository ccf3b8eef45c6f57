// What is chosen, the calls of frames, colours of classes: what all parts of the page share.
const names = data.names;
const parts = [];  // { chosen(), themed() } of each part of the page
let chosen = null;  // { title, modules: a Set of numbers, phase: a number or -1, link }

const column = (table, name) => data.tables[table].columns.find(column => column.name === name)?.values;

const PALETTE = ['#6ea8fe', '#f5a35c', '#7fcf8a', '#e8868b', '#b9a0ec', '#6fd0cd', '#f09ac8', '#d8c556', '#c9a98a', '#8fb8de'];
const REST = '#a9b4c0';
const classOrder = column('class', 'class');
const classColour = name => PALETTE[classOrder.indexOf(name)] ?? REST;
const phaseOrder = column('phase', 'phase');
const PHASES = ['#9aa8b8', '#5fb3b3', '#d3b15f', '#c98a4b', '#468f9e', '#8d8bc4', '#b98aa5'];
const phaseColour = name => PHASES[phaseOrder.indexOf(name) % PHASES.length] ?? REST;
const ofClass = name => names.classes.flatMap((other, module) => other === name ? [module] : []);

function choose(next) {
  chosen = next;
  for (const part of parts) part.chosen?.();
}

const chooseModules = (modules, more = {}) =>
  choose({ title: modules.length === 1 ? names.modules[modules[0]] : `${modules.length} modules`, phase: -1, ...more, modules: new Set(modules) });

// Calls by frame. Those that are not here yet are fetched.
const slices = new Map(data.slices.map(slice => [slice.frame, slice]));
const decoded = new Map();
const waiting = new Map();
function received(slice) {
  slices.set(slice.frame, slice);
  waiting.get(slice.frame)?.();
}

function load(frame) {
  if (slices.has(frame.frame)) return Promise.resolve(calls(frame.frame));
  return new Promise((done, failed) => {
    waiting.set(frame.frame, () => done(calls(frame.frame)));
    fetchFrame(frame, failed);
  });
}

function calls(frame) {
  if (decoded.has(frame)) return decoded.get(frame);
  const slice = slices.get(frame);
  const found = [];
  let call = 0, start = 0;
  for (let place = 0; place < slice.call.length; place++) {
    const of = name => slice[name] ? slice[name][place] : undefined;
    call += slice.call[place];
    start += of('start') ?? 0;
    const known = value => value === -1 ? undefined : value;
    found.push({
      call, frame, start: slice.start && start, depth: of('depth') ?? 0, thread: of('thread') ?? 0,
      module: slice.module[place], phase: of('phase') ?? -1, step: known(of('step')), shapes: names.shapes[of('shapes') ?? -1],
      total: known(of('total')), self: known(of('self')),
      deviceStart: missing(known(of('device_start'))) ? undefined : of('device_start') - slice.began, device: known(of('device')), error: slice.errors[place],
    });
  }
  decoded.set(frame, found);
  return found;
}

const loadedCalls = () => [...slices.keys()].flatMap(calls);
