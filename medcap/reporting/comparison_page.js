const { systems, errors, page: size, rows: table } = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const rows = table.map(([id, reference, modality, region, finding, cells], number) =>
  ({ number, id, reference, modality: [modality], region, finding, cells, text: [id, reference, ...cells.map(([caption]) => caption)].join(" ").toLowerCase() }));
let found = rows, start = 0, open = -1;

function element(tag, text, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}
function fill(id, every, counts) {
  const names = Object.keys(counts).filter(Boolean).sort();
  by(id).replaceChildren(element("option", every, { value: "" }), ...names.map((name) => element("option", `${name} (${counts[name]})`, { value: name })));
  by(id).parentElement.hidden = !names.length;
}
function counted(values) {
  const counts = {};
  for (const value of values) counts[value] = (counts[value] || 0) + 1;
  return counts;
}
const shown = () => systems.flatMap((_, number) => (by(`system-${number}`).checked ? [number] : []));
const base = () => Number(by("base").value);
const change = (row, system) => row.cells[system][1] - row.cells[base()][1];

// words of `text` that a longest common subsequence with `other` lacks are marked
const bare = (word) => word.toLowerCase().replace(/^[.,;:()[\]"']+|[.,;:()[\]"']+$/g, "");
function marked(text, other) {
  const words = text.split(/\s+/).filter(Boolean), one = words.map(bare), two = other.split(/\s+/).filter(Boolean).map(bare);
  const length = Array.from({ length: one.length + 1 }, () => new Uint16Array(two.length + 1));
  for (let i = one.length - 1; i >= 0; i--)
    for (let j = two.length - 1; j >= 0; j--)
      length[i][j] = one[i] === two[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  const parts = [];
  for (let i = 0, j = 0; i < one.length; ) {
    if (j < two.length && one[i] === two[j]) { parts.push(words[i++]); j++; }
    else if (j < two.length && length[i][j + 1] > length[i + 1][j]) j++;
    else parts.push(element("ins", words[i++]));
  }
  return parts.flatMap((part) => [part, " "]);
}
function picked(row, system) {
  const [caption, cider, wrong] = row.cells[system], difference = change(row, system);
  const against = by("marks").value === "base" ? row.cells[base()][0] : row.reference || caption;
  const score = element("small", `CIDEr ${cider.toFixed(2)}`);
  if (system !== base() && difference) score.append(" ", element("b", `${difference > 0 ? "▲ +" : "▼ "}${difference.toFixed(2)}`, { className: difference > 0 ? "up" : "down" }));
  return element("div", "", {}, element("h4", systems[system].name), element("p", "", {}, ...marked(caption, against)), score,
    ...wrong.map((kind) => element("span", `✗ ${errors[kind]}`, { className: "error" })));
}
function cells(row) {
  const reference = row.reference ? [element("div", "", {}, element("h4", "reference"), element("p", row.reference))] : [];
  return element("div", "", { className: "cells" }, ...reference, ...shown().map((system) => picked(row, system)));
}
function image(row) {
  const source = by(`image-${row.number}`);
  return source && element("img", "", { src: source.textContent, alt: `image ${row.id}` });
}
const address = (row) => "#" + encodeURIComponent(row.id);
function article(row) {
  const made = element("article", "", { id: row.id, tabIndex: -1 }, element("h3", "", {}, element("a", row.id, { href: address(row) })));
  const shownImage = image(row);
  if (shownImage) {
    const button = element("button", "", { type: "button", onclick: () => enlarge(found.indexOf(row)) }, shownImage);
    button.setAttribute("aria-label", `enlarge image ${row.id}`);
    made.append(button);
  }
  made.append(cells(row));
  return made;
}
function show(at = 0) {
  start = Math.max(0, Math.min(at, Math.floor((found.length - 1) / size) * size));
  by("list").replaceChildren(...found.slice(start, start + size).map(article));
  const last = Math.min(start + size, found.length);
  by("count").textContent = found.length ? `${start + 1} to ${last} of ${found.length}` + (found.length < rows.length ? ` (of ${rows.length} images)` : " images") : "no image matches";
  by("previous").disabled = start === 0;
  by("next").disabled = last >= found.length;
}
function filter() {
  const words = by("words").value.toLowerCase().split(/\s+/).filter(Boolean), chosen = shown();
  const facts = ["modality", "region", "finding"].filter((key) => by(key).value), error = errors.indexOf(by("error").value);
  found = rows.filter((row) => words.every((word) => row.text.includes(word)) && facts.every((key) => row[key].includes(by(key).value)) &&
    (error < 0 || chosen.some((system) => row.cells[system][2].includes(error))));
  const others = chosen.filter((system) => system !== base()), order = by("order").value;
  const key = { worst: (row) => Math.min(...others.map((system) => change(row, system))), best: (row) => -Math.max(...others.map((system) => change(row, system))),
    low: (row) => Math.min(...chosen.map((system) => row.cells[system][1])) }[order];
  if (key && (order === "low" ? chosen : others).length) found = found.map((row) => [key(row), row]).sort((one, two) => one[0] - two[0]).map(([, row]) => row);
  show();
}
function enlarge(position) {
  if (position < 0 || position >= found.length) return;
  open = position;
  const row = found[open];
  by("shown").replaceChildren(...[image(row), element("h3", row.id), cells(row)].filter(Boolean));
  by("before").disabled = open === 0;
  by("after").disabled = open === found.length - 1;
  history.replaceState(null, "", address(row));
  if (!by("enlarged").open) by("enlarged").showModal();
}
function follow() {
  let id = location.hash.slice(1);
  try { id = decodeURIComponent(id); } catch { /* a hand-written link */ }
  const row = rows.find((one) => one.id === id);
  if (!row) return;
  if (!found.includes(row)) { by("filters").reset(); filter(); }
  show(Math.floor(found.indexOf(row) / size) * size);
  const target = by(row.id);
  target.classList.add("linked");
  target.scrollIntoView({ block: "center" });
  target.focus({ preventScroll: true });
}

by("systems").append(...systems.map(({ name, shown: checked }, number) => {
  const box = element("input", "", { type: "checkbox", id: `system-${number}`, defaultChecked: checked });
  return element("label", "", {}, box, name);
}));
by("base").append(...systems.map(({ name }, number) => element("option", name, { value: number })));
for (const key of ["modality", "region", "finding"]) fill(key, "all", counted(rows.flatMap((row) => row[key])));
fill("error", "any or none", counted(rows.flatMap((row) => [...new Set(row.cells.flatMap((cell) => cell[2]))].map((kind) => errors[kind]))));
by("filters").addEventListener("input", filter);
by("filters").addEventListener("submit", (event) => event.preventDefault());
by("reset").addEventListener("click", () => { by("filters").reset(); filter(); });
by("previous").addEventListener("click", () => show(start - size));
by("next").addEventListener("click", () => show(start + size));
by("before").addEventListener("click", () => enlarge(open - 1));
by("after").addEventListener("click", () => enlarge(open + 1));
by("close").addEventListener("click", () => by("enlarged").close());
by("enlarged").addEventListener("close", () => { if (open < start || open >= start + size) show(Math.floor(open / size) * size); by(found[open].id).querySelector("button")?.focus(); });
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select")) return;
  if (by("enlarged").open) enlarge(open + step);
  else if (!event.target.closest(".scroll") && !by(step < 0 ? "previous" : "next").disabled) { show(start + step * size); by("list").scrollIntoView(); }
});
addEventListener("hashchange", follow);
filter();
follow();
document.addEventListener("DOMContentLoaded", () => { show(start); follow(); });  // with the images after the script
