// What the widget does for the parts that it shares with the report's page, and what is chosen, here and in Python.
const PATIENCE = 15_000;  // milliseconds
const waitingCharts = new Map();
const observers = [];

function pictureOf(chart) {
  const parsed = new DOMParser().parseFromString(`<svg xmlns="http://www.w3.org/2000/svg">${chart.svg}</svg>`, 'image/svg+xml');
  return document.importNode(parsed.documentElement.firstElementChild, true);
}
function tallest() { return 460; }
function whenResized(element, does) {
  // Notebooks take what is out of sight out of the page.
  const observer = new ResizeObserver(() => { if (element.clientWidth) does(); });
  observer.observe(element);
  observers.push(observer);
}

const noAnswer = () => 'Python does not answer: is its kernel at work?';
function ask(what, isThere, failed) {
  model.send({ ask: what.ask, [what.ask]: what.of });
  setTimeout(() => { if (!isThere()) failed(noAnswer()); }, PATIENCE);
}
function fetchFrame(frame, failed) {
  ask({ ask: 'frame', of: frame.frame }, () => slices.has(frame.frame), text => failed(new Error(text)));
}
function fetchChart(name, then) {
  const isThere = () => data.charts.some(chart => chart.name === name);
  if (isThere()) return then();
  waitingCharts.set(name, then);
  ask({ ask: 'chart', of: name }, isThere, say);
}
function answered(content) {
  if (content.slice) received(content.slice);
  if (content.chart) {
    const { name } = content.chart, then = waitingCharts.get(name);
    if (!data.charts.some(chart => chart.name === name)) data.charts.push(content.chart);
    waitingCharts.delete(name);
    then?.();
  }
  if (content.why) say(content.why);
}

// What the report's tables choose.
const CHOOSES = {
  phase: row => choose({ title: `phase ${row.phase}`, modules: new Set(), phase: names.phases.indexOf(row.phase), whole: true }),
};

function say(text) { $('chosen').textContent = text; }
function sayChosen() {
  const phase = chosen && chosen.phase >= 0 && !chosen.whole ? ` in ${names.phases[chosen.phase]}` : '';
  const span = model.get('span');
  const parts = [chosen && `${chosen.title}${phase}`, chosen && !missing(chosen.call) && `call ${chosen.call}`, span && `${timeText(span[1] - span[0])} of time`];
  say(parts.filter(Boolean).join(' · ') || 'Click a box or a bar, drag over the time line; double-click a dashed box to see its inside. Drag moves the chart, Ctrl and the wheel zoom.');
}

let telling = false;  // so that what is told is not taken for news
function tell(values) {
  telling = true;
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
  telling = false;
}
function tellChosen() {
  sayChosen();
  if (telling) return;
  tell({
    selected: chosen && !chosen.whole ? [...chosen.modules].map(module => names.modules[module]) : [],
    phase: chosen && chosen.phase >= 0 ? names.phases[chosen.phase] : '', call: chosen?.call ?? null,
  });
}
function takeChosen() {
  if (telling) return;
  const modules = model.get('selected').map(path => names.modules.indexOf(path)), phase = model.get('phase'), call = model.get('call');
  telling = true;
  if (modules.length) chooseModules(modules, { phase: names.phases.indexOf(phase), call: call ?? undefined });
  else if (phase) CHOOSES.phase({ phase });
  else choose(null);
  telling = false;
}
function spanChosen(span) {
  tell({ span });
  sayChosen();
}
function takeSpan() {
  const span = model.get('span');
  showSpan(span);
  sayChosen();
}
function frameShown(frame) {
  if (model.get('frame') !== frame) tell({ frame });
  showSpan(model.get('span'));
}

$('title').textContent = data.title;
$('subtitle').textContent = data.subtitle;
setUpChart();
setUpTimeline();
parts.push({ chosen: tellChosen });
const listeners = {
  'msg:custom': answered, 'change:selected': takeChosen, 'change:phase': takeChosen, 'change:call': takeChosen,
  'change:span': () => { if (!telling) takeSpan(); }, 'change:frame': () => { if (!telling) showFrame(model.get('frame')); },
};
for (const [event, does] of Object.entries(listeners)) model.on(event, does);
if (model.get('selected').length || model.get('phase')) takeChosen();
if (model.get('frame') !== data.typical) showFrame(model.get('frame'));
sayChosen();
if (data.why) say(data.why);

return {
  themed: () => parts.forEach(part => part.themed?.()),
  close() {
    for (const [event, does] of Object.entries(listeners)) model.off(event, does);
    observers.forEach(observer => observer.disconnect());
    plots.forEach(({ chart }) => chart.dispose());
    zooming?.destroy();
  },
};
