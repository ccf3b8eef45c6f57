// Calls as bars on the bars of their callers: the timeline of a frame, and the flame graph.
const BAR = 20;
const MARGIN = { left: 56, right: 16, top: 8 };
const BELOW = 64;

// As much of a name as there is room for, and nothing where it would say nothing.
function fitting(name, width) {
  const room = Math.floor(width / 6.1), tail = name.split('.').at(-1);
  return room >= name.length ? name : room >= tail.length ? tail : room >= 5 ? `${name.slice(0, room - 1)}…` : '';
}

// items: { from, to, lane, module, ... }, times in nanoseconds; lanes: what stands left of each row. With `onSpan` a drag
// chooses a span of time, [from, to] or null, and with the shift key it moves.
function stackPlot(element, { says, onClick, onSpan = null }) {
  let items = [], lanes = [], span = null, ink = '';
  const bar = (params, api) => {
    const item = items[api.value(3)];
    const [x, y] = api.coord([item.from, item.lane]);
    const x1 = api.coord([item.to, item.lane])[0];
    const left = Math.max(x, params.coordSys.x), right = Math.min(Math.max(x1, x + 0.7), params.coordSys.x + params.coordSys.width);
    if (right <= left) return null;
    const width = right - left, lit = !chosen || chosen.whole || isChosenItem(item);
    return {
      type: 'rect',
      shape: { x: left, y: y - BAR / 2, width: width > 3 ? width - 0.6 : width, height: BAR - 1.5, r: width > 8 ? 2 : 0 },
      style: { fill: item.colour, opacity: lit ? 1 : 0.28, ...border(item) },
      emphasis: { style: { stroke: ink, lineWidth: 1.2 } },
      textConfig: { position: 'insideLeft', distance: 4 },
      textContent: { style: { text: fitting(item.name, width - 8), fill: lit ? '#10161d' : ink, fontSize: 11, opacity: lit ? 1 : 0.6 } },
    };
  };
  const border = item => item.error ? { stroke: colour('mark'), lineWidth: 2 }
    : chosen && item.call !== undefined && item.call === chosen.call ? { stroke: ink, lineWidth: 2 } : {};
  const spanBar = (params, api) => {
    const { x, y, width, height } = params.coordSys;
    const at = time => Math.min(Math.max(api.coord([time, 0])[0], x), x + width);
    const [left, right] = span.map(at);
    return { type: 'rect', silent: true, shape: { x: left, y, width: Math.max(right - left, 1), height }, style: { fill: colour('accent'), opacity: 0.22 } };
  };
  const spanSeries = () => ({ id: 'span', type: 'custom', silent: true, tooltip: { show: false }, z: 9, clip: true, renderItem: spanBar, encode: { x: [0, 1] }, data: span ? [[...span, 0]] : [] });
  const layout = () => ({
    animation: false,
    grid: { ...MARGIN, bottom: BELOW },
    tooltip: { ...tooltipLook(), formatter: params => lines(...says(items[params.value[3]])) },
    xAxis: { type: 'value', min: 0, max: Math.max(...items.map(item => item.to), 1), ...axisLook(), axisLabel: { ...axisLook().axisLabel, formatter: timeText, hideOverlap: true } },
    yAxis: {
      type: 'category', inverse: true, data: lanes, ...axisLook(), axisTick: { show: false }, axisLine: { show: false },
      axisLabel: { ...axisLook().axisLabel, interval: 0 }, splitLine: { show: false },
    },
    dataZoom: [
      { type: 'inside', filterMode: 'weakFilter', zoomOnMouseWheel: 'ctrl', moveOnMouseMove: onSpan ? 'shift' : true, preventDefaultMouseMove: false, minSpan: 0.0005 },
      {
        type: 'slider', filterMode: 'weakFilter', bottom: 8, height: 20, showDetail: false, brushSelect: false, minSpan: 0.0005,
        borderColor: colour('line'), fillerColor: 'rgba(110, 168, 254, .2)', handleStyle: { color: colour('accent') }, moveHandleStyle: { color: colour('line') },
      },
    ],
    series: [{ id: 'bars', type: 'custom', renderItem: bar, encode: { x: [0, 1], y: 2 }, data: items.map((item, place) => [item.from, item.to, item.lane, place]) }, spanSeries()],
  });
  const options = () => {
    ink = colour('ink');
    return layout();
  };
  const { chart, draw } = plot(element, options, 140);
  const zoomed = () => { const { start, end } = chart.getOption().dataZoom[0]; return [start, end]; };
  const zoomTo = (start, end) => {
    const span = Math.min(end - start, 100), from = Math.min(Math.max(start, 0), 100 - span);
    chart.dispatchAction({ type: 'dataZoom', start: from, end: from + span });
  };
  const scale = factor => { const [start, end] = zoomed(), middle = (start + end) / 2, half = (end - start) / 2 * factor; zoomTo(middle - half, middle + half); };
  const move = part => { const [start, end] = zoomed(), by = (end - start) * part; zoomTo(start + by, end + by); };
  const whole = () => zoomTo(0, 100);
  chart.on('click', params => onClick(items[params.value[3]]));
  chart.on('dblclick', ({ value: [from, to] }) => {
    const last = Math.max(...items.map(item => item.to)), around = (to - from) * 0.02;
    zoomTo((from - around) / last * 100, (to + around) / last * 100);
  });
  const showSpan = next => { span = next; chart.setOption({ series: [{ id: 'span', data: spanSeries().data }] }); };
  if (onSpan) brush(chart, () => items.length, showSpan, onSpan);
  attributes(element, { tabindex: 0, role: 'group', 'aria-label': 'Plus and minus zoom, arrow keys move, 0 shows all' });
  element.addEventListener('keydown', event => {
    const does = { '+': () => scale(0.5), '=': () => scale(0.5), '-': () => scale(2), 0: whole, ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25) }[event.key];
    if (does && !event.ctrlKey && !event.metaKey) { does(); event.preventDefault(); }
  });
  const button = (text, label, does) => attributes(make('button', { type: 'button', onclick: does }, text), { 'aria-label': label });
  root.querySelector(`[data-for="${element.id}"]`).append(
    button('+', 'Zoom in', () => scale(0.5)), button('−', 'Zoom out', () => scale(2)), button('All', 'Show all', whole),
  );
  parts.push({ chosen: draw_keeping_zoom });
  function draw_keeping_zoom() {
    const [start, end] = zoomed();
    draw();
    zoomTo(start, end);
  }
  return {
    showSpan,
    show(newItems, newLanes) {
      [items, lanes] = [newItems, newLanes];
      // In this order, as a resized plot is drawn again with the items that it knows.
      draw();
      element.style.height = `${lanes.length * BAR + MARGIN.top + BELOW}px`;
      chart.resize();
    },
  };
}

// A drag over the time axis of a plot that `isFull`: `onMove` as it goes on, `onEnd` once it is over; a click on nothing
// ends with null.
function brush(chart, isFull, onMove, onEnd) {
  const surface = chart.getZr();
  let from = null, span = null;
  const timeAt = event => {
    const { min, max } = chart.getOption().xAxis[0];
    return Math.round(Math.min(Math.max(chart.convertFromPixel({ xAxisIndex: 0 }, event.offsetX), min), max));
  };
  surface.on('mousedown', event => {
    const inside = chart.containPixel('grid', [event.offsetX, event.offsetY]);
    from = isFull() && inside && !event.event.shiftKey && event.event.button === 0 ? { time: timeAt(event), x: event.offsetX } : null;
    span = null;
  });
  surface.on('mousemove', event => {
    if (!from || Math.abs(event.offsetX - from.x) < 5 && !span) return;
    span = [from.time, timeAt(event)].sort((one, other) => one - other);
    onMove(span);
  });
  const end = event => {
    if (!from) return;
    if (span || !event.target) { onMove(span); onEnd(span); }
    from = null;
  };
  surface.on('mouseup', end);
}

const isChosenItem = item => chosen.modules.has(item.module) && (chosen.phase < 0 || chosen.phase === item.phase);
const nameOf = module => names.modules[module].split('.').slice(-2).join('.').replace(/^.*\.(?!\d)/, '');

function setUpTimeline() {
  if (!data.timed || !data.frames.length) return $('timeline').remove();
  const labelOf = frame => frame.frame === null ? 'outside of frames' : `${frame.frame}`;
  for (const frame of data.frames) $('frame').append(make('option', {}, `${labelOf(frame)}  (${timeText(frame.time)})`));
  const timeline = stackPlot($('timeline-plot'), {
    says: saysCall, onClick: item => chooseModules([item.module], { call: item.call }),
    onSpan: spanChosen && (span => spanChosen(span && span.map(time => time + began))),
  });
  let wanted = 0, began = 0;
  const show = async place => {
    const frame = data.frames[place];
    wanted = place;
    $('frame').selectedIndex = place;
    $('frame-before').disabled = place === 0;
    $('frame-after').disabled = place === data.frames.length - 1;
    $('frame-says').textContent = 'loading …';
    try {
      const of_frame = await load(frame);
      if (wanted !== place) return;  // another one was chosen in the meantime
      began = slices.get(frame.frame).began;
      timeline.show(...lanesOf(of_frame));
      frameShown(frame.frame);
      const left = slices.get(frame.frame).left_out;
      $('frame-says').textContent = `${callsText(of_frame.length)}${left ? `; the ${countText(left)} shortest are left out` : ''}`;
    } catch (error) {
      $('frame-says').textContent = error.message;
    }
  };
  $('frame').onchange = () => show($('frame').selectedIndex);
  $('frame-before').onclick = () => show(wanted - 1);
  $('frame-after').onclick = () => show(wanted + 1);
  // A frame of the steady state, where there is one.
  const typical = data.frames.findIndex(frame => frame.frame === data.typical);
  show(Math.max(typical, 0));
  showFrame = number => show(data.frames.findIndex(frame => frame.frame === number));
  showSpan = span => timeline.showSpan(span && span.map(time => time - began));
}
let showFrame = () => {}, showSpan = () => {};

function lanesOf(calls) {
  const lanes = [], items = [];
  const add = (title, thread, from, length) => {
    const of_thread = calls.filter(call => call.thread === thread && from(call) !== undefined && length(call) !== undefined);
    if (!of_thread.length) return;
    const first = lanes.length;
    for (const call of of_thread) {
      const lane = first + call.depth;
      while (lanes.length <= lane) lanes.push(lanes.length === first ? title : '');
      items.push({ ...call, lane, from: from(call), to: from(call) + length(call), name: nameOf(call.module), colour: classColour(names.classes[call.module]) });
    }
  };
  const threads = [...new Set(calls.map(call => call.thread))];
  for (const thread of threads) add(threads.length > 1 ? `host ${thread}` : 'host', thread, call => call.start, call => call.total);
  for (const thread of threads) add(threads.length > 1 ? `dev ${thread}` : 'device', thread, call => call.deviceStart, call => call.device);
  return [items, lanes];
}

const saysCall = call => [
  names.modules[call.module], names.classes[call.module], call.shapes, `total ${timeText(call.total)}, self ${timeText(call.self)}`,
  missing(call.device) ? '' : `device ${timeText(call.device)}`, `${names.phases[call.phase] ?? ''}${missing(call.step) ? '' : `, step ${call.step}`}`,
  call.error ? `raised ${call.error}` : '',
];

function setUpFlame() {
  const flame = data.flame;
  if (!data.timed || !flame.total.length) return $('flame').remove();
  const phases = [...new Set(flame.phase)];
  const label = phase => names.phases[phase] ?? 'no phase';
  const choices = phases.length > 1 ? [-2, ...phases] : phases;
  for (const phase of choices) $('flame-phase').append(make('option', {}, phase === -2 ? 'all' : label(phase)));
  const plotted = stackPlot($('flame-plot'), {
    says: item => [
      item.module < 0 ? item.name : names.modules[item.module], names.classes[item.module], `${timeText(item.total)}, ${shareText(item.total / item.of)}`, item.calls ? callsText(item.calls) : '',
    ],
    onClick: item => item.module >= 0 && chooseModules([item.module], { phase: item.phase }),
  });
  const show = () => {
    const wanted = choices[$('flame-phase').selectedIndex];
    const taken = phases.filter(phase => wanted === -2 || phase === wanted);
    const top = new Map(taken.map(phase => [phase, 0]));
    flame.total.forEach((total, node) => { if (flame.parent[node] < 0 && top.has(flame.phase[node])) top.set(flame.phase[node], top.get(flame.phase[node]) + total); });
    const of = [...top.values()].reduce((sum, time) => sum + time, 0);
    const items = [], next = new Map(), item_of = new Map();
    let at = 0;
    for (const [phase, total] of top) {
      items.push({ from: at, to: at + total, lane: 0, module: -1, phase, name: label(phase), total, of, colour: phaseColour(label(phase)) });
      next.set(`phase ${phase}`, at);
      at += total;
    }
    flame.total.forEach((total, node) => {
      if (!top.has(flame.phase[node])) return;
      const parent = flame.parent[node], key = parent < 0 ? `phase ${flame.phase[node]}` : parent;
      const from = next.get(key), module = flame.module[node];
      next.set(key, from + total);
      next.set(node, from);
      const item = {
        from, to: from + total, lane: parent < 0 ? 1 : item_of.get(parent).lane + 1, module, phase: flame.phase[node],
        name: nameOf(module), total, of, calls: flame.calls[node], colour: classColour(names.classes[module]),
      };
      item_of.set(node, item);
      items.push(item);
    });
    const deepest = Math.max(...items.map(item => item.lane));
    plotted.show(items, Array.from({ length: deepest + 1 }, (_, lane) => lane ? '' : 'phase'));
  };
  $('flame-phase').onchange = show;
  show();
}
