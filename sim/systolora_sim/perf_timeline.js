"use strict";
// The timeline: lanes of events on a canvas. Data is in #timeline-data: "cycles", "names",
// "roles" (a colour per name), "args" (JSON texts) and "lanes", each with "label" and, per event,
// "gap" (cycles from the end of the one before), "length", "name" and "args" (indices).
(() => {
  const data = JSON.parse(document.getElementById("timeline-data").textContent);
  const canvas = document.querySelector("#timeline canvas");
  const told = document.getElementById("timeline-told");
  const seek = document.getElementById("timeline-find");
  const LABEL = 150, LANE = 24, RULER = 26, TEXT = "12px DejaVu Sans, Verdana, sans-serif";
  const NARROW = 1.5; // pixels below which an event is drawn only as its column's busy share
  const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const lanes = data.lanes.map(unpack);
  const whole = Math.max(1, data.cycles);
  let view = { from: 0, to: whole };
  let sought = "", marked = null, pending = false;

  function unpack(lane) {
    const count = lane.gap.length;
    const start = new Float64Array(count), end = new Float64Array(count);
    const busy = new Float64Array(count + 1);
    let time = 0;
    for (let i = 0; i < count; i++) {
      start[i] = time + lane.gap[i];
      time = end[i] = start[i] + lane.length[i];
      busy[i + 1] = busy[i] + lane.length[i];
    }
    return { label: lane.label, start, end, busy, name: lane.name, args: lane.args };
  }

  // The first event of a lane that ends after `time`: ends ascend, since events do not overlap.
  function after(lane, time) {
    let low = 0, high = lane.end.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lane.end[middle] > time) high = middle; else low = middle + 1;
    }
    return low;
  }

  // Busy cycles of a lane before `time`.
  function busyBefore(lane, time) {
    const i = after(lane, time);
    return lane.busy[i] + (i < lane.start.length ? Math.max(0, time - lane.start[i]) : 0);
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (role) => style.getPropertyValue("--" + role).trim();
    return { get, ink: get("ink"), muted: get("muted"), grid: get("grid"), paper: get("paper") };
  }

  const width = () => canvas.clientWidth - LABEL;
  const toX = (time) => LABEL + (time - view.from) / (view.to - view.from) * width();
  const toTime = (x) => view.from + (x - LABEL) / width() * (view.to - view.from);

  function draw() {
    pending = false;
    const height = RULER + lanes.length * LANE;
    const dots = window.devicePixelRatio || 1;
    canvas.style.height = height + "px";
    canvas.width = Math.round(canvas.clientWidth * dots);
    canvas.height = Math.round(height * dots);
    const pen = canvas.getContext("2d"), colour = colours();
    pen.scale(dots, dots);
    pen.fillStyle = colour.paper;
    pen.fillRect(0, 0, canvas.clientWidth, height);
    pen.font = TEXT;
    pen.textBaseline = "middle";
    ruler(pen, colour, height);
    lanes.forEach((lane, row) => drawLane(pen, colour, lane, row));
    canvas.dataset.from = view.from;
    canvas.dataset.to = view.to;
  }

  function ruler(pen, colour, height) {
    const raw = (view.to - view.from) / Math.max(1, width() / 110);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw));
    pen.strokeStyle = colour.grid;
    pen.fillStyle = colour.muted;
    pen.fillText("cycle", 6, RULER / 2);
    for (let time = Math.ceil(view.from / step) * step; time <= view.to; time += step) {
      const x = Math.round(toX(time)) + 0.5;
      pen.beginPath();
      pen.moveTo(x, RULER - 6);
      pen.lineTo(x, height);
      pen.stroke();
      pen.fillText(number.format(time), x + 3, RULER / 2);
    }
  }

  function drawLane(pen, colour, lane, row) {
    const y = RULER + row * LANE, columns = Math.max(1, Math.ceil(width()));
    const scale = width() / (view.to - view.from);
    const share = (busyBefore(lane, view.to) - busyBefore(lane, view.from)) / (view.to - view.from);
    pen.fillStyle = colour.ink;
    pen.fillText(lane.label, 6, y + LANE / 2, LABEL - 60);
    pen.fillStyle = colour.muted;
    pen.textAlign = "right";
    pen.fillText((100 * share).toFixed(1) + "%", LABEL - 8, y + LANE / 2);
    pen.textAlign = "left";
    const filled = new Float32Array(columns), role = new Int16Array(columns).fill(-1);
    for (let i = after(lane, view.from); i < lane.start.length && lane.start[i] < view.to; i++) {
      const from = Math.max(lane.start[i], view.from), to = Math.min(lane.end[i], view.to);
      const x = toX(from), long = (to - from) * scale, name = lane.name[i];
      const dim = sought && !data.names[name].toLowerCase().includes(sought);
      if (long < NARROW) {
        const column = Math.min(columns - 1, Math.floor(x - LABEL));
        filled[column] += long;
        if (!dim) role[column] = data.roles[name];
        continue;
      }
      pen.globalAlpha = dim ? 0.15 : 1;
      pen.fillStyle = colour.get("s" + data.roles[name]);
      pen.fillRect(x, y + 3, Math.max(1, long - (long > 4 ? 1 : 0)), LANE - 6);
      if (long > 40) {
        pen.fillStyle = colour.paper;
        pen.save();
        pen.beginPath();
        pen.rect(x, y, long - 3, LANE);
        pen.clip();
        pen.fillText(data.names[name], x + 4, y + LANE / 2 + 0.5);
        pen.restore();
      }
    }
    for (let column = 0; column < columns; column++) {
      if (!filled[column]) continue;
      pen.globalAlpha = role[column] < 0 ? 0.1 : Math.min(1, 0.2 + 0.8 * filled[column]);
      pen.fillStyle = role[column] < 0 ? colour.muted : colour.get("s" + role[column]);
      pen.fillRect(LABEL + column, y + 3, 1, LANE - 6);
    }
    pen.globalAlpha = 1;
    if (marked && marked.row === row) {
      pen.strokeStyle = colour.ink;
      pen.lineWidth = 2;
      const x = toX(lane.start[marked.event]);
      const long = Math.max(2, (lane.end[marked.event] - lane.start[marked.event]) * scale);
      if (x + long > LABEL && x < LABEL + width()) {
        const left = Math.max(LABEL, x);
        pen.strokeRect(left, y + 3, Math.min(x + long, LABEL + width()) - left, LANE - 6);
      }
      pen.lineWidth = 1;
    }
  }

  function redraw() {
    if (!pending) { pending = true; requestAnimationFrame(draw); }
  }

  function show(from, to) {
    const span = Math.min(whole, Math.max(8, to - from));
    const start = Math.min(Math.max(0, from), whole - span);
    view = { from: start, to: start + span };
    redraw();
  }

  function zoom(factor, centre) {
    show(centre - (centre - view.from) * factor, centre + (view.to - centre) * factor);
  }

  const middle = () => (view.from + view.to) / 2;
  const span = () => view.to - view.from;
  const actions = {
    in: () => zoom(0.5, middle()),
    out: () => zoom(2, middle()),
    left: () => show(view.from - span() / 4, view.to - span() / 4),
    right: () => show(view.from + span() / 4, view.to + span() / 4),
    whole: () => show(0, whole),
    next: find,
  };

  // What is at a point of the canvas; a pixel covers several cycles, so nearby counts.
  function hit(x, y) {
    const row = Math.floor((y - RULER) / LANE);
    if (x < LABEL || y < RULER || row >= lanes.length) return null;
    const lane = lanes[row], slack = span() / width();
    const event = after(lane, toTime(x) - slack);
    if (event >= lane.start.length || lane.start[event] > toTime(x) + slack) return null;
    return { row, event };
  }

  function tell(found) {
    if (!found) return;
    const lane = lanes[found.row], i = found.event, args = data.args[lane.args[i]];
    const pairs = Object.entries(JSON.parse(args)).map(([k, v]) => `${k} ${v}`).join(", ");
    const [start, end] = [lane.start[i], lane.end[i]];
    told.textContent = `${lane.label}: ${data.names[lane.name[i]]}, cycles ` +
      `${number.format(start)} to ${number.format(end)} (${number.format(end - start)})` +
      (pairs ? `; ${pairs}` : "");
  }

  // The next event after the marked one, in time, whose name contains what is sought.
  function find() {
    if (!sought) { seek.focus(); return; }
    const now = marked ? [lanes[marked.row].start[marked.event], marked.row] : [-1, -1];
    let best = null, first = null;
    lanes.forEach((lane, row) => {
      for (let i = 0; i < lane.start.length; i++) {
        if (!data.names[lane.name[i]].toLowerCase().includes(sought)) continue;
        const key = [lane.start[i], row];
        const before = (a, b) => a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
        if (!first || before(key, first.key)) first = { key, row, event: i };
        if (before(now, key) && (!best || before(key, best.key))) best = { key, row, event: i };
      }
    });
    marked = best || first;
    if (!marked) { told.textContent = `No event's name contains "${sought}".`; redraw(); return; }
    const lane = lanes[marked.row], start = lane.start[marked.event];
    const long = Math.max(lane.end[marked.event] - start, 8);
    if (start < view.from || start + long > view.to || long < span() / 50)
      show(start - 4 * long, start + 5 * long);
    tell(marked);
    redraw();
  }

  for (const button of document.querySelectorAll("[data-action]"))
    button.addEventListener("click", () => actions[button.dataset.action]());
  seek.addEventListener("input", () => { sought = seek.value.trim().toLowerCase(); redraw(); });
  seek.addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  const keys = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right",
    0: "whole", Home: "whole", n: "next" };
  canvas.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[action]();
  });
  // The wheel alone scrolls the page.
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey && !event.metaKey) return;
    event.preventDefault();
    const turned = event.deltaY || event.deltaX;
    zoom(2 ** (turned / 300), toTime(Math.max(LABEL, event.offsetX)));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(0.25, toTime(event.offsetX)));
  let grip = null;
  canvas.addEventListener("pointerdown", (event) => {
    grip = { x: event.offsetX, from: view.from, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) { tell(hit(event.offsetX, event.offsetY)); return; }
    const shift = (grip.x - event.offsetX) / width() * span();
    grip.moved ||= Math.abs(grip.x - event.offsetX) > 3;
    if (grip.moved) show(grip.from + shift, grip.from + shift + span());
  });
  canvas.addEventListener("pointerup", (event) => {
    if (grip && !grip.moved) {
      marked = hit(event.offsetX, event.offsetY);
      tell(marked);
      redraw();
    }
    grip = null;
  });
  canvas.addEventListener("pointercancel", () => { grip = null; });
  new ResizeObserver(redraw).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  draw();
})();
