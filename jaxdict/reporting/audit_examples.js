// Examples of features: the rows on which each is strongest, in their context, and the histogram of its codes. Those that the page
// does not hold lie in one file beside it, which is read when a card first asks for it.

const held = []; // parts that were read, the latest first

// Many numbers come as base64, the first byte the highest: three bytes are those of a float32, four a whole number.
function unpack(column) {
  if (!column || column.bytes === undefined) return column;
  const text = atob(column.bytes), whole = column.kind === "int", size = whole ? 4 : 3, n = text.length / size;
  const bits = new Uint32Array(n);
  for (let k = 0, at = 0; k < n; k += 1) {
    const high = (text.charCodeAt(at) << 16) | (text.charCodeAt(at + 1) << 8) | text.charCodeAt(at + 2);
    bits[k] = (high << 8) | (whole ? text.charCodeAt(at + 3) : 0);
    at += size;
  }
  return whole ? new Int32Array(bits.buffer) : new Float32Array(bits.buffer);
}

function addExamples(part) {
  const starts = unpack(part.starts), sizes = unpack(part.sizes), firsts = new Array(sizes.length);
  for (let k = 0, first = 0; k < sizes.length; first += sizes[k], k += 1) firsts[k] = first;
  held.unshift({ ...part, starts, sizes, firsts, at: new Map(part.features.map((k, n) => [k, n])),
    rows: unpack(part.rows), codes: unpack(part.codes), from: unpack(part.from), counts: unpack(part.counts) });
}

// A feature's strongest rows with its codes, and its histogram; null where no part that was read has them.
function examplesOf(k) {
  for (const part of held) {
    const n = part.at.get(k);
    if (n === undefined) continue;
    const { examples, bins } = part, rows = [];
    for (let e = n * examples; e < (n + 1) * examples; e += 1) if (part.rows[e] >= 0) rows.push({ row: part.rows[e], code: part.codes[e] });
    return { rows, from: part.from[n], counts: [...part.counts.slice(n * bins, (n + 1) * bins)] };
  }
  return null;
}

// A row's text with those of its neighbours in the same document; null where none is held.
function around(row) {
  for (const { starts, sizes, firsts, texts } of held) {
    let low = 0, high = starts.length;
    while (low < high) { const middle = (low + high) >> 1; if (starts[middle] <= row) low = middle + 1; else high = middle; }
    const k = low - 1;
    if (k < 0 || row >= starts[k] + sizes[k]) continue;
    const here = row - starts[k], [before, after] = page.context, of = (a, b) => texts.slice(firsts[k] + a, firsts[k] + b);
    return { before: of(Math.max(0, here - before), here), text: texts[firsts[k] + here], after: of(here + 1, Math.min(sizes[k], here + 1 + after)) };
  }
  return null;
}

// Tokens that hold their spaces stand side by side, words without have a space between them.
function inContext(row, text) {
  const found = around(row);
  if (!found) return label(text);
  const { before, after } = found;
  if (!before.length && !after.length) return label(found.text);
  const gap = [...before, found.text, ...after].some((part) => /^\s|\s$/.test(part)) ? "" : " ", end = before.length ? gap : "", start = after.length ? gap : "";
  const whole = [...before, found.text, ...after].join(gap);
  return el("bdi", { class: "context", title: whole }, el("span", { class: "before" }, el("span", {}, before.join(gap) + end)), el("mark", {}, found.text), el("span", { class: "after" }, start + after.join(gap)));
}

let asked = null; // the file beside the page, once a card has asked for it
function readBeside() {
  asked ||= new Promise((done) => {
    globalThis.jaxdictExamples = (digest, part) => { if (digest === page.beside.digest) addExamples(part); };
    document.head.append(el("script", { src: encodeURIComponent(page.beside.file), nonce: page.beside.digest, onload: () => done(), onerror: () => done() }));
  });
  return asked;
}

// A feature's examples in a box of their own, filled at once or when the file beside the page has been read.
function exampleBox(k, dead, card) {
  if (dead) return null;
  const found = examplesOf(k);
  if (found) return el("div", { id: "examples" }, drawExamples(found));
  const nothing = (text) => (card && card.rows && card.rows.length ? rowTable("Rows on which it is most active", card.rows, "code", "Code", "number") : el("p", { class: "nothing" }, text));
  if (!page.beside) return el("div", { id: "examples" }, nothing(page.partly ? "This page holds examples of the features that it names; audit.json has those of all." : "No rows were kept for this feature."));
  const box = el("div", { id: "examples" }, el("p", { class: "nothing" }, "Reading its examples…"));
  readBeside().then(() => {
    const read = examplesOf(k);
    box.replaceChildren(...(read ? drawExamples(read) : [nothing(`Its examples are in ${page.beside.file}, which is not beside this page or is of another audit.`)]));
  });
  return box;
}

const drawExamples = (found) => [
  histogram(found),
  rowTable("Rows on which it is most active", found.rows, "code", "Code", "number"),
].filter((part) => part !== null);

// How many rows have a code of which size: half an octave a bar, up to the largest at the right; the first holds all below.
function histogram({ from, counts }) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!(total > 0)) return null;
  const W = 440, H = 132, left = 8, bottom = 24, top = 20, n = counts.length, step = (W - 2 * left) / n, most = largest(counts);
  const x = (b) => left + (n - 1 - b) * step, height = (count) => ((H - top - bottom) * count) / most;
  const said = `Histogram of its codes on ${shown(total, "count")} rows, the largest between ${shown(from / Math.SQRT2)} and ${shown(from)}`;
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": said, class: "histogram" });
  counts.forEach((count, b) => {
    const high = Math.max(count > 0 ? 1.5 : 0, height(count)), range = b === n - 1 ? `up to ${shown(from * 2 ** (-b / 2))}` : `${shown(from * 2 ** (-(b + 1) / 2))} to ${shown(from * 2 ** (-b / 2))}`;
    picture.append(svg("rect", { class: "bar", x: x(b) + 1, width: step - 2, y: H - bottom - high, height: high }, svg("title", {}, `${range}: ${shown(count, "count")} rows`)));
  });
  const peak = counts.indexOf(most);
  picture.append(svg("line", { class: "grid", x1: left, x2: W - left, y1: H - bottom, y2: H - bottom }),
    svg("text", { x: Math.min(W - left, Math.max(left + 20, x(peak) + step / 2)), y: H - bottom - height(most) - 5, "text-anchor": peak === 0 ? "end" : "middle" }, `${shown(most, "count")} rows`));
  for (let b = 0; b < n; b += 4) picture.append(svg("text", { x: x(b) + step, y: H - 8, "text-anchor": b ? "middle" : "end" }, shown(from * 2 ** (-b / 2))));
  return el("figure", { class: "codes" }, el("figcaption", {}, "How large its codes are where it is on"), picture);
}
