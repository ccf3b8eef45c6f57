// Tables that can be sorted, filtered and walked through with the keyboard.
function shareBar(share, most) {
  const bar = make('span', { className: 'share-bar' }, shareText(share));
  bar.style.setProperty('--share', `${Math.min(share / most * 100, 100)}%`);
  return bar;
}
const isNumber = kind => kind !== 'text';

// columns: { name, label, kind, width }; rows: objects by column's name; onClick(row).
function table(element, columns, rows, { height, onClick, isChosen }) {
  const longest = Math.max(...rows.map(row => row.share ?? 0));
  const made = new tabulator.Tabulator(element, {
    data: rows, height, layout: 'fitDataFill', index: '_row', placeholder: 'nothing fits',
    columns: columns.map(({ name, label, kind, width }) => ({
      field: name, title: label, hozAlign: isNumber(kind) ? 'right' : 'left', headerHozAlign: isNumber(kind) ? 'right' : 'left', width, maxInitialWidth: 420,
      sorter: isNumber(kind) ? 'number' : 'string', sorterParams: { alignEmptyValues: 'bottom' }, headerSortStartingDir: isNumber(kind) ? 'desc' : 'asc',
      // A node, as text would be taken for HTML.
      formatter: cell => {
        const value = cell.getValue();
        return kind === 'share' && !missing(value) ? shareBar(value, name === 'share' ? longest : 1) : document.createTextNode(texts[kind](value));
      },
    })),
    rowFormatter: row => {
      const line = row.getElement();
      line.tabIndex = 0;
      line.classList.toggle('chosen', Boolean(isChosen?.(row.getData())));
    },
  });
  made.on('rowClick', (_, row) => onClick(row.getData()));
  element.onkeydown = event => {
    const line = event.target.closest('.tabulator-row'), head = event.target.closest('.tabulator-col');
    if ((event.key === 'Enter' || event.key === ' ') && (line || head)) {
      (line ?? head).click();
      event.preventDefault();
    } else if (line && (event.key === 'ArrowDown' || event.key === 'ArrowUp')) {
      const next = event.key === 'ArrowDown' ? line.nextElementSibling : line.previousElementSibling;
      next?.focus();
      event.preventDefault();
    }
  };
  made.on('tableBuilt', () => element.querySelectorAll('.tabulator-col.tabulator-sortable').forEach(head => { head.tabIndex = 0; }));
  return made;
}

const rowsOf = columns => Array.from({ length: columns[0]?.values.length ?? 0 }, (_, row) => Object.fromEntries([['_row', row], ...columns.map(column => [column.name, column.values[row]])]));
const CALL_COLUMNS = [
  { name: 'call', label: 'call', kind: 'whole' }, { name: 'module', label: 'module', kind: 'text' }, { name: 'class', label: 'class', kind: 'text' },
  { name: 'phase', label: 'phase', kind: 'text' }, { name: 'frame', label: 'frame', kind: 'whole' }, { name: 'step', label: 'step', kind: 'whole' },
  { name: 'total', label: 'total', kind: 'time' }, { name: 'self', label: 'self', kind: 'time' }, { name: 'device', label: 'device', kind: 'time' },
  { name: 'shapes', label: 'shapes', kind: 'text' }, { name: 'error', label: 'error', kind: 'text' },
];
const callRow = (call, row) => ({
  _row: row, call: call.call, module: names.modules[call.module], class: names.classes[call.module], phase: names.phases[call.phase], frame: call.frame,
  step: call.step, total: call.total, self: call.self, device: call.device, shapes: call.shapes, error: call.error, _module: call.module, _frame: call.frame,
});
// What is looked for first stands first.
const FIRST_COLUMNS = ['call', 'module', 'class', 'layer', 'phase', 'frame', 'latency_ns', 'share', 'self_ns', 'total_ns', 'calls', 'mean_ns', 'p50_ns', 'p95_ns', 'p99_ns', 'device_ns', 'busy_ns', 'bound', 'of_peak'];
const rank = ({ name }) => (FIRST_COLUMNS.indexOf(name) + 1) || FIRST_COLUMNS.length + 1;
const inOrder = columns => [...columns].sort((one, other) => rank(one) - rank(other));
const usedColumns = (columns, rows) => columns.filter(column => rows.some(row => !missing(row[column.name])));

const TABS = { module: 'Modules', class: 'Classes', layer: 'Layers', phase: 'Phases', frame: 'Frames', call: 'Calls' };
const CHOOSES = {
  module: row => chooseModules([names.modules.indexOf(row.module)]),
  class: row => chooseModules(ofClass(row.class), { title: row.class }),
  layer: row => chooseModules(names.modules.flatMap((path, module) => path === row.layer || path.startsWith(`${row.layer}.`) ? [module] : []), { title: row.layer }),
  phase: row => choose({ title: `phase ${row.phase}`, modules: new Set(names.modules.keys()), phase: names.phases.indexOf(row.phase), whole: true }),
  frame: row => { showFrame(row.frame === '' ? null : row.frame); $('timeline')?.scrollIntoView(); },
  call: row => chooseModules([row._module]),
};
let shownTable = null, shownTab = '';

function showTab(name) {
  shownTab = name;
  for (const tab of $('tabs').children) attributes(tab, { 'aria-selected': tab.dataset.tab === name, tabindex: tab.dataset.tab === name ? 0 : -1 });
  const rows = name === 'call' ? loadedCalls().map(callRow) : rowsOf(data.tables[name].columns);
  const columns = name === 'call' ? usedColumns(CALL_COLUMNS, rows) : inOrder(data.tables[name].columns);
  shownTable?.destroy();
  shownTable = table($('table'), columns, rows, {
    height: Math.min(560, 70 + 27 * rows.length), onClick: CHOOSES[name],
    isChosen: name === 'module' ? row => chosen && !chosen.whole && chosen.modules.has(names.modules.indexOf(row.module)) : null,
  });
  shownTable.on('dataFiltered', (_, left) => { $('rows').textContent = `${countText(left.length)} of ${countText(rows.length)} rows`; });
  const all = data.frames.every(frame => slices.has(frame.frame)) || name !== 'call' ? '' : ' of the frames that were loaded';
  shownTable.on('tableBuilt', () => { $('rows').textContent = `${countText(rows.length)} rows${all}`; filterTable(); });
}

function filterTable() {
  const words = $('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return shownTable.clearFilter();
  shownTable.setFilter(row => {
    const text = Object.entries(row).map(([name, value]) => name[0] === '_' ? '' : String(value ?? '')).join(' ').toLowerCase();
    return words.every(word => text.includes(word));
  });
}

function setUpTables() {
  for (const [name, title] of Object.entries(TABS)) {
    if (name !== 'call' && !data.tables[name].rows) continue;
    $('tabs').append(attributes(make('button', { type: 'button', onclick: () => showTab(name) }, title), { role: 'tab', 'data-tab': name }), ' ');
  }
  $('tabs').onkeydown = event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tabs = [...$('tabs').children], next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  };
  $('filter').oninput = filterTable;
  showTab('module');
  parts.push({ chosen: () => shownTab === 'module' && shownTable.getRows('active').forEach(row => row.reformat()) });
}
