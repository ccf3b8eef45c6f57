// Numbers as people read them (as talkerviz/render/text.py), and elements made of text, never of HTML.
const $ = id => root.getElementById(id);

const fixed = (value, digits) => value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
function threeDigits(value, units, space = ' ') {
  const [scale, unit] = units.find(([scale]) => Math.abs(value) >= scale * 0.9995) ?? units.at(-1);
  const scaled = value / scale;
  const digits = scale === 1 ? 0 : Math.abs(scaled) < 9.995 ? 2 : Math.abs(scaled) < 99.95 ? 1 : 0;
  return `${fixed(scaled, digits)}${space}${unit}`;
}

const missing = value => value === null || value === undefined;
const timeText = ns => missing(ns) ? '' : threeDigits(ns, [[1e9, 's'], [1e6, 'ms'], [1e3, 'µs'], [1, 'ns']]);
const amountText = n => missing(n) ? '' : threeDigits(n, [[1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k'], [1, '']]).trim();
const shareText = part => missing(part) ? '' : `${(part * 100).toFixed(1)} %`;
const countText = n => missing(n) ? '' : n.toLocaleString('en-US');
const callsText = n => `${countText(n)} ${n === 1 ? 'call' : 'calls'}`;
const texts = {
  time: timeText, amount: amountText, share: shareText, count: countText,
  size: n => missing(n) ? '' : `${amountText(n)}B`.replace(/(\d)B/, '$1 B'),
  tenths: value => missing(value) ? '' : fixed(value, 1), hundredths: value => missing(value) ? '' : fixed(value, 2),
  factor: value => missing(value) ? '' : `${value >= 99.95 ? fixed(value, 0) : value.toPrecision(3)}×`,
  whole: value => missing(value) ? '' : String(value),
  text: value => missing(value) ? '' : value,
};

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter(child => child !== null));
  return element;
}

function attributes(element, values) {
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  return element;
}

const lines = (...texts) => make('div', { className: 'tip' }, ...texts.filter(Boolean).map((text, place) => make(place ? 'div' : 'b', {}, text)));

// What a custom property of the style comes to in the present theme.
const probe = (root.body ?? root).appendChild(make('i', { hidden: true }));
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const pairs = (list, entries) => list.replaceChildren(...entries.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]));
