// The overview, search, the theme; and all of it put together.
function setUpOverview() {
  $('title').textContent = data.title;
  $('subtitle').textContent = data.subtitle;
  $('numbers').append(...data.numbers.map(({ label, value, hint }) => make('div', {}, make('dt', {}, label), make('dd', { className: value.length > 10 ? 'long' : '', title: value }, value), make('dd', { className: 'quiet' }, hint))));
  const split = (title, by, colourOf, onClick) => {
    const shares = column(by, 'share');
    if (!shares || shares.length < 2) return;
    const rows = column(by, by).map((name, row) => ({ name, share: shares[row], self: column(by, 'self_ns')[row] })).sort((one, other) => other.share - one.share);
    const most = rows.slice(0, 9), rest = rows.slice(9);
    if (rest.length) most.push({ name: `${rest.length} more`, share: rest.reduce((sum, row) => sum + row.share, 0), self: rest.reduce((sum, row) => sum + row.self, 0), more: true });
    const bar = make('div', { className: 'split' }, ...most.map(row => { const part = make('i', { title: `${row.name} ${shareText(row.share)}` }); part.style.cssText = `flex: ${row.share} 0 0; background: ${row.more ? REST : colourOf(row.name)}`; return part; }));
    const list = make('ul', { className: 'shares' }, ...most.map(row => {
      const chip = swatch(row.more ? REST : colourOf(row.name), '').firstChild;
      const name = row.more ? make('span', {}, row.name) : make('button', { type: 'button', title: row.name, onclick: () => onClick(row.name) }, row.name || 'no phase');
      return make('li', {}, chip, name, make('span', { className: 'quiet' }, `${timeText(row.self)} · ${shareText(row.share)}`));
    }));
    $('where').append(make('figure', {}, make('figcaption', {}, title), bar, list));
  };
  split('Self time by phase', 'phase', phaseColour, name => CHOOSES.phase({ phase: name }));
  split('Self time by class', 'class', classColour, name => CHOOSES.class({ class: name }));
  const legend = classOrder.slice(0, PALETTE.length).map(name => swatch(classColour(name), name));
  if (classOrder.length > PALETTE.length) legend.push(swatch(REST, 'others'));
  for (const place of document.querySelectorAll('[data-legend=classes]')) {
    place.classList.add('chips');
    place.append(...legend.map(entry => entry.cloneNode(true)));
  }
  $('notes').append(...data.notes.map(note => make('li', {}, note)));
  pairs($('facts-list'), data.facts);
}

function setUpSearch() {
  const input = $('search'), list = $('found');
  const entries = [
    ...classOrder.map(name => ({ text: name, kind: 'class', does: () => CHOOSES.class({ class: name }) })),
    ...names.modules.map((name, module) => ({ text: name, kind: names.classes[module], does: () => chooseModules([module]) })),
  ];
  let found = [], at = 0;
  const mark = () => {
    [...list.children].forEach((item, place) => attributes(item, { 'aria-selected': place === at }));
    list.children[at]?.scrollIntoView({ block: 'nearest' });
    if (found.length) input.setAttribute('aria-activedescendant', `found-${at}`);
  };
  const close = () => { list.hidden = true; input.setAttribute('aria-expanded', 'false'); input.removeAttribute('aria-activedescendant'); };
  const take = place => { close(); found[place]?.does(); };
  input.oninput = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length ? entries.filter(({ text, kind }) => words.every(word => `${text} ${kind}`.toLowerCase().includes(word))).slice(0, 50) : [];
    at = 0;
    const items = found.map(({ text, kind }, place) => attributes(make('li', { id: `found-${place}`, onmousedown: event => { event.preventDefault(); take(place); } }, text, ' ', make('span', { className: 'quiet' }, kind)), { role: 'option' }));
    list.replaceChildren(...(items.length || !words.length ? items : [make('li', { className: 'quiet' }, 'nothing found')]));
    list.hidden = !words.length;
    input.setAttribute('aria-expanded', String(!list.hidden));
    mark();
  };
  input.onkeydown = event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length) { at = (at + step + found.length) % found.length; mark(); event.preventDefault(); }
    else if (event.key === 'Enter') { take(at); event.preventDefault(); }
    else if (event.key === 'Escape' && !list.hidden) { close(); event.stopPropagation(); }
  };
  input.onblur = close;
  document.addEventListener('keydown', event => {
    if (event.key === '/' && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { input.focus({ preventScroll: true }); event.preventDefault(); }
  });
}

function setUpTheme() {
  const system = matchMedia('(prefers-color-scheme: dark)');
  let wanted = null;
  // A page opened from a disk may have no storage.
  try { wanted = localStorage.getItem('talkerviz-theme'); } catch { /* then it is forgotten */ }
  const dark = () => wanted ? wanted === 'dark' : system.matches;
  const apply = () => {
    document.documentElement.style.colorScheme = dark() ? 'dark' : 'light';
    $('theme').setAttribute('aria-pressed', String(dark()));
    for (const part of parts) part.themed?.();
  };
  $('theme').onclick = () => {
    wanted = dark() ? 'light' : 'dark';
    try { localStorage.setItem('talkerviz-theme', wanted); } catch { /* as above */ }
    apply();
  };
  system.addEventListener('change', apply);
  apply();
}

function setUpNavigation() {
  const links = new Map([...document.querySelectorAll('nav a')].map(link => [link.hash.slice(1), link]));
  for (const [id, link] of links) if (!$(id)) link.remove();
  const mark = () => {
    const here = [...document.querySelectorAll('main section')].filter(section => section.getBoundingClientRect().top < innerHeight / 3).at(-1);
    for (const [id, link] of links) link.setAttribute('aria-current', String(id === here?.id));
  };
  addEventListener('scroll', mark, { passive: true });
  mark();
}

setUpTheme();
setUpOverview();
setUpChart();
setUpTimeline();
setUpFlame();
setUpPlots();
setUpRoofline();
setUpTables();
setUpPanel();
setUpSearch();
setUpNavigation();
