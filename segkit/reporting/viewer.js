"use strict";
// Draws the map of the section that this script lies in; `viewer.py` writes the section and its data.
(root => {
  const STEPS = 10; // of a polygon's coordinates in a pixel
  const NOTHING = 0, FIRST_STATE = 2, NO_PERCENT = 255; // as in viewer.py
  const OPACITY = 60; // percent, of what covers an image
  const CLOSEST = 40; // side of a pixel on the screen, where the map ends to zoom in
  const FURTHEST = 4; // how many times smaller than the map a scene gets
  const ZOOM = 1.5; // of a button or a key

  const find = selector => root.querySelector(selector);
  const parse = element => JSON.parse(element.textContent);
  const setup = parse(find(".map-setup"));
  const frame = find(".map-frame"), status = find(".map-status"), readout = find(".map-readout");
  const choice = find("select"), slider = find("input[type=range]");
  const boxes = [...root.querySelectorAll("[data-layer]")];

  let drawing, plot, events, hover; // Bokeh's view and its plot, the element that gets its events, its tooltips
  let scene = null; // the one that is shown, unpacked
  const painted = new Set(); // its layers that have their pixels
  const view = {x: 0, y: 0, scale: 1}; // the middle of the map, and how much of the plot's space a screen pixel is
  let whole = true; // whether the whole scene is to be seen, whatever the map's size
  let slid = false; // whether the reader chose an opacity

  // How a layer gets its pixels, and which parts of a scene it needs for them.
  const LAYERS = {
    image: {needs: ["image"], pixels: ({image}) => image},
    prediction: {needs: ["decided"], pixels: ({decided, image}) => through(decided, stateColors(image))},
    truth: {needs: ["truth"], pixels: ({truth, image}) => through(truth, stateColors(image))},
    confidence: {needs: ["confidence"], pixels: ({confidence}) => through(confidence, percentColors)},
    wrong: {needs: ["truth", "decided"], pixels: ({truth, decided}) => wrongPixels(truth, decided)},
    polygons: {needs: ["polygons"]},
  };
  const TRANSLUCENT = ["prediction", "truth", "confidence"];

  // A colour as the bytes of a canvas, in the order in which this machine keeps them.
  const rgba = color => {
    const bytes = [1, 3, 5].map(at => parseInt(color.slice(at, at + 2), 16));
    return new Uint32Array(Uint8Array.of(...bytes, 255).buffer)[0];
  };
  // Background is seen through where there is something to see.
  const stateColors = image =>
    Uint32Array.of(0, ...setup.states.map(state => state.background && image ? 0 : rgba(state.color)));
  const percentColors = new Uint32Array(NO_PERCENT + 1); // what is above 100 stays transparent
  for (let percent = 0; percent <= 100; percent++)
    percentColors[percent] = rgba(setup.cividis[Math.round(percent * 2.55)]);

  const through = (codes, colors) => {
    const pixels = new Uint32Array(codes.length);
    for (let i = 0; i < codes.length; i++) pixels[i] = colors[codes[i]];
    return pixels;
  };

  const wrongPixels = (truth, decided) => {
    const pixels = new Uint32Array(truth.length), color = rgba(setup.wrong);
    for (let i = 0; i < truth.length; i++)
      if (truth[i] >= FIRST_STATE && decided[i] >= FIRST_STATE && truth[i] !== decided[i]) pixels[i] = color;
    return pixels;
  };

  const inflated = async text => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // The low bytes of all pixels come first, then the high ones if there are any.
  const plane = async (text, count) => {
    if (text === null) return null;
    const bytes = await inflated(text);
    if (bytes.length === count) return bytes;
    const codes = new Uint16Array(count);
    for (let i = 0; i < count; i++) codes[i] = bytes[i] | bytes[count + i] << 8;
    return codes;
  };

  const photo = async (source, {width, height}, valid) => {
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

  const unpacked = async packed => {
    const names = ["valid", "truth", "decided", "confidence"];
    const planes = await Promise.all(names.map(name => plane(packed[name], packed.height * packed.width)));
    const image = await photo(packed.image, packed, planes[0]);
    return {...packed, ...Object.fromEntries(names.map((name, i) => [name, planes[i]])), image};
  };

  const renderer = name => plot.renderers.find(one => one.name === name);
  const has = name => LAYERS[name].needs.every(part => scene[part] !== null);

  const fill = (name, pixels, height, width) => {
    const source = renderer(name).data_source;
    const NDArray = source.data.image[0].constructor; // BokehJS does not export it
    const [w, h] = scene ? scene.pixel : [1, 1];
    source.data = {image: [new NDArray(pixels.buffer, [height, width])], width: [width * w], height: [height * h]};
  };

  const fillShapes = () => {
    const {rings, ...said} = scene.polygons ?? {rings: [], name: [], color: [], area: [], confidence: []};
    const [w, h] = scene.pixel;
    const each = (start, size) => rings.map(parts => parts.map(part => part.map(ring => {
      const values = [];
      for (let i = start; i < ring.length; i += 2) values.push(ring[i] / STEPS * size);
      return values;
    })));
    renderer("polygons").data_source.data = {xs: each(0, w), ys: each(1, -h), ...said};
    // Bokeh escapes what it puts in place of @name.
    hover.tooltips = "<b>@name</b><br>@area" + (said.confidence.length ? "<br>mean confidence @confidence" : "");
  };

  const switchLayer = box => {
    const name = box.dataset.layer, on = box.checked && has(name);
    if (on && LAYERS[name].pixels && !painted.has(name)) {
      fill(name, LAYERS[name].pixels(scene), scene.height, scene.width);
      painted.add(name);
    }
    for (const one of name === "polygons" ? ["casing", name] : [name]) renderer(one).visible = on;
  };

  // A layer that is missing is off, but on again where a later scene has it.
  const offerLayer = box => {
    const there = has(box.dataset.layer);
    if (!box.disabled) box.dataset.wanted = box.checked;
    box.disabled = !there;
    box.checked = there && box.dataset.wanted === "true";
    box.parentElement.querySelector(".map-missing").textContent = there ? "" : " (none)";
  };

  const fade = () => {
    find("output").textContent = `${slider.value} %`;
    for (const name of TRANSLUCENT) renderer(name).glyph.global_alpha = {value: slider.value / 100};
  };

  const show = async () => {
    const place = choice.selectedIndex;
    root.dataset.state = "loading";
    const next = await unpacked(parse(root.querySelectorAll(".map-data")[place]));
    if (place !== choice.selectedIndex) return; // another was chosen meanwhile
    scene = next;
    painted.clear();
    for (const [name, {pixels}] of Object.entries(LAYERS)) if (pixels) fill(name, new Uint32Array(1), 1, 1);
    fillShapes();
    boxes.forEach(offerLayer);
    boxes.forEach(switchLayer);
    slider.disabled = !TRANSLUCENT.some(has);
    if (!slid) slider.value = scene.image ? OPACITY : 100;
    fade();
    plot.center.find(one => one.name === "scale").visible = scene.metres;
    find(".map-note").textContent = scene.note;
    readout.textContent = "Point at a pixel to read it.";
    showWhole();
    root.dataset.state = "ready";
  };

  const size = () => ({width: plot.inner_width, height: plot.inner_height});
  const extent = () => ({width: scene.width * scene.pixel[0], height: scene.height * scene.pixel[1]});

  const place = () => {
    const {width, height} = size(), {x, y, scale} = view;
    plot.x_range.setv({start: x - width / 2 * scale, end: x + width / 2 * scale});
    plot.y_range.setv({start: y - height / 2 * scale, end: y + height / 2 * scale});
  };

  const fitting = () => Math.max(extent().width / size().width, extent().height / size().height) * 1.03;

  const showWhole = () => {
    whole = true;
    Object.assign(view, {x: extent().width / 2, y: -extent().height / 2, scale: fitting()});
    place();
  };

  const resized = () => {
    if (scene) whole ? showWhole() : place();
  };

  // Where a point of the map lies in the plot's space; the frame fills the map.
  const at = ({offsetX, offsetY}) => ({
    x: view.x + (offsetX - size().width / 2) * view.scale,
    y: view.y - (offsetY - size().height / 2) * view.scale,
  });

  const move = (right, down) => {
    whole = false;
    view.x += right * view.scale;
    view.y -= down * view.scale;
    place();
  };

  const zoom = (factor, {x, y} = view) => {
    const closest = Math.min(Math.min(...scene.pixel) / CLOSEST, fitting() / FURTHEST);
    const scale = Math.min(Math.max(view.scale / factor, closest), fitting() * FURTHEST);
    whole = false;
    Object.assign(view, {x: x + (view.x - x) * scale / view.scale, y: y + (view.y - y) * scale / view.scale, scale});
    place();
  };

  const ZOOMS = {in: () => zoom(ZOOM), out: () => zoom(1 / ZOOM), all: showWhole};

  const wheel = event => {
    if (!(event.ctrlKey || event.metaKey || events.matches(":focus"))) return nudge();
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE;
    // A pinch on a touchpad comes as a wheel with Ctrl in small steps.
    const speed = Math.abs(event.deltaY) < 20 && event.ctrlKey ? 0.01 : 0.002;
    zoom(Math.exp(-event.deltaY * (lines ? 0.05 : speed)), at(event));
  };

  let nudged = 0;
  const nudge = () => {
    frame.classList.add("map-nudged");
    clearTimeout(nudged);
    nudged = setTimeout(() => frame.classList.remove("map-nudged"), 1200);
  };

  // Pointers that are down, by id. A mouse drags alone; of fingers it takes two, for one scrolls the page.
  const down = new Map();
  const grip = () => {
    const [a, b = a] = [...down.values()];
    return {
      offsetX: (a.offsetX + b.offsetX) / 2,
      offsetY: (a.offsetY + b.offsetY) / 2,
      spread: Math.hypot(a.offsetX - b.offsetX, a.offsetY - b.offsetY) || 1,
    };
  };

  const drag = event => {
    if (!down.has(event.pointerId)) return;
    const before = grip();
    down.set(event.pointerId, event);
    if (event.pointerType === "touch" && down.size < 2) return;
    const after = grip();
    move(before.offsetX - after.offsetX, before.offsetY - after.offsetY);
    if (down.size > 1) zoom(after.spread / before.spread, at(after));
  };

  const KEYS = {
    ArrowLeft: () => move(-size().width / 8, 0),
    ArrowRight: () => move(size().width / 8, 0),
    ArrowUp: () => move(0, -size().height / 8),
    ArrowDown: () => move(0, size().height / 8),
    "+": ZOOMS.in,
    "=": ZOOMS.in,
    "-": ZOOMS.out,
    0: ZOOMS.all,
    Escape: () => events.blur(),
  };

  const key = event => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
    read(view);
  };

  // A tap moves no pointer, so it shows no tooltip; what Bokeh takes for a move does.
  const tap = event => {
    const {clientX, clientY} = event, pointer = {isPrimary: true, pointerId: -1};
    events.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY, view: window, ...pointer}));
  };

  // Bokeh fits the map to the paper too late, so a copy of what is on the screen is printed, which fits by itself.
  const printed = () => {
    const {canvas} = drawing.export("auto");
    canvas.className = "map-print";
    frame.append(canvas);
  };

  const stateName = (code, valid) => {
    if (code === NOTHING) return valid ? "none" : "no data";
    return setup.states[code - FIRST_STATE + 1].name;
  };

  const coordinates = (column, row) => {
    const [a, b, c, d, e, f] = scene.transform;
    const x = a * (column + 0.5) + b * (row + 0.5) + c, y = d * (column + 0.5) + e * (row + 0.5) + f;
    const {degrees, name} = scene.crs;
    return degrees ? `${x.toFixed(4)}°, ${y.toFixed(4)}° (${name})` : `${x.toFixed(0)}, ${y.toFixed(0)} (${name})`;
  };

  const facts = (column, row) => {
    const i = row * scene.width + column, valid = scene.valid[i];
    const percent = scene.confidence?.[i];
    return [
      ["row", row],
      ["column", column],
      scene.crs && ["x, y", coordinates(column, row)],
      scene.decided && ["prediction", stateName(scene.decided[i], valid)],
      scene.confidence && ["confidence", percent === NO_PERCENT ? "none" : `${percent} %`],
      scene.truth && ["truth", stateName(scene.truth[i], valid)],
      !valid && !scene.decided && !scene.truth && ["", "no data"],
    ].filter(Boolean);
  };

  const read = ({x, y}) => {
    const column = Math.floor(x / scene.pixel[0]), row = Math.floor(-y / scene.pixel[1]);
    const inside = column >= 0 && row >= 0 && column < scene.width && row < scene.height;
    if (!inside) return void (readout.textContent = "Outside the scene.");
    readout.replaceChildren(...facts(column, row).flatMap(([label, value]) => {
      const fact = document.createElement("span"), strong = document.createElement("b");
      strong.textContent = value;
      fact.append(`${label} `, strong);
      return [fact, " "];
    }));
  };

  const listen = () => {
    events.addEventListener("pointermove", event => { drag(event); read(at(event)); });
    events.addEventListener("pointerdown", event => event.button === 0 && down.set(event.pointerId, event));
    for (const end of ["pointerup", "pointercancel"])
      events.addEventListener(end, event => down.delete(event.pointerId));
    events.addEventListener("click", tap);
    events.addEventListener("keydown", key);
    events.addEventListener("wheel", wheel, {passive: false});
    // With this the page takes one finger and leaves two.
    events.style.touchAction = "pan-x pan-y";
    events.addEventListener("touchmove", event => event.touches.length > 1 && event.preventDefault(), {passive: false});
    for (const box of boxes) box.addEventListener("change", () => switchLayer(box));
    for (const button of root.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", ZOOMS[button.dataset.zoom]);
    slider.addEventListener("input", () => { slid = true; fade(); });
    choice.addEventListener("change", () => guarded(show));
    for (const side of ["inner_width", "inner_height"]) plot.properties[side].change.connect(resized);
    window.addEventListener("beforeprint", printed);
    window.addEventListener("afterprint", () => find(".map-print")?.remove());
  };

  const start = async () => {
    const views = await Bokeh.embed.embed_item(setup.plot, find(".map-canvas"));
    [drawing] = views.roots;
    plot = drawing.model;
    events = drawing.canvas_view.events_el;
    events.setAttribute("role", "application");
    events.setAttribute("aria-label", "Map: arrow keys move it, plus and minus zoom, 0 shows the whole scene");
    hover = plot.toolbar.tools.find(tool => tool.name === "hover");
    listen();
    await show();
  };

  const guarded = async work => {
    try {
      if (!window.DecompressionStream) throw new Error("this browser is too old");
      await work();
    } catch (error) {
      status.textContent = `The map cannot be drawn: ${error.message}`;
      root.dataset.state = "failed";
    }
  };

  // BokehJS may stand further down in the page.
  if (window.Bokeh) guarded(start);
  else document.addEventListener("DOMContentLoaded", () => guarded(start));
})(document.currentScript.closest(".map-viewer"));
