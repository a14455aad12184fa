// Cards: one pair or one feature in a dialog, with the samples as a picture. Drawn when opened.

const GALLERY = 12;
const open = { kind: null, table: null, row: null };

function setUpCards() {
  const dialog = document.getElementById("card");
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-feature], [data-pair]");
    if (!button) return;
    const table = button.closest("[data-table]")?.dataset.table || null;
    if (button.dataset.feature !== undefined) openFeature(Number(button.dataset.feature), "features");
    else openPair(...button.dataset.pair.split("-").map(Number), table || "pairs");
  });
  document.getElementById("card-close").addEventListener("click", () => dialog.close());
  document.getElementById("card-previous").addEventListener("click", () => step(-1));
  document.getElementById("card-next").addEventListener("click", () => step(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => address(location.pathname + location.search));
  drawGallery();
  const named = location.hash.match(/^#(pair-(\d+)-(\d+)|feature-(\d+))$/);
  if (named && named[4]) openFeature(Number(named[4]), "features");
  else if (named) openPair(Number(named[2]), Number(named[3]), "pairs");
}

// The address names the open card, so that it can be shared; a browser that refuses this for files loses only that.
function address(place) {
  try { history.replaceState(null, "", place); } catch { /* the card opens all the same */ }
}

function show(title, hash, table, row, content) {
  const dialog = document.getElementById("card"), body = document.getElementById("card-body");
  document.getElementById("card-title").textContent = title;
  body.replaceChildren(...content.flat().filter((part) => part !== null && part !== undefined));
  Object.assign(open, { table, row });
  const order = tables[table]?.order || [], at = order.indexOf(row);
  document.getElementById("card-place").textContent = at < 0 ? "" : `${shown(at + 1, "count")} of ${shown(order.length, "count")}`;
  document.getElementById("card-previous").disabled = at <= 0;
  document.getElementById("card-next").disabled = at < 0 || at >= order.length - 1;
  address(hash);
  if (!dialog.open) dialog.showModal();
  body.scrollTop = 0;
}

function step(by) {
  const order = tables[open.table].order, row = order[order.indexOf(open.row) + by];
  const { i, j, feature } = page.tables[open.table].values;
  if (i) openPair(i[row], j[row], open.table);
  else openFeature(feature[row], open.table);
}

// One pair's row of a table by column names; null where the table does not have the pair.
function pairEntry(i, j, table = "pairs") {
  const { values } = page.tables[table];
  const row = values.i.findIndex((first, n) => first === i && values.j[n] === j);
  return row < 0 ? null : { row, ...Object.fromEntries(Object.keys(values).map((key) => [key, values[key][row]])) };
}

function pairCard(i, j) {
  const same = page.cards.pairs.find((card) => card.i === i && card.j === j);
  if (same) return same;
  const turned = page.cards.pairs.find((card) => card.i === j && card.j === i);
  return turned && {
    points: turned.points.map(([a, b]) => [b, a]),
    rows: (turned.rows || []).map((row) => ({ ...row, z_i: row.z_j, z_j: row.z_i })),
  };
}

function openPair(i, j, table) {
  const listed = pairEntry(i, j, table), entry = pairEntry(i, j) || pairEntry(j, i), card = entry ? pairCard(entry.i, entry.j) : pairCard(i, j);
  const parent = entry && !missing(entry.parent);
  const title = parent ? `Parent ${entry.parent}, child ${entry.child}` : `Features ${i} and ${j}`;
  const first = entry ? entry.i : i, second = entry ? entry.j : j;
  show(title, `#pair-${i}-${j}`, table, listed ? listed.row : null, [
    entry ? pairProse(entry) : [el("p", {}, `This pair is not among the costly ones. Cosine ${shown(listed && listed.cosine)}.`)],
    card && entry ? pictures(card.points, entry) : null,
    entry ? pairFacts(entry, parent) : null,
    featureLines([first, second]),
    card ? topRows(card.rows, first, second) : el("p", { class: "nothing" }, "No rows were kept for this pair: the costliest have them."),
  ]);
}

function pairProse(entry) {
  const { i, j, q, cosine, lower, upper, parent, child, step, cost, cost_own, guaranteed } = entry;
  const prose = [];
  if (!missing(parent)) {
    const often = q >= 1 ? "only" : `in ${shown(q, "share")} of its rows`;
    const never = q >= 1 ? "a hierarchy is never optimal (C1)" : q >= 0.95 ? "nearly a hierarchy, which is never optimal (C1)" : "what makes a hierarchy never optimal (C1) weighs on an overlap too";
    prose.push(`Feature ${child} is on ${often} with feature ${parent}. While their directions differ (cosine ${shown(cosine)}), absorbing the parent into the child ${q >= 1 ? "lowers" : "may lower"} the loss: ${never}.`);
  }
  if (!missing(cost)) {
    const size = missing(entry.cost_share) ? "" : ` (${shown(entry.cost_share, "share")} of it)`;
    const own = missing(cost_own) ? "" : `, and by ${shown(cost_own)} on the SAE's own codes`;
    const least = guaranteed > 0 ? `; at least ${shown(guaranteed)} is guaranteed (T16)` : " (T16)";
    prose.push(cost > 0 ? `A step of ${shown(step)} that way lowers the loss by ${shown(cost)}${size}, measured on exact codes${own}${least}.`
      : `On exact codes no step that way lowers the loss${missing(cost_own) ? "" : `; on the SAE's own codes one lowers it by ${shown(cost_own)}`} (T16).`);
  }
  if (!missing(cosine) && !holds(entry)) {
    prose.push(cosine > upper
      ? `Wherever feature ${i} is off, feature ${j} is above ${shown(1 - upper)} times its mean, so their cosine may be at most ${shown(upper)}: the pair condition (T6) fails.`
      : lower >= 1
        ? `Where feature ${i} is off, feature ${j} is never on, so the two could only stay if their directions were the same: the pair condition (T6) fails.`
        : `Where feature ${i} is off, feature ${j} never exceeds ${shown(1 - lower)} times its mean, so their cosine must be at least ${shown(lower)}: the pair condition (T6) fails.`);
  } else if (!missing(cosine)) prose.push("The pair condition (T6) holds: where one is off, the other spans the cosine.");
  return prose.map((text) => el("p", {}, text));
}

const facts = (rows) => el("dl", { class: "facts card-facts" }, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

function pairFacts(entry, parent) {
  const [a, b] = parent ? [entry.parent, entry.child] : [entry.i, entry.j];
  const names = parent ? [["Parent", String(entry.parent)], ["Child", String(entry.child)]] : [["Kind", shown(entry.kind)]];
  return facts([
    ...names, [`P(${a} | ${b})`, shown(entry.q)], [`P(${b} | ${a})`, shown(entry.rho)], ["Rows together", shown(entry.both, "count")],
    ["Cosine", shown(entry.cosine)], ["Allowed", interval(entry.lower, entry.upper)], ["Margin", shown(entry.margin)], ["Slope", shown(entry.rate)],
  ]);
}

const featureButton = (k) => el("button", { type: "button", class: "link", "data-feature": k }, `feature ${k}`);

function featureLines(list) {
  return el("table", { class: "rows card-rows" }, el("caption", {}, "The features"), el("tbody", {}, list.map((k) =>
    el("tr", {}, el("td", { class: "n" }, featureButton(k)), el("td", {}, label(ofFeature(k, "label"))), el("td", { class: "n" }, `on in ${shown(ofFeature(k, "frequency"), "share")}`)))));
}

function meter(value, most, kind, style) {
  const width = missing(value) || !(most > 0) ? 0 : Math.max(0, Math.min(1, value / most));
  return el("td", { class: "meter" }, el("div", {}, el("span", { class: "room" }, el("i", { class: style, style: { width: `${100 * width}%` } })), el("span", { style: { width: "3.6em", textAlign: "right" } }, shown(value, kind))));
}

function topRows(rows, i, j) {
  if (!rows || !rows.length) return el("p", { class: "nothing" }, "No rows were kept.");
  const [most_i, most_j] = ["z_i", "z_j"].map((key) => largest(rows.map((row) => row[key])));
  return el("table", { class: "rows card-rows" }, el("caption", {}, "Rows on which the two are most active, with their codes"),
    el("thead", {}, el("tr", {}, ["Row", "Text", `Code of ${i}`, `Code of ${j}`].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("td", { class: "n" }, String(row.row)), el("td", {}, inContext(row.row, row.label)), meter(row.z_i, most_i, "number", ""), meter(row.z_j, most_j, "number", "second")))));
}

function openFeature(k, table) {
  const row = rowOf.get(k), card = page.cards.features.find((entry) => entry.feature === k);
  if (row === undefined && !card) return;
  const of = (key) => ofFeature(k, key), dead = (of("state") || "").includes("dead");
  const about = dead ? "Dead: it is on in no row that was audited." :
    `On in ${shown(of("frequency"), "share")} of rows, with a mean code of ${shown(of("mean_code"))} and at most ${shown(of("max_code"))}.` +
    (missing(of("stationarity")) ? "" : ` Its atom is ${shown(of("stationarity"))} from stationarity on the SAE's codes and ${shown(of("stationarity_exact"))} on exact codes (T1).`);
  const columns = page.tables.features.columns.filter((entry) => !["feature", "label", "nearest"].includes(entry.key));
  const numbers = columns.map((entry) => [entry.title === "Its cosine" ? "Cosine with nearest" : entry.title, entry.kind === "state" ? of(entry.key) || "live" : shown(of(entry.key), entry.kind)]);
  const nearest = of("nearest");
  if (!missing(nearest)) numbers.push(["Nearest", featureButton(nearest)]);
  show(`Feature ${k}`, `#feature-${k}`, table, row === undefined ? null : row, [
    missing(of("label")) ? null : el("p", {}, label(of("label"), true)),
    el("p", {}, about, page.neuronpedia ? [" ", el("a", { href: page.neuronpedia + k, target: "_blank", rel: "noopener noreferrer", id: "neuronpedia" }, "Its page on Neuronpedia"), "."] : null),
    exampleBox(k, dead, card), facts(numbers), pairsOf(k),
    card && card.residual_rows && card.residual_rows.length ? rowTable("Rows whose residual it predicts (T9), by their share of the moment", card.residual_rows, "share", "Share", "share") : null,
  ]);
}

function pairsOf(k) {
  const { i, j } = page.tables.pairs.values, found = [];
  for (let row = 0; row < i.length && found.length < 12; row += 1) if (i[row] === k || j[row] === k) found.push(row);
  if (!found.length) return null;
  const { values } = page.tables.pairs;
  return el("p", {}, "Pairs: ", found.flatMap((row, n) => [el("span", { class: "nowrap" }, drawCell("pairs", { kind: "pair" }, values, row, 0), n < found.length - 1 ? "," : "."), " "]));
}

function rowTable(caption, rows, key, name, kind) {
  if (!rows || !rows.length) return null;
  const most = largest(rows.map((row) => row[key]));
  return el("table", { class: "rows card-rows" }, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ["Row", "Text", name].map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, el("td", { class: "n" }, String(row.row)), el("td", {}, inContext(row.row, row.label)), meter(row[key], most, kind, "")))));
}

function drawGallery() {
  const box = document.getElementById("gallery"), kept = page.cards.pairs.filter((card) => pairEntry(card.i, card.j));
  if (!kept.length) return;
  const list = el("ul");
  const more = el("button", { type: "button", class: "quiet", id: "more", onclick: () => grow() }, "Show more");
  function grow() {
    kept.slice(list.children.length, list.children.length + GALLERY).forEach((card) => list.append(el("li", {}, tile(card))));
    more.hidden = list.children.length >= kept.length;
  }
  box.replaceChildren(list, more);
  grow();
}

function tile(card) {
  const entry = pairEntry(card.i, card.j), parent = !missing(entry.parent);
  return el("button", { type: "button", class: "tile", "data-pair": `${card.i}-${card.j}` }, plane(card.points, entry, true), strip(entry),
    el("strong", {}, parent ? `${entry.parent} → ${entry.child}` : `${card.i} · ${card.j}`), (parent ? [entry.parent, entry.child] : [card.i, card.j]).map((k) => label(ofFeature(k, "label"))),
    el("span", { class: "small" }, `${entry.kind}, cost ${shown(entry.cost)}`));
}
