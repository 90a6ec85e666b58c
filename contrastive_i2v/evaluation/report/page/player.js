if (data.playing.frames) {
  const { fps, frames, cases } = data.playing;
  const $ = (id) => document.getElementById(id);
  const [play, slider, shown, speed, metric, by] = ["play", "frame", "shown", "speed", "metric", "by"].map($);
  const strips = all(".strip"), attached = new Set(), urls = new Map();
  const length = frames / fps, hold = 0.8, late = Math.max(1 / fps, 0.12);
  let playing = false, time = 0, last = 0, checked = 0;

  const frameAt = (seconds) => Math.max(0, Math.min(frames - 1, Math.floor(seconds * fps + 1e-6)));
  const middle = (frame) => (frame + 0.5) / fps;
  const moving = () => [...attached].filter((video) => !video.classList.contains("still"));
  const address = (video) => {
    const { held, file } = video.dataset;
    if (held === undefined) return file;
    if (!urls.has(held)) {
      const element = $(`video-${held}`);
      const text = atob(element.textContent), bytes = new Uint8Array(text.length);
      for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
      urls.set(held, URL.createObjectURL(new Blob([bytes], { type: element.dataset.kind })));
      element.remove();
    }
    return urls.get(held);
  };
  const label = () => {
    const frame = frameAt(time);
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `frame ${frame} of ${frames - 1}`);
    shown.textContent = `${frame} / ${frames - 1}`;
  };
  const seek = (video) => {
    video.pause();
    video.currentTime = middle(video.classList.contains("still") ? 0 : frameAt(time));
  };
  const run = (video) => {
    video.playbackRate = Number(speed.value);
    if (time < length) { video.currentTime = time; video.play().catch(() => {}); }
  };
  const settle = (video) => (playing && !video.classList.contains("still") ? run(video) : seek(video));

  for (const video of all("video")) {
    video.addEventListener("loadeddata", () => {
      video.classList.toggle("small", video.videoWidth <= 128);
      settle(video);
    });
    video.addEventListener("error", () => {
      if (!video.getAttribute("src")) return;
      const said = document.createElement("p");
      said.textContent = video.dataset.file ? `can't be shown: ${decodeURI(video.dataset.file)}` : "can't be played";
      attached.delete(video);
      video.replaceWith(said);
    });
  }
  const attach = (video) => { attached.add(video); video.src = address(video); };
  const detach = (video) => { attached.delete(video); video.removeAttribute("src"); video.load(); };
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      for (const video of all("video", target)) {
        if (isIntersecting !== attached.has(video)) (isIntersecting ? attach : detach)(video);
      }
    }
  }, { rootMargin: "300px 0px" });
  for (const strip of strips) near.observe(strip);

  const tick = (now) => {
    if (!playing) return;
    const passed = Math.min(0.1, (now - last) / 1000) * Number(speed.value);
    last = now;
    requestAnimationFrame(tick);
    if (!attached.size) return;
    time += passed;
    if (time >= length + hold) {
      time = 0;
      moving().forEach(run);
    } else if (time < length && now - checked > 400) {
      checked = now;
      for (const video of moving()) {
        if (video.readyState > 1 && !video.seeking && Math.abs(video.currentTime - time) > late) run(video);
      }
    }
    label();
  };
  const start = () => {
    if (frameAt(time) === frames - 1) time = 0;
    playing = true;
    play.textContent = "Pause";
    last = checked = performance.now();
    moving().forEach(run);
    requestAnimationFrame(tick);
  };
  const stop = (frame = frameAt(time)) => {
    playing = false;
    play.textContent = "Play";
    time = middle(Math.max(0, Math.min(frames - 1, frame)));
    moving().forEach(seek);
    label();
  };
  play.addEventListener("click", () => (playing ? stop() : start()));
  $("back").addEventListener("click", () => stop(frameAt(time) - 1));
  $("forward").addEventListener("click", () => stop(frameAt(time) + 1));
  slider.addEventListener("input", () => stop(Number(slider.value)));
  speed.addEventListener("change", () => { for (const video of moving()) video.playbackRate = Number(speed.value); });

  const place = (id, clips, title) => {
    $(`${id}-title`).hidden = !clips.length;
    $(`${id}-title`).textContent = title;
    $(id).append(...clips.map((clip) => strips[clip]));
  };
  const choose = () => {
    const chosen = cases[metric.value];
    $("by-label").hidden = !chosen;
    $("all").append(...strips);
    $("all").hidden = Boolean(chosen);
    for (const cell of all(".cell")) {
      const clip = Number(cell.closest(".strip").dataset.clip);
      all(".score", cell)[0].textContent = chosen?.values[cell.dataset.method]?.[clip] ?? "";
    }
    const { upper, lower, titles } = chosen?.by[Number(by.value)] ?? { upper: [], lower: [], titles: ["", ""] };
    place("upper", upper, `${titles[0]}: ${chosen?.title}`);
    place("lower", lower, `${titles[1]}: ${chosen?.title}`);
  };
  metric?.addEventListener("change", () => {
    const choices = cases[metric.value]?.by ?? [], before = by.selectedOptions[0]?.textContent;
    by.replaceChildren(...choices.map((one, index) => new Option(one.label, index)));
    const kept = choices.findIndex((one) => one.label === before);
    by.value = Math.max(0, kept >= 0 ? kept : choices.findIndex((one) => one.pair));
    choose();
  });
  by?.addEventListener("change", choose);

  addEventListener("beforeprint", () => stop());
  all(".player")[0].hidden = false;
  label();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
}
