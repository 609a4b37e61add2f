/* The studio's own script: forms carry the page's key, files are sent one by one, parts of a page
   are changed in place so that focus, scroll and opened notes stay. */
"use strict";

const csrf = document.querySelector('meta[name="csrf"]').content;

/* --- telling ------------------------------------------------------------------------------ */
const told = document.getElementById("told");
const noted = (text) => [...told.children].find((note) => note.textContent === text);
function note(text, bad) {
  const made = document.createElement("p");
  made.className = bad ? "toast bad" : "toast";
  made.textContent = text;
  told.append(made);
  return made;
}
function tell(text, bad) {
  if (noted(text)) return;
  const made = note(text, bad);
  setTimeout(() => made.remove(), bad ? 12000 : 5000);
}
function stand(text, holds) {  // there as long as it holds, and once
  const there = noted(text);
  if (holds && !there) note(text, true);
  if (!holds && there) there.remove();
}
const reach = () => fetch(location.href, { headers: { "HX-Request": "true" } }).catch(() => null);
document.addEventListener("htmx:configRequest", (e) => { e.detail.headers["X-CSRF-Token"] = csrf; });
document.addEventListener("htmx:responseError", (e) => {
  const text = e.detail.xhr.responseText;
  tell(text && text.length < 4000 && !text.startsWith("<") ? text : e.detail.xhr.statusText, true);
});
document.addEventListener("htmx:sendError", () => stand(told.dataset.lost, true));
document.addEventListener("htmx:beforeOnLoad", () => stand(told.dataset.lost, false));
document.addEventListener("told", (e) => tell(e.detail.value));

/* --- changing in place -------------------------------------------------------------------- */
function morph(old, now) {
  if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName ||
      (old.id || "") !== (now.id || "")) {
    old.replaceWith(now);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
    return;
  }
  for (const { name, value } of [...now.attributes])
    if (old.getAttribute(name) !== value && !(name === "class" && old.nodeName === "IMG"))
      old.setAttribute(name, value);
  for (const { name } of [...old.attributes])
    if (!now.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS") &&
        name !== "class" && name !== "style") old.removeAttribute(name);
  if (!now.hasAttribute("class") && old.hasAttribute("class")) old.removeAttribute("class");
  morphChildren(old, now);
}
function morphChildren(old, now) {
  const olds = [...old.childNodes], nows = [...now.childNodes];
  nows.forEach((child, i) => { olds[i] ? morph(olds[i], child) : old.append(child); });
  olds.slice(nows.length).forEach((child) => child.remove());
}
function renew(target, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  morphChildren(target, made.content);
  htmx.process(target);
  placeNotes();
}
htmx.defineExtension("morph", {
  isInlineSwap: (style) => style === "morph",
  handleSwap: (style, target, fragment) => {
    if (style !== "morph") return false;
    const now = fragment.firstElementChild;
    const id = target.id;
    morph(target, now);
    return [document.getElementById(id)];
  },
});

/* --- files -------------------------------------------------------------------------------- */
const fill = (text, fields) => text.replace(/\{(\w+)\}/g, (_, name) => fields[name]);
const placed = (file) => file.placed || file.name;  // in the folder that was dropped
const stem = (file) => placed(file).replace(/\.[^./]*$/, "");
const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

async function send(zone, files) {
  const state = zone.querySelector(".drop-state");
  const captions = new Map();
  for (const file of files)
    if (/\.txt$/i.test(file.name) && file.size < 16384 && await readable(file))
      captions.set(stem(file), await file.text());
  const waiting = files.filter((file) => !/\.txt$/i.test(file.name));
  const total = waiting.length;
  const drop = `${Date.now()}-${Math.random()}`;  // what comes together is taken back together
  let done = 0, went = "", lost = false;
  const refused = [];
  zone.classList.add("busy");
  const say = () => { state.textContent = fill(state.dataset.going, { done: done + refused.length, total }); };
  say();
  for (const file of waiting) {  // one after another: they keep their order
    if (lost || !(await readable(file))) {
      refused.push([placed(file), lost ? told.dataset.lost : state.dataset.unreadable]);
      continue;
    }
    const headers = {
      "X-CSRF-Token": csrf,
      "X-Drop": drop,
      "X-File-Name": encodeURIComponent(file.name).slice(0, 600),
      "Content-Type": /\.zip$/i.test(file.name) ? "application/zip" : "application/octet-stream",
    };
    const caption = captions.get(stem(file));
    if (caption !== undefined) headers["X-Caption"] = encodeURIComponent(caption.slice(0, 2000));
    try {
      const answer = await fetch(zone.dataset.upload, { method: "POST", body: file, headers });
      const facts = await answer.json().catch(() => ({ why: answer.statusText }));
      if (answer.ok) {
        done += facts.taken;
        went = facts.go || went;
        for (const [name, why] of facts.refused || []) refused.push([name, why]);
      } else refused.push([facts.file || file.name, facts.why]);
    } catch (error) {  // or it was refused before all of it had come
      lost = !(await reach());
      refused.push([placed(file), lost ? told.dataset.lost : state.dataset.broken]);
    }
    say();
  }
  zone.classList.remove("busy");
  state.textContent = fill(state.dataset.done, { done });
  if (refused.length) {
    const list = document.createElement("ul");
    for (const [name, why] of refused.slice(0, 20)) {
      const line = document.createElement("li");
      line.textContent = `${name}: ${why}`;
      list.append(line);
    }
    const head = document.createElement("p");
    head.textContent = fill(state.dataset.refused, { n: refused.length });
    state.append(head, list);
  }
  if (went) window.location.assign(went);
  else if (zone.dataset.after && done) {
    const kept = state.cloneNode(true);
    await htmx.ajax("POST", zone.dataset.after, { target: "#set", swap: "outerHTML" });
    const place = document.querySelector(".drop-state");
    if (place && refused.length) place.replaceWith(kept);
  }
}
document.addEventListener("change", (e) => {
  if (e.target.matches(".drop .file") && e.target.files.length) {
    send(e.target.closest(".drop"), [...e.target.files]);
    e.target.value = "";
  }
});
function accepted(file, kinds) {
  return kinds.split(",").some((kind) =>
    kind.startsWith(".") ? file.name.toLowerCase().endsWith(kind) : file.type === kind);
}
async function within(entry, kinds) {  // the files of a folder and of those in it
  if (entry.name.startsWith(".")) return [];
  if (entry.isFile) {
    const file = await new Promise((give) => entry.file(give, () => give(null)));
    if (!file || !accepted(file, kinds)) return [];
    file.placed = entry.fullPath.slice(1);
    return [file];
  }
  const reader = entry.createReader(), inside = [], found = [];
  for (;;) {  // a reader gives a hundred at a time
    const some = await new Promise((give) => reader.readEntries(give, () => give([])));
    if (!some.length) break;
    inside.push(...some);
  }
  inside.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  for (const each of inside) found.push(...await within(each, kinds));
  return found;
}
async function dropped(zone, transfer) {
  const kinds = zone.querySelector(".file").accept;
  const files = [...transfer.files];  // both are empty once the event is over
  const entries = [...transfer.items].filter((item) => item.kind === "file")
    .map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
  const folders = entries.filter((entry) => entry && entry.isDirectory);
  const plain = files.filter((file, i) => !(entries[i] && entries[i].isDirectory));
  for (const folder of folders) plain.push(...await within(folder, kinds));
  send(zone, zone.dataset.multiple === "yes" ? plain : plain.slice(0, 1));
}
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (e) => {
    const zone = document.querySelector(".drop");
    if (!zone || !e.dataTransfer || ![...e.dataTransfer.types].includes("Files")) return;
    e.preventDefault();
    zone.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && e.dataTransfer.files.length) dropped(zone, e.dataTransfer);
  });

/* --- the map of pictures: one stop for Tab, arrows go to the nearest that way ---------------- */
function choose(point) {
  const map = point.ownerSVGElement;
  for (const other of map.querySelectorAll('[tabindex="0"], [aria-current]')) {
    other.setAttribute("tabindex", "-1");
    other.removeAttribute("aria-current");
  }
  point.setAttribute("tabindex", "0");
  point.setAttribute("aria-current", "true");
  point.focus();
  htmx.ajax("GET", map.dataset.base + point.dataset.id, { target: "#map-one", swap: "innerHTML" });
}
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function nearest(point, [right, down]) {
  let best = null, least = Infinity;
  for (const other of point.ownerSVGElement.querySelectorAll(".point")) {
    const x = other.dataset.x - point.dataset.x, y = other.dataset.y - point.dataset.y;
    const along = x * right + y * down, across = Math.abs(x * down) + Math.abs(y * right);
    const far = along + 2 * across;
    if (other !== point && along > 0 && far < least) { best = other; least = far; }
  }
  return best;
}
document.addEventListener("click", (e) => {
  const point = e.target.closest && e.target.closest(".map .point");
  if (point) choose(point);
});
document.addEventListener("keydown", (e) => {
  const point = e.target.closest && e.target.closest(".map .point");
  if (!point) return;
  const next = e.key === "Enter" || e.key === " " ? point : WAYS[e.key] && nearest(point, WAYS[e.key]);
  if (next || WAYS[e.key]) e.preventDefault();
  if (next) choose(next);
});

/* --- the notes behind an (i): beside it, and whole in the window --------------------------- */
const EDGE = 8;
function placeNotes() {
  for (const info of document.querySelectorAll("details.info[open]")) {
    const at = info.getBoundingClientRect(), bubble = info.querySelector(".bubble");
    const { width, height } = bubble.getBoundingClientRect();
    const right = document.documentElement.clientWidth - width - EDGE;
    const below = at.bottom + EDGE, fits = below + height + EDGE <= window.innerHeight;
    bubble.style.left = `${Math.max(EDGE, Math.min(at.left + (at.width - width) / 2, right))}px`;
    bubble.style.top = `${fits ? below : Math.max(EDGE, at.top - height - EDGE)}px`;
  }
}
document.addEventListener("toggle", placeNotes, true);
document.addEventListener("scroll", placeNotes, { capture: true, passive: true });
window.addEventListener("resize", placeNotes);

/* --- small things ------------------------------------------------------------------------- */
document.addEventListener("load", (e) => {
  // The practice model's pictures are tiny: enlarged, their own pixels look better than a blur.
  if (e.target.matches && e.target.matches("img.thumb"))
    e.target.classList.toggle("tiny", Math.max(e.target.naturalWidth, e.target.naturalHeight) <= 96);
}, true);
document.addEventListener("click", (e) => {
  for (const info of document.querySelectorAll("details.info[open]"))
    if (!info.contains(e.target)) info.open = false;
});
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape")
    for (const info of document.querySelectorAll("details.info[open]")) {
      info.open = false;
      info.querySelector("summary").focus();
    }
});
document.addEventListener("change", (e) => {
  // An entry of the drawer takes part in the form from when it was changed.
  const name = e.target.dataset && e.target.dataset.name;
  if (name) {
    e.target.name = name;
    e.target.closest(".entry").classList.add("edited");
    if (name === "set:adapter.kind") htmx.trigger("#entries", "reload");
  }
}, true);
function worded(input) {
  const words = (input.dataset.words || "").split("|");
  const word = words[Number(input.value) - Number(input.min)];
  if (word) input.setAttribute("aria-valuetext", word);
}
document.addEventListener("input", (e) => {
  if (e.target.type !== "range") return;
  worded(e.target);
  const shown = document.querySelector(`output[for="${e.target.id}"]`);
  if (shown) shown.textContent = e.target.value;
});
document.querySelectorAll('input[type="range"]').forEach(worded);
const here = document.querySelector(".bar nav [aria-current]");  // on a telephone it may be cut off
if (here) here.parentElement.scrollLeft = here.offsetLeft + here.offsetWidth - here.parentElement.clientWidth;
