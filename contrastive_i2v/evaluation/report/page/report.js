"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const CHART = data.chart;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

const tip = (() => {
  const box = document.getElementById("tip");
  const line = (text) => Object.assign(document.createElement("p"), { textContent: text });
  return {
    show(x, y, ...parts) {
      box.replaceChildren(...parts.map((part) => (typeof part === "string" ? line(part) : part)));
      box.hidden = false;
      const { width, height } = box.getBoundingClientRect();
      const left = x + 16 + width > innerWidth - 8 ? x - 16 - width : x + 16;
      const top = y + 16 + height > innerHeight - 8 ? y - 12 - height : y + 16;
      const inside = Math.max(8, Math.min(left, innerWidth - width - 8));
      box.style.transform = `translate(${inside}px, ${Math.max(8, top)}px)`;
    },
    hide() { box.hidden = true; },
  };
})();

const swatch = (style) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 26 8");
  const path = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
  path.setAttribute("class", `line ${style}`);
  path.setAttribute("d", "M0 4H26");
  return svg;
};

for (const button of all(".define")) {
  const row = document.getElementById(button.getAttribute("aria-controls"));
  const about = () => all("p", row).map((p) => p.textContent);
  const open = (yes) => {
    button.setAttribute("aria-expanded", yes);
    row.hidden = !yes;
    tip.hide();
  };
  open(false);
  button.addEventListener("click", () => open(row.hidden));
  button.addEventListener("pointerenter", (event) => {
    const box = button.getBoundingClientRect();
    if (row.hidden && event.pointerType === "mouse") tip.show(box.left, box.bottom - 8, ...about());
  });
  button.addEventListener("pointerleave", tip.hide);
}

for (const row of all("[data-tip]")) {
  row.addEventListener("pointermove", (event) => tip.show(event.clientX, event.clientY, row.dataset.tip));
  row.addEventListener("pointerleave", tip.hide);
}

for (const svg of all("svg[data-chart]")) {
  const series = data.curves[svg.dataset.chart];
  const low = Number(svg.dataset.low), high = Number(svg.dataset.high);
  const cross = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
  cross.setAttribute("class", "cross");
  let frame = low;
  const show = (next) => {
    frame = Math.max(low, Math.min(high, next));
    const x = CHART.left + (frame - low) / (high - low || 1) * (CHART.right - CHART.left);
    cross.setAttribute("d", `M${x} ${CHART.top}V${CHART.bottom}`);
    const values = Object.assign(document.createElement("div"), { className: "values" });
    for (const { name, style, values: numbers } of series) {
      const value = numbers[frame] ?? null;
      const [who, number] = [document.createElement("span"), document.createElement("b")];
      who.textContent = name;
      number.textContent = value === null ? "–" : String(value).replace("-", "−");
      values.append(swatch(style), who, number);
    }
    const box = svg.getBoundingClientRect();
    tip.show(box.left + x / CHART.width * box.width, box.top + box.height / 3, `frame ${frame}`, values);
  };
  const hide = () => { cross.removeAttribute("d"); tip.hide(); };
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * CHART.width;
    show(Math.round(low + (x - CHART.left) / (CHART.right - CHART.left) * (high - low)));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(frame + step); }
    if (event.key === "Escape") hide();
  });
}

{
  const maps = all(".maps"), select = document.getElementById("map-clip");
  const choose = (clip) => {
    for (const map of maps) map.classList.toggle("chosen", clip !== "");
    for (const trace of all(".trace")) trace.classList.toggle("on", clip !== "" && trace.dataset.clip === clip);
  };
  for (const radio of all("input[name=map]")) {
    const update = () => { for (const map of maps) if (radio.checked) map.hidden = map.dataset.map !== radio.value; };
    radio.addEventListener("change", update);
    update();
  }
  for (const trace of all(".trace")) {
    trace.addEventListener("pointerenter", () => choose(trace.dataset.clip));
    const said = data.clips[Number(trace.dataset.clip)];
    trace.addEventListener("pointermove", (event) => tip.show(event.clientX, event.clientY, said));
    trace.addEventListener("pointerleave", () => { tip.hide(); choose(select.value); });
    trace.addEventListener("click", () => { select.value = trace.dataset.clip; });
  }
  select?.addEventListener("change", () => choose(select.value));
}

{
  const copy = document.getElementById("copy"), command = document.getElementById("command");
  if (navigator.clipboard) copy.hidden = false;
  copy.addEventListener("click", async () => {
    let said = "Copied";
    try { await navigator.clipboard.writeText(command.textContent); } catch { said = "Select and copy"; }
    if (said !== "Copied") getSelection().selectAllChildren(command);
    copy.textContent = said;
    setTimeout(() => { copy.textContent = "Copy"; }, 1600);
  });
}

addEventListener("beforeprint", () => { for (const one of all("details")) one.open = true; });
