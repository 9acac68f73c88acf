// The explorer's page. What the server says is shown by textContent alone: texts of a data set are never HTML.
import { bind as bindCodes } from "./codes.js";
import { bind as bindPolicy } from "./policy.js";
import { $, ask, figure, imageOf, showError } from "./common.js";

const about = await start();
const state = { about, episode: 0, step: 0 };
// What else shows the chosen step; each is told when another one is chosen.
const parts = [];

if (about) {
  if (about.codes) parts.push(bindCodes(state, goTo));
  if (about.predicts) parts.push(bindPolicy(state));
  $("episode").max = about.episodes - 1;
  $("episode").addEventListener("change", () => goTo(number("episode", about.episodes), state.step));
  $("frame").addEventListener("input", () => goTo(state.episode, Number($("frame").value)));
  $("previous").addEventListener("click", () => goTo((state.episode + about.episodes - 1) % about.episodes, 0));
  $("next").addEventListener("click", () => goTo((state.episode + 1) % about.episodes, 0));
  $("random").addEventListener("click", () => goTo(Math.floor(Math.random() * about.episodes), 0));
  await goTo(0, 0);
  document.body.dataset.ready = "yes";
}

async function start() {
  try {
    const about = await ask("about");
    document.title = `${about.run}: explorer`;
    $("title").textContent = about.run;
    const words = [`${about.noun} ${about.model}, checkpoint ${about.checkpoint}`,
                   `${about.episodes} episodes of ${about.data} (${about.split})`];
    if (about.pairs) {
      const { encoded, all } = about.pairs;
      words.push(`${encoded} of ${all} pairs encoded to look codes up` + (encoded < all ? "; --pairs takes more" : ""));
    }
    $("about").textContent = words.join(" · ");
    return about;
  } catch (error) {
    showError(error);
  }
}

function number(id, end) {
  return Math.min(Math.max(Math.round(Number($(id).value)) || 0, 0), end - 1);
}

async function goTo(episode, step) {
  const answer = await ask("step", { episode, step }).catch(showError);
  if (!answer) return;
  Object.assign(state, { episode: answer.episode, step: answer.step, answer });
  $("episode").value = answer.episode;
  $("frame").max = answer.length - 1;
  $("frame").value = answer.step;
  $("step").textContent = `Frame ${answer.step} of ${answer.length} of episode ${answer.name}`;
  $("recorded-instruction").textContent = answer.instruction ? `Instruction: ${answer.instruction}` : "No instruction";
  const shown = [];
  for (let camera = 0; camera < about.cameras; camera++) {
    shown.push(figure(imageOf(answer.episode, answer.step, camera), `frame ${answer.step}`));
  }
  if (answer.second != null) {
    shown.push(figure(imageOf(answer.episode, answer.second, 0), `frame ${answer.second}`));
  }
  $("frames").replaceChildren(...shown);
  await Promise.all(parts.map((part) => part.moved()));
}
