// Pictures of a pair (T6): samples at 1 - z / mean, and the line where the first feature is off, enlarged.

function pictures(points, entry) {
  const { i, j } = entry;
  return el("div", { class: "pictures" },
    el("figure", {}, plane(points, entry, false), el("figcaption", {}, `One dot a row: 1 where a feature is off, 0 at its mean. Rows with ${i} off lie on the right edge.`)),
    el("figure", {}, zoom(points, entry), el("figcaption", {}, `That edge, enlarged to the range of cosines. At an optimum the star lies in the band.`)));
}

const holds = (entry) => (missing(entry.margin) ? !(entry.cosine < entry.lower || entry.cosine > entry.upper) : entry.margin >= 0);

const dot = (x, y) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`; // a whole cloud is one path: round caps draw the dots

function plane(points, entry, small) {
  const W = small ? 200 : 440, H = small ? 130 : 330, left = small ? 6 : 56, right = small ? 10 : 20, top = small ? 10 : 14, bottom = small ? 6 : 40;
  const at = points.map(([a, b]) => [1 - a, 1 - b]);
  const low = (axis) => Math.min(-1, ...at.map((point) => point[axis])), x0 = low(0), y0 = low(1);
  const x = (v) => left + ((v - x0) / (1 - x0)) * (W - left - right), y = (v) => H - bottom - ((v - y0) / (1 - y0)) * (H - top - bottom);
  const isOff = (n) => points[n][0] === 0;
  const cloud = (off) => at.filter((_, n) => isOff(n) === off).map(([a, b]) => dot(x(a), y(b))).join("");
  const said = `Rows in the plane of features ${entry.i} and ${entry.j}; cosine ${shown(entry.cosine)}, allowed ${interval(entry.lower, entry.upper)}`;
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": said });
  if (!small) axes(picture, { W, H, left, right, top, bottom, x, y, x0, y0, entry });
  picture.append(
    svg("line", { class: "grid", x1: x(1), x2: x(1), y1: top, y2: H - bottom }),
    svg("path", { class: "dots on", d: cloud(false) }), svg("path", { class: "dots is-off", d: cloud(true) }),
    band(entry, x(1), y, y0, small ? 5 : 8), star(x(1), y(entry.cosine), small ? 7 : 9, holds(entry)));
  return picture;
}

function axes(picture, { W, H, left, right, top, bottom, x, y, x0, y0, entry }) {
  for (const v of ticks(x0)) picture.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: top, y2: H - bottom }), svg("text", { x: x(v), y: H - bottom + 16, "text-anchor": "middle" }, tickText(v)));
  for (const v of ticks(y0)) picture.append(svg("line", { class: "grid", x1: left, x2: W - right, y1: y(v), y2: y(v) }), svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  picture.append(
    svg("text", { class: "strong", x: W - right, y: H - 6, "text-anchor": "end" }, `1 − code / mean, feature ${entry.i}`),
    svg("text", { class: "strong", transform: `rotate(-90 12 ${top})`, x: 12, y: top, "text-anchor": "end" }, `1 − code / mean, feature ${entry.j}`));
}

// Round steps down from 1; at most six.
function ticks(low) {
  const wish = (1 - low) / 5, power = 10 ** Math.floor(Math.log10(wish)), step = [1, 2, 5, 10].find((m) => m * power >= wish) * power;
  const found = [1];
  for (let v = Math.ceil(1 / step) * step - step; v >= low; v -= step) if (1 - v > step * 0.4) found.push(v);
  return found;
}
const tickText = (v) => String(Number(v.toPrecision(6))).replace("-", "−");

// The cosines allowed: thick, with a bar at each end that is in sight.
function band(entry, x, y, low, half) {
  const lower = missing(entry.lower) ? low : Math.max(low, entry.lower), upper = missing(entry.upper) ? 1 : Math.max(low, entry.upper);
  const ends = [missing(entry.lower) || entry.lower < low ? null : y(lower), missing(entry.upper) ? null : y(upper)];
  return svg("g", {}, svg("line", { class: "allowed", x1: x, x2: x, y1: y(upper), y2: y(lower) }),
    ends.map((v) => (v === null ? null : svg("line", { class: "end", x1: x - half, x2: x + half, y1: v, y2: v }))));
}

function star(x, y, size, inside) {
  const corners = [...Array(10).keys()].map((n) => {
    const r = n % 2 ? size * 0.42 : size, angle = (Math.PI / 5) * n - Math.PI / 2;
    return `${(x + r * Math.cos(angle)).toFixed(1)},${(y + r * Math.sin(angle)).toFixed(1)}`;
  });
  return svg("polygon", { class: `star ${inside ? "inside" : "outside"}`, points: corners.join(" ") });
}

function zoom(points, entry) {
  const W = 340, H = 330, top = 14, bottom = 40, axis = 44, line = 120;
  const y = (v) => H - bottom - ((Math.max(-1.04, Math.min(1.02, v)) + 1) / 2) * (H - top - bottom);
  const off = points.filter(([a]) => a === 0).map(([, b]) => 1 - b), near = off.filter((v) => v >= -1);
  const inside = holds(entry), cosine = y(entry.cosine), upper = missing(entry.upper) ? 1 : entry.upper, lower = missing(entry.lower) ? -1 : entry.lower;
  const beyond = Math.max(entry.lower - entry.cosine, entry.cosine - entry.upper);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Cosine ${shown(entry.cosine)} ${inside ? "inside" : "outside"} the allowed ${interval(entry.lower, entry.upper)}` });
  for (const v of [-1, -0.5, 0, 0.5, 1]) picture.append(svg("line", { class: "grid", x1: axis, x2: W - 8, y1: y(v), y2: y(v) }), svg("text", { x: axis - 8, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  const jitter = (n) => axis + 10 + ((n * 0.618034) % 1) * (line - axis - 30);
  picture.append(
    svg("line", { class: "grid", x1: line, x2: line, y1: top, y2: H - bottom }),
    svg("path", { class: "dots is-off", d: near.map((v, n) => dot(jitter(n), y(v))).join("") }),
    band(entry, line, y, -1, 8), star(line, cosine, 11, inside));
  let text = Math.max(top + 4, Math.min(H - bottom - 8, (y(upper) + y(Math.max(-1, lower))) / 2)), said = cosine + 4;
  if (Math.abs(text + 2 - said) < 40) text = said > H / 2 ? said - 44 : said + 44;
  const words = inside ? "inside: the condition holds" : `outside by ${shown(beyond)}`;
  picture.append(
    svg("text", { class: "strong", x: line + 20, y: text + 4 }, "allowed"), svg("text", { x: line + 20, y: text + 20 }, interval(entry.lower, entry.upper)),
    svg("text", { class: "strong", x: line + 20, y: said }, `cosine ${shown(entry.cosine)}`), svg("text", { class: inside ? "inside" : "outside", x: line + 20, y: said + 16 }, words),
    svg("text", { class: "strong", x: W - 8, y: H - 6, "text-anchor": "end" }, `rows with ${entry.i} off${near.length < off.length ? `, ${off.length - near.length} below −1` : ""}`));
  return picture;
}

// The cosines from -1 to 1 as one line, for a small picture.
function strip(entry) {
  const x = (v) => 10 + 90 * (Math.max(-1, Math.min(1, v)) + 1), y = 10;
  const lower = x(missing(entry.lower) ? -1 : entry.lower), upper = x(missing(entry.upper) ? 1 : entry.upper);
  const ends = [entry.lower, entry.upper].filter((v) => !missing(v) && v >= -1 && v <= 1).map(x);
  return svg("svg", { viewBox: "0 0 200 20", "aria-hidden": "true" },
    svg("line", { class: "grid", x1: x(-1), x2: x(1), y1: y, y2: y }), [-1, 0, 1].map((v) => svg("line", { class: "grid", x1: x(v), x2: x(v), y1: y - 4, y2: y + 4 })),
    svg("line", { class: "allowed", x1: lower, x2: upper, y1: y, y2: y }), ends.map((v) => svg("line", { class: "end", x1: v, x2: v, y1: y - 7, y2: y + 7 })),
    star(x(entry.cosine), y, 7, holds(entry)));
}
