// What all plots have in common: ECharts in the theme's colours.
const plots = [];

// `options` makes the options anew, as the theme's colours are in them.
function plot(element, options, height) {
  if (height) element.style.height = `${height}px`;
  const chart = echarts.init(element, null, { renderer: 'canvas' });
  const found = { chart, draw: () => chart.setOption(options(), { notMerge: true }) };
  found.draw();
  whenResized(element, () => chart.resize());
  plots.push(found);
  return found;
}

parts.push({ themed: () => plots.forEach(({ draw }) => draw()) });

const axisLook = () => ({
  axisLabel: { color: colour('quiet'), fontSize: 11 },
  axisLine: { lineStyle: { color: colour('line') } },
  axisTick: { lineStyle: { color: colour('line') } },
  splitLine: { lineStyle: { color: colour('line'), opacity: 0.6 } },
  nameTextStyle: { color: colour('quiet'), fontSize: 11 },
});
const tooltipLook = () => ({
  backgroundColor: colour('card'), borderColor: colour('line'), textStyle: { color: colour('ink') }, confine: true,
  transitionDuration: 0,
});
const legendLook = () => ({
  type: 'scroll', top: 0, left: 0, itemWidth: 12, itemHeight: 12, textStyle: { color: colour('quiet'), fontSize: 11 },
  pageTextStyle: { color: colour('quiet') }, pageIconColor: colour('ink'), inactiveColor: colour('line'),
});

const swatch = (fill, text) => {
  const chip = make('i', { className: 'chip' });
  chip.style.background = fill;
  return make('span', {}, chip, text);
};
