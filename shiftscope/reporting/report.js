"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const at = Object.fromEntries(data.keys.map((key, place) => [key, place]));
  const rows = data.rows;
  const byOrder = new Map(rows.map((row) => [row[at.order], row]));
  const columns = [...document.querySelectorAll("#table thead th")].map((th) => th.dataset.key);
  const words = new Set(["site", "finding", "op"]);
  const severities = ["info", "watch", "serious", "critical"];
  const root = document.documentElement;
  const cell = (row, key) => (key in at ? row[at[key]] : null);

  // ---- state: everything that a link should bring back stands after the # ----
  const defaults = { site: "", sort: "", dir: "desc", q: "", kind: "", f: "", all: "", stream: "z", ord: "median", win: "all", from: "0" };
  const state = { ...defaults };

  function readState() {
    const hash = location.hash.slice(1);
    const given = hash.includes("=") ? new URLSearchParams(hash) : new URLSearchParams();
    for (const key of Object.keys(defaults)) state[key] = given.get(key) ?? defaults[key];
    if (!columns.includes(state.sort)) state.sort = "";
    if (!byOrder.has(Number(state.site)) || state.site === "") state.site = firstSite();
  }

  function firstSite() {
    const row = rows.find((candidate) => candidate[at.order] in data.strips) ?? rows[0];
    return row ? String(row[at.order]) : "";
  }

  function writeState() {
    const kept = Object.entries(state).filter(([key, value]) => value !== defaults[key]);
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  }

  // ---- the table ----
  function format(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value) && Math.abs(value) < 1e9) {
      return Math.abs(value) >= 1e4 ? value.toLocaleString("en-US") : String(value);
    }
    return String(Number(value.toPrecision(4)));
  }

  // As bounded_share of words.py: a share next to one keeps its nines.
  function formatShare(value) {
    const told = format(value);
    if (told !== "1") return told;
    const nines = value < 1 ? Math.floor(-Math.log10(1 - value)) : 6;
    if (nines >= 6) return ">0.999999";
    return (Math.floor(value * 10 ** (nines + 1)) / 10 ** (nines + 1)).toFixed(nines + 1);
  }

  function chosenRows() {
    const terms = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const named = state.f && data.findings[state.f] ? new Set(data.findings[state.f]) : null;
    const kept = rows.filter((row) => {
      const text = `${cell(row, "site")} ${cell(row, "op")}`.toLowerCase();
      return (!state.kind || cell(row, "kind") === state.kind)
        && (!named || named.has(row[at.order])) && terms.every((term) => text.includes(term));
    });
    if (!state.sort) return kept;
    const sign = state.dir === "asc" ? 1 : -1;
    const rank = (row) => {
      const value = cell(row, state.sort);
      return state.sort === "finding" ? severities.indexOf(value) : value;
    };
    const compare = (a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    };
    return [...kept].sort(compare);
  }

  function makeRow(row) {
    const tr = document.createElement("tr");
    tr.id = `row-${row[at.order]}`;
    tr.dataset.order = row[at.order];
    for (const key of columns) tr.append(makeCell(row, key));
    return tr;
  }

  function makeCell(row, key) {
    const td = document.createElement(key === "site" ? "th" : "td");
    const value = cell(row, key);
    if (words.has(key)) td.className = "text";
    if (key === "site") {
      td.scope = "row";
      const link = document.createElement("a");
      link.href = `#row-${row[at.order]}`;
      link.textContent = data.labels[row[at.order]] ?? value;
      if (link.textContent !== value) link.title = value;
      td.append(link);
    } else if (key === "finding") {
      const word = document.createElement("span");
      word.className = `severity ${value || ""}`;
      word.textContent = value || "";
      td.append(word);
    } else {
      td.textContent = key === "shift_share" ? formatShare(value) : format(value);
    }
    return td;
  }

  function decorate() {
    const share = columns.indexOf("shift_share");
    for (const tr of $("table").tBodies[0].rows) {
      const row = byOrder.get(Number(tr.dataset.order));
      const value = cell(row, "shift_share");
      const td = tr.cells[share];
      if (td && typeof value === "number") {
        td.classList.add("bar");
        td.style.setProperty("--share", `${100 * value}%`);
      }
      tr.classList.toggle("chosen", tr.dataset.order === state.site);
    }
  }

  function drawTable() {
    const chosen = chosenRows();
    const shown = state.all ? chosen : chosen.slice(0, data.first);
    const body = document.createElement("tbody");
    body.append(...shown.map(makeRow));
    $("table").tBodies[0].replaceWith(body);
    for (const th of document.querySelectorAll("#table thead th")) {
      const sorted = th.dataset.key === state.sort;
      th.setAttribute("aria-sort", !sorted ? "none" : state.dir === "asc" ? "ascending" : "descending");
    }
    const part = shown.length < chosen.length ? `, first ${shown.length} shown` : "";
    $("count").textContent = `${chosen.length} of ${rows.length}${part}`;
    $("all").hidden = shown.length === chosen.length;
    decorate();
  }

  function sortBy(key) {
    if (state.sort === key) state.dir = state.dir === "asc" ? "desc" : "asc";
    else state.dir = words.has(key) && key !== "finding" ? "asc" : "desc";
    state.sort = key;
    refresh();
  }

  // ---- one site: its neurons and its numbers ----
  const strip = { key: "", medians: [], neurons: [], quantiles: [], view: [], cursor: -1 };

  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const n = packed.n;
    let offset = 0;
    const plane = (width) => {
      const out = new Float64Array(n);
      for (let b = 0; b < width; b++, offset += n) {
        for (let i = 0; i < n; i++) out[i] += raw[offset + i] * 256 ** b;
      }
      return out;
    };
    const neurons = plane(4);
    const [rise, down, low, up, high] = [plane(2), plane(2), plane(2), plane(2), plane(2)];
    const unit = (packed.high - packed.low) / data.steps;
    const quantiles = [];
    let median = 0;
    for (let i = 0; i < n; i++) {
      median += rise[i];
      const steps = [median - down[i] - low[i], median - down[i], median, median + up[i], median + up[i] + high[i]];
      quantiles.push(steps.map((step) => packed.low + step * unit));
    }
    return { neurons, quantiles };
  }

  async function drawSite() {
    const row = byOrder.get(Number(state.site));
    if (!row) return;
    const streams = data.strips[state.site] ?? {};
    if (!(state.stream in streams)) state.stream = Object.keys(streams)[0] ?? "z";
    $("neurons-title").textContent = `Neurons of ${cell(row, "site") || "(model)"}`;
    $("stream").replaceChildren(...Object.keys(streams).map((name) => new Option(name, name)));
    $("stream").value = state.stream;
    for (const key of ["ord", "win"]) $(key).value = state[key];
    drawNumbers(row);
    const key = `${state.site}:${state.stream}`;
    if (strip.key !== key) {
      const packed = streams[state.stream];
      const unpacked = packed && typeof DecompressionStream === "function" ? await unpack(packed) : { neurons: [], quantiles: [] };
      if (`${state.site}:${state.stream}` !== key) return;
      Object.assign(strip, unpacked, { key, cursor: -1, of: packed ? packed.of : 0 });
    }
    arrange();
    paint();
  }

  function drawNumbers(row) {
    const pairs = data.keys.filter((key) => key !== "site" && row[at[key]] !== null && row[at[key]] !== "");
    $("numbers").replaceChildren(...pairs.map((key) => {
      const box = document.createElement("div");
      const name = document.createElement("dt");
      const value = document.createElement("dd");
      name.textContent = key;
      value.textContent = format(row[at[key]]);
      if (key === "notes") box.className = "wide";
      box.append(name, value);
      return box;
    }));
  }

  function arrange() {
    const places = strip.quantiles.map((_, place) => place);
    const spread = (i) => strip.quantiles[i][3] - strip.quantiles[i][1];
    if (state.ord === "index") places.sort((a, b) => strip.neurons[a] - strip.neurons[b]);
    if (state.ord === "spread") places.sort((a, b) => spread(b) - spread(a));
    const size = state.win === "all" ? places.length : Math.min(Number(state.win) || 64, places.length);
    const last = places.length - size;
    const from = Math.max(0, Math.min(Number(state.from) || 0, last));
    $("from").max = last;
    $("from").value = from;
    $("from").disabled = last === 0;
    strip.from = from;
    strip.view = places.slice(from, from + size);
  }

  function ticks(low, high) {
    const raw = (high - low) / 5 || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw);
    const out = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) out.push(Number(value.toPrecision(6)));
    return out;
  }

  function paint() {
    const canvas = $("strip");
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.font = "12px system-ui, sans-serif";
    const view = strip.view.map((place) => strip.quantiles[place]);
    const name = cell(byOrder.get(Number(state.site)), "site");
    if (!view.length) {
      pen.fillStyle = colour("--dim");
      pen.fillText("The quantiles of this site are not in this page.", 16, 30);
      canvas.setAttribute("aria-label", `No quantiles of ${name} in this page`);
      return;
    }
    let [low, high] = [Math.min(...view.map((q) => q[0])), Math.max(...view.map((q) => q[4]))];
    const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    [low, high] = [low - margin, high + margin];
    const labels = ticks(low, high).map((value) => [value, format(value)]);
    const left = 14 + Math.max(...labels.map(([, text]) => pen.measureText(text).width));
    const [right, top, bottom] = [width - 10, 8, height - 22];
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    const each = (right - left) / view.length;
    for (const [value, text] of labels) {
      pen.fillStyle = colour("--line");
      pen.fillRect(left, Math.round(y(value)), right - left, 1);
      pen.fillStyle = colour("--dim");
      pen.fillText(text, 8, y(value) + 4);
    }
    const bar = (place, from, to, share, name) => {
      pen.fillStyle = colour(name);
      const size = Math.max(each * share, each < 5 ? 1 : 1.5);
      pen.fillRect(left + each * (place + 0.5) - size / 2, y(to), size, Math.max(y(from) - y(to), 1));
    };
    const boxes = each >= 5;
    view.forEach((q, place) => bar(place, q[0], q[4], boxes ? 0 : 1, boxes ? "--box" : "--band"));
    view.forEach((q, place) => bar(place, q[1], q[3], boxes ? 0.7 : 1, "--box"));
    pen.strokeStyle = pen.fillStyle = colour("--median");
    if (boxes) view.forEach((q, place) => pen.fillRect(left + each * (place + 0.15), y(q[2]) - 1, each * 0.7, 2));
    else {
      pen.beginPath();
      view.forEach((q, place) => pen.lineTo(left + each * (place + 0.5), y(q[2])));
      pen.lineWidth = 1.5;
      pen.stroke();
    }
    if (strip.cursor >= 0 && strip.cursor < view.length) {
      pen.fillStyle = colour("--ink");
      pen.fillRect(left + each * (strip.cursor + 0.5), top, 1, bottom - top);
    }
    pen.fillStyle = colour("--dim");
    const some = strip.quantiles.length < strip.of ? `, ${strip.quantiles.length} of ${strip.of} carried` : "";
    const order = { median: "by median", index: "by index", spread: "widest first" }[state.ord] ?? "";
    pen.fillText(`neurons ${strip.from}–${strip.from + view.length - 1} of ${strip.quantiles.length}${some}, ${order}`, left, height - 7);
    strip.left = left;
    strip.each = each;
    const medians = view.map((q) => q[2]);
    canvas.setAttribute("aria-label", `Quantiles of ${state.stream} of ${view.length} neurons of ${name}: medians from ${format(Math.min(...medians))} to ${format(Math.max(...medians))}, 1 to 99 % within ${format(low + margin)} to ${format(high - margin)}`);
  }

  function point(place) {
    if (!strip.view.length) return;
    strip.cursor = Math.max(0, Math.min(place, strip.view.length - 1));
    const which = strip.view[strip.cursor];
    const values = strip.quantiles[which].map((value) => Number(value.toPrecision(3)));
    $("readout").textContent = `neuron ${strip.neurons[which]}: ${values.join(" ")}`;
    paint();
  }

  function choose(order, move) {
    state.site = String(order);
    state.from = "0";
    refresh();
    if (move) $("neurons").scrollIntoView({ block: "nearest" });
  }

  // ---- everything together ----
  function refresh() {
    for (const key of ["q", "kind", "f"]) $(key).value = state[key];
    drawTable();
    drawSite();
    writeState();
  }

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

  function labelTheme() {
    $("theme").textContent = dark() ? "Light" : "Dark";
    paint();
  }

  async function copyText() {
    let done = false;
    try {
      await navigator.clipboard.writeText(data.text);
      done = true;
    } catch {
      const area = document.createElement("textarea");
      area.value = data.text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    $("copy").textContent = done ? "Copied" : "Copying is not allowed here";
  }

  function listen() {
    for (const th of document.querySelectorAll("#table thead th")) {
      th.querySelector("button").addEventListener("click", () => sortBy(th.dataset.key));
    }
    for (const key of ["q", "kind", "f", "ord", "win", "from", "stream"]) {
      $(key).addEventListener("input", () => {
        state[key] = $(key).value;
        refresh();
      });
    }
    $("all").addEventListener("click", () => { state.all = "1"; refresh(); });
    $("reset").addEventListener("click", () => { Object.assign(state, { sort: "", q: "", kind: "", f: "", all: "" }); refresh(); });
    $("copy").addEventListener("click", copyText);
    $("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; labelTheme(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", labelTheme);
    addEventListener("resize", paint);
    addEventListener("hashchange", () => { if (location.hash.includes("=")) { readState(); refresh(); } });
    document.addEventListener("click", (event) => {
      const link = event.target.closest('a[href^="#row-"]');
      if (link) { event.preventDefault(); choose(link.hash.slice(5), true); }
      const button = event.target.closest("button[data-finding]");
      if (button) { state.f = button.dataset.finding; state.sort = ""; refresh(); $("sites").scrollIntoView(); }
    });
    const canvas = $("strip");
    canvas.addEventListener("mousemove", (event) => point(Math.floor((event.offsetX - strip.left) / strip.each)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 32, PageUp: -32, Home: -1e9, End: 1e9 }[event.key];
      if (step) { event.preventDefault(); point(Math.max(strip.cursor, 0) + (strip.cursor < 0 ? 0 : step)); }
    });
    addEventListener("beforeprint", () => {
      for (const box of document.querySelectorAll("details:not([open])")) { box.dataset.printed = "1"; box.open = true; }
      const kept = state.all;
      state.all = "1";
      drawTable();
      state.all = kept;
      paint();
    });
    addEventListener("afterprint", () => {
      for (const box of document.querySelectorAll("details[data-printed]")) { delete box.dataset.printed; box.open = false; }
      drawTable();
      paint();
    });
  }

  for (const part of document.querySelectorAll(".needs-script")) part.hidden = part.id === "neurons" && !rows.length;
  const anchor = location.hash;
  readState();
  const wanted = anchor.startsWith("#row-") ? anchor.slice(5) : "";
  if (byOrder.has(Number(wanted)) && wanted !== "") state.site = wanted;
  listen();
  labelTheme();
  if (anchor.includes("=") || wanted) refresh();
  else { decorate(); $("count").textContent = `${rows.length} of ${rows.length}${rows.length > data.first ? `, first ${data.first} shown` : ""}`; $("all").hidden = rows.length <= data.first; drawSite(); }
})();
