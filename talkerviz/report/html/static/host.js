// What the page does for its parts, which are those of the notebook's widget too.
window.talkervizFrame = slice => received(slice);
function fetchFrame(frame, failed) {
  const file = make('script', { src: `frames/${frame.file}` });
  file.onerror = () => failed(new Error(`frames/${frame.file} is not beside this page`));
  document.head.append(file);
}
function fetchChart(name, then) { then(); }  // all are here
function pictureOf(chart) { return $(`chart-${data.charts.indexOf(chart)}`).content.querySelector('g').cloneNode(true); }
function tallest() { return 0.74 * innerHeight; }
function whenResized(element, does) { new ResizeObserver(does).observe(element); }
const spanChosen = null;  // a drag moves the time line
function frameShown() {}
