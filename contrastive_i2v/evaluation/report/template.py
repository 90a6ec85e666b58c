"""The pages' style and the demo's script: no framework, nothing fetched. `BASE` is what all our pages look like."""

BASE = """
:root {
  color-scheme: light dark; --width: 880px;
  --page: #fbfbf9; --ink: #1d1f21; --muted: #62676c; --rule: #dcdcd6; --panel: #f2f2ee;
  --contrastive: #1b66c9; --baseline: #c2570c; --literal: #7a3fb0; --base: #62676c; --still: #8f959b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16181a; --ink: #e6e6e2; --muted: #9aa0a5; --rule: #33373a; --panel: #1f2225;
    --contrastive: #74b0ff; --baseline: #f59a54; --literal: #c49bf0; --base: #a4aab0; --still: #7d848a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 0 16px 64px; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: var(--width); margin: 0 auto; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 600; margin: 48px 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.125rem; font-weight: 600; margin: 48px 0 12px; }
h3 { font-size: 0.875rem; font-weight: 600; margin: 0 0 4px; }
p { margin: 0 0 12px; max-width: 68ch; }
.muted, figcaption, small { color: var(--muted); font-size: 0.875rem; }
code, pre { font: 0.8125rem/1.6 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9375rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 7px 0 7px 14px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; font-size: 0.8125rem; line-height: 1.35; }
th small { font-weight: 400; font-size: 0.75rem; }
td small { display: block; font-size: 0.75rem; white-space: nowrap; }
p.note { margin-top: 8px; }
tbody tr.reference { color: var(--muted); }

.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px 32px; }
.charts figure { margin: 0; }
.charts figcaption { margin-top: 6px; font-size: 0.8125rem; line-height: 1.45; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--muted); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .line, svg .raw {
  fill: none; stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; stroke-dasharray: var(--dash);
}
svg .raw { stroke-width: 1; opacity: 0.3; stroke-dasharray: none; }
svg .band { fill: var(--tone); opacity: 0.14; }
svg .dot { fill: var(--tone); }
.contrastive { --tone: var(--contrastive); } .baseline { --tone: var(--baseline); --dash: 6 3; }
.literal { --tone: var(--literal); --dash: 10 3 2 3; } .base { --tone: var(--base); --dash: 2 3; }
.still { --tone: var(--still); --dash: 1 4; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 0.8125rem; color: var(--muted); margin-bottom: 4px;
}
.legend svg { display: inline-block; width: 26px; height: 8px; vertical-align: middle; margin-right: 6px; }

dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 20px; margin: 0; font-size: 0.9375rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre {
  background: var(--panel); border-radius: 6px; padding: 10px 12px; margin: 4px 0 16px; white-space: pre-wrap;
  overflow-wrap: anywhere;
}
pre span { white-space: nowrap; }
@media (max-width: 640px) {
  h1 { margin-top: 28px; font-size: 1.4rem; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: 8px; }
}
"""

STYLE = (
    BASE
    + """
.controls {
  position: sticky; top: 0; z-index: 1; display: flex; gap: 12px; align-items: center; padding: 10px 0;
  background: var(--page); border-bottom: 1px solid var(--rule);
}
.controls button {
  font: inherit; font-size: 0.875rem; color: inherit; background: var(--panel); border: 1px solid var(--rule);
  border-radius: 6px; padding: 5px 12px; min-width: 76px; cursor: pointer;
}
.controls input { flex: 1; min-width: 0; max-width: 260px; accent-color: var(--contrastive); }
.controls output { font-size: 0.875rem; color: var(--muted); font-variant-numeric: tabular-nums; white-space: nowrap; }

.clip {
  display: grid; grid-template-columns: minmax(150px, 1fr) minmax(0, calc(var(--columns) * 200px - 8px)); gap: 6px 20px;
  margin: 20px 0 0;
}
.clip p { margin: 0; font-size: 0.9375rem; line-height: 1.4; }
.videos { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 8px; }
.videos figure { margin: 0; }
.videos video {
  display: block; width: 100%; aspect-ratio: 1; background: var(--panel); border-radius: 4px;
  image-rendering: pixelated;
}
.videos figcaption { font-size: 0.8125rem; margin-top: 2px; }
@media (max-width: 640px) {
  .clip { grid-template-columns: minmax(0, 1fr); }
  .videos { gap: 5px; }
  th, td { padding-left: 5px; font-size: 0.8125rem; }
  th { font-size: 0.6875rem; } th small, td small { font-size: 0.65rem; }
}
"""
)

# One clock for all videos: they start together, hold their last frame for a moment, and start again.
SCRIPT = """
(() => {
  const videos = [...document.querySelectorAll("video")];
  const { fps, frames } = Object.fromEntries(Object.entries(document.body.dataset).map(([k, v]) => [k, Number(v)]));
  const button = document.querySelector("#play"), slider = document.querySelector("#frame");
  const shown = document.querySelector("#shown");
  const hold = 0.8;
  let timer = 0, began = 0;
  const show = (frame) => { slider.value = frame; shown.textContent = `frame ${frame} of ${frames - 1}`; };
  const start = () => {
    began = performance.now();
    for (const video of videos) { video.currentTime = 0; video.play().catch(() => {}); }
  };
  const tick = () => {
    if (timer) {
      show(Math.min(frames - 1, Math.floor((performance.now() - began) / 1000 * fps)));
      requestAnimationFrame(tick);
    }
  };
  const play = () => {
    button.textContent = "Pause";
    start();
    timer = setInterval(start, (frames / fps + hold) * 1000);
    tick();
  };
  const pause = (frame) => {
    button.textContent = "Play";
    clearInterval(timer);
    timer = 0;
    for (const video of videos) { video.pause(); video.currentTime = (frame + 0.5) / fps; }
    show(frame);
  };
  for (const video of videos) { video.loop = false; }
  button.addEventListener("click", () => (timer ? pause(Number(slider.value)) : play()));
  slider.addEventListener("input", () => pause(Number(slider.value)));
  document.querySelector(".controls").hidden = false;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) { pause(0); } else { play(); }
})();
"""
