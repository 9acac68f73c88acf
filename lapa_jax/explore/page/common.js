// What all parts of the page use: elements, questions to the server, images.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; texts become text nodes. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const newest = new Map();

/** The server's answer to a question; never, where the same question was asked again meanwhile. */
export async function ask(name, fields = {}) {
  const turn = (newest.get(name) ?? 0) + 1;
  newest.set(name, turn);
  const body = JSON.stringify(fields);
  const response = await fetch(`api/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body })
    .catch(() => { throw new Error("the explorer does not answer; is launch/explore.py still running?"); });
  const answer = await response.json();
  // A slider asks faster than a model answers: only the last answer is to be shown.
  if (newest.get(name) !== turn) return new Promise(() => {});
  if (!response.ok) throw new Error(answer.error);
  $("error").hidden = true;
  return answer;
}

export function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

export const imageOf = (episode, step, camera) => `image/${episode}/${step}/${camera}.png`;

export function figure(src, caption) {
  return make("figure", {}, make("img", { src, alt: caption }), make("figcaption", { textContent: caption }));
}

/** A number with a few digits. */
export const short = (value, digits = 4) => (value == null ? "–" : Number(value.toPrecision(digits)).toString());

export const name = (codes) => codes.join(codes.every((code) => code < 10) ? " " : "-");

/** A bar from the middle to the left or right, `share` -1 to 1; or from the left where `kind` is "share". */
export function bar(share, kind = "") {
  const inner = make("i"), size = Math.min(Math.abs(share), 1);
  if (kind) {
    inner.style.width = `${100 * size}%`;
  } else {
    inner.style.width = `${50 * size}%`;
    inner.style.left = share < 0 ? `${50 - 50 * size}%` : "50%";
  }
  return make("span", { className: `bar ${kind}` }, inner);
}

/** Rows of cells, the first of them the head; a cell is a text or an element. */
export function fillTable(table, rows) {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  const [head, ...body] = rows;
  table.replaceChildren(make("thead", {}, line("th", head)), make("tbody", {}, ...body.map((row) => line("td", row))));
}
