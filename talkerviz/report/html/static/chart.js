// The flowchart: pictures drawn beforehand, one shown at a time; boxes can be chosen and opened.
const EDGE_KINDS = { flow: ['flow of tensors', 'arrow', 'solid'], carried: ['from an earlier repeat', 'carried', 'dashed'], state: ['kept state, written in place', 'state', 'dashed'] };
let shown = null;  // the chart that is shown
let zooming = null;
const chartsBefore = [];

function showChart(name) {
  shown = data.charts.find(chart => chart.name === name);
  zooming?.destroy();
  // As high as it is when it is as wide as there is room.
  $('chart').style.height = `${Math.min(tallest(), Math.max(320, $('chart').clientWidth * shown.height / shown.width))}px`;
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.append(pictureOf(shown));
  svg.setAttribute('font-size', 9);
  $('chart').replaceChildren(svg);
  zooming = svgPanZoom(svg, { mouseWheelZoomEnabled: false, dblClickZoomEnabled: false, minZoom: 0.2, maxZoom: 30, zoomScaleSensitivity: 0.3 });
  fit();
  const boxes = [...svg.querySelectorAll('.node, .cluster')].filter(box => shown.boxes[box.dataset.id]);
  boxes.forEach((box, place) => {
    const says = shown.boxes[box.dataset.id];
    attributes(box, { role: 'button', tabindex: place ? -1 : 0, 'aria-label': `${says.path || says.name}, ${says.kind}` });
    if (says.link) box.querySelector('path, polygon')?.classList.add('opens');
  });
  if (shown.level) $('level').value = name;
  $('level').disabled = !shown.level;
  const back = make('button', { type: 'button', onclick: goBack }, '‹ Back');
  $('crumbs').replaceChildren(...(shown.level ? [] : [back, ` ${shown.label}`]));
  markBoxes();
}

function openInside(name) {
  fetchChart(name, () => {
    chartsBefore.push(shown.name);
    showChart(name);
    $('crumbs').querySelector('button').focus();
  });
}

function goBack() {
  showChart(chartsBefore.pop());
  $('level').focus();
}

function chooseBox(element) {
  const box = shown.boxes[element.dataset.id];
  if (box.kind === 'phase') {
    CHOOSES.phase({ phase: box.name });
  } else if (box.modules.length) {
    // The tooltip's first lines are the title and the class.
    const here = element.querySelector('title')?.textContent.split('\n').slice(2).join('\n');
    chooseModules(box.modules, { title: box.path, phase: box.phase, link: box.link, here });
  }
  bringIntoView(element);
}

function fit() {
  zooming.resize().fit().center().zoomBy(0.97);
}

// Of what is chosen: boxes that stand for any of it, and the arrows at them.
function markBoxes() {
  const ids = new Set(Object.entries(shown?.boxes ?? {}).filter(([, box]) => chosen && isChosenBox(box)).map(([id]) => id));
  for (const box of $('chart').querySelectorAll('.node, .cluster')) box.classList.toggle('chosen', ids.has(box.dataset.id));
  for (const edge of $('chart').querySelectorAll('.edge')) {
    edge.classList.toggle('chosen', ids.has(edge.dataset.from) || ids.has(edge.dataset.to));
  }
}

const isChosenBox = box => chosen.whole
  ? box.kind === 'phase' && names.phases.indexOf(box.name) === chosen.phase
  : (chosen.phase < 0 || box.phase === chosen.phase) && box.modules.some(module => chosen.modules.has(module));

const boxOf = event => event.target.closest?.('#chart .node[role], #chart .cluster[role]');

function boxKeys(event) {
  const box = boxOf(event);
  if (!box) return;
  if (event.key === 'Enter' || event.key === ' ') {
    const link = shown.boxes[box.dataset.id].link;
    if (event.key === 'Enter' && event.ctrlKey && link) openInside(link);
    else chooseBox(box);
  } else {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const boxes = [...$('chart').querySelectorAll('[role=button]')];
    const next = boxes[(boxes.indexOf(box) + step + boxes.length) % boxes.length];
    box.tabIndex = -1;
    next.tabIndex = 0;
    next.focus({ preventScroll: true });
    bringIntoView(next);
  }
  event.preventDefault();
}

function bringIntoView(box) {
  const frame = $('chart').getBoundingClientRect(), at = box.getBoundingClientRect();
  // What the panel covers, at the side or on a narrow screen at the bottom, cannot be seen.
  const panel = $('panel')?.hidden === false ? $('panel').getBoundingClientRect() : { left: Infinity, top: Infinity };
  const right = panel.left > frame.left ? Math.min(frame.right, panel.left) : frame.right;
  const bottom = panel.left > frame.left ? frame.bottom : Math.min(frame.bottom, panel.top);
  const off = (low, high, from, to) => low < from ? from - low + 20 : high > to ? to - high - 20 : 0;
  zooming.panBy({ x: off(at.left, at.right, frame.left, right), y: off(at.top, at.bottom, frame.top, bottom) });
}

// The deepest picture whose text can be read without zooming, as far as any can.
function firstChart() {
  const levels = data.charts.filter(chart => chart.level);
  const fits = chart => Math.min($('chart').clientWidth / chart.width, tallest() / chart.height);
  return levels.filter(chart => fits(chart) >= 0.75).at(-1) ?? levels[0];
}

function setUpChart() {
  if (!data.charts.length) return $('flowchart').remove();
  for (const chart of data.charts.filter(chart => chart.level)) $('level').append(make('option', { value: chart.name }, chart.label));
  $('level').onchange = () => showChart($('level').value);
  $('chart-legend').replaceChildren(
    ...(data.timed ? [make('span', {}, 'share of the time'), ...data.heat.map(([text, fill], heat) => swatch(heat ? fill : 'var(--cool)', text))] : []),
    ...data.edges.map(kind => {
      const [text, name, style] = EDGE_KINDS[kind];
      const line = make('i', { className: 'line' });
      line.style.cssText = `border-color: var(--${name}); border-top-style: ${style}`;
      return make('span', {}, line, kind === 'flow' && !data.flow ? 'order of calls' : text);
    }),
  );
  const zoom = { in: () => zooming.zoomIn(), out: () => zooming.zoomOut(), fit };
  for (const button of root.querySelectorAll('[data-zoom]')) button.onclick = zoom[button.dataset.zoom];
  const chart = $('chart');
  let pressed = null;
  chart.addEventListener('pointerdown', event => { pressed = [event.clientX, event.clientY]; });
  chart.addEventListener('click', event => {
    // The end of a drag is no click.
    const moved = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 5;
    const box = boxOf(event);
    if (box && !moved) chooseBox(box);
  });
  chart.addEventListener('dblclick', event => {
    const link = boxOf(event) && shown.boxes[boxOf(event).dataset.id].link;
    if (link) openInside(link);
  });
  chart.addEventListener('keydown', boxKeys);
  chart.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const frame = chart.getBoundingClientRect();
    zooming.zoomAtPointBy(Math.exp(-event.deltaY / 300), { x: event.clientX - frame.left, y: event.clientY - frame.top });
  }, { passive: false });
  whenResized(chart, () => zooming?.resize());
  showChart(firstChart().name);
  parts.push({ chosen: markBoxes });
}
