// Tokenizers: choosing codes, where they lead, and which recorded pairs have them.
import { $, ask, bar, fillTable, figure, imageOf, make, name, short, showError } from "./common.js";

const FRAME_MS = 450; // of an animation; a gap is about half a second of video

export function bind(state, goTo) {
  const { codes, pairs } = state.about;
  // The most frequent code of each position, until a pair is shown.
  const chosen = codes.shown.map((shown, i) => shown[codes.counts[i].indexOf(Math.max(...codes.counts[i]))]);
  let actions = []; // that are rolled out
  let recorded = null; // steps of the recording that the actions were copied from
  let playing = null; // the timer of an animation
  let touched = false; // the recorded codes are chosen until something else is

  $("codes").hidden = $("looked-up").hidden = false;
  $("rollout").hidden = !codes.images;
  $("positions").replaceChildren(...codes.shown.map(position));
  $("add").addEventListener("click", () => change([...actions, [...chosen]]));
  $("undo").addEventListener("click", () => change(actions.slice(0, -1)));
  $("clear").addEventListener("click", () => change([]));
  $("take").addEventListener("click", copyRecording);
  $("play").addEventListener("click", () => (playing ? stop() : play()));

  /** The buttons of one code position: radio buttons, between which the arrow keys move. */
  function position(shown, position) {
    const most = Math.max(...codes.counts[position], 1);
    const chips = shown.map((code, k) => {
      const count = codes.counts[position][k];
      const input = make("input", { type: "radio", name: `position-${position}`, value: code });
      input.checked = code === chosen[position];
      input.ariaLabel = `code ${code} at position ${position}, ${count} pairs`;
      const chip = make("label", { className: "chip", title: `${count} of ${pairs.encoded} pairs` }, input, String(code));
      chip.style.setProperty("--share", (0.45 * count) / most);
      input.addEventListener("change", () => { chosen[position] = code; touched = true; rollOut(); });
      for (const event of ["focus", "change"]) input.addEventListener(event, () => lookUp(position, code));
      chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && lookUp(position, code));
      return chip;
    });
    const words = shown.length < codes.size ? `Position ${position}, the ${shown.length} most frequent of ${codes.size}`
                                            : `Position ${position}`;
    return make("fieldset", {}, make("legend", { textContent: words }), make("div", { className: "chips" }, ...chips));
  }

  function choose(values) {
    values.forEach((code, position) => {
      const input = document.querySelector(`input[name=position-${position}][value="${code}"]`);
      chosen[position] = code;
      if (input) input.checked = true;
    });
  }

  async function lookUp(position, code) {
    const pattern = chosen.map((_, i) => (i === position ? code : null));
    await lookUpPattern(pattern, `Pairs with code ${code} at position ${position}`);
  }

  async function lookUpPattern(pattern, title) {
    const answer = await ask("pairs", { codes: pattern }).catch(showError);
    if (!answer) return;
    const share = Math.round((100 * answer.count) / pairs.encoded);
    const count = `${answer.count} of ${pairs.encoded} pairs (${share} %)`;
    $("often").textContent = `${title}: ${count}`;
    $("looked-up-title").textContent = title;
    $("looked-up-count").textContent = answer.count === 0 ? `${count}.` : `${count}. ` + (answer.actions
      ? "Mean action over the gap, in the units of the data, and its deviation from the mean of all pairs, in standard " +
        "deviations (the bar ends at two)."
      : "These data have no actions.");
    fillTable($("mean-action"), answer.actions ? [["action", "mean", "deviation", ""], ...answer.actions.map(
      (row) => [row.name, short(row.mean), short(row.deviations), bar(row.deviations / 2)])] : [[]]);
    $("examples").replaceChildren(...answer.examples.map(([episode, first, second]) => {
      const images = [first, second].map((step) => make("img", { src: imageOf(episode, step, 0), alt: `frame ${step}` }));
      const words = `episode ${episode}, ${first} to ${second}`;
      const button = make("button", { type: "button", title: "Go there" }, make("span", {}, ...images),
                          make("figcaption", { textContent: words }));
      button.addEventListener("click", () => goTo(episode, first));
      return button;
    }));
  }

  function change(next, steps = null) {
    stop();
    actions = next;
    recorded = steps;
    rollOut();
  }

  async function copyRecording() {
    const { episode, step } = state;
    const answer = await ask("recorded", { episode, step }).catch(showError);
    if (!answer || state.episode !== episode || state.step !== step) return; // another place was chosen meanwhile
    if (answer.actions.length === 0) return showError(new Error("no pair begins here: the episode ends within the gap"));
    change(answer.actions, answer.steps);
  }

  /** The frames of the actions and, last, of the chosen codes. */
  async function rollOut() {
    if (!codes.images) return;
    const wanted = [...actions, [...chosen]];
    const { frames } = await ask("rollout", { episode: state.episode, step: state.step, actions: wanted })
      .catch((error) => { showError(error); return {}; });
    if (!frames) return;
    const start = imageOf(state.episode, state.step, 0);
    const items = [item(start, "start", "", 0)];
    frames.forEach((src, k) => {
      const last = k === actions.length;
      items.push(item(src, name(wanted[k]), last ? "chosen" : "", k + 1, last ? null : wanted[k]));
    });
    $("strip").replaceChildren(...items);
    $("undo").disabled = $("clear").disabled = actions.length === 0;
    $("add").disabled = actions.length >= 31;
    show(items.length - 1);
  }

  function item(src, caption, className, index, codesOfItem = null) {
    const button = make("button", { type: "button", ariaLabel: `show frame ${index}: ${caption}` },
                        make("img", { src, alt: caption }), make("figcaption", { textContent: caption }));
    button.addEventListener("click", () => { stop(); show(index); });
    if (codesOfItem) {
      const look = () => lookUpPattern(codesOfItem, `Pairs with the codes ${name(codesOfItem)}`);
      button.addEventListener("focus", look);
      button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look());
    }
    return make("li", { className }, button);
  }

  /** One frame large; beside it the recorded one, where the actions are the recording's. */
  function show(index) {
    const items = [...$("strip").children];
    items.forEach((li, k) => li.classList.toggle("shown", k === index));
    const image = items[index].querySelector("img");
    const shown = [figure(image.src, index === 0 ? "start" : `after ${index} action${index > 1 ? "s" : ""}`)];
    const step = index === 0 ? null : recorded?.[index - 1];
    if (step != null) shown.push(figure(imageOf(state.episode, step, 0), `recorded frame ${step}`));
    $("stage").replaceChildren(...shown);
  }

  function play() {
    // The dashed frame belongs to it where nothing was added yet.
    const end = Math.max(actions.length, 1);
    let index = 0;
    show(0);
    $("play").textContent = "Stop";
    playing = setInterval(() => {
      if (index >= end) return stop();
      show(++index);
    }, FRAME_MS);
  }

  function stop() {
    clearInterval(playing);
    playing = null;
    $("play").textContent = "Play";
  }

  return {
    async moved() {
      stop();
      const codesHere = state.answer.codes;
      $("pair").textContent = codesHere ? `Codes of this pair: ${name(codesHere)}`
                                        : "No pair begins here: the episode ends within the gap.";
      if (recorded) { actions = []; recorded = null; } // they were those of another place
      if (codesHere && !touched) choose(codesHere);
      await Promise.all([rollOut(), codesHere && lookUpPattern(codesHere, `Pairs with the codes ${name(codesHere)}`)]);
    },
  };
}
