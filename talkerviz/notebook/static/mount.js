// Put an explorer into a notebook's cell: apart from the notebook's own style, in its colours, once there is room for it.
function isDark(element) {
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
  const seen = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;  // in whatever colour space
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    return { bright: 0.3 * red + 0.6 * green + 0.1 * blue > 128, opaque: alpha > 127 };
  };
  for (let at = element; at; at = at.parentNode ?? at.host) {
    if (!(at instanceof Element)) continue;
    const ground = seen(getComputedStyle(at).backgroundColor);
    if (ground.opaque) return !ground.bright;
  }
  // VS Code's cells lie on nothing of their own page: what is written there is bright where it is dark.
  return seen(getComputedStyle(element.parentElement ?? element.getRootNode().host).color).bright;
}

export default {
  render({ model, el }) {
    const host = document.createElement('div');
    const root = host.attachShadow({ mode: 'open' });
    root.innerHTML = BODY;
    root.prepend(Object.assign(document.createElement('style'), { textContent: STYLE }));
    el.append(host);
    let made = null;
    const theme = () => {
      host.style.colorScheme = isDark(host) ? 'dark' : 'light';
      made?.themed();
    };
    const room = new ResizeObserver(() => {
      if (made || !host.clientWidth) return;
      theme();
      made = explorer(model, root, structuredClone(model.get('_data')));
      room.disconnect();
    });
    room.observe(host);
    // Notebooks change their theme by an attribute of the page.
    let changing = 0;
    const themes = new MutationObserver(() => { clearTimeout(changing); changing = setTimeout(theme, 100); });
    for (const watched of [document.documentElement, document.body]) themes.observe(watched, { attributes: true });
    return () => {
      room.disconnect();
      themes.disconnect();
      clearTimeout(changing);
      made?.close();
      host.remove();
    };
  },
};
