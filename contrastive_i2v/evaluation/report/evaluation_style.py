"""What the evaluation's page adds to the style of all our pages."""

EVALUATION_STYLE = """
:root {
  --width: 1120px; --warn: #a36a00; --raised: #ffffff; --shadow: 0 4px 18px rgb(0 0 0 / 0.14);
  --tone0: #1b66c9; --tone1: #c2570c; --tone2: #7a3fb0; --tone3: #0b7a75; --tone4: #b3246b; --tone5: #66690a;
  --still: #767b80;
}
@media (prefers-color-scheme: dark) {
  :root {
    --warn: #e0ab4d; --raised: #24282b; --shadow: 0 4px 18px rgb(0 0 0 / 0.5);
    --tone0: #74b0ff; --tone1: #f59a54; --tone2: #c49bf0; --tone3: #4fc4bd; --tone4: #f07fb2; --tone5: #c3c452;
    --still: #8b9298;
  }
}
[hidden] { display: none !important; }
html { scroll-padding-top: 12px; }
a { color: var(--tone0); text-underline-offset: 2px; }
:focus-visible { outline: 2px solid var(--tone0); outline-offset: 2px; border-radius: 3px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
h1, dd, .about p, .verdict, .warnings { overflow-wrap: anywhere; }
h2 { margin: 56px 0 10px; padding-top: 18px; border-top: 1px solid var(--rule); font-size: 1.25rem; }
section > .muted { max-width: 84ch; }
.note { font-size: 0.875rem; margin: 10px 0 0; max-width: 84ch; }
details summary { cursor: pointer; }
select, button {
  font: inherit; font-size: 0.875rem; color: inherit; background: var(--panel); border: 1px solid var(--rule);
  border-radius: 6px; padding: 5px 10px; cursor: pointer; max-width: 100%;
}
select:hover, button:hover { border-color: var(--muted); }

.tone0 { --tone: var(--tone0); } .tone1 { --tone: var(--tone1); --dash: 7 3; }
.tone2 { --tone: var(--tone2); --dash: 10 3 2 3; } .tone3 { --tone: var(--tone3); --dash: 3 3; }
.tone4 { --tone: var(--tone4); --dash: 12 4; } .tone5 { --tone: var(--tone5); --dash: 5 2 1 2; }
.truth { --tone: var(--ink); --dash: none; } .truth.line { stroke-width: 1.25; }
.swatch { display: inline-block; width: 22px; height: 8px; vertical-align: middle; margin-right: 6px; flex: none; }

.verdict { margin-top: 20px; padding-left: 16px; border-left: 3px solid var(--tone0); }
.verdict p { max-width: 84ch; margin: 0 0 8px; font-size: 1.0625rem; line-height: 1.5; }
.verdict p + p { font-size: 0.9375rem; } .verdict p:last-child { margin: 0; } .verdict .muted { font-size: 0.875rem; }
.verdict small { font-variant-numeric: tabular-nums; }
.warnings {
  margin-top: 16px; padding-left: 16px; border-left: 3px solid var(--warn); font-size: 0.875rem; max-width: 84ch;
}
.warnings ul { margin: 0; padding: 0; list-style: none; }
.warnings li { margin-bottom: 3px; line-height: 1.45; }
.warnings details { margin-top: 2px; color: var(--muted); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 24px; font-size: 0.9375rem; }

.summary th:first-child { min-width: 190px; }
.summary thead th { vertical-align: bottom; }
.summary th, .summary td { padding-top: 6px; padding-bottom: 5px; } .summary small { line-height: 1.3; }
.summary thead { position: sticky; top: 0; z-index: 1; background: var(--page); }
.summary tbody th { font-size: 0.9375rem; font-weight: 400; text-align: left; }
.summary .group th { padding-top: 20px; font-size: 0.8125rem; color: var(--muted); }
.summary td:last-child, .summary thead th:last-child { padding-right: 4px; }
.summary td.muted { font-size: inherit; }
.metric:hover > * { background: var(--panel); }
.define {
  font-size: inherit; background: none; border: 0; padding: 0; text-align: left;
  text-decoration: underline dotted var(--muted); text-underline-offset: 3px;
}
.arrow { color: var(--muted); }
.mark {
  font-size: 0.6875rem; line-height: 1; color: var(--muted); border: 1px solid var(--rule); border-radius: 9px;
  padding: 1px 6px 2px; white-space: nowrap;
}
.mark.warn { color: var(--warn); border-color: currentcolor; font-weight: 600; }
.definition td { text-align: left; padding: 10px 14px 12px; background: var(--panel); font-size: 0.875rem; }
.definition p { margin: 0 0 4px; max-width: 90ch; } .definition .warning { color: var(--warn); }

.forest { margin: 18px 0 0; }
.forest summary { font-weight: 600; font-size: 0.9375rem; padding: 4px 0; }
.forest .head, .forest .one {
  display: grid; grid-template-columns: minmax(150px, 230px) minmax(0, 1fr) minmax(190px, 240px); gap: 0 20px;
  align-items: center; font-size: 0.875rem; border-bottom: 1px solid var(--rule);
}
.forest .one:hover { background: var(--panel); }
.forest .head { color: var(--muted); font-size: 0.75rem; padding-bottom: 3px; }
.forest .sides { display: flex; justify-content: space-between; gap: 8px; }
.forest .head > :last-child, .forest .numbers { text-align: right; font-variant-numeric: tabular-nums; }
.forest svg { height: 30px; width: 100%; overflow: hidden; }
.forest .zero { stroke: var(--muted); stroke-width: 1; opacity: 0.55; }
.forest .reach { stroke: var(--tone); stroke-width: 2; } .forest .mean { fill: var(--tone); }
.forest .open { --tone: var(--muted); }
.forest .mean.open { fill: var(--page); stroke: var(--muted); stroke-width: 1.5; }

.charts { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 36px 36px; margin-top: 18px; }
.charts svg text { font-size: 12.5px; }
.charts svg[data-chart] { cursor: crosshair; touch-action: pan-y; }
.charts .cross { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 2; }
.charts .head { font-size: 0.75rem; text-align: right; margin: 0; }
.slopes { list-style: none; margin: 0; padding: 0; font-variant-numeric: tabular-nums; }
.slopes li { display: flex; flex-wrap: wrap; font-size: 0.8125rem; align-items: center; gap: 0 8px; }
.slopes li > :last-child { margin-left: auto; } .slopes .swatch { margin: 0; } .slopes small { font-size: inherit; }
#tip {
  position: fixed; z-index: 5; left: 0; top: 0; pointer-events: none; background: var(--raised); color: var(--ink);
  border: 1px solid var(--rule); border-radius: 6px; box-shadow: var(--shadow); padding: 6px 10px; font-size: 0.8125rem;
  line-height: 1.45; max-width: min(420px, calc(100vw - 24px)); overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums;
}
#tip p { margin: 0; }
#tip .values { display: grid; grid-template-columns: auto 1fr auto; gap: 0 8px; align-items: center; }
#tip .values b { font-weight: 500; text-align: right; } #tip .swatch { margin: 0; }

.choices { display: flex; flex-wrap: wrap; gap: 10px 18px; align-items: center; font-size: 0.875rem; }
.choices label { max-width: 100%; } .choices select { width: 260px; }
.segments { display: flex; border: 1px solid var(--rule); border-radius: 6px; padding: 0; margin: 0; overflow: hidden; }
.segments input { position: absolute; opacity: 0; }
.segments span { display: block; padding: 5px 14px; cursor: pointer; color: var(--muted); }
.segments :checked + span { background: var(--panel); color: var(--ink); font-weight: 600; }
.segments :focus-visible + span { outline: 2px solid var(--tone0); outline-offset: -2px; border-radius: 5px; }
.maps {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 24px; margin-top: 16px;
}
.maps figure { margin: 0; } .maps > figure > svg { border: 1px solid var(--rule); border-radius: 6px; }
.trace path { fill: none; stroke: var(--tone); stroke-width: 1.4; stroke-linejoin: round; opacity: 0.75; }
.trace.truth path { stroke-width: 1; opacity: 0.5; }
.trace .hit, .trace.truth .hit { stroke-width: 12; opacity: 0; pointer-events: stroke; }
.trace circle { fill: var(--tone); } .trace .first { fill: var(--page); stroke: var(--tone); }
.maps.chosen .trace { opacity: 0.1; } .maps.chosen .trace.on { opacity: 1; }
.trace.on path:not(.hit) { stroke-width: 2.4; opacity: 1; } .trace.on.truth path:not(.hit) { stroke-width: 1.8; }

.player {
  position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: center;
  padding: 10px 0; background: var(--page); border-bottom: 1px solid var(--rule); font-size: 0.875rem;
}
.pickers { display: flex; flex-wrap: wrap; gap: 8px 16px; }
.pickers label { display: flex; align-items: center; gap: 6px; color: var(--muted); min-width: 0; }
.pickers select { color: var(--ink); min-width: 0; }
.transport { display: flex; gap: 6px; align-items: center; flex: 1 1 320px; min-width: 0; }
.transport button { min-width: 34px; } #play { min-width: 68px; }
.transport input { flex: 1; min-width: 40px; max-width: 260px; accent-color: var(--tone0); margin: 0 4px; }
.transport output { color: var(--muted); font-variant-numeric: tabular-nums; white-space: nowrap; }
#cases h3 { margin: 22px 0 0; font-size: 0.9375rem; }
.strip {
  display: grid; grid-template-columns: minmax(130px, 1fr) minmax(0, calc(var(--cells) * 178px)); gap: 8px 20px;
  padding: 16px 0; border-bottom: 1px solid var(--rule);
}
.about p { margin: 0 0 2px; font-size: 0.9375rem; line-height: 1.4; }
.cells { display: grid; grid-template-columns: repeat(var(--cells), minmax(0, 1fr)); gap: 8px; }
.cell { margin: 0; min-width: 0; }
.cell figcaption {
  display: flex; flex-wrap: wrap; align-items: center; gap: 0 2px; font-size: 0.75rem; margin-top: 3px;
}
.cell .swatch { width: 16px; margin-right: 4px; } .cell .who { overflow-wrap: anywhere; }
.cell .score { margin-left: auto; color: var(--ink); font-variant-numeric: tabular-nums; }
.frame {
  aspect-ratio: var(--ratio); background: var(--panel); border-radius: 4px; overflow: hidden; display: grid;
}
.frame p {
  align-self: center; justify-self: center; text-align: center; margin: 6px; font-size: 0.75rem; line-height: 1.35;
  color: var(--muted); overflow-wrap: anywhere;
}
.frame video { display: block; width: 100%; height: 100%; object-fit: contain; }
.frame video.small { image-rendering: pixelated; }

.command { position: relative; } .command pre { padding-right: 84px; }
.command button { position: absolute; top: 8px; right: 8px; background: var(--page); }
#provenance h3 { margin: 20px 0 4px; } #provenance summary { font-weight: 600; font-size: 0.9375rem; }

@media (max-width: 960px) {
  .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .strip { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 640px) {
  h2 { margin-top: 40px; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .verdict p { font-size: 1rem; }
  .summary table, .summary thead, .summary tbody { display: block; }
  .summary tr { display: grid; grid-template-columns: repeat(var(--columns), minmax(74px, 1fr)); }
  .summary tr > :first-child { grid-column: 1 / -1; }
  .summary thead tr > :first-child { display: none; }
  .summary th, .summary td { border: 0; padding: 2px 6px 2px 0; text-align: left; font-size: 0.8125rem; }
  .summary td.muted { font-size: 0.8125rem; } .summary th, .summary td { line-height: 1.35; }
  .summary thead tr { align-items: end; } .summary thead th { font-size: 0.75rem; overflow-wrap: anywhere; }
  .summary .swatch { display: block; margin: 0 0 2px; }
  .summary tr { border-bottom: 1px solid var(--rule); padding: 7px 0; }
  .summary th, .summary td { padding-top: 6px; padding-bottom: 5px; } .summary small { line-height: 1.3; }
.summary thead { position: sticky; top: 0; z-index: 1; background: var(--page); }
.summary tbody th { font-size: 0.875rem; } .summary .group th { padding-top: 12px; }
  .summary td small { font-size: 0.6875rem; white-space: normal; line-height: 1.3; }
  .definition td { grid-column: 1 / -1; padding: 8px 10px; }
  .summary .definition { padding: 0; }
  .forest .head, .forest .one { grid-template-columns: minmax(0, 1fr) auto; gap: 0 12px; padding: 4px 0; }
  .forest .bar, .forest .sides { grid-column: 1 / -1; grid-row: 2; }
  .forest .head > :first-child, .forest .head > :last-child { display: none; }
  .forest .sides { grid-row: 1; }
  .cells { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .player { gap: 8px; padding: 8px 0; } .choices select { width: 100%; }
  .transport { flex-basis: 100%; gap: 5px; } #play { min-width: 58px; }
}
@media print {
  :root { color-scheme: light; }
  body { padding: 0; font-size: 11pt; } main { max-width: none; }
  nav, .player, .choices, #copy { display: none; }
  .definition[hidden] { display: table-row !important; }
  .charts figure, .strip, .maps figure, tr, .one { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  .maps[hidden] { display: grid !important; }
}
"""
