// Latency by frame and by layer, and the roofline.
function figure(caption, height) {
  const area = attributes(make('div'), { role: 'img', 'aria-label': caption });
  area.style.height = `${height}px`;
  $('plots-all').append(make('figure', {}, make('figcaption', {}, caption), area));
  return area;
}

const stacked = (labels, series, unit, mark) => () => ({
  animation: false,
  grid: { left: 62, right: 16, top: 34, bottom: labels.length > 60 ? 74 : 42 },
  legend: { ...legendLook(), data: series.map(one => one.name) },
  tooltip: {
    ...tooltipLook(), trigger: 'axis', axisPointer: { type: 'shadow' },
    formatter: points => lines(
      `${unit} ${points[0].axisValue}: ${timeText(points.reduce((sum, point) => sum + point.value, 0))}`,
      ...points.filter(point => point.value).map(point => `${point.seriesName} ${timeText(point.value)}`),
    ),
  },
  xAxis: { type: 'category', data: labels, name: unit, nameLocation: 'middle', nameGap: 24, ...axisLook() },
  yAxis: { type: 'value', ...axisLook(), axisLabel: { ...axisLook().axisLabel, formatter: timeText } },
  dataZoom: labels.length > 60 ? [{ type: 'slider', bottom: 6, height: 18, showDetail: false, borderColor: colour('line') }] : [],
  series: series.map((one, place) => ({
    type: 'bar', stack: 'all', name: one.name, data: one.values, itemStyle: { color: one.colour }, barCategoryGap: labels.length > 60 ? 0 : '25%', large: labels.length > 400,
    markLine: place === 0 && mark ? {
      silent: true, symbol: 'none', data: mark.map(({ name, value }) => ({ name, yAxis: value })), lineStyle: { color: colour('mark'), type: 'dashed' },
      label: { position: 'insideEndTop', color: colour('mark'), backgroundColor: colour('card'), padding: [2, 5], borderRadius: 3, formatter: ({ name, value }) => `${name} ${timeText(value)}` },
    } : undefined,
  })),
});

// A part of a layer has the colour of its class, or one of its own where its class has none.
function partColours(list) {
  const of_class = list.parts.map(part => {
    const module = list.layers.map(layer => names.modules.indexOf(`${list.name}.${layer}.${part.name}`)).find(module => module >= 0);
    return module === undefined ? REST : classColour(names.classes[module]);
  });
  const free = PALETTE.filter(other => !of_class.includes(other));
  return of_class.map((own, place) => own === REST && place < of_class.length - 1 ? free.shift() ?? REST : own);
}

function setUpPlots() {
  const frames = data.byFrame;
  if (frames.frames.length > 1) {
    const series = frames.phases.map(phase => ({ ...phase, name: phase.name || 'no phase', colour: phaseColour(phase.name) }));
    const { chart } = plot(figure('Time in calls by frame', 300), stacked(frames.frames, series, 'frame', data.marks));
    chart.on('click', ({ name }) => { showFrame(Number(name)); $('timeline').scrollIntoView(); });
  }
  for (const list of data.layers) {
    const colours = partColours(list);
    const series = list.parts.map((part, place) => ({ ...part, colour: colours[place] }));
    plot(figure(`Mean time of a pass through each of ${list.name}`, 300), stacked(list.layers, series, 'layer'));
  }
  if (!$('plots-all').children.length) $('plots').remove();
}

function setUpRoofline() {
  const at = name => column('module', name);
  const time = at('device_ns') ?? at('total_ns');
  if (!at('intensity') || !time) return $('roofline').remove();
  const points = new Map();
  at('module').forEach((module, row) => {
    if (!at('intensity')[row] || !at('flops')[row] || !time[row]) return;
    const kind = at('class')[row];
    if (!points.has(kind)) points.set(kind, []);
    points.get(kind).push([at('intensity')[row], at('flops')[row] / time[row] * 1e9, row]);
  });
  const all = [...points.values()].flat();
  if (!all.length) return $('roofline').remove();
  const peaks = data.peaks;
  const roof = x => Math.min(x * peaks.bandwidth, peaks.flops);
  const ridge = peaks && peaks.flops / peaks.bandwidth;
  // Decades that hold all points, and the ridge.
  const xs = [...all.map(([x]) => x), ...(peaks ? [ridge] : [])];
  const [least, most] = [10 ** Math.floor(Math.log10(Math.min(...xs))), 10 ** Math.ceil(Math.log10(Math.max(...xs) * 1.01))];
  $('roofline-says').textContent = peaks
    ? `A point a module; its area is its share of the time. The roof is ${amountText(peaks.flops)}FLOP/s and ${amountText(peaks.bandwidth)}B/s (${peaks.device}; ${peaks.source}).`
    : 'A point a module; its area is its share of the time. The device\'s limits are not known: record with --peaks to see the roof.';
  const { chart } = plot($('roofline-plot'), () => ({
    animation: false,
    grid: { left: 76, right: 24, top: 44, bottom: 50 },
    legend: { ...legendLook(), left: 76, right: 24, top: 8 },
    tooltip: {
      ...tooltipLook(), formatter: ({ value }) => value.length < 3 ? null : lines(
        at('module')[value[2]], at('class')[value[2]], `${value[0].toFixed(2)} FLOP/byte, ${amountText(value[1])}FLOP/s`,
        at('of_peak') ? `${shareText(at('of_peak')[value[2]])} of peak, ${at('bound')?.[value[2]] ?? ''}` : '', `self ${timeText(at('self_ns')[value[2]])}, ${shareText(at('share')[value[2]])} of the time`,
      ),
    },
    xAxis: { type: 'log', name: 'FLOP / byte', nameLocation: 'middle', nameGap: 28, min: least, max: most, ...axisLook(), axisLabel: { ...axisLook().axisLabel, formatter: x => String(Number(x.toPrecision(3))) } },
    yAxis: { type: 'log', name: 'FLOP/s', nameLocation: 'middle', nameGap: 56, ...axisLook(), axisLabel: { ...axisLook().axisLabel, formatter: amountText } },
    series: [
      ...[...points].map(([kind, of_kind]) => ({
        type: 'scatter', name: kind, data: of_kind, itemStyle: { color: classColour(kind), opacity: 0.8, borderColor: 'rgba(0, 0, 0, .35)', borderWidth: 0.7 },
        symbolSize: ([, , row]) => 5 + Math.sqrt(at('share')?.[row] ?? 0) * 70,
      })),
      ...(peaks ? [{
        type: 'line', name: 'roof', data: [least, ...(ridge > least && ridge < most ? [ridge] : []), most].map(x => [x, roof(x)]), showSymbol: false, silent: true,
        lineStyle: { color: colour('mark'), width: 2 }, itemStyle: { color: colour('mark') },
      }] : []),
    ],
  }));
  chart.on('click', ({ value }) => chooseModules([names.modules.indexOf(at('module')[value[2]])]));
}
