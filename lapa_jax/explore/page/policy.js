// Policies: an instruction, and what is predicted for the chosen frame.
import { $, ask, bar, fillTable, figure, imageOf, make, name, short, showError } from "./common.js";

const WIDTH = 240, HEIGHT = 96, LEFT = 46, MARGIN = 8;

export function bind(state) {
  const about = state.about;
  const show = about.predicts === "codes" ? showCodes : showActions;
  let suggested = null; // the recorded instruction, while nobody has typed another one

  $("ask").hidden = false;
  document.querySelector("main").className = "policy";
  $("note").textContent = about.predicts === "actions"
    ? "Numbers are in the units of the data."
    : about.tokenizer ? "The frames are drawn by the tokenizer whose codes the policy predicts."
                      : "Give the tokenizer's run with --tokenizer to see the frames that the codes lead to.";
  $("question").addEventListener("submit", (event) => { event.preventDefault(); predict(); });

  async function predict() {
    const { episode, step } = state;
    const button = $("question").querySelector("button");
    button.textContent = "Computing …"; // large policies take seconds
    const answer = await ask("predict", { episode, step, instruction: $("instruction").value }).catch(showError);
    button.textContent = "Ask"; // only the newest question comes this far
    $("answer").hidden = !answer;
    if (answer) show(answer, state);
  }

  return {
    async moved() {
      const { instruction } = state.answer;
      if (suggested === null || $("instruction").value === suggested) $("instruction").value = suggested = instruction;
      await predict();
    },
  };
}

function showCodes({ likely, recorded, imagined, by_recorded: byRecorded, second }, { episode, step }) {
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const head = ["position", ...(recorded ? ["recorded"] : []), ...likely[0].map((_, k) => (k ? "then" : "most likely"))];
  fillTable($("answer-table"), [head, ...likely.map((codes, position) => {
    const wrong = recorded && recorded[position] !== codes[0][0];
    const known = recorded ? [make("span", { className: wrong ? "wrong" : "", textContent: recorded[position] })] : [];
    return [String(position), ...known, ...codes.map(([code, share]) =>
      make("span", {}, make("b", { textContent: code }), bar(share, "share"), ` ${percent(share)}`))];
  })]);
  $("answer-note").textContent = "Codes and their probabilities" + (recorded ? "; recorded codes that are not the most likely are red. " : ". ")
    + (imagined ? "First row of frames: the policy acts in what the decoder draws of its own codes. " : "")
    + (byRecorded ? "Second row: what the decoder draws of the recorded codes, and the recorded frame." : "");
  const start = figure(imageOf(episode, step, 0), "start");
  $("answer-frames").replaceChildren(
    ...(imagined ? [start, ...imagined.map(({ codes, frame }, k) => figure(frame, `${k + 1}: ${name(codes)}`))] : []));
  const real = byRecorded ? [figure(byRecorded, `recorded: ${name(recorded)}`)] : [];
  if (imagined && second != null) real.push(figure(imageOf(episode, second, 0), `recorded frame ${second}`));
  $("recorded-frames").replaceChildren(...real);
}

function showActions({ names, ranges, predicted, recorded, fps }) {
  const steps = predicted.length;
  const unit = fps ? `${short(steps / fps)} s` : `${steps} steps`;
  const key = (kind) => make("span", { className: `key-${kind}`, textContent: kind });
  $("answer-note").replaceChildren(
    steps > 1 ? `The next ${steps} actions, ${unit}; the table has the first of them: ` : "The next action: ",
    key("predicted"), " and ", key("recorded"), ". The plots span the range of the data.");
  $("answer-plots").replaceChildren(...names.map((title, i) =>
    plot(title, ranges[i], predicted.map((row) => row[i]), recorded.map((row) => row[i]))));
  fillTable($("answer-table"), [["action", "predicted", "recorded", "difference"], ...names.map((title, i) => {
    const [a, b] = [predicted[0][i], recorded[0][i]];
    return [title, short(a), short(b), short(a == null || b == null ? null : a - b)];
  })]);
}

/** The course of one dimension over a chunk, in the range that it has in the data; null where there is no number. */
function plot(title, range, predicted, recorded) {
  const values = [...range, ...predicted, ...recorded].filter((value) => value != null);
  let low = Math.min(...values), high = Math.max(...values);
  // A line that does not change lies in the middle.
  if (high - low < 1e-9) [low, high] = [low - 1, high + 1];
  const x = (k) => LEFT + ((WIDTH - LEFT - MARGIN) * (k + (predicted.length === 1 ? 0.5 : 0))) / Math.max(predicted.length - 1, 1);
  const y = (value) => HEIGHT - MARGIN - ((HEIGHT - 2 * MARGIN) * (value - low)) / (high - low);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(draw("title", {}, `${title}: predicted and recorded`),
             draw("line", { class: "axis", x1: LEFT, x2: LEFT, y1: MARGIN, y2: HEIGHT - MARGIN }),
             draw("text", { x: LEFT - 4, y: MARGIN + 6, "text-anchor": "end" }, short(high, 3)),
             draw("text", { x: LEFT - 4, y: HEIGHT - MARGIN, "text-anchor": "end" }, short(low, 3)));
  for (const [kind, row] of [["recorded", recorded], ["predicted", predicted]]) {
    const points = row.map((value, k) => (value == null ? null : [x(k), y(value)])).filter(Boolean);
    if (points.length > 1) svg.append(draw("polyline", { class: kind, points: points.join(" ") }));
    for (const [cx, cy] of points.length > 12 ? [] : points) svg.append(draw("circle", { class: `${kind}-dot`, cx, cy, r: 2.5 }));
  }
  return make("figure", {}, svg, make("figcaption", { textContent: title }));
}

function draw(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}
