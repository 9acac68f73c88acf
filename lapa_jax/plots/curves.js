// Draws the curves of a page with uPlot in the place of their still image. Dragging over one zooms all of its group, for
// they share their steps; a double click, or the button, shows everything again.
"use strict";
(() => {
  const HEIGHT = 170, LEAST = 6; // of a plot; of a drag that means something; pixels
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => (value == null ? "–" : String(+value.toPrecision(4)));
  const short = (value) => (Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(6)}k` : number(value));
  const element = (parent, tag, text = "", attributes = {}) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.textContent = text;
    parent.append(made);
    return made;
  };

  // The index nearest to `index` where a series has a value: series of other runs have other steps.
  const nearest = (values, index) => {
    for (let far = 0; far < values.length; far++) {
      if (values[index - far] != null) return index - far;
      if (values[index + far] != null) return index + far;
    }
    return index;
  };

  function group(root) {
    const panels = JSON.parse(root.querySelector("script").textContent);
    const steps = panels.flatMap((panel) => panel.lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]));
    const full = { min: Math.min(...steps), max: Math.max(...steps) };
    if (full.min === full.max) full.max += 1;
    let range = full;
    const live = element(root, "div", "", { className: "live" });
    root.classList.add("drawn");
    const hint = "Drag sideways over a curve to zoom; double-click to see everything again.";
    element(live, "p", hint, { className: "hint" });
    const plots = panels.map((panel) => plot(live, panel));

    function zoom(to) {
      range = to;
      for (const one of plots) one.show();
    }

    function plot(parent, panel) {
      const article = element(parent, "article");
      const header = element(article, "header");
      element(header, "b", panel.title);
      const reset = element(header, "button", "all steps", { type: "button", hidden: true, onclick: () => zoom(full) });
      const values = panel.lines.flatMap((line) => line.values).filter((value) => value !== null);
      const least = Math.min(...values), log = { checked: false };
      // A logarithmic axis needs values above zero, and says something where they span more than one power of ten.
      if (least > 0 && Math.max(...values) / least > 10) {
        const label = element(header, "label");
        Object.assign(log, { box: element(label, "input", "", { type: "checkbox" }) });
        label.append("log");
        log.box.onchange = () => { log.checked = log.box.checked; draw(); };
      }
      const place = element(article, "div", "", { role: "img", ariaLabel: `${panel.title} over the steps of training` });
      let chart = null;

      function show() {
        chart.setScale("x", range);
        reset.hidden = range === full;
      }

      function draw() {
        chart?.destroy();
        const axis = { stroke: () => color("--note"), font: "11px system-ui, sans-serif" };
        const grid = { stroke: () => color("--line"), width: 1 }, ticks = { ...grid, size: 4 };
        const width = (u, labels) => 14 + 7 * Math.max(3, ...(labels ?? []).map((label) => (label ?? "").length));
        const last = (u, series) => { const own = u.data[series]; return own[nearest(own, own.length - 1)]; };
        chart = new uPlot({
          width: place.clientWidth, height: HEIGHT, padding: [10, 20, 0, 0],
          scales: { x: { time: false }, y: { distr: log.checked ? 3 : 1 } },
          axes: [
            { ...axis, grid, ticks, size: 26, values: (u, splits) => splits.map(short) },
            { ...axis, grid, ticks, size: width, values: (u, splits) => splits.map((v) => (v === null ? "" : short(v))) },
          ],
          series: [
            { label: "step", value: (u, value) => number(value ?? full.max) },
            ...panel.lines.map((line) => ({
              label: line.name, width: 1.5, stroke: () => color(`--curve-${line.color}`),
              // Where no step is pointed at, the last value.
              value: (u, value, series, index) => number(index == null ? last(u, series) : value),
            })),
          ],
          cursor: {
            y: false, drag: { x: true, y: false, setScale: false },
            // Pointing at a step shows it in all panels; dragging stays in one.
            sync: { key: "steps", scales: ["x", null], filters: { pub: (type) => /^mouse(move|leave)/.test(type) } },
            dataIdx: (u, series, index) => (series === 0 ? index : nearest(u.data[series], index)),
            bind: { dblclick: () => () => zoom(full) },
          },
          hooks: { setSelect: [(u) => select(u)] },
        }, uPlot.join(panel.lines.map((line) => [line.steps, line.values])), place);
        touch(chart);
        show();
      }

      function select(u) {
        const { left, width } = u.select;
        if (width < LEAST) return;
        u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        zoom({ min: u.posToVal(left, "x"), max: u.posToVal(left + width, "x") });
      }

      // A finger that moves sideways chooses steps; one that moves up or down scrolls the page (touch-action in the
      // style), and the browser says so with pointercancel. uPlot itself listens to mice alone.
      function touch(u) {
        let start = null;
        const marked = (event) => {
          const now = Math.min(Math.max(event.offsetX, 0), u.over.clientWidth);
          return { left: Math.min(start, now), width: Math.abs(now - start), top: 0, height: u.over.clientHeight };
        };
        u.over.addEventListener("pointerdown", (event) => {
          start = event.pointerType === "touch" ? event.offsetX : null;
        });
        u.over.addEventListener("pointermove", (event) => { if (start !== null) u.setSelect(marked(event), false); });
        u.over.addEventListener("pointerup", (event) => { if (start !== null) u.setSelect(marked(event)); start = null; });
        u.over.addEventListener("pointercancel", () => {
          start = null;
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        });
      }

      new ResizeObserver(() => {
        if (place.clientWidth) chart.setSize({ width: place.clientWidth, height: HEIGHT });
      }).observe(place);
      draw();
      return { draw, show };
    }

    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((one) => one.draw()));
  }

  for (const root of document.querySelectorAll(".curves")) group(root);
})();
