// Tables: sorted, searched and filtered as a whole, drawn one page at a time, so that 131,072 rows stay quick.

const PAGE_ROWS = 25;
const tables = {}; // by name: { order } of what is shown now, for the cards' previous and next

function makeTable(box, name) {
  const { columns, values, n, sort, descending } = page.tables[name];
  const state = { key: sort, descending, page: 0, words: [], tests: [], order: [] };
  tables[name] = state;
  const heads = columns.map((entry) => {
    const button = el("button", { type: "button", class: "sort", title: entry.sentence, onclick: () => sortBy(entry) }, entry.title);
    return el("th", { scope: "col", class: numeric(entry) ? "n" : null, "data-key": entry.key }, button);
  });
  const body = el("tbody");
  const search = el("input", { type: "search", placeholder: "Feature number, label, kind", autocomplete: "off" });
  const count = el("span", { class: "count", role: "status" });
  const back = el("button", { type: "button", class: "quiet", onclick: () => turn(-1) }, "Previous");
  const on = el("button", { type: "button", class: "quiet", onclick: () => turn(1) }, "Next");
  const place = el("span");
  const jump = el("input", { type: "number", min: 1, "aria-label": "Page", onchange: () => { state.page = Math.max(0, Math.min(Math.round(Number(jump.value) || 1), Math.ceil(state.order.length / PAGE_ROWS)) - 1); draw(); } });
  const pages = el("div", { class: "pages" }, back, on, el("label", {}, "Page ", jump), place);
  const caption = box.dataset.title;
  box.append(
    el("div", { class: "bar-tools", hidden: n <= 5 }, el("label", {}, "Search", search), name === "features" ? filters(columns, values, (tests) => { state.tests = tests; later(); }) : null, count),
    el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
      el("table", { "aria-label": caption }, el("thead", {}, el("tr", {}, heads)), body)),
    pages,
  );
  const texts = searchable(name, columns, values, n);
  const most = largest(values.cost);

  function sortBy(entry) {
    const up = ["pair", "feature", "text", "label", "labels", "state"].includes(entry.kind);
    state.descending = state.key === entry.key ? !state.descending : !up;
    state.key = entry.key;
    refresh();
  }
  function turn(step) { state.page += step; draw(); }
  function refresh() {
    const keys = sortKeys(name, columns.find((entry) => entry.key === state.key) || { key: state.key }, values, n), sign = state.descending ? -1 : 1;
    const known = [], absent = []; // what is missing comes last in both directions
    for (let row = 0; row < n; row += 1) {
      if (state.words.every((word) => texts(row, word)) && state.tests.every((test) => test(row))) (missing(keys[row]) ? absent : known).push(row);
    }
    known.sort((a, b) => (keys[a] < keys[b] ? -sign : keys[a] > keys[b] ? sign : a - b));
    state.order = known.concat(absent);
    state.page = 0;
    heads.forEach((head) => (head.dataset.key === state.key
      ? head.setAttribute("aria-sort", state.descending ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    draw();
  }
  function draw() {
    const first = state.page * PAGE_ROWS, rows = state.order.slice(first, first + PAGE_ROWS), found = state.order.length;
    body.replaceChildren(...rows.map((row) => drawRow(name, columns, values, row, most)));
    if (!found) body.append(el("tr", {}, el("td", { colspan: columns.length }, "Nothing matches the search.")));
    count.textContent = found === n ? `${shown(n, "count")} in all` : `${shown(found, "count")} of ${shown(n, "count")}`;
    place.textContent = found ? `${shown(first + 1, "count")} to ${shown(Math.min(first + PAGE_ROWS, found), "count")} of ${shown(found, "count")}` : "";
    jump.value = state.page + 1;
    back.disabled = state.page === 0;
    on.disabled = first + PAGE_ROWS >= found;
    pages.hidden = n <= PAGE_ROWS;
  }
  let waiting = 0;
  function later() {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, n > 5000 ? 150 : 0);
  }
  search.addEventListener("input", () => { state.words = search.value.toLowerCase().split(/\s+/).filter(Boolean); later(); });
  refresh();
}

const numeric = (entry) => ["number", "share", "count", "interval", "feature"].includes(entry.kind) && entry.key !== "feature";

const largest = (list) => (list || []).reduce((most, value) => (value > most ? value : most), 0);

// Which state, and a column between two bounds: tests of a row, handed to `changed`.
function filters(columns, values, changed) {
  const states = ["live", ...new Set((values.state || []).flatMap((text) => text.split(" ")).filter(Boolean))];
  const state = el("select", { "data-filter": "state" }, el("option", { value: "" }, "any"), states.map((name) => el("option", {}, name)));
  const ranged = columns.filter((entry) => ["number", "share", "count"].includes(entry.kind) && values[entry.key]);
  const which = el("select", { "data-filter": "column" }, el("option", { value: "" }, "any column"), ranged.map((entry) => el("option", { value: entry.key }, entry.title)));
  const [low, high] = ["from", "to"].map((end) => el("input", { type: "number", step: "any", "data-filter": end, "aria-label": `Filter ${end}` }));
  const unit = el("span");
  function tell() {
    const tests = [], entry = ranged.find(({ key }) => key === which.value), scale = entry?.kind === "share" ? 100 : 1;
    unit.textContent = scale === 100 ? "%" : "";
    if (state.value) tests.push((row) => (state.value === "live" ? !values.state[row].includes("dead") : values.state[row].includes(state.value)));
    const [from, to] = [low, high].map((input) => (input.value === "" ? null : Number(input.value) / scale));
    if (entry && from !== null) tests.push((row) => !missing(values[entry.key][row]) && values[entry.key][row] >= from);
    if (entry && to !== null) tests.push((row) => !missing(values[entry.key][row]) && values[entry.key][row] <= to);
    changed(tests);
  }
  for (const input of [state, which, low, high]) input.addEventListener("input", tell);
  return el("div", { class: "filters" }, states.length > 1 ? el("label", {}, "State", state) : null, el("label", {}, "Where", which), el("span", {}, "from"), low, el("span", {}, "to"), high, unit);
}

function sortKeys(name, entry, values, n) {
  if (entry.kind === "pair") return values.i.map((i, row) => i * 1e6 + values.j[row]);
  if (entry.kind === "labels") return values.i.map((i) => folded(ofFeature(i, "label")));
  if (entry.kind === "label") return values[entry.key].map(folded);
  return values[entry.key] || [];
}
const folded = (text) => (missing(text) ? null : text.trim().toLowerCase());

// A word is a feature's number exactly, or part of a label, a kind or a state. Texts are folded once, at the first search.
function searchable(name, columns, values, n) {
  let texts = null;
  const numbers = values.i ? [values.i, values.j] : [values.feature];
  const plain = columns.filter((entry) => ["text", "state", "label"].includes(entry.kind)).map((entry) => values[entry.key]);
  const build = () => Array.from({ length: n }, (_, row) => {
    const labels = values.i ? [ofFeature(values.i[row], "label"), ofFeature(values.j[row], "label")] : [];
    return [...plain.map((list) => list[row]), ...labels].filter((text) => !missing(text)).join("\n").toLowerCase();
  });
  return (row, word) => {
    texts ||= build();
    return texts[row].includes(word) || numbers.some((list) => String(list[row]) === word);
  };
}

function drawRow(name, columns, values, row, most) {
  const open = values.i ? () => openPair(values.i[row], values.j[row], name) : () => openFeature(values.feature[row], name);
  const click = (event) => { if (!event.target.closest("button") && !getSelection().toString()) open(); };
  return el("tr", { onclick: click }, columns.map((entry) =>
    el("td", { class: numeric(entry) ? "n" : null }, drawCell(name, entry, values, row, most))));
}

function drawCell(name, entry, values, row, most) {
  const value = values[entry.key] ? values[entry.key][row] : null;
  if (entry.kind === "pair") {
    const [i, j] = pairOrder(values, row), parent = values.parent && values.parent[row] !== null;
    const said = parent ? `Card of parent ${i} and child ${j}` : `Card of features ${i} and ${j}`;
    return el("button", { type: "button", class: "link", "data-pair": `${values.i[row]}-${values.j[row]}`, "aria-label": said }, `${i} ${parent ? "→" : "·"} ${j}`);
  }
  if (entry.kind === "labels") return pairOrder(values, row).map((k) => label(ofFeature(k, "label")));
  if (entry.kind === "label") return label(value);
  if (entry.kind === "feature") {
    if (missing(value)) return DASH;
    return el("button", { type: "button", class: "link", "data-feature": value, "aria-label": `Card of feature ${value}` }, String(value));
  }
  if (entry.kind === "text" || entry.kind === "state") return missing(value) ? null : el("span", { class: "tag" }, value);
  if (entry.kind === "interval") return interval(value, values.upper[row]);
  if (entry.key === "margin" && value < 0) return el("span", { class: "off" }, shown(value));
  if (entry.key === "cost" && most > 0 && value > 0) return [shown(value), el("span", { class: "amount", style: { width: `${(100 * value) / most}%` } })];
  return shown(value, entry.kind);
}

// The parent stands first.
function pairOrder(values, row) {
  const i = values.i[row], j = values.j[row];
  return values.parent && values.parent[row] === j ? [j, i] : [i, j];
}

function interval(lower, upper) {
  if (missing(lower) && missing(upper)) return DASH;
  return lower === upper ? `only ${shown(lower)}` : `${missing(lower) ? "−∞" : shown(lower)} to ${missing(upper) ? "∞" : shown(upper)}`;
}
