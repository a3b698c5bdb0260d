"use strict";
// Draws the map of the section that contains this script; `viewer.py` writes the section and its data.
(root => {
  const STEPS_PER_PIXEL = 10, NODATA = 0, FIRST_STATE = 2, NO_CONFIDENCE = 255; // as in viewer.py
  const DEFAULT_OPACITY = 60; // percent, of layers over an image
  const MAX_PIXEL_SIZE = 40; // screen pixels per pixel of the scene at the largest zoom
  const MAX_ZOOM_OUT = 4; // times that a scene can be smaller than the map
  const ZOOM_STEP = 1.5; // of a button or a key

  const find = selector => root.querySelector(selector);
  const parse = element => JSON.parse(element.textContent);
  const setup = parse(find(".map-setup"));
  const frame = find(".map-frame"), status = find(".map-status"), readout = find(".map-readout");
  const sceneSelect = find("select"), slider = find("input[type=range]");
  const checkboxes = [...root.querySelectorAll("[data-layer]")];

  let bokehView, plot, events, hover; // Bokeh's view and plot, the element that gets events, the hover tool
  let scene = null; // the selected scene, unpacked
  const painted = new Set(); // layers of the scene whose pixels are in the plot
  const view = {x: 0, y: 0, scale: 1}; // centre of the map, and plot units per screen pixel
  let fitsScene = true; // whether the map shows the whole scene, also after a change of its size
  let opacityChosen = false; // whether the reader has moved the slider

  // The pixels of each layer, and the parts of a scene that they need.
  const LAYERS = {
    image: {needs: ["image"], pixels: ({image}) => image},
    prediction: {needs: ["decided"], pixels: ({decided, image}) => colorize(decided, stateColors(image))},
    truth: {needs: ["truth"], pixels: ({truth, image}) => colorize(truth, stateColors(image))},
    confidence: {needs: ["confidence"], pixels: ({confidence}) => colorize(confidence, percentColors)},
    errors: {needs: ["truth", "decided"], pixels: ({truth, decided}) => errorPixels(truth, decided)},
    polygons: {needs: ["polygons"]},
  };
  const TRANSLUCENT = ["prediction", "truth", "confidence"];

  // A colour as 32 bits of canvas data, in the byte order of this machine.
  const rgba = color => {
    const bytes = [1, 3, 5].map(start => parseInt(color.slice(start, start + 2), 16));
    return new Uint32Array(Uint8Array.of(...bytes, 255).buffer)[0];
  };
  // Background is transparent over an image.
  const stateColors = image =>
    Uint32Array.of(0, ...setup.states.map(state => state.background && image ? 0 : rgba(state.color)));
  const percentColors = new Uint32Array(NO_CONFIDENCE + 1); // above 100: transparent
  for (let percent = 0; percent <= 100; percent++)
    percentColors[percent] = rgba(setup.cividis[Math.round(percent * 2.55)]);

  const colorize = (codes, colors) => {
    const pixels = new Uint32Array(codes.length);
    for (let i = 0; i < codes.length; i++) pixels[i] = colors[codes[i]];
    return pixels;
  };

  const errorPixels = (truth, decided) => {
    const pixels = new Uint32Array(truth.length), color = rgba(setup.errorColor);
    for (let i = 0; i < truth.length; i++)
      if (truth[i] >= FIRST_STATE && decided[i] >= FIRST_STATE && truth[i] !== decided[i]) pixels[i] = color;
    return pixels;
  };

  const inflate = async text => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // The low bytes of all pixels come first, then the high bytes if there are any.
  const unpackCodes = async (text, count) => {
    if (text === null) return null;
    const bytes = await inflate(text);
    if (bytes.length === count) return bytes;
    const codes = new Uint16Array(count);
    for (let i = 0; i < count; i++) codes[i] = bytes[i] | bytes[count + i] << 8;
    return codes;
  };

  const decodeImage = async (source, {width, height}, valid) => {
    if (source === null) return null;
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width, height});
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
    for (let i = 0; i < pixels.length; i++) if (!valid[i]) pixels[i] = 0;
    return pixels;
  };

  const unpack = async packed => {
    const names = ["valid", "truth", "decided", "confidence"];
    const layers = await Promise.all(names.map(name => unpackCodes(packed[name], packed.height * packed.width)));
    const image = await decodeImage(packed.image, packed, layers[0]);
    return {...packed, ...Object.fromEntries(names.map((name, i) => [name, layers[i]])), image};
  };

  const renderer = name => plot.renderers.find(one => one.name === name);
  const isAvailable = name => LAYERS[name].needs.every(part => scene[part] !== null);

  const fillLayer = (name, pixels, height, width) => {
    const source = renderer(name).data_source;
    const NDArray = source.data.image[0].constructor; // BokehJS does not export it
    const [w, h] = scene ? scene.pixel : [1, 1];
    source.data = {image: [new NDArray(pixels.buffer, [height, width])], width: [width * w], height: [height * h]};
  };

  const fillPolygons = () => {
    const {rings, ...columns} = scene.polygons ?? {rings: [], name: [], color: [], area: [], confidence: []};
    const [w, h] = scene.pixel;
    const coordinates = (start, size) => rings.map(parts => parts.map(part => part.map(ring => {
      const values = [];
      for (let i = start; i < ring.length; i += 2) values.push(ring[i] / STEPS_PER_PIXEL * size);
      return values;
    })));
    renderer("polygons").data_source.data = {xs: coordinates(0, w), ys: coordinates(1, -h), ...columns};
    // Bokeh escapes the values that replace @name.
    hover.tooltips = "<b>@name</b><br>@area" + (columns.confidence.length ? "<br>mean confidence @confidence" : "");
  };

  const switchLayer = checkbox => {
    const name = checkbox.dataset.layer, on = checkbox.checked && isAvailable(name);
    if (on && LAYERS[name].pixels && !painted.has(name)) {
      fillLayer(name, LAYERS[name].pixels(scene), scene.height, scene.width);
      painted.add(name);
    }
    for (const one of name === "polygons" ? ["casing", name] : [name]) renderer(one).visible = on;
  };

  // A layer that this scene does not have is off, and on again for the next scene that has it.
  const updateCheckbox = checkbox => {
    const available = isAvailable(checkbox.dataset.layer);
    if (!checkbox.disabled) checkbox.dataset.chosen = checkbox.checked;
    checkbox.disabled = !available;
    checkbox.checked = available && checkbox.dataset.chosen === "true";
    checkbox.parentElement.querySelector(".map-missing").textContent = available ? "" : " (none)";
  };

  const applyOpacity = () => {
    find("output").textContent = `${slider.value} %`;
    for (const name of TRANSLUCENT) renderer(name).glyph.global_alpha = {value: slider.value / 100};
  };

  const showScene = async () => {
    const index = sceneSelect.selectedIndex;
    root.dataset.state = "loading";
    const next = await unpack(parse(root.querySelectorAll(".map-data")[index]));
    if (index !== sceneSelect.selectedIndex) return; // another scene was selected meanwhile
    scene = next;
    painted.clear();
    for (const [name, {pixels}] of Object.entries(LAYERS)) if (pixels) fillLayer(name, new Uint32Array(1), 1, 1);
    fillPolygons();
    checkboxes.forEach(updateCheckbox);
    checkboxes.forEach(switchLayer);
    slider.disabled = !TRANSLUCENT.some(isAvailable);
    if (!opacityChosen) slider.value = scene.image ? DEFAULT_OPACITY : 100;
    applyOpacity();
    plot.center.find(one => one.name === "scale").visible = scene.metres;
    find(".map-note").textContent = scene.note;
    readout.textContent = "Point at a pixel to see its values.";
    fitScene();
    root.dataset.state = "ready";
  };

  const size = () => ({width: plot.inner_width, height: plot.inner_height});
  const extent = () => ({width: scene.width * scene.pixel[0], height: scene.height * scene.pixel[1]});

  const updateRanges = () => {
    const {width, height} = size(), {x, y, scale} = view;
    plot.x_range.setv({start: x - width / 2 * scale, end: x + width / 2 * scale});
    plot.y_range.setv({start: y - height / 2 * scale, end: y + height / 2 * scale});
  };

  const fittingScale = () => Math.max(extent().width / size().width, extent().height / size().height) * 1.03;

  const fitScene = () => {
    fitsScene = true;
    Object.assign(view, {x: extent().width / 2, y: -extent().height / 2, scale: fittingScale()});
    updateRanges();
  };

  const onResize = () => {
    if (scene) fitsScene ? fitScene() : updateRanges();
  };

  // Plot coordinates of an event; the frame fills the map.
  const toPlot = ({offsetX, offsetY}) => ({
    x: view.x + (offsetX - size().width / 2) * view.scale,
    y: view.y - (offsetY - size().height / 2) * view.scale,
  });

  const pan = (right, down) => {
    fitsScene = false;
    view.x += right * view.scale;
    view.y -= down * view.scale;
    updateRanges();
  };

  const zoom = (factor, {x, y} = view) => {
    const minScale = Math.min(Math.min(...scene.pixel) / MAX_PIXEL_SIZE, fittingScale() / MAX_ZOOM_OUT);
    const scale = Math.min(Math.max(view.scale / factor, minScale), fittingScale() * MAX_ZOOM_OUT);
    fitsScene = false;
    Object.assign(view, {x: x + (view.x - x) * scale / view.scale, y: y + (view.y - y) * scale / view.scale, scale});
    updateRanges();
  };

  const ZOOMS = {in: () => zoom(ZOOM_STEP), out: () => zoom(1 / ZOOM_STEP), all: fitScene};

  const onWheel = event => {
    if (!(event.ctrlKey || event.metaKey || events.matches(":focus"))) return showWheelHint();
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE;
    // Browsers report a pinch on a touchpad as Ctrl + wheel in small steps.
    const speed = Math.abs(event.deltaY) < 20 && event.ctrlKey ? 0.01 : 0.002;
    zoom(Math.exp(-event.deltaY * (lines ? 0.05 : speed)), toPlot(event));
  };

  let hintTimer = 0;
  const showWheelHint = () => {
    frame.classList.add("map-wheel-hint");
    clearTimeout(hintTimer);
    hintTimer = setTimeout(() => frame.classList.remove("map-wheel-hint"), 1200);
  };

  // Pressed pointers by id. A mouse pans with one pointer; touch needs two fingers, since one scrolls the page.
  const pressed = new Map();
  const centreAndSpread = () => {
    const [a, b = a] = [...pressed.values()];
    return {
      offsetX: (a.offsetX + b.offsetX) / 2,
      offsetY: (a.offsetY + b.offsetY) / 2,
      spread: Math.hypot(a.offsetX - b.offsetX, a.offsetY - b.offsetY) || 1,
    };
  };

  const onDrag = event => {
    if (!pressed.has(event.pointerId)) return;
    const before = centreAndSpread();
    pressed.set(event.pointerId, event);
    if (event.pointerType === "touch" && pressed.size < 2) return;
    const after = centreAndSpread();
    pan(before.offsetX - after.offsetX, before.offsetY - after.offsetY);
    if (pressed.size > 1) zoom(after.spread / before.spread, toPlot(after));
  };

  const KEYS = {
    ArrowLeft: () => pan(-size().width / 8, 0),
    ArrowRight: () => pan(size().width / 8, 0),
    ArrowUp: () => pan(0, -size().height / 8),
    ArrowDown: () => pan(0, size().height / 8),
    "+": ZOOMS.in,
    "=": ZOOMS.in,
    "-": ZOOMS.out,
    0: ZOOMS.all,
    Escape: () => events.blur(),
  };

  const onKey = event => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
    showReadout(view);
  };

  // Bokeh shows a tooltip when the pointer moves; a tap does not move it, so a move is simulated.
  const onTap = event => {
    const {clientX, clientY} = event, pointer = {isPrimary: true, pointerId: -1};
    events.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY, view: window, ...pointer}));
  };

  // Bokeh resizes the map too late for printing, so a copy of the canvas is printed, which scales with the page.
  const addPrintCopy = () => {
    const {canvas} = bokehView.export("auto");
    canvas.className = "map-print";
    frame.append(canvas);
  };

  const stateName = (code, valid) => {
    if (code === NODATA) return valid ? "none" : "nodata";
    return setup.states[code - FIRST_STATE + 1].name;
  };

  const coordinates = (column, row) => {
    const [a, b, c, d, e, f] = scene.transform;
    const x = a * (column + 0.5) + b * (row + 0.5) + c, y = d * (column + 0.5) + e * (row + 0.5) + f;
    const {degrees, name} = scene.crs;
    return degrees ? `${x.toFixed(4)}°, ${y.toFixed(4)}° (${name})` : `${x.toFixed(0)}, ${y.toFixed(0)} (${name})`;
  };

  const pixelValues = (column, row) => {
    const i = row * scene.width + column, valid = scene.valid[i];
    const percent = scene.confidence?.[i];
    return [
      ["row", row],
      ["column", column],
      scene.crs && ["x, y", coordinates(column, row)],
      scene.decided && ["prediction", stateName(scene.decided[i], valid)],
      scene.confidence && ["confidence", percent === NO_CONFIDENCE ? "none" : `${percent} %`],
      scene.truth && ["truth", stateName(scene.truth[i], valid)],
      !valid && !scene.decided && !scene.truth && ["", "nodata"],
    ].filter(Boolean);
  };

  const showReadout = ({x, y}) => {
    const column = Math.floor(x / scene.pixel[0]), row = Math.floor(-y / scene.pixel[1]);
    const inside = column >= 0 && row >= 0 && column < scene.width && row < scene.height;
    if (!inside) return void (readout.textContent = "Outside the scene.");
    readout.replaceChildren(...pixelValues(column, row).flatMap(([label, value]) => {
      const item = document.createElement("span"), strong = document.createElement("b");
      strong.textContent = value;
      item.append(`${label} `, strong);
      return [item, " "];
    }));
  };

  const addListeners = () => {
    events.addEventListener("pointermove", event => { onDrag(event); showReadout(toPlot(event)); });
    events.addEventListener("pointerdown", event => event.button === 0 && pressed.set(event.pointerId, event));
    for (const end of ["pointerup", "pointercancel"])
      events.addEventListener(end, event => pressed.delete(event.pointerId));
    events.addEventListener("click", onTap);
    events.addEventListener("keydown", onKey);
    events.addEventListener("wheel", onWheel, {passive: false});
    // The browser handles gestures of one finger, the map those of two.
    events.style.touchAction = "pan-x pan-y";
    events.addEventListener("touchmove", event => event.touches.length > 1 && event.preventDefault(), {passive: false});
    for (const checkbox of checkboxes) checkbox.addEventListener("change", () => switchLayer(checkbox));
    for (const button of root.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", ZOOMS[button.dataset.zoom]);
    slider.addEventListener("input", () => { opacityChosen = true; applyOpacity(); });
    sceneSelect.addEventListener("change", () => reportErrors(showScene));
    for (const side of ["inner_width", "inner_height"]) plot.properties[side].change.connect(onResize);
    window.addEventListener("beforeprint", addPrintCopy);
    window.addEventListener("afterprint", () => find(".map-print")?.remove());
  };

  const start = async () => {
    const views = await Bokeh.embed.embed_item(setup.plot, find(".map-canvas"));
    [bokehView] = views.roots;
    plot = bokehView.model;
    events = bokehView.canvas_view.events_el;
    events.setAttribute("role", "application");
    events.setAttribute("aria-label", "Map: arrow keys pan, plus and minus zoom, 0 shows the whole scene");
    hover = plot.toolbar.tools.find(tool => tool.name === "hover");
    addListeners();
    await showScene();
  };

  const reportErrors = async task => {
    try {
      if (!window.DecompressionStream) throw new Error("this browser is too old; use a current one");
      await task();
    } catch (error) {
      status.textContent = `The map cannot be drawn: ${error.message}`;
      root.dataset.state = "failed";
    }
  };

  // BokehJS may come later in the page.
  if (window.Bokeh) reportErrors(start);
  else document.addEventListener("DOMContentLoaded", () => reportErrors(start));
})(document.currentScript.closest(".map-viewer"));
