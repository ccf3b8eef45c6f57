// What is chosen: its figures and its calls.
let panelTable = null;
let before = null;  // what had the focus

function showPanel() {
  if (!chosen) return closePanel();
  if ($('panel').hidden) before = document.activeElement;
  $('panel').hidden = false;
  const modules = [...chosen.modules];
  const kinds = [...new Set(modules.map(module => names.classes[module]))];
  $('panel-title').textContent = chosen.title;
  $('panel-class').textContent = [chosen.whole ? '' : kinds.slice(0, 3).join(', ') + (kinds.length > 3 ? ' …' : ''), chosen.phase >= 0 && !chosen.whole ? `in ${names.phases[chosen.phase]}` : ''].filter(Boolean).join(' ');
  const button = (text, does) => make('button', { type: 'button', onclick: does }, text);
  $('panel-does').replaceChildren(
    ...(chosen.link ? [button('Open its inside', () => openInside(chosen.link))] : []),
    ...(chosen.phase >= 0 && !chosen.whole ? [button('In all phases', () => choose({ ...chosen, phase: -1, link: '', here: '' }))] : []),
    ...(modules.length === 1 ? [button('Show in the table', () => { $('filter').value = names.modules[modules[0]]; showTab('module'); $('tables').scrollIntoView(); })] : []),
  );
  $('panel-here').textContent = chosen.here ?? '';
  $('panel-numbers-title').textContent = chosen.phase >= 0 && !chosen.whole ? 'In all phases' : '';
  pairs($('panel-numbers'), chosen.whole ? rowPairs('phase', names.phases[chosen.phase]) : modules.length === 1 ? rowPairs('module', names.modules[modules[0]]) : sums(modules));
  const rows = loadedCalls().filter(isChosenItem).map(callRow);
  const some = !data.frames.every(frame => slices.has(frame.frame));
  $('panel-calls-title').textContent = `${callsText(rows.length)}${some ? ' in the frames that were loaded' : ''}${chosen.phase >= 0 ? ` in ${names.phases[chosen.phase]}` : ''}`;
  panelTable?.destroy();
  const columns = usedColumns(CALL_COLUMNS, rows).filter(({ name }) => name !== 'class' && !(name === 'module' && modules.length === 1) && !(name === 'phase' && chosen.phase >= 0));
  panelTable = rows.length ? table($('panel-calls'), columns, rows, { height: Math.min(420, 60 + 27 * rows.length), onClick: row => showFrame(row._frame) }) : null;
}

function rowPairs(by, key) {
  const row = column(by, by).indexOf(key);
  return inOrder(data.tables[by].columns).filter(({ name }) => name !== by && name !== 'class').map(({ label, kind, values }) => [label, texts[kind](values[row])]).filter(([, text]) => text);
}

// Of several modules: what can be added up.
function sums(modules) {
  const rows = modules.map(module => column('module', 'module').indexOf(names.modules[module]));
  const added = data.tables.module.columns.filter(({ name }) => ['calls', 'self_ns', 'share'].includes(name));
  return [['modules', countText(modules.length)], ...added.map(({ label, kind, values }) => [label, texts[kind](rows.reduce((sum, row) => sum + (values[row] ?? 0), 0))])];
}

function closePanel() {
  if ($('panel').hidden) return;
  $('panel').hidden = true;
  before?.focus?.({ preventScroll: true });
}

function setUpPanel() {
  $('panel-close').onclick = () => choose(null);
  document.addEventListener('keydown', event => { if (event.key === 'Escape' && !$('panel').hidden) choose(null); });
  parts.push({ chosen: showPanel });
}
