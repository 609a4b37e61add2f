/* A run's page while it learns: parts that change come over one stream, the plots as numbers. */
"use strict";

const page = document.getElementById("live");
const plots = new Map();

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
function averaged(values) {
  let mean = null;
  return values.map((v) => (mean = v === null ? mean : mean === null ? v : 0.9 * mean + 0.1 * v));
}
function shaped(name, data) {
  return name === "loss" && data.length > 1 ? [data[0], data[1], averaged(data[1])] : data;
}
function options(name, box, names) {
  const line = ink("--line"), soft = ink("--soft"), accent = ink("--accent"), second = ink("--second");
  const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false },
                 font: "12px system-ui, sans-serif" };
  const series = names.map((label, i) => ({
    label, stroke: i ? second : accent, width: 2, dash: i ? [6, 4] : undefined, spanGaps: true,
    points: { show: name !== "loss", size: 5 },
  }));
  if (name === "loss") {
    series[0].stroke = soft; series[0].width = 1; series[0].alpha = 0.5;
    series.push({ label: "", stroke: accent, width: 2, spanGaps: true, points: { show: false } });
  }
  const percent = (u, values) => values.map((v) => `${Math.round(100 * v)} %`);
  const top = name === "variety" ? 1.1 : undefined;
  return {
    width: box.clientWidth, height: 190, legend: { show: name === "variety", live: false },
    cursor: { show: false }, padding: [8, 16, 0, 0],
    scales: { x: { time: false }, y: { range: (u, low, high) => name === "loss" || low === null
      ? [Math.min(low || 0, 0), (high || 1) * 1.05] : [Math.min(0, low), Math.max(top || 0, high * 1.05)] } },
    axes: [{ ...axis, size: 30 }, { ...axis, size: 46, values: name === "loss" ? undefined : percent }],
    series: [{}, ...series],
  };
}
function draw(all) {
  for (const box of document.querySelectorAll("[data-plot]")) {
    const name = box.dataset.plot, data = shaped(name, all[name] || [[]]);
    if (!data[0] || !data[0].length) continue;
    const known = plots.get(name);
    if (known) known.setData(data);
    else plots.set(name, new uPlot(options(name, box, box.dataset.lines.split("|")), data, box));
  }
}
let last = JSON.parse(document.getElementById("curves").textContent);
draw(last);
function redraw() {
  plots.forEach((plot) => plot.destroy());
  plots.clear();
  draw(last);
}
window.addEventListener("resize", () => {
  plots.forEach((plot) => plot.setSize({ width: plot.root.parentElement.clientWidth, height: 190 }));
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

/* --- the stream: a browser has six connections to a place, so only a page in sight keeps one --- */
const GRACE = 3000;  // milliseconds for the browser to open the next by itself
let source = null, late = 0, said = "", gone = false;
function say(text) {  // what stands about the stream, in place of what stood
  if (said && said !== text) stand(said, false);
  if (text) stand(text, true);
  said = text;
}
function part() {
  clearTimeout(late);
  late = 0;
  if (source) source.close();
  source = null;
}
function hear() {
  if (source || gone || document.hidden) return;
  source = new EventSource(page.dataset.events);
  for (const name of ["now", "film", "events"])
    source.addEventListener(name, (e) => renew(document.getElementById(`part-${name}`), e.data));
  source.addEventListener("curves", (e) => { last = JSON.parse(e.data); draw(last); });
  source.addEventListener("gone", (e) => { gone = true; part(); say(e.data); });
  source.addEventListener("open", () => { clearTimeout(late); late = 0; say(""); });
  source.addEventListener("error", () => { late = late || setTimeout(missed, GRACE); });
}
async function missed() {
  part();
  const answer = await reach();
  say(!answer ? told.dataset.lost : answer.ok ? "" : await answer.text());
  hear();
}
document.addEventListener("visibilitychange", () => document.hidden ? part() : hear());
window.addEventListener("pagehide", part);
hear();
