// The interactive part of a report: reads #explorer, which explorer.py wrote, and draws with Plotly.
(() => {
const held = JSON.parse(at("explorer").textContent), inTable = [...all];
const WIDTH = Math.min(660, at("curve").clientWidth), ROW = ["place", "method", "front", "end", "seed"];
const FONT = { family: getComputedStyle(document.body).fontFamily, size: 12, color: "#1a1a1a" };
const OPTIONS = { displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const PLACE = Object.fromEntries(ROW.map((name, i) => [name, i]));

const make = (tag, parts = [], values = {}) => {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...parts);
  return made;
};
const grouped = (items, key) => {
  const found = new Map();
  for (const item of items) found.set(key(item), [...(found.get(key(item)) || []), item]);
  return found;
};
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;

// Mean and Student's 95 % interval, cut to what is possible; no interval of one value.
function interval(values, percent) {
  const n = values.length, middle = mean(values);
  if (n < 2) return { n, mean: middle, low: null, high: null };
  const squares = values.reduce((sum, value) => sum + (value - middle) ** 2, 0);
  const half = held.quantiles[n - 2] * Math.sqrt(squares / (n - 1) / n);
  const [least, most] = percent ? [0, 1] : [-Infinity, Infinity];
  return { n, mean: middle, low: Math.max(middle - half, least), high: Math.min(middle + half, most) };
}
const shown = (value, percent) =>
  value === null ? "–" : percent ? `${(100 * value).toFixed(1)} %` : String(+value.toPrecision(4));
const between = (low, high, percent) => low === null ? "–" : `${shown(low, percent)} … ${shown(high, percent)}`;
const told = (found, percent) => `${shown(found.mean, percent)}`
  + (found.n > 1 ? `<br>95 %: ${between(found.low, found.high, percent)}, ${found.n} seeds` : "");

// Controls: a list of titles to pick one of, and boxes to tick; a click on a legend ticks all or none.
function select(name, titles, changed) {
  const field = make("select", titles.map((title, i) => make("option", [title], { value: i })), { name });
  field.addEventListener("change", changed);
  return make("label", [`${name} `, field]);
}
function boxes(name, titles, ticked, changed, words = name) {
  const ticks = titles.map((title, i) => make("input", [], { type: "checkbox", value: i, checked: ticked(i) }));
  const legend = make("legend", [words], { title: "all or none" });
  legend.addEventListener("click", () => {
    const on = !ticks.every(tick => tick.checked);
    ticks.forEach(tick => { tick.checked = on; });
    changed();
  });
  const field = make("fieldset", [legend, ...titles.map((title, i) => make("label", [ticks[i], title]))], { name });
  field.addEventListener("change", changed);
  return field;
}
const picked = (form, name) => +form.elements[name].value;
const ticked = (form, name) => new Set(
  [...form.querySelectorAll(`fieldset[name="${name}"] input:checked`)].map(tick => +tick.value));
const upTo = count => Array.from({ length: count }, (_, i) => `${i + 1}`);

// Maps of matrices, front sites downward, three in a row. An item: title, values, hover texts.
function maps(place, items, [fronts, ends], scale) {
  if (!items.length) return Plotly.purge(place);
  const wide = Math.min(3, items.length), high = Math.ceil(items.length / wide);
  const side = Math.max(150, (WIDTH - 40) / wide - 40);
  const axis = { tickfont: { size: 9 }, fixedrange: true, constrain: "domain", dtick: Math.ceil(Math.max(fronts, ends) / 12) };
  const layout = {
    width: WIDTH, height: 50 + high * (side * Math.min(1.3, fronts / ends) + 60), font: FONT,
    margin: { l: 34, r: 6, t: 34, b: 30 }, annotations: [],
    grid: { rows: high, columns: wide, pattern: "independent", xgap: 0.16, ygap: 0.3 },
  };
  const traces = items.map((item, i) => {
    const number = i ? i + 1 : "";
    layout[`xaxis${number}`] = { ...axis, title: { text: "end site", font: { size: 10 }, standoff: 2 } };
    layout[`yaxis${number}`] = { ...axis, autorange: "reversed", title: { text: "front site", font: { size: 10 }, standoff: 2 } };
    layout.annotations.push({
      text: item.title, showarrow: false, xref: `x${number} domain`, yref: `y${number} domain`,
      x: 0, y: 1, xanchor: "left", yanchor: "bottom", font: { size: 12 },
    });
    return {
      type: "heatmap", z: item.values, x: upTo(ends), y: upTo(fronts), text: item.texts, hoverinfo: "text",
      colorscale: "Cividis", reversescale: Boolean(item.distance), showscale: false, xgap: 1, ygap: 1,
      xaxis: `x${number}`, yaxis: `y${number}`, hoverongaps: false, ...scale,
    };
  });
  return Plotly.react(place, traces, layout, OPTIONS);
}

// Stitched models
const choice = at("choice");
const study = () => held.studies[picked(choice, "pair")];
function measure() {
  const number = picked(choice, "measure"), [name, title, percent] = held.measures[number];
  return { name, title, percent, of: row => row[ROW.length + number] };
}
function chosenRows() {
  const kept = ["method", "front", "end", "seed"].map(name => [PLACE[name], ticked(choice, name), name]);
  return study().rows.filter(row => kept.every(([i, set, name]) => set.has(row[i] - (name === "front" || name === "end"))));
}
function cells(rows, { of, percent }) {
  const known = rows.filter(row => of(row) !== null);
  const found = grouped(known, row => [row[PLACE.front], row[PLACE.end]].join());
  return new Map([...found].map(([key, of_cell]) => [key, interval(of_cell.map(of), percent)]));
}
function curve(method, rows, asked) {
  const { methods, same, sites, ends } = study(), mark = held.methods[methods[method]];
  const found = cells(rows, asked), own = ends[asked.name] || [null, null];
  const points = same.map(pair => found.get(pair.join()) || { mean: null, n: 0 });
  const reach = name => points.map(p => p.n > 1 ? Math.abs(p[name] - p.mean) : 0);
  return {
    name: mark.label, mode: "lines+markers", connectgaps: false, hoverinfo: "text",
    x: [0, ...same.map(pair => pair[1]), sites[1] + 1], y: [own[0], ...points.map(p => p.mean), own[1]],
    line: { color: mark.colour, dash: mark.dash, width: 2 },
    marker: { color: mark.colour, symbol: ["circle", ...same.map(() => mark.symbol), "circle"], size: 8, line: { color: "#fff", width: 1 } },
    error_y: { type: "data", symmetric: false, array: [0, ...reach("high"), 0], arrayminus: [0, ...reach("low"), 0], thickness: 1.2, width: 4, color: mark.colour },
    text: [`end model: ${shown(own[0], asked.percent)}`, ...points.map((p, i) =>
      `${mark.label}, site ${same[i][0]} → ${same[i][1]}<br>${p.n ? told(p, asked.percent) : ""}`), `front model: ${shown(own[1], asked.percent)}`],
  };
}
function drawCurves(rows, asked) {
  const { sites, methods } = study(), last = sites[1] + 1;
  const layout = {
    width: WIDTH, height: 400, font: FONT, margin: { l: 60, r: 12, t: 12, b: 44 }, hovermode: "closest",
    xaxis: { title: { text: sites[0] === sites[1] ? "site" : "end site (front site at the same relative depth)" }, range: [-0.4, last + 0.4],
      tickvals: [...Array(last + 1).keys()], ticktext: ["end<br>model", ...upTo(sites[1]), "front<br>model"], showgrid: false, zeroline: false },
    yaxis: { title: { text: asked.title }, tickformat: asked.percent ? ".0%" : "", zeroline: false, gridcolor: "#e5e5e5" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
  };
  const found = [...grouped(rows, row => row[PLACE.method])].sort((a, b) => a[0] - b[0]);
  return Plotly.react("curve", found.map(([method, mine]) => curve(method, mine, asked)), layout, OPTIONS);
}
function drawCross(rows, asked) {
  const { sites, methods, same } = study(), corresponding = new Set(same.map(pair => pair.join()));
  const off = rows.some(row => !corresponding.has([row[PLACE.front], row[PLACE.end]].join()));
  at("cross").hidden = !off;
  if (!off) return Plotly.purge("cross");
  const items = [...grouped(rows, row => row[PLACE.method])].sort((a, b) => a[0] - b[0]).map(([method, mine]) => {
    const found = cells(mine, asked), name = held.methods[methods[method]].label;
    const each = give => upTo(sites[0]).map(front => upTo(sites[1]).map(end => give(found.get(`${front},${end}`), front, end)));
    return {
      title: name, values: each(p => p ? p.mean : null),
      texts: each((p, front, end) => p ? `${name}, ${front} → ${end}<br>${told(p, asked.percent)}` : ""),
    };
  });
  const numbers = items.flatMap(item => item.values.flat()).filter(value => value !== null);
  return maps("cross", items, sites, numbers.length ? { zmin: Math.min(...numbers), zmax: Math.max(...numbers) } : {});
}
// By method: the mean over the chosen same-site cells (all where there are none) of every seed that has them all.
function drawMeans(rows, asked) {
  const corresponding = new Set(study().same.map(pair => pair.join()));
  const place = row => [row[PLACE.front], row[PLACE.end]].join();
  const known = rows.filter(row => asked.of(row) !== null), line = known.filter(row => corresponding.has(place(row)));
  const used = line.length ? line : known, every = new Set(used.map(place)).size;
  const lines = [...grouped(used, row => row[PLACE.method])].sort((a, b) => a[0] - b[0]).map(([method, mine]) => {
    const whole = [...grouped(mine, row => row[PLACE.seed]).values()].filter(of_seed => new Set(of_seed.map(place)).size === every);
    const name = held.methods[study().methods[method]].label;
    if (!whole.length) return [name, every, 0, "–", "–"];
    const found = interval(whole.map(of_seed => mean(of_seed.map(asked.of))), asked.percent);
    return [name, every, found.n, shown(found.mean, asked.percent), between(found.low, found.high, asked.percent)];
  });
  const cellsOf = (cells, tag) => make("tr", cells.map((cell, i) => make(tag, [cell], { className: i ? "n" : "" })));
  const heads = ["", "cells", "seeds", asked.title.toLowerCase(), "95 % interval"];
  at("means").replaceChildren(make("thead", [cellsOf(heads, "th")]), make("tbody", lines.map(each => cellsOf(each, "td"))));
}
function redraw() {
  const rows = chosenRows(), asked = measure();
  at("chosen").textContent = `${study().title}: ${asked.title.toLowerCase()}; seeds ${[...ticked(choice, "seed")].map(i => study().seeds[i]).join("; ") || "none"}.`;
  drawCurves(rows, asked);
  drawMeans(rows, asked);
  drawCross(rows, asked);
  only = choice.elements.table.checked ? new Set(rows.map(row => inTable[row[PLACE.place]])) : null;
  choose();
}
function offer() {
  const { methods, seeds, sites } = study(), yes = () => true;
  const there = i => new Set(study().rows.map(row => row[PLACE[i]]));
  const fronts = there("front"), ends = there("end");
  at("parts").replaceChildren(
    boxes("method", methods.map(name => held.methods[name].label), yes, redraw), boxes("seed", seeds, yes, redraw),
    boxes("front", upTo(sites[0]), i => fronts.has(i + 1), redraw, "front site"), boxes("end", upTo(sites[1]), i => ends.has(i + 1), redraw, "end site"));
  redraw();
}
if (held.studies.length) {
  const follow = make("input", [], { type: "checkbox", name: "table" });
  follow.addEventListener("change", redraw);
  choice.append(
    make("p", [select("pair", held.studies.map(each => each.title), offer), " ",
      select("measure", held.measures.map(each => each[1]), redraw)]),
    make("div", [], { id: "parts" }), make("p", [make("label", [follow, "the table of every number holds these rows only"])]));
  offer();
}

// Similarity of donors
const likeness = at("likeness");
function drawLikeness() {
  const { panels, sites } = held.pairs[picked(likeness, "donors")];
  const items = [...ticked(likeness, "shown")].map(i => {
    const { label, percent, distance, values, low, high, p } = panels[i];
    const texts = values.map((line, f) => line.map((value, e) => `${label}, ${f + 1} → ${e + 1}<br>${shown(value, percent)}`
      + (low[f][e] === null ? "" : `<br>95 %: ${between(low[f][e], high[f][e], percent)}`)
      + (p[f][e] === null ? "" : `<br>p = ${+p[f][e].toPrecision(2)}`)));
    return { title: label, values, texts, distance };
  });
  return maps("likenesses", items, sites, {});
}
function offerLikeness() {
  const { panels } = held.pairs[picked(likeness, "donors")];
  at("panels").replaceChildren(boxes("shown", panels.map(panel => panel.label), i => i < 6, drawLikeness));
  drawLikeness();
}
if (held.pairs.length) {
  likeness.append(make("p", [select("donors", held.pairs.map(each => each.title), offerLikeness)]), make("div", [], { id: "panels" }));
  offerLikeness();
}
})();
