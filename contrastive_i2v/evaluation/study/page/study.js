"use strict";
// One step is one question on one pair. The server knows the order and the sides; this page only shows and asks.

const $ = (selector) => document.querySelector(selector);
const views = ["start", "rate", "done"].map((id) => document.getElementById(id));
const form = $("#vote");
const videos = [...document.querySelectorAll("video")];
const group = $("#videos");

let study; // what /welcome says
let pair; // the pair on show
let question; // the question on show, of study.questions
let key = recall();
let saving = false;
let visit = 0; // grows when somebody leaves: what was begun for them ends
let unsaved; // an answer that was given and not taken, of a rater who has to enter their name again

function recall() {
  try { return localStorage.getItem("rater"); } catch { return null; }
}

function remember(value) {
  key = value;
  try { value ? localStorage.setItem("rater", value) : localStorage.removeItem("rater"); } catch { /* private mode */ }
}

// A name alone isn't enough to go on as its rater on a network, so each rater of this browser keeps a key.
const kept = (name) => `rater ${name.normalize("NFC").trim().replace(/\s+/g, " ").toLowerCase()}`;

function recallRater(name) {
  try { return localStorage.getItem(kept(name)); } catch { return null; }
}

function rememberRater(name, value) {
  remember(value);
  try { localStorage.setItem(kept(name), value); } catch { /* private mode */ }
}

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body) {
  const begun = visit;
  const headers = { ...(key && { Rater: key }), ...(body && { "Content-Type": "application/json" }) };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refusal(0, "The study can’t be reached. Nothing is lost; try again in a moment.");
  }
  const answer = await response.json().catch(() => null); // not the study's: a proxy's page, or a connection that broke
  if (begun !== visit) throw new Refusal(0, "This was for somebody who has left.");
  if (response.ok && answer) return answer;
  const unknown = "The study didn’t answer as it should. Nothing is lost; try again in a moment.";
  throw new Refusal(response.status, answer?.error || unknown);
}

function view(id) {
  for (const one of views) one.hidden = one.id !== id;
  if (id !== "rate") player.pause();
}

// Both videos on one clock: they start together, wait for each other, and start again.
const player = (() => {
  const button = $("#play"), slider = $("#seek");
  const hold = 500, apart = 0.05;
  let running = false, timer = 0;
  const length = () => Math.max(...videos.map((video) => video.duration || 0));
  const clock = () => Math.max(...videos.map((video) => video.currentTime));
  const start = (time) => {
    clearTimeout(timer);
    timer = 0;
    for (const video of videos) {
      video.currentTime = Math.min(time, video.duration || 0);
      if (running && time < video.duration) video.play().catch(() => {});
    }
  };
  const keepTogether = () => { // the one ahead waits; seeking would cost the other more time
    const [left, right] = videos;
    const ahead = left.currentTime - right.currentTime;
    const late = ahead > 0 ? right : left;
    for (const video of videos) {
      if (video !== late && Math.abs(ahead) > apart && !late.ended) video.pause();
      else if (video.paused && !video.ended && !timer) video.play().catch(() => {});
    }
  };
  const tick = () => {
    if (!running) return;
    slider.value = (1000 * clock()) / (length() || 1);
    keepTogether();
    requestAnimationFrame(tick);
  };
  const show = () => { button.textContent = running ? "Pause" : "Play"; };
  const play = () => {
    const ended = videos.every((video) => video.ended);
    if (!running) requestAnimationFrame(tick);
    running = true;
    start(ended ? 0 : clock());
    show();
  };
  const pause = () => {
    running = false;
    clearTimeout(timer);
    timer = 0;
    for (const video of videos) video.pause();
    show();
  };
  for (const video of videos) {
    video.addEventListener("ended", () => {
      if (running && !timer && videos.every((one) => one.ended)) timer = setTimeout(start, hold, 0);
    });
  }
  slider.addEventListener("input", () => {
    pause();
    start((slider.value / 1000) * length());
  });
  button.addEventListener("click", () => (running ? pause() : play()));
  return { play, pause, toggle: () => (running ? pause() : play()), reset: () => { slider.value = 0; } };
})();

function arrange() {
  const ratio = Math.max(...videos.map((video) => video.videoWidth / video.videoHeight || 0)) || 1;
  group.style.setProperty("--ratio", ratio);
  group.classList.toggle("stacked", innerWidth < 640 && ratio > 1.2);
  group.classList.toggle("pixelated", Math.max(...videos.map((video) => video.videoWidth)) <= 128);
}

function whenever(video, source) {
  return new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Refusal(0, "A video can’t be played here. Please tell whoever runs the study."));
    video.src = source;
    video.load();
  });
}

async function show(step) {
  const known = pair?.position === step.position && pair.isLoaded;
  if (!known) pair = await ask(`/pair/${step.position}`);
  question = study.questions.find((one) => one.name === step.question);
  const isUnsaved = unsaved?.position === step.position && unsaved.question === step.question;
  const answer = isUnsaved && unsaved.rater === $("#rater").textContent ? unsaved : pair.answers[question.name];
  unsaved = undefined;
  const number = study.questions.indexOf(question);
  const done = step.position * study.questions.length + number;

  $("#where").innerHTML = "<b></b> <span></span>";
  $("#where b").textContent = `${step.position + 1} of ${study.pairs}`;
  $("#where span").textContent = `· ${question.title}`;
  $("#bar").max = study.pairs * study.questions.length;
  $("#bar").value = done;
  $("#ask").textContent = question.ask;
  $("#hint").textContent = question.hint;
  $("#caption").textContent = question.shows_caption ? pair.caption : "";
  $("#image").hidden = !pair.image;
  if (pair.image && $("#image").getAttribute("src") !== pair.image) $("#image").src = pair.image;
  $("#back").disabled = done === 0;
  $("#problem").textContent = "";

  for (const input of form.elements.side) input.checked = input.value === answer?.side;
  $("#reasons").replaceChildren(...question.reasons.map((reason, i) => {
    const label = document.createElement("label");
    label.className = "reason";
    label.innerHTML = '<input type="checkbox"><kbd></kbd><span><span></span><small></small></span>';
    label.querySelector("input").value = reason.name;
    label.querySelector("input").checked = answer?.reasons.includes(reason.name) ?? false;
    label.querySelector("kbd").textContent = i + 1;
    label.querySelector("span > span").textContent = reason.title;
    label.querySelector("small").textContent = reason.detail;
    return label;
  }));
  update();
  view("rate");
  $("#ask").focus({ preventScroll: true });
  scrollTo(0, 0);
  if (known) return;

  group.classList.add("loading");
  player.pause();
  player.reset();
  const shown = pair;
  try {
    await Promise.all([whenever(videos[0], pair.left), whenever(videos[1], pair.right)]);
  } catch (error) {
    if (pair === shown) $("#problem").textContent = error.message;
    return;
  }
  if (pair !== shown) return;
  pair.isLoaded = true;
  arrange();
  group.classList.remove("loading");
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
}

function update() {
  form.classList.toggle("undecided", !form.elements.side.value);
  if (form.elements.side.value) $("#problem").textContent = "";
}

function choose(side) {
  for (const input of form.elements.side) input.checked = input.value === side;
  update();
}

function step(by) {
  const count = study.questions.length;
  const at = pair.position * count + study.questions.indexOf(question) + by;
  return { position: Math.floor(at / count), question: study.questions[at % count].name };
}

function setSaving(value) {
  saving = value;
  for (const id of ["next", "back"]) {
    const button = document.getElementById(id);
    value ? button.setAttribute("aria-busy", "true") : button.removeAttribute("aria-busy");
  }
}

async function guarded(action) {
  if (saving) return;
  const begun = visit;
  setSaving(true);
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (begun !== visit) return;
    if (error.status === 401) leave(error.message);
    else $("#problem").textContent = error.message;
  } finally {
    if (begun === visit) setSaving(false);
  }
}

const next = () => guarded(async () => {
  if (!pair.isLoaded) return await show(step(0)); // nobody judges what they haven't seen
  const side = form.elements.side.value;
  const reasons = [...form.querySelectorAll(".reason :checked")].map((input) => input.value);
  if (!side || !reasons.length) {
    $("#problem").textContent = side ? "Choose at least one reason." : "Choose a video first.";
    return;
  }
  const vote = { position: pair.position, question: question.name, side, reasons };
  const progress = await ask("/vote", vote).catch((error) => {
    if (error.status === 401) unsaved = { ...vote, rater: $("#rater").textContent };
    throw error;
  });
  pair.answers[question.name] = { side, reasons };
  const last = pair.position === study.pairs - 1 && question === study.questions.at(-1);
  if (!last) await show(step(1));
  else if (progress.next) await show(progress.next);
  else finish(progress);
});

const back = () => guarded(async () => {
  if (!$("#back").disabled) await show(step(-1));
});

function finish(progress) {
  $("#thanks").textContent = `Thank you, ${progress.name}!`;
  view("done");
  $("#thanks").focus();
}

async function resume(progress) {
  $("#rater").textContent = progress.name;
  if (progress.next) await guarded(() => show(progress.next));
  else finish(progress);
}

function leave(message = "") {
  visit += 1;
  setSaving(false);
  remember(null);
  pair = undefined;
  view("start");
  $("#join .problem").textContent = message;
  $("#name").focus();
}

$("#join").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("#join .problem").textContent = "";
  try {
    key = recallRater($("#name").value);
    const progress = await ask("/join", { name: $("#name").value });
    rememberRater(progress.name, progress.key);
    $("#name").value = "";
    await resume(progress);
  } catch (error) {
    $("#join .problem").textContent = error.message;
  }
});
form.addEventListener("submit", (event) => { event.preventDefault(); next(); });
form.addEventListener("change", update);
$("#back").addEventListener("click", back);
$("#leave").addEventListener("click", () => leave());
$("#other").addEventListener("click", () => leave());
$("#again").addEventListener("click", () => guarded(async () => {
  await show({ position: study.pairs - 1, question: study.questions.at(-1).name });
}));
addEventListener("resize", arrange);

addEventListener("keydown", (event) => {
  if ($("#rate").hidden || event.ctrlKey || event.altKey || event.metaKey || event.target.id === "seek") return;
  const stacked = group.classList.contains("stacked");
  const pressable = event.target.closest("button");
  const actions = {
    ArrowLeft: () => choose("left"),
    ArrowRight: () => choose("right"),
    ArrowUp: stacked ? () => choose("left") : null,
    ArrowDown: stacked ? () => choose("right") : null,
    Backspace: back,
    Enter: pressable ? null : () => { if (!event.repeat) next(); },
    " ": pressable || event.target.matches("input") ? null : player.toggle,
  };
  const reason = /^[1-9]$/.test(event.key) && $("#reasons").children[event.key - 1]?.querySelector("input");
  const action = reason ? () => { reason.checked = !reason.checked; update(); } : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

(async () => {
  try {
    study = await ask("/welcome");
    const plural = study.pairs === 1 ? "pair" : "pairs";
    $("#count").textContent = `${study.pairs} ${plural}`;
    const titles = study.questions.map((one) => `“${one.ask}”`);
    $("#asked").textContent = `For each you answer ${titles.join(" and ")}, and say why.`;
    $("#last").textContent = Math.max(...study.questions.map((one) => one.reasons.length));
    if (key) {
      const progress = await ask("/progress").catch((error) => {
        if (error.status !== 401) throw error;
      });
      if (progress) return await resume(progress);
    }
    leave();
  } catch (error) {
    view("start");
    $("#join .problem").textContent = error.message;
  }
})();
